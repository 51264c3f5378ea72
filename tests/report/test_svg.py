"""Figures are well-formed, show what is finite, and stay within their frame."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from worldrl.report.page import Section, page
from worldrl.report.svg import HEIGHT, WIDTH, Line, Map, line_chart, plane_map, shade

SVG = "{http://www.w3.org/2000/svg}"


def coordinates(figure: str, tag: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in found.get("points", "").split()]
        for found in ElementTree.fromstring(figure).iter(f"{SVG}{tag}")
    ]


def test_a_line_goes_where_its_numbers_are() -> None:
    line = Line("a < b", [0, 50, 100], [[1.0, 1.0], [10.0, 10.0], [100.0, 100.0]])
    figure = line_chart("title & more", "x", "y", [line], log=True)
    (curve,) = (points for points in coordinates(figure, "polyline")[1:] if len(points) == 3)
    across, down = zip(*curve, strict=True)
    assert across[2] - across[1] == across[1] - across[0] > 0
    assert abs((down[0] - down[1]) - (down[1] - down[2])) <= 0.2  # decades are equally far
    assert down[0] > down[2]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)


def test_a_band_spans_the_members() -> None:
    figure = line_chart("t", "x", "y", [Line("a", [0, 1], [[1.0, 3.0], [1.0, 5.0]])])
    (band,) = coordinates(figure, "polygon")
    assert len(band) == 4
    assert band[1][1] < band[0][1] < band[3][1]  # up is a smaller number


def test_what_is_not_finite_is_left_out() -> None:
    lines = [Line("a", [0, 1, 2], [[1.0], [math.nan], [math.inf]]), Line("b", [0], [[-1.0]])]
    figure = line_chart("t", "x", "y", lines, log=True)
    assert "nan" not in figure
    assert "inf" not in figure
    assert [len(points) for points in coordinates(figure, "polygon")] == [2, 0]
    drawn = plane_map(Map("m", 1.0, [[0.0, math.nan], [1.0, 2.0]]), 0.0, 2.0)
    cells = [r for r in ElementTree.fromstring(drawn).iter(f"{SVG}rect") if r.get("x") != "308"]
    assert len(cells) == 3


def test_a_map_puts_points_up_and_right() -> None:
    drawn = plane_map(Map("m", 1.0, [[0.0] * 4] * 4, [], [(0.5, 0.5)]), 0.0, 1.0)
    (circle,) = ElementTree.fromstring(drawn).iter(f"{SVG}circle")
    low_right = plane_map(Map("m", 1.0, [[0.0] * 4] * 4, [], [(0.5, -0.5)]), 0.0, 1.0)
    (other,) = ElementTree.fromstring(low_right).iter(f"{SVG}circle")
    assert float(circle.get("cy", "")) < float(other.get("cy", ""))
    assert circle.get("cx") == other.get("cx") == "225.0"


def test_shades_run_from_dark_to_bright() -> None:
    assert shade(-1) == shade(0) == "#440154"
    assert shade(1) == shade(7) == "#fde725"


def test_a_page_escapes_what_it_shows() -> None:
    rows = [{"name": "<b>", "value": 1234.5678, "met": True}]
    text = page("a & b", [Section("h <", "t >", ["<svg/>"], rows)])
    for part in ("a &amp; b", "h &lt;", "t &gt;", "&lt;b&gt;", "1,235", "yes", "<svg/>"):
        assert part in text
