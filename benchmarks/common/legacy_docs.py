"""Tables and figure of ``legacy.py``'s results: Markdown, and an SVG drawn by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import mean, median

from benchmarks.common.judge import ROUTES, SINGLE, WORTH, Line, Result
from benchmarks.common.pages import bullet, drawing, head, row, share, text
from compatctl.migration.routes import Route

WORDS = {"cnn": "small CNN", "larger": "larger CNN", "lite0": "lite0", "lite2": "lite2"}
COLUMNS = (
    "naive swap", "procrustes", "ridge", "procrustes + SLERP", "prototypes",
    Route.BRIDGE, Route.FINETUNE, Route.FUSE, Route.BRIDGE_FUSE,
)  # fmt: skip
LINEAR = ("naive swap", "procrustes", "ridge", "procrustes + SLERP")
DRAWN = ("procrustes", "procrustes + SLERP", "prototypes", Route.BRIDGE, Route.FINETUNE,
         Route.FUSE, Route.BRIDGE_FUSE)  # fmt: skip
INTRO = """\
# Galleries that were not born on a simplex

Most deployed galleries come from an ordinary model. Here every route upgrades such galleries of
real images, with the same settings everywhere (`recipes/default.yaml`). The old model, a head on a
frozen EfficientNet-lite0 or a small CNN, was trained on about half of the training classes and
without a gallery. The new backbone is a larger CNN, lite0 or lite2. The gallery is one vendor's
emoji or one typeface's characters; the queries are the other vendors' and four other fonts'.
Figures are recall@1 on test classes, which no model saw. The seed draws the weights and the old
model's classes. Validation classes choose every setting, and the route. No gallery item
passes through the new backbone but labelled training items. Passes are those of the default gate.

    python examples/kanji/build.py
    python -m benchmarks.studies.legacy --json docs/legacy.json
    python -m benchmarks.studies.legacy --json docs/legacy.json --docs docs/legacy.md
"""
NOTES = """\
- **re-embedded**: the free model on a gallery of its own: the recipe's head or a linear
  one, whichever has the higher recall on validation classes. Shares kept are of its gain.
- **naive swap**: the free model's own queries on the stored vectors.
- **procrustes**, **ridge**: maps of the free model, fitted on pairs without labels: the items of
  training and of the gallery.
- **procrustes + SLERP**: their unit mean with the old query, weight one half.
- **prototypes**: cross-entropy against the gallery's class means alone, which is BCT's influence
  loss with class means for the old classifier.
- **bridge**: the best map on validation classes, of every kind that `compatctl bridge` tries; one
  encoder a query. **lift**: the reverse, the stored vectors through a map to the free model's
  space.
- **backfill**: the gallery re-embedded in part by finetune or fuse, whichever has the higher recall
  on validation classes.
- **finetune**: the default recipe; one encoder a query.
- **fuse**, **bridge + fuse**: old and new query mixed; two encoders a query.

Experience replay needs a sequence of sets and does not apply here.
"""


def summary(results: Sequence[Result]) -> list[str]:
    """Sentences on how often an upgrade was to be had, and how often a route got there."""
    worth = [result for result in results if result.worth]
    said = [
        f"In {len(worth)} of {len(results)} cases the free model, everything re-embedded, beats "
        f"the old one by {100 * WORTH:.0f} points."
    ]
    if not worth:
        return said
    for what, routes in (("route", ROUTES), ("route with one encoder a query", SINGLE)):
        best = [result.best(routes) for result in worth]
        said.append(
            f"In {_passed(best)} of these the {what} chosen on validation classes passes the "
            f"default gate; the median share kept is {median(_gains_retained(best)):.0%}."
        )
        above = sum(
            line.recall > max(entry.line(name).recall for name in LINEAR)
            for entry, line in zip(worth, best, strict=True)
        )
        said.append(f"Its recall exceeds every linear baseline's in {above} of {len(worth)}.")
    wrong = [result for result in results if result.best(ROUTES).outcome == "fail"]
    said.append(f"The gate fails the chosen route in {len(wrong)} of {len(results)}.")
    return said


def page(results: Sequence[Result], picture: str) -> str:
    """The whole page; ``picture``: the figure's file name."""
    parts = [
        INTRO,
        *map(bullet, summary(results)),
        "",
        f"![recall@1 by case and route]({picture})",
        "",
        "Each dot is one seed; the grey line is old on old, the dashed one everything re-embedded.",
        "",
        "## recall@1 by case",
        "",
        "Means over the seeds; in brackets how many of them pass the default gate.",
        "",
        *_cases(results),
        "",
        NOTES,
        "## By route, where there is something to gain",
        "",
        *_routes([result for result in results if result.worth]),
        "",
        "## Every case, by the route chosen on validation classes",
        "",
        *_chosen(results),
        "",
    ]
    return "\n".join(parts)


def _cases(results: Sequence[Result]) -> Iterable[str]:
    yield from head("case", "old on old", "re-embedded", *COLUMNS)
    for case in _names(results):
        matching = [result for result in results if result.case == case]
        cells = []
        for route in COLUMNS:
            lines = [entry.line(route) for entry in matching]
            cells.append(f"{share(mean(line.recall for line in lines))} ({_passed(lines)})")
        old, free = (share(mean(values)) for values in zip(*((r.old, r.free) for r in matching),
                                                           strict=True))  # fmt: skip
        yield row(f"{_title(case)}, seeds: {len(matching)}", old, free, *cells)


def _routes(results: Sequence[Result]) -> Iterable[str]:
    yield from head("route", "median gain", "least, most", "median share kept", "median flips",
                    "passes", "encoders a query", "gallery rewritten")  # fmt: skip
    for route in [line.route for line in results[0].lines] if results else []:
        lines = [result.line(route) for result in results]
        gains = sorted(line.gain for line in lines)
        yield row(
            route,
            f"{median(gains):+.3f}",
            f"{gains[0]:+.3f}, {gains[-1]:+.3f}",
            f"{median(_gains_retained(lines)):.0%}",
            f"{median(line.negative_flips for line in lines):.3f}",
            f"{_passed(lines)} of {len(lines)}",
            str(lines[0].encoders),
            f"{lines[0].rewritten:.0%}",
        )


def _chosen(results: Sequence[Result]) -> Iterable[str]:
    yield from head("case", "seed", "old on old", "re-embedded", "one encoder", "gain, 95%",
                    "gate", "any route", "gain, 95%", "gate")  # fmt: skip
    for entry in sorted(
        results, key=lambda result: (_names(results).index(result.case), result.seed)
    ):
        cells = [cell for routes in (SINGLE, ROUTES) for cell in _line(entry.best(routes))]
        yield row(_title(entry.case), str(entry.seed), share(entry.old), share(entry.free), *cells)


def _line(one: Line) -> tuple[str, str, str]:
    gain = f"{one.gain:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
    return one.route, gain, one.outcome


def _passed(lines: Iterable[Line]) -> int:
    return sum(line.outcome == "pass" for line in lines)


def _gains_retained(lines: Iterable[Line]) -> list[float]:
    return [line.gain_retained for line in lines if line.gain_retained is not None]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.case for result in results))


def _title(case: str) -> str:
    data, old, new = case.split("-")
    return f"{data}: {WORDS[old]} → {WORDS[new]}"


LEFT, RIGHT, TOP, STEP, BAND = 170, 24, 34, 14, 30
WIDTH = 760
STYLE = """\
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 12px; }
.grid { stroke: #d0d7de; }
.old { stroke: #6e7781; stroke-width: 2; }
.free { stroke: #6e7781; stroke-width: 2; stroke-dasharray: 3 3; }
.other { fill: #8c959f; }
.one { fill: #0969da; }
.two { fill: #bc4c00; }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9; }
  .grid { stroke: #30363d; }
  .old, .free { stroke: #8b949e; }
  .other { fill: #6e7681; }
  .one { fill: #58a6ff; }
  .two { fill: #f0883e; }
}"""


def figure(results: Sequence[Result]) -> str:
    """One band a case, one line a route, one dot a seed, over recall@1; light and dark."""
    names = _names(results)
    band = BAND + STEP * len(DRAWN)
    height = TOP + band * len(names) + 24
    axis = _axis(results)
    drawn = [*_legend()]
    for tick in range(axis.first, axis.last + 1):
        x = axis.at(tick / 10)
        drawn.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{height - 20}"/>')
        drawn.append(text(x, height - 6, f"{tick / 10:.1f}", anchor="middle"))
    for at, case in enumerate(names):
        matching = [result for result in results if result.case == case]
        drawn += _band(matching, axis, TOP + at * band)
    title = "recall@1 on unseen classes, by case and route"
    return drawing(WIDTH, height, title, STYLE, drawn)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Tenths of recall@1 that the picture begins and ends with."""

    first: int
    last: int

    def at(self, recall: float) -> float:
        """Pixels from the left."""
        part = (10 * recall - self.first) / (self.last - self.first)
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)


def _axis(results: Sequence[Result]) -> Axis:
    shown = [result.line(route).recall for result in results for route in DRAWN]
    shown += [values for result in results for values in (result.old, result.free)]
    first = floor(10 * min(shown, default=0.0))
    return Axis(first=first, last=max(first + 1, ceil(10 * max(shown, default=1.0))))


def _band(matching: Sequence[Result], axis: Axis, top: int) -> Iterable[str]:
    yield text(8, top + 18, _title(matching[0].case), kind="title")
    bottom = top + BAND + STEP * len(DRAWN) - 6
    for kind, value in (
        ("old", mean(r.old for r in matching)),
        ("free", mean(r.free for r in matching)),
    ):
        x = axis.at(value)
        yield f'<line class="{kind}" x1="{x}" y1="{top + 22}" x2="{x}" y2="{bottom}"/>'
    for at, route in enumerate(DRAWN):
        y = top + BAND + STEP * at + 2
        yield text(LEFT - 10, y + 4, route, anchor="end")
        for result in matching:
            x = axis.at(result.line(route).recall)
            kind = "other" if route not in ROUTES else "one" if route in SINGLE else "two"
            yield f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>'


def _legend() -> Iterable[str]:
    x = LEFT
    for kind, words in (("other", "baseline"), ("one", "one encoder a query"),
                        ("two", "two encoders a query")):  # fmt: skip
        yield f'<circle class="{kind}" cx="{x}" cy="14" r="4"/>'
        yield text(x + 9, 18, words)
        x += 34 + 6 * len(words)
    for kind, words in (("old", "old on old"), ("free", "re-embedded")):
        yield f'<line class="{kind}" x1="{x}" y1="7" x2="{x}" y2="21"/>'
        yield text(x + 8, 18, words)
        x += 34 + 6 * len(words)
