"""Figures of the page: SVG of a few lines and areas, coloured by the classes of its style sheet.

Every text in a figure is a number or a word of ours: names from data stand in the page's HTML. The
drawings are 360 units wide, so that their text can be read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from compatctl.core.policy import Rule

WIDTH = 360
LEFT, RIGHT = 44, 12

Format = Callable[[float], str]

_STYLE = (
    ".t{font:11px sans-serif;fill:#222}.grid{stroke:#ccc}.limit{stroke:#222;stroke-dasharray:4 3}"
    ".curve{fill:none;stroke:#0b5fa5;stroke-width:2}.cap{stroke:#0b5fa5;stroke-width:2}"
    ".dot{fill:#0b5fa5}.ahead{stroke:#b5541c;stroke-width:2;stroke-dasharray:5 4}"
    ".hollow{fill:#fff;stroke:#b5541c;stroke-width:2}"
    "@media(prefers-color-scheme:dark){.t{fill:#ddd}.grid{stroke:#555}.limit{stroke:#ddd}"
    ".curve,.cap{stroke:#6fb7f2}.dot{fill:#6fb7f2}.ahead{stroke:#f0a070}"
    ".hollow{fill:#111;stroke:#f0a070}}"
)
"""Colours of a chart that stands alone."""


def short(value: float) -> str:
    """A number with four digits at most; a minus sign that is one."""
    return f"{value:.4g}".replace("-", "−")


def drawing(height: int, label: str, parts: Sequence[str]) -> str:
    """An SVG element; ``label`` is what a screen reader says of it."""
    opening = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return "".join([opening, *parts, "</svg>"])


def standalone(figure: str, title: str) -> str:
    """An SVG file of a chart, with a title and colours of its own; only the title where there is no
    chart."""
    inner = figure.partition(">")[2] or "</svg>"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 210" role="img">'
    return f"{opening}<title>{escape(title)}</title><style>{_STYLE}</style>{inner}\n"


def text(x: float, y: float, words: str, *, anchor: str = "middle", kind: str = "t") -> str:
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle."""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
        f'height="{height:.1f}"/>'
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within ``low`` .. ``high``, at most ``most`` of them."""
    span = high - low
    if not span > 0:
        return [low]
    for power in range(math.floor(math.log10(span)) - 1, 9):
        for factor in (1, 2, 5):
            step = factor * 10.0**power
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first + 1 <= most:
                return [number * step for number in range(first, last + 1)]
    return [low]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values ``low`` .. ``high`` to pixels ``start`` .. ``end``; a value beyond is at an
    end."""

    low: float
    high: float
    start: float = LEFT
    end: float = WIDTH - RIGHT

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def interval(
    estimate: float,
    low: float | None,
    high: float | None,
    rule: Rule | None,
    label: str,
    *,
    span: Sequence[float] = (),
) -> str:
    """An estimate with its interval against the limit of its rule, if it has one.

    An end without a number lies beyond the drawing. ``span``: further values that the drawing
    holds, so that several have one scale.
    """
    known = [value for value in (estimate, low, high, *span) if value is not None]
    if rule is not None:
        known.append(rule.limit)
    scale = _around(min(known), max(known), None if rule is None else rule.limit)
    parts = [line(scale.start, 24, scale.end, 24, "axis")]
    if rule is None:
        if scale.low <= 0.0 <= scale.high:
            parts += [line(scale.at(0), 12, scale.at(0), 36, "limit"), text(scale.at(0), 47, "0")]
    else:
        parts += _limit(scale, rule)
    if low is not None or high is not None:
        left = scale.start if low is None else scale.at(low)
        right = scale.end if high is None else scale.at(high)
        parts.append(line(left, 24, right, 24, "ci"))
        parts += [
            line(x, 18, x, 30, "cap") for x, end in ((left, low), (right, high)) if end is not None
        ]
    parts.append(f'<circle class="dot" cx="{scale.at(estimate):.1f}" cy="24" r="5"/>')
    return drawing(50, label, parts)


def _around(low: float, high: float, limit: float | None) -> Scale:
    """A scale with room at both ends; the limit stays clear of them, for the words beside it."""
    pad = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - pad, high + pad
    if limit is not None:
        room = 0.28 * (high - low)
        low, high = min(low, limit - room), max(high, limit + room)
    return Scale(low=low, high=high, start=RIGHT)


def _limit(scale: Scale, rule: Rule) -> list[str]:
    """The limit, and on which side of it a check passes."""
    x = scale.at(rule.limit)
    missed = "fails" if rule.may_fail else "cannot tell"
    left, right = (missed, "passes") if rule.above else ("passes", missed)
    good = (x, scale.end) if rule.above else (scale.start, x)
    return [
        rectangle(good[0], 12, good[1] - good[0], 24, "good"),
        line(x, 12, x, 36, "limit"),
        text(x, 9, f"limit {short(rule.limit)}"),
        text((scale.start + x) / 2, 47, left, kind="t soft"),
        text((scale.end + x) / 2, 47, right, kind="t soft"),
    ]


def distributions(
    low: float,
    width: float,
    panels: Sequence[tuple[str, Sequence[float], Sequence[float], float | None]],
    label: str,
) -> str:
    """Panels of two distributions over the same bins: (title, same, different, threshold).

    Each is given as shares of its pairs (BINS,); each panel is scaled to its highest bin.
    """
    occupied = [
        index
        for _, same, different, _ in panels
        for index, counts in enumerate(zip(same, different, strict=True))
        if any(counts)
    ]
    first, last = (min(occupied), max(occupied) + 1) if occupied else (0, len(panels[0][1]))
    scale = Scale(low=low + width * first, high=low + width * last, start=RIGHT)
    parts: list[str] = []
    for position, (title, same, different, threshold) in enumerate(panels):
        top, bottom = 20 + 104 * position, 100 + 104 * position
        highest = max([*same, *different, 1e-12])
        parts += [
            text(scale.start, top - 7, title, anchor="start"),
            _steps(scale, low, width, different, highest, top, bottom, "different"),
            _steps(scale, low, width, same, highest, top, bottom, "same"),
            line(scale.start, bottom, scale.end, bottom, "axis"),
        ]
        if threshold is not None and scale.low <= threshold <= scale.high:
            x = scale.at(threshold)
            anchor = "end" if x > WIDTH / 2 else "start"
            words = f"threshold {short(threshold)}"
            beside = x - 4 if anchor == "end" else x + 4
            parts += [
                line(x, top - 2, x, bottom, "limit"),
                text(beside, top + 7, words, anchor=anchor, kind="t over"),
            ]
    bottom = 100 + 104 * (len(panels) - 1)
    parts += [
        text(scale.at(x), bottom + 14, short(round(x, 6))) for x in ticks(scale.low, scale.high)
    ]
    return drawing(bottom + 20, label, parts)


def _steps(  # noqa: PLR0917
    scale: Scale,
    low: float,
    width: float,
    shares: Sequence[float],
    highest: float,
    top: float,
    bottom: float,
    kind: str,
) -> str:
    """An area in steps, one for each bin."""
    points = []
    for index, share in enumerate(shares):
        left, right = scale.at(low + width * index), scale.at(low + width * (index + 1))
        if right > left:
            y = bottom - (bottom - top) * share / highest
            points += [f"{left:.1f},{y:.1f}", f"{right:.1f},{y:.1f}"]
    ends = f"{scale.start:.1f},{bottom} ", f" {scale.end:.1f},{bottom}"
    return f'<polygon class="{kind}" points="{ends[0]}{" ".join(points)}{ends[1]}"/>'


def change(old: float, new: float, label: str) -> str:
    """From an old share to a new one, both 0 .. 1: a hollow mark, an arrow, and a full mark."""
    scale = Scale(low=0.0, high=1.0, start=8, end=WIDTH - 8)
    x, to = scale.at(old), scale.at(new)
    parts = [
        line(scale.start, 12, scale.end, 12, "axis"),
        *(line(scale.at(share), 8, scale.at(share), 16, "grid") for share in (0.0, 0.5, 1.0)),
        line(x, 12, to, 12, "ci"),
        f'<circle class="hollow" cx="{x:.1f}" cy="12" r="5"/>',
        f'<circle class="dot" cx="{to:.1f}" cy="12" r="5"/>',
    ]
    return drawing(24, label, parts)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A level ``y`` that a line across a chart shows, with its name."""

    y: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a chart's last point may become: ``y`` between ``low`` and ``high``, at ``x``."""

    x: float
    y: float
    low: float
    high: float


def chart(
    points: Sequence[tuple[float, float]],
    label: str,
    *,
    axes: tuple[str, str],
    intervals: Sequence[tuple[float, float] | None] = (),
    level: Mark | None = None,
    forecast: Forecast | None = None,
    x_format: Format = short,
    x_span: tuple[float, ...] = (),
    x_at: Sequence[float] = (),
) -> str:
    """Points (x, y) joined by a line, with what their axes are.

    ``intervals``: (low, high) of each point, where it has one. ``x_span``: what the x axis has at
    least. ``x_at``: where it has its numbers; by default at round ones.
    """
    xs = [*x_span, *(x for x, _ in points)] + ([forecast.x] if forecast else [])
    ys = [y for _, y in points] + ([level.y] if level else [])
    ys += [end for pair in intervals if pair for end in pair]
    ys += [forecast.low, forecast.high] if forecast else []
    pad = 0.08 * (max(ys) - min(ys)) or 0.05
    x_scale = Scale(low=min(xs), high=max(xs))
    y_scale = Scale(low=min(ys) - pad, high=max(ys) + pad, start=172, end=24)
    parts = [text(LEFT - 36, 14, axes[1], anchor="start", kind="t soft")]
    for value in ticks(y_scale.low, y_scale.high):
        y = y_scale.at(value)
        parts += [
            line(LEFT, y, WIDTH - RIGHT, y, "grid"),
            text(LEFT - 6, y + 4, short(round(value, 6)), anchor="end"),
        ]
    parts += _numbers(x_scale, x_at or ticks(x_scale.low, x_scale.high), x_format)
    parts.append(text(WIDTH - RIGHT, 204, axes[0], anchor="end", kind="t soft"))
    if level is not None:
        y = y_scale.at(level.y)
        parts += [
            line(LEFT, y, WIDTH - RIGHT, y, "limit"),
            text(WIDTH - RIGHT, y - 5, level.words, anchor="end", kind="t over"),
        ]
    placed = [(x_scale.at(x), y_scale.at(y)) for x, y in points]
    for (x, _), pair in zip(placed, intervals, strict=False):
        if pair is not None:
            parts.append(line(x, y_scale.at(pair[0]), x, y_scale.at(pair[1]), "cap"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in placed]
    if forecast is not None and placed:
        parts += _forecast(placed[-1], forecast, x_scale, y_scale)
    return drawing(210, label, parts)


def _numbers(scale: Scale, values: Sequence[float], form: Format) -> list[str]:
    """The numbers of the x axis; one that would touch the one before is left out."""
    parts, end = [], -math.inf
    for value in values:
        words, place = form(round(value, 6)), scale.at(value)
        half = 4.2 * len(words)
        start = min(place - half, WIDTH - 2 * half)
        if start > end + 2:
            parts.append(text(start + half, 188, words))
            end = start + 2 * half
    return parts


def _forecast(
    last: tuple[float, float], forecast: Forecast, x_scale: Scale, y_scale: Scale
) -> list[str]:
    x, y = x_scale.at(forecast.x), y_scale.at(forecast.y)
    return [
        line(*last, x, y, "ahead"),
        line(x, y_scale.at(forecast.low), x, y_scale.at(forecast.high), "ahead"),
        f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
    ]


def shares(parts_of: Sequence[float], label: str) -> str:
    """Shares that sum to 1 as one bar; each large part has its number from 1, as in the table."""
    scale = Scale(low=0.0, high=1.0, start=1, end=WIDTH - 1)
    parts, start = [], 0.0
    for number, share in enumerate(parts_of, 1):
        x, end = scale.at(start), scale.at(start + share)
        parts.append(rectangle(x, 2, end - x, 24, f"part{(number - 1) % 4}"))
        if end - x > 14:
            parts.append(text((x + end) / 2, 18, str(number), kind="t onpart"))
        start += share
    return drawing(28, label, parts)
