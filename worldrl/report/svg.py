"""Figures as SVG text: line charts and maps of a plane."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 520, 365
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 30, 40
PLOT_TOP = TOP + 49  # below three rows of keys
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e")
#: Dark, middle and bright end of a map's colours.
SHADES = ((68, 1, 84), (33, 145, 140), (253, 231, 37))


class Line(NamedTuple):
    """A curve, and the range of its members around it."""

    name: str
    x: Sequence[float]
    y: Sequence[Sequence[float]]  # (points, members); what is not finite is left out


class Map(NamedTuple):
    """Values on a square grid, with outlines and points over it."""

    name: str
    half_width: float  # the grid spans [-half_width, half_width] in both directions
    values: Sequence[Sequence[float]]  # (rows from below, columns)
    outlines: Sequence[Sequence[tuple[float, float]]] = ()
    points: Sequence[tuple[float, float]] = ()


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    log: bool = False,
    reference: tuple[str, float] | None = None,
) -> str:
    """Medians over members as lines, least to largest member as bands.

    Args:
        log: the vertical axis is logarithmic; values of 0 or less are left out.
        reference: a dashed level and its name.
    """

    def usable(value: float) -> bool:
        return math.isfinite(value) and (not log or value > 0)

    def scaled(value: float) -> float:
        return math.log10(value) if log else value

    summaries = []
    for line in lines:
        rows = []
        for x, members in zip(line.x, line.y, strict=True):
            known = [value for value in members if usable(value)]
            if known:
                middle = statistics.median(known)
                rows.append((x, *(scaled(value) for value in (middle, min(known), max(known)))))
        summaries.append(rows)
    levels = [value for rows in summaries for row in rows for value in row[1:]]
    if reference is not None and usable(reference[1]):
        levels.append(scaled(reference[1]))
    low, high = _range(levels)
    most = max((x for line in lines for x in line.x), default=0) or 1

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / most
        up = (HEIGHT - PLOT_TOP - BOTTOM) * _share(y, low, high)
        return f"{across:.1f},{HEIGHT - BOTTOM - up:.1f}"

    parts = _axes(title, x_label, y_label)
    for tick in _ticks(low, high, whole=log):
        across, down = at(0, tick).split(",")
        name = f"1e{tick:g}" if log else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{across}" y1="{down}" x2="{WIDTH - RIGHT}" y2="{down}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{float(down) + 4:.1f}" class="end">{name}</text>')
    for tick in _ticks(0, most):
        across = at(tick, low).split(",")[0]
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" class="mid">{tick:,g}</text>')
    if reference is not None and usable(reference[1]):
        level = scaled(reference[1])
        parts.append(f'<polyline class="level" points="{at(0, level)} {at(most, level)}"/>')
    names = [line.name for line in lines] + ([reference[0]] if reference else [])
    for index, rows in enumerate(summaries):
        colour = COLOURS[index % len(COLOURS)]
        band = [at(x, top) for x, _, _, top in rows] + [at(x, b) for x, _, b, _ in reversed(rows)]
        curve = [at(x, middle) for x, middle, _, _ in rows]
        parts.append(f'<polygon fill="{colour}" opacity="0.15" points="{" ".join(band)}"/>')
        parts.append(f'<polyline stroke="{colour}" points="{" ".join(curve)}"/>')
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)] if index < len(lines) else "#555"
        row, column = divmod(index, 2)
        left, base = LEFT + 8 + column * (WIDTH - LEFT - RIGHT) // 2, TOP + 8 + 15 * row
        parts.append(f'<rect x="{left}" y="{base - 6}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18}" y="{base}">{escape(name)}</text>')
    return _figure(parts, WIDTH, HEIGHT)


def plane_map(figure: Map, low: float, high: float) -> str:
    """A map in colours from ``low`` to ``high``; what is not finite is left white."""
    size, legend = 300, 54
    cell = size / len(figure.values)
    parts = [f'<text x="{size / 2}" y="16" class="mid title">{escape(figure.name)}</text>']
    for row, values in enumerate(figure.values):
        for column, value in enumerate(values):
            if math.isfinite(value):
                across, down = column * cell, TOP + size - (row + 1) * cell
                parts.append(
                    f'<rect x="{across:.1f}" y="{down:.1f}" width="{cell + 0.3:.1f}" '
                    f'height="{cell + 0.3:.1f}" fill="{shade(_share(value, low, high))}"/>'
                )

    def at(point: tuple[float, float]) -> tuple[float, float]:
        scale = size / (2 * figure.half_width)
        across, up = (point[0] + figure.half_width) * scale, (point[1] + figure.half_width) * scale
        return across, TOP + size - up

    for outline in figure.outlines:
        corners = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in outline)
        parts.append(f'<polygon class="outline" points="{corners}"/>')
    for across, down in map(at, figure.points):
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="1.6" class="point"/>')
    for step in range(20):
        down = TOP + size - (step + 1) * size / 20
        fill = shade((step + 0.5) / 20)
        parts.append(
            f'<rect x="{size + 8}" y="{down:.1f}" width="10" height="{size / 20 + 0.3:.1f}" '
            f'fill="{fill}"/>'
        )
    parts.append(f'<text x="{size + 22}" y="{TOP + 8}">{high:.3g}</text>')
    parts.append(f'<text x="{size + 22}" y="{TOP + size}">{low:.3g}</text>')
    return _figure(parts, size + 22 + legend, TOP + size + 8)


def shade(share: float) -> str:
    """A colour for a share in [0, 1]."""
    position = 2 * min(max(share, 0.0), 1.0)
    index = min(int(position), 1)
    first, second = SHADES[index], SHADES[index + 1]
    mixed = (round(a + (b - a) * (position - index)) for a, b in zip(first, second, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _axes(title: str, x_label: str, y_label: str) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        f'<text x="{middle}" y="16" class="mid title">{escape(title)}</text>',
        f'<text x="{middle}" y="{HEIGHT - 6}" class="mid">{escape(x_label)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" class="mid">'
        f"{escape(y_label)}</text>",
        f'<polyline class="axis" points="{LEFT},{PLOT_TOP} {LEFT},{HEIGHT - BOTTOM} '
        f'{WIDTH - RIGHT},{HEIGHT - BOTTOM}"/>',
    ]


def _figure(parts: Sequence[str], width: float, height: float) -> str:
    style = (
        "text{font:11px sans-serif;fill:#222}.mid{text-anchor:middle}.end{text-anchor:end}"
        ".title{font-size:13px}polyline{fill:none;stroke-width:1.6}.axis{stroke:#222}"
        ".grid{stroke:#ddd}.level{stroke:#555;stroke-dasharray:5 4}"
        ".outline{fill:none;stroke:#fff;stroke-width:1.2}.point{fill:#e74c3c}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><style>{style}</style>{"".join(parts)}</svg>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers between ``low`` and ``high``, about five."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    size = next((unit * factor for factor in (1, 2, 5) if unit * factor >= rough), 10 * unit)
    size = max(size, 1.0) if whole else size
    first = math.ceil(low / size)
    return [round(number * size, 10) for number in range(first, math.floor(high / size) + 1)]
