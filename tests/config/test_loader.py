from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldrl.config.fields import group_of, walk
from worldrl.config.imagination import BranchedSettings, NoImaginationSettings, PenaltySettings
from worldrl.config.loader import dump_config, load_config, load_saved, show_config
from worldrl.config.recipes import read
from worldrl.config.schema import TrainConfig
from worldrl.data.dataset import Dataset
from worldrl.errors import ConfigError

DATA = "dataset=logs.hdf5"


def write(folder: Path, text: str, name: str = "my.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def branched(config: TrainConfig) -> BranchedSettings:
    assert isinstance(config.imagination, BranchedSettings)
    return config.imagination


def test_no_recipe_gives_the_defaults_of_the_schema() -> None:
    config = load_config("train", "", [DATA])
    assert config == TrainConfig(dataset=config.dataset)
    assert config.dataset.source == "logs.hdf5"


class TestPrecedence:
    def test_recipe_beats_defaults(self) -> None:
        assert (
            load_config("train", "mopo", ["dataset=d4rl:hopper-medium-v2"]).num_updates == 3_000_000
        )
        assert TrainConfig.model_fields["num_updates"].default != 3_000_000

    def test_task_row_beats_recipe(self) -> None:
        config = load_config("train", "mopo", ["dataset=d4rl:walker2d-medium-replay-v2"])
        assert (branched(config).horizon, branched(config).penalty.weight) == (1, 2.5)

    def test_file_beats_task_row(self, tmp_path: Path) -> None:
        file = write(
            tmp_path,
            "recipe: mopo\ndataset: d4rl:walker2d-medium-replay-v2\nimagination: {horizon: 9}",
        )
        config = load_config("train", file)
        assert config.recipe == "mopo"
        assert (branched(config).horizon, branched(config).penalty.weight) == (9, 2.5)

    def test_row_of_the_file_beats_the_file(self, tmp_path: Path) -> None:
        file = write(tmp_path, "seed: 1\ntasks:\n  mine-v0: {seed: 2}")
        assert load_config("train", file, ["dataset=d4rl:mine-v0"]).seed == 2
        assert load_config("train", file, ["dataset=d4rl:other-v0"]).seed == 1

    def test_the_row_other_serves_every_dataset_without_a_row(self, tmp_path: Path) -> None:
        file = write(tmp_path, "seed: 1\ntasks:\n  mine-v0: {seed: 2}\n  other: {seed: 3}")
        for source, seed in ("d4rl:mine-v0", 2), ("d4rl:yours-v0", 3), ("x.npz", 3):
            assert load_config("train", file, [f"dataset={source}"]).seed == seed

    def test_overrides_beat_everything(self, tmp_path: Path) -> None:
        file = write(tmp_path, "recipe: mopo\ndataset: x\nimagination: {horizon: 9}\nseed: 4")
        config = load_config(
            "train", file, ["dataset=d4rl:hopper-medium-v2", "imagination.horizon=3"]
        )
        assert (branched(config).horizon, branched(config).penalty.weight) == (3, 5.0)
        assert (config.seed, config.dataset.source) == (4, "d4rl:hopper-medium-v2")

    def test_last_of_two_equal_overrides_counts(self) -> None:
        assert load_config("train", "mopo", [DATA, "seed=1", "seed=2"]).seed == 2
        config = load_config("train", "mopo", ["dataset=a", "dataset.source=b"])
        assert config.dataset.source == "b"

    def test_recipe_on_a_recipe(self) -> None:
        config = load_config("train", "mbpo", ["dataset=d4rl:walker2d-medium-v2"])
        assert config.recipe == "mbpo"
        assert branched(config).penalty.kind == "none"
        assert branched(config).penalty == PenaltySettings(kind="none")
        assert branched(config).horizon == 5

    def test_a_penalty_chosen_again_weighs_something(self) -> None:
        config = load_config("train", "mbpo", [DATA, "imagination.penalty.kind=mean_std"])
        assert branched(config).penalty.weight == 2.5  # as in mopo


class TestKinds:
    def test_another_kind_starts_from_its_own_defaults(self) -> None:
        config = load_config("train", "mopo", [DATA, "learner=bc", "imagination=none"])
        assert config.learner.kind == "bc"
        assert (
            config.learner
            == load_config("train", "", [DATA, "learner=bc", "imagination=none"]).learner
        )

    def test_no_imagination(self) -> None:
        config = load_config("train", "mopo", [DATA, "imagination=none"])
        assert config.imagination == NoImaginationSettings()

    def test_order_of_overrides_does_not_matter(self) -> None:
        bc = ["learner=bc", "imagination=none"]
        one = load_config("train", "mopo", [DATA, *bc, "learner.learning_rate=0.1"])
        other = load_config("train", "mopo", [DATA, "learner.learning_rate=0.1", *bc])
        assert one == other

    def test_naming_the_same_kind_again_keeps_the_recipe(self) -> None:
        stated = load_config("train", "mopo", ["dataset=d4rl:hopper-medium-v2", "learner=sac"])
        assert stated == load_config("train", "mopo", ["dataset=d4rl:hopper-medium-v2"])

    def test_settings_of_another_kind_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="belongs to another kind of learner"):
            load_config("train", "mopo", [DATA, "learner=bc", "learner.num_critics=3"])

    def test_unknown_kind(self) -> None:
        with pytest.raises(ConfigError, match=r"learner.kind is 'sacc' \(did you mean 'sac'\?\)"):
            load_config("train", "mopo", [DATA, "learner=sacc"])


class TestValues:
    @pytest.mark.parametrize("text", ["[200,200]", "200,200", "[200, 200]"])
    def test_lists(self, text: str) -> None:
        config = load_config("train", "mopo", [DATA, f"learner.hidden={text}"])
        assert config.learner.hidden == (200, 200)

    def test_one_value_is_a_list_of_one(self) -> None:
        config = load_config("train", "", [DATA, "learner.hidden=64", "model.weight_decay=1e-4"])
        assert (config.learner.hidden, config.model.weight_decay) == ((64,), (1e-4,))

    def test_scientific_notation(self, tmp_path: Path) -> None:
        config = load_config("pretrain", "", [DATA, "model.learning_rate=1e-3"])
        assert config.model.learning_rate == 0.001
        file = write(tmp_path, f"{DATA.replace('=', ': ')}\nnum_updates: 1e6")
        config_of_file = load_config("train", file)
        assert config_of_file.num_updates == 1_000_000
        assert type(config_of_file.num_updates) is int

    def test_text_is_taken_as_typed(self) -> None:
        for name in ("123", "true", "a: b", "x #1", "[y]", "&z", "~/data.npz", "a=b"):
            assert load_config("train", "", [f"dataset={name}"]).dataset.source == name

    def test_null(self) -> None:
        config = load_config("train", "", [DATA, "learner.max_temperature=null", "model=null"])
        assert config.learner.model_dump()["max_temperature"] is None
        assert config.model.source is None

    def test_either_word_or_switch(self) -> None:
        for text, value in (("auto", "auto"), ("true", True), ("false", False)):
            assert load_config("train", "", [DATA, f"compile={text}"]).compile == value

    def test_python_values(self, tmp_path: Path) -> None:
        trained_model(tmp_path)
        config = load_config(
            "train",
            "mopo",
            {"dataset": Path("logs.hdf5"), "learner.hidden": [8, 8], "model": tmp_path},
        )
        assert config.dataset.source == "logs.hdf5"
        assert (config.learner.hidden, config.model.source) == ((8, 8), str(tmp_path))
        nested = load_config("train", "mopo", {"dataset": {"source": "x"}, "seed": 3})
        assert (nested.dataset.source, nested.seed) == ("x", 3)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.hiden=3", ["learner.hiden", "did you mean 'learner.hidden'?", "target_rate"]),
        ("numupdates=3", ["did you mean 'num_updates'?", "eval_every"]),
        ("horizon=3", ["did you mean 'imagination.horizon'?"]),
        ("penalty.weight=3", ["'penalty.weight'", "did you mean 'imagination.penalty.weight'?"]),
        ("a..b=1", ["'a..b'"]),
        ("seed=abc", ["seed is 'abc'", "a whole number of at least 0", "for example seed=0"]),
        ("seed=1.5", ["seed is 1.5", "a whole number"]),
        ("seed=-1", ["seed is -1", "at least 0"]),
        ("seed=true", ["seed is true", "a whole number"]),
        ("seed=", ["seed is null", "a whole number"]),
        ("seed=99999999999999999999", ["beyond 64 bits"]),
        ("population=0", ["population is 0", "above 0"]),
        ("learner.discount=1", ["discount is 1", "of at least 0 and below 1", "discount=0.99"]),
        ("learner.discount=.nan", ["discount is nan", "a number"]),
        ("learner.critic_learning_rate=.inf", ["rate is inf", "a number above 0"]),
        ("guard.enabled=yes", ["guard.enabled is 'yes'", "true or false"]),
        ("guard.enabled=1", ["guard.enabled is 1", "true or false"]),
        ("learner.hidden=a,3", ["learner.hidden is [a,3]", "list", "hidden=[256,256]"]),
        ("learner.hidden=[]", ["a non-empty list"]),
        ("learner.hidden=[1,", ["learner.hidden", "line 1"]),
        ("learner.max_temperature=None", ["is 'None'", "a number above 0 or null"]),
        ("imagination.penalty.kind=max", ["kind is 'max'", "max_aleatoric", "ensemble_std"]),
        (
            "imagination={horizon: 3}",
            ["imagination.kind is '{horizon: 3}'", "branched, adversarial, simulator, none"],
        ),
        ("precision=float16", ["precision is 'float16'", "float32, bf16"]),
        ("evaluation=never", ["evaluation is a group", "evaluation.episodes"]),
        ("compile=perhaps", ["compile is 'perhaps'", "'auto' or true or false"]),
        ("model.num_elites=9", ["num_elites is 9", "7 members"]),
        ("seed", ["'seed' is no setting", "key=value"]),
        ("=3", ["'=3' is no setting"]),
        ("seed.x=2", ["seed"]),
        ("recipe=mopo", ["'recipe' cannot be set here"]),
        ("stage=train", ["'stage' cannot be set here"]),
    ],
)
def test_a_bad_override_says_what_is_right(override: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("train", "mopo", [DATA, override])
    message = str(error.value)
    for part in says:
        assert part in message
    assert "\n" not in message
    for noise in ("pydantic", "validation error", "input_type", "errors.pydantic"):
        assert noise not in message


def test_every_bad_value_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_config("train", "mopo", [DATA, "seed=a", "population=b", "learner.hidden=c,d"])
    for key in ("seed", "population", "learner.hidden"):
        assert str(error.value).count(f"arguments: {key} is") == 1


def test_a_missing_dataset_says_how_to_name_one() -> None:
    for overrides in ([], ["dataset.env_id=Hopper-v5"]):
        with pytest.raises(ConfigError, match=r"no dataset is given; .*dataset=d4rl:"):
            load_config("train", "mopo", overrides)


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("- 1\n- 2", "holds a list"),
            ("hello", "the single value 'hello'"),
            ("learner: {hiden: 3}", r"my.yaml: there is no setting 'learner.hiden'"),
            ("learner: {discount: abc}", r"my.yaml: learner.discount is 'abc'"),
            ("seed: 1\nseed: 2", r"my.yaml, line 2, .*'seed' stands here twice"),
            ("learner:", "learner is a group of settings and cannot be null"),
            ("learner: [1]", r"learner is a group of settings and cannot be \[1\]"),
            ("learner: {kind: 3}", "learner.kind is 3"),
            ("recipe: mop", r"'recipe: mop' names no shipped recipe .*did you mean 'mopo'"),
            ("recipe: [1]", "must be the name of a shipped recipe"),
            ("stage: pretrain", "written for `worldrl pretrain`"),
            ("stage: [1]", "stage is"),
            ("tasks: 3", "tasks holds"),
            ("tasks: {x-v0: 3}", "row x-v0: expected a mapping"),
            ("tasks: {x-v0: {horizon: 3}}", "row x-v0: there is no setting 'horizon'"),
            ("tasks: {x-v0: {recipe: mopo}}", "row x-v0: 'recipe' cannot be set here"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            load_config("train", write(tmp_path, text), ["dataset=d4rl:x-v0"])

    def test_what_is_no_recipe_file(self, tmp_path: Path) -> None:
        binary = tmp_path / "binary.yaml"
        binary.write_bytes(b"\x89HDF\r\n\xff")
        large = tmp_path / "large.yaml"
        large.write_bytes(b"#" * 2_000_000)
        for path, says in (
            (binary, "no UTF-8 text"),
            (large, "larger than"),
            (tmp_path, "is a folder.*worldrl resume"),
            (tmp_path / "none.yaml", "there is no recipe file"),
        ):
            with pytest.raises(ConfigError, match=says):
                load_config("train", str(path), [DATA])

    def test_an_empty_file_is_an_empty_recipe(self, tmp_path: Path) -> None:
        assert load_config("train", write(tmp_path, ""), [DATA]) == load_config("train", "", [DATA])


class TestRecipeNames:
    def test_unknown(self) -> None:
        with pytest.raises(
            ConfigError, match=r"'mopp' \(did you mean 'mopo'\?\); known: .*bc.*sac"
        ):
            load_config("train", "mopp", [DATA])

    def test_of_the_other_stage(self) -> None:
        with pytest.raises(ConfigError, match="is a recipe of `worldrl pretrain`"):
            load_config("train", "ensemble", [DATA])

    def test_forgotten(self) -> None:
        with pytest.raises(
            ConfigError, match=r"the first argument must be a recipe, got 'dataset=x'"
        ):
            load_config("train", "dataset=x", [])

    def test_unknown_stage(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown stage 'trian' \(did you mean 'train'\?\)"):
            load_config("trian", "mopo", [])


@pytest.mark.parametrize(
    ("stage", "recipe", "overrides"),
    [
        ("train", "mopo", ["dataset=d4rl:hopper-medium-expert-v2", "learner.hidden=64,64"]),
        ("train", "mopo", ["dataset=1e-3", "dataset.env_id=null ", "device=cpu"]),
        ("train", "", ["dataset=~/sp ace: #1", "learner.target_entropy=-3", "compile=false"]),
        ("train", "bc", ["dataset=x"]),
        ("train", "mbpo", ["dataset=d4rl:walker2d-medium-v2", "imagination.clip_range=null"]),
        ("pretrain", "ensemble", ["dataset=x", "model.max_epochs=3"]),
    ],
)
def test_dump_loads_back_equal(
    tmp_path: Path, stage: str, recipe: str, overrides: list[str]
) -> None:
    config = load_config(stage, recipe, overrides)
    file = write(tmp_path, dump_config(config))
    assert load_config(stage, file) == config


def test_show_prints_what_would_run() -> None:
    overrides = ["dataset=d4rl:hopper-medium-v2", "seed=7"]
    assert show_config("train", "mopo", overrides) == dump_config(
        load_config("train", "mopo", overrides)
    )


def test_show_works_without_a_dataset() -> None:
    for overrides in (["seed=7"], {"seed": 7}):
        text = show_config("train", "mopo", overrides)
        assert "source: null  # required" in text
        assert "seed: 7" in text
    with pytest.raises(ConfigError, match="seed is"):
        show_config("train", "mopo", ["seed=x"])


def test_every_setting_can_be_set_on_the_command_line() -> None:
    """Each key of the schema, given its own default, is accepted where its kind is chosen."""
    learners, samplings = (group_of(TrainConfig.model_fields[n]) for n in ("learner", "sampling"))
    assert learners is not None
    assert samplings is not None
    imagining = {
        "mobile": {"imagination.penalty.kind": "none"},
        "h2o": {"imagination": "simulator"},
    }
    kinds: list[dict[str, Any]] = [
        {"learner": kind, **imagining.get(kind, {"imagination": "none"})}
        for kind in learners.classes
    ]
    kinds += [{"sampling": kind} for kind in samplings.classes]
    kinds += [{}, *({"learner.critic_loss.kind": kind} for kind in ("hl_gauss", "huber"))]
    kinds += [{"imagination": "adversarial"}, {"acceptance": "ope", "population": 2}]
    kinds += [{"learner.encoder": "cocoa"}, {"imagination.filter": "dynamics_reward"}]
    for path in walk(TrainConfig):
        key = ".".join(path)
        if key in ("stage", "recipe"):
            continue
        accepted = 0
        for kind in kinds:
            config = load_config("train", "", {"dataset": "logs.hdf5", **kind}).model_dump()
            value = config
            for name in path:
                value = value.get(name, {}) if isinstance(value, dict) else {}
            if value == {}:
                continue
            loaded = load_config("train", "", {"dataset": "logs.hdf5", **kind, key: value})
            assert loaded.model_dump() == config, key
            accepted += 1
        assert accepted, key


# -- settings with one value a member --------------------------------------------------------


def test_a_list_gives_every_member_its_own_value():
    found = load_config(
        "train",
        "mopo",
        ["dataset=x", "population=2", "learner.discount=[0.9,0.99]", "imagination.horizon=1,5"],
    )
    assert found.learner.discount == (0.9, 0.99)
    assert found.imagination.kind == "branched"
    assert found.imagination.horizon == (1, 5)


def test_a_single_value_stays_single():
    found = load_config("train", "mopo", ["dataset=x", "population=2", "learner.discount=0.9"])
    assert found.learner.discount == 0.9


@pytest.mark.parametrize("listed", ["0.5", "0.5,1,2"])
def test_a_list_of_another_length_than_the_population_is_refused(listed):
    with pytest.raises(ConfigError, match=r"penalty\.weight lists \d values, and population"):
        load_config(
            "train", "mopo", ["dataset=x", "population=2", f"imagination.penalty.weight=[{listed}]"]
        )


def test_a_list_where_only_one_value_can_be_is_refused():
    with pytest.raises(ConfigError, match="num_critics"):
        load_config("train", "mopo", ["dataset=x", "population=2", "learner.num_critics=[2,4]"])


def test_lists_survive_the_file_of_a_run(tmp_path):
    found = load_config(
        "train", "mopo", ["dataset=x", "population=2", "learner.discount=[0.9,0.99]"]
    )
    (tmp_path / "config.yaml").write_text(dump_config(found))
    assert load_config("train", str(tmp_path / "config.yaml")) == found


# -- what would be ignored -------------------------------------------------------------------


def trained_model(folder: Path, *overrides: str) -> str:
    """What the loader reads of a pretrain run in ``folder``; the override that gives it."""
    config = load_config("pretrain", "ensemble", ["dataset=x", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    return f"model={folder}"


def test_a_trained_model_brings_its_own_settings(tmp_path):
    given = trained_model(tmp_path, "model.hidden=[8,8]", "model.max_epochs=3")
    config = load_config("train", "mopo", ["dataset=x", given])
    assert (config.model.hidden, config.model.max_epochs) == ((8, 8), 3)
    assert config.model.source == str(tmp_path)
    shown = write(tmp_path, show_config("train", "mopo", ["dataset=x", given]))
    assert load_config("train", shown) == config


def test_other_settings_than_the_trained_models_are_refused(tmp_path):
    given = trained_model(tmp_path, "model.hidden=[8,8]")
    wanted = r"arguments: model\.hidden is \[16,16\], and .* is trained already, with \[8,8\]"
    with pytest.raises(ConfigError, match=wanted):
        load_config("train", "mopo", ["dataset=x", given, "model.hidden=[16,16]"])
    same = load_config("train", "mopo", ["dataset=x", given, "model.hidden=[8,8]"])
    assert same.model.hidden == (8, 8)
    file = write(tmp_path, "recipe: mopo\nmodel: {hidden: [16, 16]}")
    with pytest.raises(ConfigError, match=r"file .*: model\.hidden is \[16,16\]"):
        load_config("train", file, ["dataset=x", given])


def test_a_run_brings_the_dynamics_reward_that_it_learned(tmp_path):
    sizes = "imagination.filter.reward.hidden=[8]"
    config = load_config("train", "morec", ["dataset=x", sizes])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    given = ["dataset=x", f"model={tmp_path}"]
    assert load_config("train", "morec", given).imagination.filter.reward.hidden == (8,)
    assert load_config("train", "morec", [*given, sizes]).imagination.filter.reward.hidden == (8,)
    with pytest.raises(ConfigError, match=r"reward\.hidden is \[9\], and the dynamics reward of"):
        load_config("train", "morec", [*given, "imagination.filter.reward.hidden=[9]"])
    assert load_config("train", "mopo", given).imagination.filter.kind == "none"
    # Without a reward there, one is learned, as asked.
    bare = trained_model(tmp_path)
    found = load_config("train", "morec", ["dataset=x", bare, sizes])
    assert found.imagination.filter.reward.hidden == (8,)


@pytest.mark.parametrize(
    ("recipe", "words", "why"),
    [
        ("iql", ["model.num_members=9"], "nothing asks a world model"),
        ("iql", ["termination.kind=never"], "nothing is imagined"),
        ("sac", ["learner.temperature=fixed", "learner.target_entropy=-3"], "temperature is fixed"),
        ("mopo", ["learner.temperature=fixed", "learner.max_temperature=2"], "is fixed"),
        ("cql", ["learner.target_entropy=-3", "learner.entropy_per_action=0.5"], "says it"),
    ],
)
def test_an_override_that_nothing_reads_is_refused(tmp_path, recipe, words, why):
    with pytest.raises(
        ConfigError, match=f"{words[-1].partition('=')[0]} would be unused: .*{why}"
    ):
        load_config("train", recipe, ["dataset=x", *words])
    # A file may be the whole configuration of another run.
    whole = load_config("train", recipe, ["dataset=x"])
    (tmp_path / "config.yaml").write_text(dump_config(whole))
    assert load_config("train", str(tmp_path / "config.yaml"), words[:-1]) is not None


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"arguments: model is '.*none', and there is no run"):
        load_config("train", "mopo", ["dataset=x", f"model={tmp_path / 'none'}"])


def test_a_saved_configuration_does_not_need_its_model(tmp_path):
    (tmp_path / "m").mkdir()
    given = trained_model(tmp_path / "m", "model.hidden=[8,8]")
    config = load_config("train", "mopo", ["dataset=x", given])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "m" / "config.yaml").unlink()
    assert load_saved(str(tmp_path / "config.yaml")) == config


def test_a_saved_configuration_asks_no_recipe(tmp_path):
    """What a recipe says tomorrow must not change the runs of today, nor its going end them."""
    saved = dump_config(load_config("train", "mopo", ["dataset=x"]))
    assert "target_rate: 0.02" in saved  # mopo's own; the schema's is 0.005
    file = write(tmp_path, saved.replace("  target_rate: 0.02\n", "").replace("mopo", "gone"))
    found = load_saved(file)
    assert isinstance(found, TrainConfig)
    assert found.recipe == "gone"
    assert found.learner.model_dump()["target_rate"] == 0.005


def test_a_dataset_in_memory_is_told_the_way_to_a_file():
    data = Dataset.from_arrays(
        np.zeros((2, 1)), np.zeros((2, 1)), np.ones(2), [0, 1], None, np.zeros((2, 1))
    )
    with pytest.raises(ConfigError, match=r"export\(dataset, Path\('mine\.npz'\)\)"):
        load_config("train", "mopo", {"dataset": data})


@pytest.mark.parametrize("name", ["hopper-medium-v2", "hopper_medium-v2"])
def test_a_file_named_as_d4rl_names_it_gets_its_row(name):
    by_name = load_config("train", "mopo", ["dataset=d4rl:hopper-medium-v2"])
    by_file = load_config("train", "mopo", [f"dataset=data/{name}.hdf5"])
    assert branched(by_file) == branched(by_name)
    assert by_file.num_updates == 3_000_000


@pytest.mark.parametrize("recipe", ["bc", "h2o"])
def test_a_model_that_nothing_would_use_is_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match="nothing would use the model"):
        load_config("train", recipe, ["dataset=x", trained_model(tmp_path)])


def test_settings_of_a_stop_that_never_happens_are_refused():
    start, stop = "dataset=x", "imagination.stop"
    for given, wanted in (
        ([f"{stop}.quantile=0.9", f"{stop}.cost=2"], "quantile and cost would be unused"),
        ([f"{stop}.kind=drop", f"{stop}.cost=2"], "cost is of kind=absorb, and kind is drop"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            load_config("train", "mopo", [start, *given])
    found = load_config("train", "mopo", [start, f"{stop}.kind=absorb", f"{stop}.cost=2"])
    assert branched(found).stop.cost == 2.0


def test_cloning_imagined_actions_is_refused():
    with pytest.raises(ConfigError, match="Set imagination=none"):
        load_config("train", "mopo", ["dataset=x", "learner=bc"])


@pytest.mark.parametrize("device", ["gpu", "cpu:3", "cuda:x", "yes", ""])
def test_what_is_no_device_is_refused_without_torch(device):
    with pytest.raises(ConfigError, match=r"is no device; use auto, cpu, cuda or cuda:0"):
        load_config("train", "sac", {"dataset": "x", "device": device})


def test_a_termination_task_that_nothing_would_use_is_refused():
    given = ["dataset=x", "termination.task=hopper", "termination.kind=never"]
    with pytest.raises(ConfigError, match="uses no formula"):
        load_config("train", "mopo", given)


def test_a_name_that_is_nearly_right_is_suggested():
    with pytest.raises(ConfigError, match=r"task is 'hoper' \(did you mean 'hopper'\?\), and must"):
        load_config("train", "mopo", ["dataset=x", "termination.task=hoper"])


def test_a_model_given_to_the_stage_that_trains_one_is_refused():
    with pytest.raises(ConfigError, match="this stage trains one"):
        load_config("pretrain", "ensemble", ["dataset=x", "model=runs/m"])


@pytest.mark.parametrize(
    "setting", ["imagination.penalty.kind=mean_std", "imagination.stop.kind=drop"]
)
def test_the_disagreement_of_a_single_member_is_refused(setting):
    alone = ["dataset=x", "model.num_members=1", "model.num_elites=1"]
    penalty = ["imagination.penalty.kind=max_aleatoric"]
    with pytest.raises(ConfigError, match="one member cannot disagree"):
        load_config("train", "mopo", [*alone, *penalty, setting])
    load_config("train", "mopo", [*alone, *penalty])


def test_pretraining_apart_learns_the_model_that_training_would_learn():
    rows = [*read("train", "mopo")[-1].tasks, "antmaze-umaze-v2"]
    for source in [f"d4rl:{name}" for name in rows if name != "other"] + ["logs.hdf5"]:
        apart = load_config("pretrain", "ensemble", [f"dataset={source}"])
        assert apart.model == load_config("train", "mopo", [f"dataset={source}"]).model, source


def test_a_stop_has_one_limit():
    both = ["dataset=x", "imagination.stop.quantile=0.9"]
    with pytest.raises(ConfigError, match="two limits, and there is one"):
        load_config("train", "morel", both)
    stop = branched(load_config("train", "morel", [*both, "imagination.stop.deviations=null"])).stop
    assert (stop.quantile, stop.deviations) == (0.9, None)


def test_what_a_recipe_says_of_its_stop_is_void_where_the_stop_is_another():
    for kind, cost in ("none", 0.0), ("truncate", 0.0), ("absorb", 50.0):
        config = load_config("train", "morel", ["dataset=x", f"imagination.stop.kind={kind}"])
        assert branched(config).stop.cost == cost
    with pytest.raises(ConfigError, match="cost is of kind=absorb"):
        load_config(
            "train",
            "morel",
            ["dataset=x", "imagination.stop.kind=drop", "imagination.stop.cost=3"],
        )


def test_judges_that_nothing_asks_are_refused():
    with pytest.raises(ConfigError, match="judges would be unused"):
        load_config("train", "mbpo", ["dataset=x", "imagination.judges=elites"])


def test_the_disagreement_of_a_single_elite_is_refused():
    given = ["dataset=x", "imagination.judges=elites", "model.num_elites=1"]
    with pytest.raises(ConfigError, match=r"model\.num_elites is 1"):
        load_config("train", "mopo", given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["stop.kind=truncate"],
            r"both say where rollouts stop\. Set imagination\.stop\.kind",
        ),
        (["elite=per_rollout"], r"elite=per_rollout would be unused.*Leave it out"),
        (
            ["filter.networks=41"],
            r"networks is 41.*40 snapshots.*raise imagination\.filter",
        ),
        (
            ["filter.selector=argmax", "filter.temperature=0.5"],
            r"temperature would be unused.*set imagination\.filter\.selector=softmax",
        ),
        (["filter.reward.num_updates=99_999"], r"makes 39 snapshots, and 40.*Lower snapshot_every"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(changes: list[str], message: str) -> None:
    asked = ["imagination.filter.kind=dynamics_reward", *(f"imagination.{c}" for c in changes)]
    with pytest.raises(ConfigError, match=message):
        load_config("train", "mopo", ["dataset=x", *asked])


def test_settings_of_a_filter_without_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"imagination\.filter\.limit.*another kind"):
        load_config("train", "mopo", ["dataset=x", "imagination.filter.limit=0.5"])
