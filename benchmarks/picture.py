"""The picture of the containment benchmark: bars for each fault, drawn as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from benchmarks.figures import GOAL, Row


COLOURS: Final = ("#0b6e99", "#c9772b")
WIDTH, LEFT, PANEL, GAP = 1000, 260, 310, 60
TOP, BAR, BETWEEN = 74, 11, 8
LONGEST: Final = 10_000.0
"""The p99's axis ends at so many times; longer bars end there, and their figure says how long."""


def picture(found: Mapping[tuple[str, str], Row], titles: Mapping[str, str], contenders: Sequence[str]) -> str:
    """Return an SVG: throughput on the left, from 0 to 100 %, and p99 on the right, on a logarithmic scale."""
    shown = [fault for fault in titles if any((fault, contender) in found for contender in contenders)]
    step = len(contenders) * BAR + BETWEEN
    height = TOP + step * len(shown) + 10
    body = [*_heads(contenders), *_axes(height)]
    for place, fault in enumerate(shown):
        top = TOP + place * step
        body.append(_text(LEFT - 12, top + step / 2, titles[fault], anchor="end"))
        for number, contender in enumerate(contenders):
            body += _bars(found.get((fault, contender)), top + number * BAR, COLOURS[number])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">'
    )
    title = "<title>Healthy services beside a sick one: throughput and p99 against the run without the fault</title>"
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, title, ground, *body, "</svg>\n"])


def throughput_at(share: float) -> float:
    """Return how long the bar of a throughput is."""
    return PANEL * min(max(share, 0), 1)


def p99_at(times: float) -> float:
    """Return how long the bar of a p99 is: none for one time as long or shorter."""
    return PANEL * math.log(min(max(times, 1), LONGEST)) / math.log(LONGEST)


def _heads(contenders: Sequence[str]) -> Iterator[str]:
    yield _text(LEFT, 44, "throughput, of that without the fault", weight="bold")
    yield _text(LEFT + PANEL + GAP, 44, "p99, times that without the fault", weight="bold")
    for number, contender in enumerate(contenders):
        left = LEFT + number * 120
        yield f'<rect x="{left}" y="12" width="12" height="12" fill="{COLOURS[number]}"/>'
        yield _text(left + 18, 18, contender)
    left = LEFT + len(contenders) * 120
    yield f'<line x1="{left}" x2="{left}" y1="10" y2="26" stroke="#555" stroke-dasharray="3 2"/>'
    yield _text(left + 8, 18, f"goal: {GOAL[0]:.0%} or more, × {GOAL[1]} or less")


def _axes(height: int) -> Iterator[str]:
    ticks = [(throughput_at(share), f"{share:.0%}", LEFT) for share in (0, 0.5, 1)]
    ticks += [(p99_at(times), f"× {times:,}", LEFT + PANEL + GAP) for times in (1, 10, 100, 1_000, 10_000)]
    for at, label, left in ticks:
        yield _line(left + at, height, "#ddd")
        yield _text(left + at, TOP - 12, label, anchor="middle", colour="#777")
    for at in (LEFT + throughput_at(GOAL[0]), LEFT + PANEL + GAP + p99_at(GOAL[1])):
        yield _line(at, height, '#555" stroke-dasharray="3 2')


def _bars(row: Row | None, top: float, colour: str) -> Iterator[str]:
    if row is None:
        return
    both = ((LEFT, throughput_at(row.throughput), ""), (LEFT + PANEL + GAP, p99_at(row.p99), f"× {row.p99:,.1f}"))
    for left, width, label in both:
        yield (
            f'<rect x="{left}" y="{top:.0f}" width="{max(width, 1):.1f}" height="{BAR - 2}" fill="{colour}"'
            f' fill-opacity="{1 if row.contained else 0.55}"/>'
        )
        if label:
            yield _text(left + width + 4, top + BAR / 2 - 1, label, size=9)


def _line(x: float, height: int, stroke: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{height - 8}" stroke="{stroke}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "#222",
    size: int = 12,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
        f' font-size="{size}" dominant-baseline="middle">{escape(text)}</text>'
    )
