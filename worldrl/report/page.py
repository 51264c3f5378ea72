"""One HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple


class Section(NamedTuple):
    """A heading, what there is to say, and figures as SVG text side by side."""

    heading: str
    text: str = ""
    figures: Sequence[str] = ()
    rows: Sequence[Mapping[str, object]] = ()  # of a table; the first row names the columns


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    style = (
        "body{font:15px/1.5 sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;color:#222}"
        "figure{display:inline-block;margin:.4em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.25em .7em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}"
    )
    body = "\n".join(map(_section, sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{style}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.rows:
        names = "".join(f"<th>{escape(name)}</th>" for name in section.rows[0])
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(row[name]))}</td>" for name in section.rows[0])
            + "</tr>"
            for row in section.rows
        )  # fmt: skip
        parts.append(f"<table><tr>{names}</tr>{rows}</table>")
    parts += [f"<figure>{figure}</figure>" for figure in section.figures]
    return "\n".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
