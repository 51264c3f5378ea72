"""Make the records under docs/results, and the pages from them.

    tools/records run NAME [--data DIR] [--out RUN_DIR] [--model RUN_DIR]
    tools/records all [--data DIR] [--only TEXT]
    tools/records study NAME [--data DIR]
    tools/records offline DATASET [--data DIR]
    tools/records pages

``run`` trains the experiment NAME of tools/experiments.yaml, or ``methods/DATASET-RECIPE``, a cell
of tools/methods.yaml, scores every seed's last policy and writes docs/results/NAME.json: settings,
dataset, versions, hardware, curve, scores. A run that was stopped is continued when it is asked for
again. ``all`` runs the cells of tools/methods.yaml that have no record yet. ``study`` makes one of
tools/studies.yaml. ``offline`` judges the policies of all cells of a dataset, which must lie under
runs/records, in the dataset's world models, and holds the estimates against their scores. ``pages``
writes the Markdown of docs/results from the records alone.
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
from experiments import (
    EPISODES,
    METHODS,
    OFFLINE,
    RESULTS,
    ROOT,
    STUDIES,
    load_experiments,
    load_methods,
    load_studies,
)
from tables import write_pages

import worldrl
from worldrl.config.judging import JudgeSettings
from worldrl.evaluation.off_policy import rank_correlation
from worldrl.study.true_settings import arm_configs
from worldrl.training.environment import environment_record, git_revision

RUNS = ROOT / "runs" / "records"


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


def shared_model(experiment: dict[str, Any], data: Path) -> Path | None:
    """The world models of a cell's dataset; trained where they are not there yet."""
    if "model" not in experiment:
        return None
    out = RUNS / "models" / experiment["model"]["name"]
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
    _warn_of_changes()
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
    _write(name, record)
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


def study(name: str, settings: dict[str, Any], data: Path) -> None:
    """Run a study; keep its numbers and two of its figures."""
    _warn_of_changes()
    out, seeds, updates = RUNS / STUDIES / name, settings["seeds"], settings["updates"]
    if "env_id" in settings:
        given = {"dataset": data / settings["dataset"], **settings["overrides"]}
        texts = [f"{key}={value}" for key, value in given.items()]
        configs = arm_configs(settings["env_id"], texts, seeds, updates, seed=0)
        found = worldrl.study_true_dynamics(settings["env_id"], configs, out)
    else:
        found = worldrl.study_edge_of_reach(seeds, updates, out=out)
    record = json.loads((found.path / "study.json").read_text())
    if "data" in record:
        record["data"]["source"] = settings["dataset"]
    for own in record["settings"].values():
        own["dataset"].pop("source")
    record = {"name": f"{STUDIES}{name}", "command": f"tools/records study {name}", **record}
    _write(f"{STUDIES}{name}", record)
    for figure in "return", "values":
        text = (found.path / f"{figure}.svg").read_text()
        (RESULTS / f"{STUDIES}{name}-{figure}.svg").write_text(text)


def offline(name: str, experiments: dict[str, Any], data: Path) -> None:
    """Judge all cells of a dataset without its environment, and rank the estimates by the scores.

    The worlds are those that recipes which imagine learned in: their policies are judged too well.
    """
    _warn_of_changes()
    cells = [cell for cell in experiments if cell.startswith(f"{METHODS}{name}-")]
    cells = [cell for cell in cells if (RESULTS / f"{cell}.json").exists()]
    scores = {cell: json.loads((RESULTS / f"{cell}.json").read_text())["score"] for cell in cells}
    model = RUNS / "models" / name
    settings = JudgeSettings(values=str(RUNS / "values" / name))
    source = str(data / experiments[cells[0]]["dataset"])
    found = worldrl.evaluate_offline([RUNS / cell for cell in cells], model, source, settings)
    rows = []
    for judged in found.policies:
        cell = next(one for one in cells if Path(judged.path) == (RUNS / one).resolve())
        returns = scores[cell]["returns"][judged.member]
        own = {"cell": cell, "true_return": float(np.mean(returns))}
        rows.append({key: v for key, v in judged.to_json().items() if key != "path"} | own)
    judges = {key: v for key, v in found.judges.items() if key not in ("model", "values")}
    judges["dataset"] = experiments[cells[0]]["dataset"]
    record = {
        "name": f"{OFFLINE}{name}",
        "command": f"tools/records offline {name}",
        "judges": judges,
        "policies": rows,
        "spearman": {
            "all": _ranked(rows),
            "of other worlds": _ranked([row for row in rows if not row["own_worlds"]]),
        },
        "environment": environment_record("cpu"),
    }
    _write(f"{OFFLINE}{name}", record)


def _ranked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's of every estimate with the scores."""
    truth = [row["true_return"] for row in rows]
    names = "value", "model_return", "discounted_value"
    found = {name: rank_correlation([row[name] for row in rows], truth) for name in names}
    return {"policies": len(rows), **found}


def _write(name: str, record: dict[str, Any]) -> None:
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _warn_of_changes() -> None:
    if (git := git_revision(ROOT)) is None or git["modified"]:
        print(
            "records: these sources are no clean checkout: the record cannot say which code made it"
        )


def main() -> int:
    """Make records, or the pages."""
    experiments, studies = load_experiments(), load_studies()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train, score and record one experiment")
    one.add_argument("name", choices=list(experiments), metavar="NAME")
    every = commands.add_parser("all", help="run the cells of tools/methods.yaml without a record")
    every.add_argument("--only", default="", help="cells whose name holds this")
    other = commands.add_parser("study", help="run one of tools/studies.yaml")
    other.add_argument("name", choices=list(studies), metavar="NAME")
    judged = commands.add_parser("offline", help="judge a dataset's cells without an environment")
    judged.add_argument("name", choices=list(load_methods()["datasets"]), metavar="DATASET")
    default = os.environ.get("WORLDRL_TEST_DATA", str(ROOT / "data"))
    for command in one, every, other, judged:
        command.add_argument("--data", type=Path, default=Path(default), help="of the datasets")
    one.add_argument("--out", type=Path, help="run directory (default: runs/records/NAME)")
    one.add_argument("--model", type=Path, help="a run whose world model is used")
    commands.add_parser("pages", help="write the Markdown of docs/results")
    arguments = parser.parse_args()
    if arguments.command == "pages":
        write_pages()
    elif arguments.command == "all":
        for name, experiment in experiments.items():
            wanted = name.startswith(METHODS) and arguments.only in name
            if wanted and not (RESULTS / f"{name}.json").exists():
                print(f"records: {name}", flush=True)
                model = shared_model(experiment, arguments.data)
                run(name, experiment, arguments.data, RUNS / name, model)
    elif arguments.command == "study":
        study(arguments.name, studies[arguments.name], arguments.data)
    elif arguments.command == "offline":
        offline(arguments.name, experiments, arguments.data)
    else:
        experiment = experiments[arguments.name]
        out = arguments.out or RUNS / arguments.name
        model = arguments.model or shared_model(experiment, arguments.data)
        run(arguments.name, experiment, arguments.data, out, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
