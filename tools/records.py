"""Make the records under docs/results, and the table from them.

    tools/records run NAME [--data DIR] [--out RUN_DIR] [--model RUN_DIR]
    tools/records all [--data DIR] [--only TEXT]
    tools/records table

``run`` trains the experiment NAME of tools/experiments.yaml, or ``methods/DATASET-RECIPE``, a cell
of tools/methods.yaml, scores every seed's last policy and writes docs/results/NAME.json: settings,
dataset, versions, hardware, curve, scores. A run that was stopped is continued when it is asked for
again. ``all`` runs the cells of tools/methods.yaml that have no record yet. ``table`` writes
docs/results/README.md and methods.md from the records alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import worldrl
from worldrl.envs import reference_scores
from worldrl.evaluation.statistics import normalized_score
from worldrl.training.environment import git_revision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
EPISODES = 10

#: Experiments of these prefixes get tables of their own.
CHOICE = "choice-"
METHODS = "methods/"


def data_baselines(dataset: Any) -> dict[str, float]:
    """Mean return of all episodes, of the last tenth, and of the best tenth."""
    returns = dataset.returns()
    tenth = max(len(returns) // 10, 1)
    return {
        "mean": float(returns.mean()),
        "last_tenth": float(returns[-tenth:].mean()),
        "best_tenth": float(np.sort(returns)[-tenth:].mean()),
        "best": float(returns.max()),
        "episodes": len(returns),
    }


def load_experiments() -> dict[str, Any]:
    """Those of tools/experiments.yaml, and the cells of tools/methods.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "tools" / "experiments.yaml").read_text())
    return found | cells(yaml.safe_load((ROOT / "tools" / "methods.yaml").read_text()))


def cells(methods: dict[str, Any]) -> dict[str, Any]:
    """Every recipe on every dataset, in the order of the file, as experiments."""
    found = {}
    for recipe, own in methods["recipes"].items():
        own = dict(own or {})
        own_model = own.pop("own_model", False)
        kind = worldrl.load_config("train", recipe, {"dataset": "x"}).imagination.kind
        for name, data in methods["datasets"].items():
            shared = kind not in ("none", "simulator") and not own_model
            found[f"{METHODS}{name}-{recipe}"] = {
                "recipe": recipe,
                "dataset": data["file"],
                "overrides": {**methods["common"], **data["budget"], **own},
                **({"model": {"name": name, "settings": methods["model"]}} if shared else {}),
            }
    return found


def shared_model(experiment: dict[str, Any], data: Path) -> Path | None:
    """The world models of a cell's dataset; trained where they are not there yet."""
    if "model" not in experiment:
        return None
    out = ROOT / "runs" / "records" / "models" / experiment["model"]["name"]
    if not (out / "model" / "model.json").exists():
        settings = {f"model.{key}": value for key, value in experiment["model"]["settings"].items()}
        common = {key: experiment["overrides"][key] for key in ("population", "threads", "compile")}
        source = {"dataset": str(data / experiment["dataset"])}
        config = worldrl.load_config("pretrain", "ensemble", source | common | settings)
        done = worldrl.resume(out) if out.exists() else worldrl.pretrain(config, out)
        if done.exit_code:
            sys.exit(done.exit_code)
    return out


def run(name: str, experiment: dict[str, Any], data: Path, out: Path, model: Path | None) -> None:
    """Train, score and record one experiment."""
    if (git := git_revision(ROOT)) is None or git["modified"]:
        print(
            "records: these sources are no clean checkout: the record cannot say which code made it"
        )
    source = data / experiment["dataset"]
    overrides = {"dataset.source": str(source), **experiment["overrides"]}
    if model is not None:
        overrides["model.source"] = str(model)
    if (out / "config.yaml").exists():
        wanted = worldrl.load_config("train", experiment["recipe"], overrides)
        if _differs(wanted, worldrl.load_config("train", str(out / "config.yaml"))):
            sys.exit(f"{out} holds a run with other settings; choose another --out or remove it")
        result = worldrl.resume(out)
    else:
        result = worldrl.train(worldrl.load_config("train", experiment["recipe"], overrides), out)
    if result.exit_code:
        sys.exit(result.exit_code)
    score = worldrl.evaluate(out, episodes=EPISODES, seed=1)
    dataset = worldrl.load_dataset(str(source))
    curve = []
    if (out / "eval.jsonl").exists():
        rows = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
        curve = [
            {"step": row["step"], "returns": [float(np.mean(r)) for r in row["returns"]]}
            for row in rows
            if row.get("stage") == "train" and "command" not in row
        ]
    record = {
        "name": name,
        "command": f"tools/records run {name}",
        "recipe": experiment["recipe"],
        "dataset": {
            "file": experiment["dataset"],
            "sha256": dataset.metadata.sha256,
            "env_id": dataset.metadata.env_id,
            "returns": data_baselines(dataset),
        },
        "overrides": experiment["overrides"],
        "settings": _settings(out),
        "given_model": model is not None,
        "status": result.status,
        "seconds": round(result.seconds),
        "metrics": result.metrics,
        "score": score.to_json(),
        "protocol": score.protocol(),
        "curve": curve,
        "environment": json.loads((out / "environment.json").read_text()),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(score.protocol())


def _differs(wanted: Any, found: Any) -> bool:
    """Whether a run was made with other settings; a given model brings its own."""
    left, right = (config.model_dump(mode="json") for config in (wanted, found))
    for settings in left, right:
        settings["dataset"]["source"] = Path(settings["dataset"]["source"]).name
        if wanted.model.source is not None:
            settings.pop("model")
    return bool(left != right)


def _settings(out: Path) -> dict[str, Any]:
    """The whole resolved configuration, without where things lay on this machine."""
    settings: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    for group in "dataset", "model":
        settings[group].pop("source", None)
    return settings


def _updates(record: dict[str, Any]) -> int:
    updates: int = record["settings"]["num_updates"]
    return updates


def table(experiments: dict[str, Any]) -> str:
    """Markdown from all records: one row an experiment, raw and normalised."""
    lines = [
        "# Results",
        "",
        "Built by `tools/records table` from the records beside this page; each row is made again",
        "by `tools/records run NAME`. Scores are of the last policy, mean ± deviation over seeds",
        f"(of one seed: over episodes), {EPISODES} deterministic episodes each; in brackets the",
        "normalised score (0 is a random policy, 100 an expert, by D4RL's reference returns). Data",
        "columns are mean returns of all episodes, of the last tenth recorded, and of the best",
        "tenth; hours marked * are without the world model's, which was trained by the same",
        "settings in a run of its own.",
        "",
        "| experiment | updates | seeds | score | data: mean | last tenth | best tenth | hours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for record in records:
        if record["name"].startswith(CHOICE):
            continue
        score, data = record["score"], record["dataset"]["returns"]
        reference = reference_scores(record["dataset"]["env_id"])

        def shown(value: float, reference: tuple[float, float] | None = reference) -> str:
            if reference is None:
                return f"{value:,.0f}"
            return f"{value:,.0f} [{float(normalized_score(value, reference)):.1f}]"

        mean, std = score["return_mean"], score["return_std"]
        own = f"{mean:,.0f} ± {std:,.0f}"
        if score["normalized_score"] is not None:
            own += f" [{score['normalized_score']:.1f} ± {score['normalized_std']:.1f}]"
        if any(stopped := score["stopped_by_guard"]):
            kept = [f"{step:,}" for step, s in zip(score["steps"], stopped, strict=True) if s]
            own += f" (guard: policy of update {', '.join(kept)})"
        updates = _updates(record)
        lines.append(
            f"| {record['name']} | {updates:,} | {score['members']} | {own} "
            f"| {shown(data['mean'])} | {shown(data['last_tenth'])} | {shown(data['best_tenth'])} "
            f"| {record['seconds'] / 3600:.2f}{' *' if record.get('given_model') else ''} |"
        )
    notes = [(name, one["note"].strip()) for name, one in experiments.items() if "note" in one]
    shown_notes = [
        f"- **{name}**: {note}" for name, note in notes if (RESULTS / f"{name}.json").exists()
    ]
    choices = [record for record in records if record["name"].startswith(CHOICE)]
    return (
        "\n".join([*lines, "", *shown_notes, "", *choice_table(choices, experiments)]).rstrip()
        + "\n"
    )


def methods_table(methods: dict[str, Any]) -> str:
    """Markdown from the cells' records: a row a recipe, a column a dataset."""
    found = {}
    for name in cells(methods):
        path = RESULTS / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    common, datasets = methods["common"], methods["datasets"]
    budgets = [data["budget"] for data in datasets.values()]
    lines = [
        "# Every method on the same data",
        "",
        "Built by `tools/records table` from the records under `methods/`; a cell is made again by",
        "`tools/records run methods/DATASET-RECIPE`. Small networks and few updates, on a dataset",
        f"the same for all: {common['population']} seeds as one population, with one world model",
        "a seed; other units stand in a cell where an update costs ten times another's. The rest",
        "is each recipe's own row for data without published settings, but for what",
        "`tools/methods.yaml` states. This compares what methods do with a small budget, not what",
        f"they reach. Mean return ± deviation over seeds of the last policy, {EPISODES}",
        "deterministic episodes each, and the normalised score in brackets; **bold** is above the",
        "data's mean; g: seeds that a guard stopped, scored with their last good policy.",
        "",
        f"| | {' | '.join(datasets)} |",
        "|---" * (len(datasets) + 1) + "|",
        f"| updates | {' | '.join(format(one['num_updates'], ',') for one in budgets)} |",
        f"| units | {' | '.join(_units(one['learner.hidden']) for one in budgets)} |",
    ]
    for label, key in (
        ("data: mean", "mean"),
        ("data: last tenth", "last_tenth"),
        ("data: best episode", "best"),
    ):
        row = []
        for dataset in datasets:
            of = [one for name, one in found.items() if name.startswith(f"{METHODS}{dataset}-")]
            row.append(f"{of[0]['dataset']['returns'][key]:,.0f}" if of else "")
        lines.append(f"| {label} | {' | '.join(row)} |")
    for recipe in methods["recipes"]:
        row = [
            _cell(found.get(f"{METHODS}{name}-{recipe}"), data["budget"]["learner.hidden"])
            for name, data in datasets.items()
        ]
        if any(row):
            lines.append(f"| `{recipe}` | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _units(hidden: list[int]) -> str:
    return " x ".join(map(str, hidden))


def _cell(record: dict[str, Any] | None, hidden: list[int]) -> str:
    if record is None:
        return ""
    score = record["score"]
    text = f"{score['return_mean']:,.0f} ± {score['return_std']:,.0f}"
    if score["normalized_score"] is not None:
        text += f" [{score['normalized_score']:.0f}]"
    if score["return_mean"] > record["dataset"]["returns"]["mean"]:
        text = f"**{text}**"
    if (stopped := sum(score["stopped_by_guard"] or [])) > 0:
        text += f" g{stopped}"
    own = record["overrides"]["learner.hidden"]
    return text if own == hidden else f"{text} ({_units(own)})"


def choice_table(records: list[dict[str, Any]], experiments: dict[str, Any]) -> list[str]:
    """Markdown: returns on the way, one row for every setting that was changed."""
    if not records:
        return []
    steps = [point["step"] for point in records[0]["curve"]]
    lines = [
        "## What the default recipe rests on",
        "",
        "halfcheetah-replay, one seed, one thing changed at a time in `mopo`'s settings for data",
        f"without published ones; mean return of {EPISODES} episodes after so many updates. One",
        "seed tells large differences only.",
        "",
        f"| changed | {' | '.join(f'{step:,}' for step in steps)} |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for name in (name for name in experiments if name.startswith(CHOICE)):
        for record in records:
            if record["name"] == name:
                returns = [f"{point['returns'][0]:,.0f}" for point in record["curve"]]
                lines.append(f"| {experiments[name]['what']} | {' | '.join(returns)} |")
    return lines


def main() -> int:
    """Run one experiment, or build the table."""
    experiments = load_experiments()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train, score and record one experiment")
    one.add_argument("name", choices=list(experiments), metavar="NAME")
    every = commands.add_parser("all", help="run the cells of tools/methods.yaml without a record")
    every.add_argument("--only", default="", help="cells whose name holds this")
    default = os.environ.get("WORLDRL_TEST_DATA", str(ROOT / "data"))
    for command in one, every:
        command.add_argument("--data", type=Path, default=Path(default), help="of the datasets")
    one.add_argument("--out", type=Path, help="run directory (default: runs/records/NAME)")
    one.add_argument("--model", type=Path, help="a run whose world model is used")
    commands.add_parser("table", help="write docs/results/README.md")
    arguments = parser.parse_args()
    if arguments.command == "table":
        (RESULTS / "README.md").write_text(table(experiments))
        methods = yaml.safe_load((ROOT / "tools" / "methods.yaml").read_text())
        (RESULTS / "methods.md").write_text(methods_table(methods))
        return 0
    if arguments.command == "all":
        for name, experiment in experiments.items():
            wanted = name.startswith(METHODS) and arguments.only in name
            if wanted and not (RESULTS / f"{name}.json").exists():
                print(f"records: {name}", flush=True)
                out = ROOT / "runs" / "records" / name
                run(name, experiment, arguments.data, out, shared_model(experiment, arguments.data))
        return 0
    experiment = experiments[arguments.name]
    out = arguments.out or ROOT / "runs" / "records" / arguments.name
    model = arguments.model or shared_model(experiment, arguments.data)
    run(arguments.name, experiment, arguments.data, out, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
