"""What the edge-of-reach study says: what was expected of its arms and found, figures, a page."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from worldrl.report.page import Section
from worldrl.report.svg import Line, Map, line_chart, plane_map
from worldrl.study import point
from worldrl.study.arms import Curve


class Finished(NamedTuple):
    """An arm that has learned."""

    title: str
    curve: Curve
    values: Tensor  # (CELLS, CELLS) of the first member, rows from below
    endpoints: Tensor  # (ENDPOINTS, 2) of the first member's rollouts


def criteria(curves: Mapping[str, Curve], true: float, best: float) -> dict[str, dict[str, Any]]:
    """What was expected, what was found in every member, and whether all did as expected.

    Args:
        true: the largest value of any state.
        best: mean return of the best policy.
    """

    def of(name: str, quantity: str, unit: float) -> list[float]:
        return [number / unit for number in curves[name].last(quantity)]

    found: dict[str, dict[str, Any]] = {}

    def state(name: str, expected: str, values: list[float], met: list[bool]) -> None:
        found[name] = {"expected": expected, "found": values, "met": all(met)}

    blown = of("base", "max_abs_q_inside", true)
    # Written so that NaN, a run that left all numbers behind, is an overestimate and no success.
    state(
        "base overestimates",
        "max |Q| more than 10 times the largest true value",
        blown,
        [not share <= 10 for share in blown],
    )
    for name in ("patch", "critics", "ravl"):
        shares = of(name, "max_abs_q_inside", true)
        state(
            f"{name} values",
            "max |Q| within 20 % of the largest true value",
            shares,
            [abs(share - 1) <= 0.2 for share in shares],
        )
        returns = of(name, "return", best)
        state(
            f"{name} return",
            "return within 10 % of the best",
            returns,
            [share >= 0.9 for share in returns],
        )
    for name in "critics", "ravl":
        edge, inside = (curves[name].last(f"critic_spread_{where}") for where in ("edge", "inside"))
        ratios = [a / b for a, b in zip(edge, inside, strict=True)]
        state(
            f"{name} spread",
            "critics disagree more on the edge than inside",
            ratios,
            [ratio > 1 for ratio in ratios],
        )
    return found


def draw_figures(
    finished: Mapping[str, Finished], record: Mapping[str, Any], horizon: int, half_width: float
) -> dict[str, str]:
    """SVG text by file name.

    Args:
        horizon: steps of a rollout.
        half_width: of the maps.
    """

    def lines(quantity: str) -> list[Line]:
        return [
            Line(arm.title, arm.curve.updates, arm.curve.values[quantity])
            for arm in finished.values()
        ]

    true, best = record["true_value"], record["best_return"]
    figures = {
        "return": line_chart(
            "Return of 30 steps", "updates", "return", lines("return"), reference=("best", best)
        ),
        "values": line_chart(
            "Largest |Q| inside reach", "updates", "max |Q|", lines("max_abs_q_inside"),
            log=True, reference=("largest true value", true),
        ),
        "values-edge": line_chart(
            "Largest |Q| on the edge", "updates", "max |Q|", lines("max_abs_q_edge"),
            log=True, reference=("largest true value", true),
        ),
        "spread-inside": line_chart(
            "Deviation of the critics, inside reach", "updates", "deviation",
            lines("critic_spread_inside"), log=True,
        ),
        "spread-edge": line_chart(
            "Deviation of the critics, on the edge", "updates", "deviation",
            lines("critic_spread_edge"), log=True,
        ),
        "ends": line_chart(
            "Rollouts that end beyond reach", "updates", "share", lines("ends_beyond_reach")
        ),
    }  # fmt: skip
    outlines = [point.outline(steps) for steps in (0, horizon - 1, horizon)]
    for name, arm in finished.items():
        known = arm.values[arm.values.isfinite()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        ends = [(float(x), float(y)) for x, y in arm.endpoints.tolist()]
        drawn = Map(arm.title, half_width, arm.values.tolist(), outlines, ends)
        figures[f"map-{name}"] = plane_map(drawn, low, high)
    return figures


def write_up(
    finished: Mapping[str, Finished],
    record: Mapping[str, Any],
    figures: Mapping[str, str],
    horizon: int,
) -> list[Section]:
    """The page's sections."""
    criteria_rows = [
        {
            "": name,
            "expected": row["expected"],
            "found, by member": ", ".join(f"{value:.4g}" for value in row["found"]),
            "met": row["met"],
        }
        for name, row in record["criteria"].items()
    ]
    last = {
        name: {key: values[-1] for key, values in curves.items() if key != "updates"}
        for name, curves in record["curves"].items()
    }
    rows = [
        {
            "arm": finished[name].title,
            "return": median(own["return"]),
            "max |Q| inside": median(own["max_abs_q_inside"]),
            "max |Q| on the edge": median(own["max_abs_q_edge"]),
            "deviation inside": median(own["critic_spread_inside"]),
            "deviation on the edge": median(own["critic_spread_edge"]),
            "ends beyond reach": median(own["ends_beyond_reach"]),
        }
        for name, own in last.items()
    ]
    about = (
        f"A point moves by at most {point.STEP} a coordinate and step; states in the data are "
        f"uniform in a disc of radius {point.RADIUS}. Rollouts of {horizon} steps run in the true "
        f"dynamics, so no arm meets a model error. What only the last of them can reach has no "
        "value that is ever learned. Largest true value "
        f"{record['true_value']:.4g}, best return {record['best_return']:.4g}; "
        f"{record['updates']:,} updates, seeds {', '.join(map(str, record['seeds']))}. The goal, "
        "the width of its bump and the rates were chosen so that the base arm fails: with slower "
        "targets it does so less often, and with faster ones ten critics fail too. So was the "
        "weight of RAVL's term: with the published 1, or 0.1, values run away in that arm as well."
    )
    return [
        Section("What it is", about),
        Section("What was expected, and found", rows=criteria_rows),
        Section("At the end, medians over members", rows=rows),
        Section(
            "On the way",
            "Medians over members; bands reach from the least to the largest.",
            [text for name, text in figures.items() if not name.startswith("map-")],
        ),
        Section(
            "Values over the plane",
            "Of the first member, at its own action. Outlines: the data's disc, what "
            f"{horizon - 1} and {horizon} steps reach. Points: where rollouts end.",
            [text for name, text in figures.items() if name.startswith("map-")],
        ),
    ]
