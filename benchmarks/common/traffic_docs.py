"""Tables and figure of ``traffic.py``: Markdown, and an SVG drawn by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log10

from benchmarks.common.pages import bullet, drawing, head, row, text
from benchmarks.common.traffic_model import Cached, Filling, Served, Setting

PLACES = (False, True)
"""Popular rows are scattered, or lie together"""
TABLE_QUERIES = (1_000, 10_000, 100_000, 1_000_000)
TABLE_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
BUDGETS = (1, 3, 5, 10)


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """What was simulated. ``largest`` is the number of rows that the figure shows."""

    largest: int
    filled: Mapping[Setting, Filling]
    warmed: Mapping[Setting, Sequence[Cached]]
    budgets: Mapping[Setting, Mapping[int, Sequence[Served]]]
    """By the passes that a query may make"""
    variants: Mapping[Setting, Sequence[Cached]]
    """Other numbers of touched and listed rows"""

    @property
    def exponents(self) -> list[float]:
        """In ascending order."""
        return sorted({setting.exponent for setting in self.filled})

    @property
    def sizes(self) -> list[int]:
        """In ascending order."""
        return sorted({setting.rows for setting in self.filled})

    def at(self, setting: Setting, share: float) -> Cached:
        """What is kept with this share of the gallery passed."""
        cached = [*self.warmed.get(setting, ()), *self.variants.get(setting, ())]
        return next(state for state in cached if abs(state.passed - share) < 1e-9)


INTRO = """\
# Lazy re-scoring: what traffic passes through the new model

For whoever considers lazy re-scoring: how much of a gallery its traffic passes through the new
model, by simulation.

Lazy re-scoring passes a gallery row through the new model when a query first has it among its k
best candidates, and keeps the vector. This page simulates how much of a gallery that is.

    python -m benchmarks.studies.traffic --docs docs/traffic.md

The model of the traffic:

- A query searches for one row, the *target*: the row of popularity rank r with a probability of
  r^-s (Zipf's law). Targets are independent, and popularity does not change.
- A query touches k = 10 rows: its target, and 9 drawn from the target's 18 nearest rows. The rows
  are unit vectors in clusters of 500; nearest rows are found exactly within a cluster.
- Popular rows are *scattered* over the clusters, so that the neighbours of a popular row are
  mostly unpopular; or they lie *together*, as the products of a popular category do. A real gallery
  lies in between. Cells have both figures, scattered first.
- A query has its gain when all of its k rows have a vector of the new model. In practice a query
  may have it with fewer.
"""
FILLED = """\
## Every query passes what it needs

Every query has its whole gain, and a cold one waits for up to k passes. The columns are the share
of the gallery that the first queries pass. *warm*: share of all {last:,} queries that had to pass
nothing. *a tenth*: queries until 10% of the gallery is passed.
"""
WARMED = """\
## A part is passed beforehand, and nothing more

The rows that a log of as many queries as the gallery has rows (at most 1,000,000) touches most are
passed. Later queries pass nothing. The columns are the share of the later queries that have their
gain; in brackets the *ceiling*: the share of queries whose target is one of the most popular rows,
as many as are passed. No cache can have the targets of more queries than that, whatever the order.
{rows:,} rows.
"""
PASSES = """\
With {share:.0%} of the gallery passed beforehand, a later query that passes its missing rows, which
need not be kept, has its whole gain. It passes this many on average:
"""
BUDGET = """\
## A budget of passes a query

Each query passes at most so many of its rows, in random order. Share of the gallery passed, and
share of the queries so far that had their gain. {rows:,} rows, s = 1.0.
"""
VARIANTS = """\
## How much depends on the model

{share:.0%} of {rows:,} rows passed beforehand, s = 1.0: share of later queries that have their
gain, by the rows that a query touches (k) and the nearest rows that it draws them from (*listed*).
"""


def page(simulation: Simulation, picture: str) -> str:
    """docs/traffic.md; ``picture``: the figure's file name."""
    last = max(state.queries for filling in simulation.filled.values() for state in filling.states)
    parts = [
        INTRO,
        *map(bullet, summary(simulation)),
        "",
        f"![share passed and gain kept, {simulation.largest:,} rows]({picture})",
        "",
        "Left: every query passes what it needs. Right: a part is passed beforehand. Solid:",
        "popular rows are scattered. Dashed: they lie together. Dotted: the ceiling.",
        "",
        FILLED.format(last=last),
        *_filled(simulation),
        "",
        WARMED.format(rows=simulation.largest),
        *_warmed(simulation),
        "",
        PASSES.format(share=0.1),
        *_missing(simulation),
        "",
        "The share kept with 10% passed, by size:",
        "",
        *_sizes(simulation),
        "",
        BUDGET.format(rows=simulation.largest),
        *_budgets(simulation),
        "",
        VARIANTS.format(share=0.1, rows=simulation.largest),
        *_variants(simulation),
        "",
    ]
    return "\n".join(parts)


def summary(simulation: Simulation) -> list[str]:
    """What the largest gallery says, in sentences."""
    said = []
    for exponent in simulation.exponents:
        settings = _both(simulation.largest, exponent)
        states = [simulation.at(setting, 0.1) for setting in settings]
        tenths = [simulation.filled[setting].tenth for setting in settings]
        said.append(
            f"s = {exponent}, {simulation.largest:,} rows: with 10% passed beforehand "
            f"{states[0].kept:.0%} (scattered) to {states[1].kept:.0%} (together) of the later "
            f"queries have their gain. A cache of any 10% of the rows has the target of at most "
            f"{states[0].ceiling:.0%} of them. Where every query passes what it needs, 10% is "
            f"passed after {_count(tenths[0])} to {_count(tenths[1])} queries."
        )
    return said


def _both(rows: int, exponent: float) -> list[Setting]:
    return [Setting(rows=rows, exponent=exponent, together=place) for place in PLACES]


def _count(queries: int | None) -> str:
    """Two digits of it."""
    if queries is None:
        return "more"
    unit = 10 ** max(0, len(str(queries)) - 2)
    return f"{round(queries / unit) * unit:,}"


def _pair(values: Iterable[float], digits: int = 0) -> str:
    return " / ".join(f"{value:.{digits}%}" for value in values)


def _filled(simulation: Simulation) -> Iterable[str]:
    yield from head("s", "rows", *(f"{count:,} queries" for count in TABLE_QUERIES), "warm",
                    "a tenth")  # fmt: skip
    for exponent in simulation.exponents:
        for rows in simulation.sizes:
            fillings = [simulation.filled[setting] for setting in _both(rows, exponent)]
            states = [{state.queries: state for state in each.states} for each in fillings]
            yield row(
                f"{exponent}",
                f"{rows:,}",
                *(_pair((at[count].passed for at in states), 1) for count in TABLE_QUERIES),
                _pair(each.states[-1].warm for each in fillings),
                " / ".join(_count(each.tenth) for each in fillings),
            )


def _warmed(simulation: Simulation) -> Iterable[str]:
    yield from head("s", *(f"{share:.0%} passed" for share in TABLE_SHARES))
    for exponent in simulation.exponents:
        cells = []
        for share in TABLE_SHARES:
            states = [simulation.at(setting, share)
                      for setting in _both(simulation.largest, exponent)]  # fmt: skip
            kept = _pair(state.kept for state in states)
            cells.append(f"{kept} ({states[0].ceiling:.0%})")
        yield row(f"{exponent}", *cells)


def _missing(simulation: Simulation) -> Iterable[str]:
    yield from head("s", "passes a query")
    for exponent in simulation.exponents:
        states = [simulation.at(setting, 0.1) for setting in _both(simulation.largest, exponent)]
        yield row(f"{exponent}", " / ".join(f"{state.missing:.2f}" for state in states))


def _sizes(simulation: Simulation) -> Iterable[str]:
    yield from head("s", *(f"{rows:,} rows" for rows in simulation.sizes))
    for exponent in simulation.exponents:
        cells = (
            _pair(simulation.at(setting, 0.1).kept for setting in _both(rows, exponent))
            for rows in simulation.sizes
        )
        yield row(f"{exponent}", *cells)


def _budgets(simulation: Simulation) -> Iterable[str]:
    yield from head("passes a query", "", *(f"{count:,} queries" for count in TABLE_QUERIES))
    settings = _both(simulation.largest, 1.0)
    for budget in BUDGETS:
        served = [simulation.budgets[setting][budget] for setting in settings]
        passed = [_pair(state.passed for state in states) for states in zip(*served, strict=True)]
        kept = [_pair(state.kept for state in states) for states in zip(*served, strict=True)]
        yield row(f"{budget}", "passed", *passed)
        yield row("", "kept", *kept)


def _variants(simulation: Simulation) -> Iterable[str]:
    drawn = sorted({(setting.k, setting.listed) for setting in simulation.variants})
    yield from head("k", "listed", "kept", "ceiling")
    for k, listed in drawn:
        settings = [
            Setting(rows=simulation.largest, exponent=1.0, together=place, k=k, listed=listed)
            for place in PLACES
        ]
        states = [simulation.at(setting, 0.1) for setting in settings]
        kept = _pair(state.kept for state in states)
        yield row(f"{k}", f"{listed}", kept, f"{states[0].ceiling:.0%}")


WIDTH, HEIGHT, TOP, SIDE, GAP = 800, 320, 44, 240, 140
STYLE = """\
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 12px; }
.grid { stroke: #d0d7de; }
polyline { fill: none; stroke-width: 2; }
.together { stroke-dasharray: 6 3; }
.ceiling { stroke-dasharray: 1 3; stroke-width: 1.5; }
.z0 { stroke: #8250df; }
.z1 { stroke: #0969da; }
.z2 { stroke: #1a7f37; }
.z3 { stroke: #bc4c00; }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9; }
  .grid { stroke: #30363d; }
  .z0 { stroke: #a371f7; }
  .z1 { stroke: #58a6ff; }
  .z2 { stroke: #3fb950; }
  .z3 { stroke: #f0883e; }
}"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes in pixels: x over powers of ten, y over a share."""

    left: int
    first: int
    """Power of ten at the left"""
    last: int

    def points(self, pairs: Iterable[tuple[float, float]]) -> str:
        """Of (x, share) pairs within the panel."""
        return " ".join(
            f"{self.x(x)},{self.y(y)}" for x, y in pairs if x >= 10**self.first * (1 - 1e-9)
        )

    def x(self, value: float) -> float:
        """Pixels from the left."""
        part = (log10(value) - self.first) / (self.last - self.first)
        return round(self.left + part * SIDE, 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return round(TOP + (1 - value) * SIDE, 1)


def figure(simulation: Simulation) -> str:
    """Two panels of the largest gallery: passed by queries, kept by passed; light and dark."""
    queries = [state.queries for state in next(iter(simulation.filled.values())).states]
    left = Panel(left=60, first=round(log10(queries[0])), last=round(log10(queries[-1])))
    right = Panel(left=60 + SIDE + GAP, first=-3, last=0)
    counts = [f"{10**power:,}" for power in range(left.first, left.last + 1)]
    drawn = [
        *_axes(left, counts, "share of the gallery passed", "queries served"),
        *_axes(right, ["0.1%", "1%", "10%", "100%"], "queries with their gain",
               "share passed beforehand"),
    ]  # fmt: skip
    for at, exponent in enumerate(simulation.exponents):
        for setting in _both(simulation.largest, exponent):
            kind = f"z{at} together" if setting.together else f"z{at}"
            states, cached = simulation.filled[setting].states, simulation.warmed[setting]
            drawn.append(_line(left, kind, ((s.queries, s.passed) for s in states)))
            drawn.append(_line(right, kind, ((c.passed, c.kept) for c in cached)))
        ceiling = ((c.passed, c.ceiling) for c in cached)
        drawn.append(_line(right, f"z{at} ceiling", ceiling))
        y = TOP + 20 + 18 * at
        x = right.left + SIDE + 14
        drawn.append(f'<polyline class="z{at}" points="{x},{y} {x + 20},{y}"/>')
        drawn.append(text(x + 26, y + 4, f"s = {exponent}"))
    title = f"Zipf traffic on {simulation.largest:,} rows, k = 10"
    return drawing(WIDTH, HEIGHT, title, STYLE, drawn)


def _line(panel: Panel, kind: str, pairs: Iterable[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{panel.points(pairs)}"/>'


def _axes(panel: Panel, ticks: Sequence[str], above: str, below: str) -> Iterable[str]:
    yield text(panel.left, TOP - 16, above, kind="title")
    for fifth in range(0, 6):
        y = panel.y(fifth / 5)
        yield f'<line class="grid" x1="{panel.left}" y1="{y}" x2="{panel.left + SIDE}" y2="{y}"/>'
        yield text(panel.left - 6, y + 4, f"{20 * fifth}%", anchor="end")
    for at, words in enumerate(ticks):
        x = panel.x(10.0 ** (panel.first + at))
        yield f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + SIDE}"/>'
        yield text(x, TOP + SIDE + 16, words, anchor="middle")
    yield text(panel.left + SIDE / 2, TOP + SIDE + 32, below, anchor="middle")
