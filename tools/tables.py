"""The pages under docs/results, made from the records beside them."""

from __future__ import annotations

import json
from typing import Any

from experiments import (
    CHOICE,
    EPISODES,
    METHODS,
    OFFLINE,
    RESULTS,
    STUDIES,
    cells,
    load_experiments,
    load_methods,
    load_studies,
)

from worldrl.envs import reference_scores
from worldrl.evaluation.statistics import normalized_score


def _updates(record: dict[str, Any]) -> int:
    updates: int = record["settings"]["num_updates"]
    return updates


def table(experiments: dict[str, Any]) -> str:
    """Markdown from all records: one row an experiment, raw and normalised."""
    lines = [
        "# Results",
        "",
        "[Every method on the same data](methods.md) · [Studies](studies.md) ·",
        "[Estimates without the environment](offline.md)",
        "",
        "Built by `tools/records pages` from the records beside this page; each row is made again",
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
        "Built by `tools/records pages` from the records under `methods/`; a cell is made again by",
        "`tools/records run methods/DATASET-RECIPE`. Small networks and few updates, on a dataset",
        f"the same for all: {common['population']} seeds as one population, with one world model",
        "a seed; other units stand in a cell where an update costs several times another's. The",
        "rest is each recipe's own row for data without published settings, but for what",
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
    lines += ["", *(f"- {note.strip()}" for note in methods["notes"])]
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


def studies_page() -> str:
    """Markdown: what every study expected and found, and its figures."""
    lines = [
        "# Studies",
        "",
        "Built by `tools/records pages` from the records under `studies/`. Numbers are of the end",
        "of training, one a seed.",
    ]
    studies = load_studies()
    for name in studies:
        path = RESULTS / f"{STUDIES}{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        lines += [
            *("", f"## {name}", ""),
            f"`{record['command']}`: {_budget(record)}.",
            *("", "| | expected | found | as expected |", "|---|---|---|---|"),
        ]
        for what, row in record["criteria"].items():
            found = ", ".join(f"{value:,.3g}" for value in row["found"])
            expected = row["expected"].replace("|", "\\|")
            lines.append(f"| {what} | {expected} | {found} | {'yes' if row['met'] else 'no'} |")
        curves = record["curves"]
        values = next(key for key in ("max_abs_q_inside", "max_abs_q") if key in curves["base"])
        lines += ["", "| arm | return | largest absolute value |", "|---|---|---|"]
        for arm, curve in curves.items():
            ends = [", ".join(f"{v:,.4g}" for v in curve[key][-1]) for key in ("return", values)]
            lines.append(f"| {arm} | {' | '.join(ends)} |")
        if (note := studies[name].get("note")) is not None:
            lines += ["", note.strip()]
        figures = [f"![{one}](studies/{name}-{one}.svg)" for one in ("return", "values")]
        lines += ["", *figures]
    return "\n".join(lines) + "\n"


def _budget(record: dict[str, Any]) -> str:
    settings = record["settings"]["base"]
    text = f"{settings['num_updates']:,} updates, {settings['population']} seeds"
    if "best_return" in record:
        best, largest = record["best_return"], record["true_value"]
        return f"{text}; the best return is {best:.4g}, the largest true value {largest:.4g}"
    units = _units(settings["learner"]["hidden"])
    data = f"data of mean return {record['data_return_mean']:,.0f}"
    return f"{record['env_id']}, {data}, {text}, {units} units"


def offline_page() -> str:
    """Markdown: how well estimates without the environment rank the cells' policies."""
    lines = [
        "# Estimates without the environment",
        "",
        "Built by `tools/records pages` from the records under `offline/`: Spearman's correlation",
        "of what `worldrl evaluate --offline` says with the scores of the same policies, all that",
        "[the table of methods](methods.md) has on a dataset. J is the mean value along a walk in",
        "the model (Uni-O4), beside the walk's undiscounted return and its discounted value.",
        "Policies that learned in the judging worlds are judged too well; the second row of a",
        "dataset leaves them out.",
        "",
        "| dataset | policies | J | return in the model | discounted value |",
        "|---|---|---|---|---|",
    ]
    for path in sorted((RESULTS / OFFLINE).glob("*.json")):
        record = json.loads(path.read_text())
        for which, row in record["spearman"].items():
            told = [row[key] for key in ("value", "model_return", "discounted_value")]
            texts = ["" if value is None else f"{value:.2f}" for value in told]
            lines.append(f"| {path.stem}, {which} | {row['policies']} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every page by its name."""
    return {
        "README.md": table(load_experiments()),
        "methods.md": methods_table(load_methods()),
        "studies.md": studies_page(),
        "offline.md": offline_page(),
    }


def write_pages() -> None:
    """Write them under docs/results."""
    for name, text in pages().items():
        (RESULTS / name).write_text(text)
