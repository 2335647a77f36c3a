"""Tables and figure of ``share_passed.py``'s results: Markdown, and an SVG drawn by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, median

from benchmarks.common.baselines import BCT, MIXBCT, UNIBCT
from benchmarks.common.pages import bullet, drawing, head, row, share, text
from benchmarks.common.passing import (
    ALONE,
    ASKED,
    LAZY,
    LAZY_FUSED,
    RANDOM,
    SHARES,
    TRAFFIC,
    WHOLE,
    WHOLE_FREE,
    WHOLE_FUSED,
    WORTH,
    Line,
    Result,
)
from compatctl.migration.routes import Route

WORDS = {"cnn": "small CNN", "larger": "larger CNN", "hash": "pixel hash"}
NOTHING_PASSED = (
    "naive swap", "procrustes", "ridge", "SLERP", BCT, UNIBCT, MIXBCT, Route.FINETUNE, Route.FUSE,
    WHOLE, WHOLE_FUSED,
)  # fmt: skip
"""Routes that pass nothing and search once"""
SERIES = (
    (Route.FINETUNE, RANDOM), (Route.FINETUNE, TRAFFIC), (Route.FUSE, RANDOM),
    (Route.FUSE, TRAFFIC), (LAZY, RANDOM), (LAZY, TRAFFIC), (LAZY_FUSED, RANDOM),
    (LAZY_FUSED, TRAFFIC), (ALONE, RANDOM), (ALONE, TRAFFIC), ("procrustes", RANDOM),
    ("ridge", RANDOM), ("SLERP", RANDOM), (BCT, RANDOM), (UNIBCT, RANDOM), (MIXBCT, RANDOM),
)  # fmt: skip
DRAWN = (
    (Route.FINETUNE, RANDOM, "backfill of finetune"), (Route.FUSE, RANDOM, "backfill of fuse"),
    (LAZY, RANDOM, "lazy, random"), (LAZY, TRAFFIC, "lazy, by traffic"),
    (ALONE, RANDOM, ALONE), (MIXBCT, RANDOM, "backfill of MixBCT"),
)  # fmt: skip
INTRO = """\
# What is gained against the share of the gallery that passed the new model

For whoever asks what an upgrade without re-embedding gains: every route and published baseline on
eight upgrades, by how much of the gallery went through the new model.

Passing gallery items through the new model is what an upgrade costs. Here every route upgrades
galleries of ordinary models with the same settings (`recipes/default.yaml`), and every figure
stands beside the share of the gallery that was passed. The old model, a head on a frozen
EfficientNet-lite0 or a small CNN, was trained on about half of the training classes. Figures are
hit@1 on test classes, which no model saw, in the whole gallery. The seed draws the weights and
the old model's classes; validation classes choose every setting. A full run takes hours: the tables
hold the cases that were run, and say with how many seeds.

    python examples/kanji/build.py
    python examples/characters/build.py
    python -m benchmarks.studies.share_passed --json docs/share-passed.json \\
        --docs docs/share-passed.md
"""
NOTES = """\
- *passed*: share of the gallery that the new model embedded. Labelled training items can be rows of
  the gallery; they train every route alike, and are not counted. *labelled* is their share.
- *re-embedded*: the free model on a gallery of its own, with the stage taps of the recipe; the
  recipe's head or a linear one. *kept* is a share of its gain over the old model.
- **finetune**, **fuse** (the unit mean of old and new query), and the baselines, with x% passed:
  x% of the stored vectors are rewritten by the same model (backfill).
- **whole network**: every layer of a small network is trained, by `recipes/small-network.yaml`;
  no row is passed. Everything else here trains heads, the re-embedded model too. *Re-embedded,
  whole network* is trained by that recipe without the gallery. What a whole network keeps is a
  share of the gain of the better of the two.
- **lazy**: the 10 nearest rows by finetune (or fuse) are ranked again by the free model's vectors
  of those that were passed, by the merge rule of `compatctl`. The rule is fitted on 100 validation
  queries, whose rows (at most 1,000) also pass and are not counted. *as queried*: each of the test
  queries passes its 10 rows, from an empty cache.
- **passed rows alone**: the free model searches nothing but the rows that were passed.
- *random*: in the order of a hash. *traffic*: rows that a log has most often among the 10 nearest
  first. The log of one half of the test queries is the other half, by the old model.
- **procrustes**, **ridge**: maps of the free model, fitted on training items. **SLERP**: old and
  mapped query interpolated, two encoders a query
  (github.com/miccunifi/SLERP_backward_compatibility).
- **BCT** (arXiv 2003.11942), **UniBCT prototypes** (arXiv 2203.01583, eq. 9 and 10), **MixBCT**
  (arXiv 2308.06948): the recipe's head, features, epochs and optimiser, with these papers' losses
  (`benchmarks/common/baselines.py`). The papers train the whole backbone.
"""
CONTROL = """\
## The control

The old model is a hash of the pixels: the vector of an image is drawn from a seed that is the
digest of the image. It knows nothing, so whatever gains here at 0% passed would not come from the
gallery.
"""


def summary(results: Sequence[Result]) -> list[str]:
    """Sentences on what each route keeps, over the cases where an upgrade is worth the while."""
    worth = _worth(results)
    count = len(_real(results))
    said = [
        f"In {len(worth)} of {count} cases and seeds the free model, everything re-embedded, "
        f"beats the old one by {100 * WORTH:.0f} points. The next lines are of these."
    ]
    for route in (Route.FINETUNE, Route.FUSE, WHOLE, WHOLE_FUSED) if worth else ():
        if found := _lines(worth, route, 0.0):
            said.append(
                f"0% passed, {route}: the median share kept is {_kept(found)}, and the default "
                f"gate passes {sum(line.gate == 'pass' for line in found)} of {len(found)}."
            )
    for lazy in (LAZY, LAZY_FUSED) if worth else ():
        found = [line for result in worth for line in result.lines
                 if line.route == lazy and line.order == ASKED]  # fmt: skip
        said.append(
            f"{lazy}, passing what the test queries need: the median share kept is "
            f"{_kept(found)}; in the median {median(line.passed for line in found):.0%} of the "
            "gallery is passed."
        )
    controls = [line for result in results if _control(result)
                for route in (Route.FINETUNE, Route.FUSE)
                for line in [result.line(route, 0.0)] if line]  # fmt: skip
    if controls:
        above = sum(line.low > 0 for line in controls)
        said.append(
            f"The control, 0% passed: {above} of {len(controls)} gains of finetune and fuse have "
            f"an interval above 0; the largest is {max(line.gain for line in controls):+.3f}."
        )
    return said


def page(results: Sequence[Result], picture: str) -> str:
    """The whole page; ``picture``: the figure's file name."""
    parts = [
        INTRO,
        *map(bullet, summary(results)),
        "",
        f"![share of the gain kept by share passed]({picture})",
        "",
        "## Share of the gain kept, by share passed",
        "",
        "Medians over the cases and seeds where there is something to gain; in brackets how many",
        "of them gain with an interval above 0.",
        "",
        *_by_share(_worth(results)),
        "",
        NOTES,
        "## 0% passed, by case",
        "",
        "Means over the seeds of hit@1; in brackets how many of them pass the default gate.",
        "",
        *_by_case(_real(results)),
        "",
        "## Rows that were passed, and the others",
        "",
        "10% passed. hit@1 of queries with a passed row of their class, and of the others;",
        "means over seeds. *trained*: share of first answers that are rows of training classes.",
        "",
        *_by_part(_real(results)),
        "",
        CONTROL,
        *_controls([result for result in results if _control(result)]),
        "",
    ]
    return "\n".join(parts)


def _by_share(results: Sequence[Result]) -> Iterable[str]:
    yield from head("route", "order", *(f"{passed:.0%}" for passed in SHARES))
    for route, order in SERIES:
        cells = []
        for passed in SHARES:
            found = _lines(results, route, passed, order)
            above = sum(line.low > 0 for line in found)
            cells.append(f"{_kept(found)} ({above} of {len(found)})" if found else "")
        yield row(route, order, *cells)


def _by_case(results: Sequence[Result]) -> Iterable[str]:
    yield from head("passed", "case", "labelled", "old", "re-embedded", WHOLE_FREE, *NOTHING_PASSED)
    for case in _names(results):
        same = [result for result in results if result.case == case]
        whole = _lines(same, WHOLE_FREE, 1.0)
        cells = [share(mean(line.hit_rate for line in whole)) if whole else ""]
        for route in NOTHING_PASSED:
            found = _lines(same, route, 0.0)
            passing = sum(line.gate == "pass" for line in found)
            hit_rate = share(mean(line.hit_rate for line in found)) if found else ""
            cells.append(f"{hit_rate} ({passing})" if found else "")
        yield row(
            "0%",
            f"{title(case)}, {same[0].rows:,} rows, seeds: {len(same)}",
            f"{mean(result.labelled for result in same):.0%}",
            share(mean(result.old for result in same)),
            share(mean(result.free for result in same)),
            *cells,
        )


def _by_part(results: Sequence[Result]) -> Iterable[str]:
    yield from head("passed", "case", "route", "order", "passed rows", "others", "trained")
    for case in _names(results):
        same = [result for result in results if result.case == case]
        for route, order in SERIES[:8]:
            found = _lines(same, route, 0.1, order)
            if found:
                parts = [[line.touched for line in found], [line.untouched for line in found]]
                yield row("10%", title(case), route, order, *map(_mean, parts),
                          f"{mean(line.trained for line in found):.0%}")  # fmt: skip


def _controls(results: Sequence[Result]) -> Iterable[str]:
    yield from head("passed", "case", "seed", "old", *(f"{route} {order}" for route, order in
                    SERIES[:10]))  # fmt: skip
    for passed in SHARES:
        for result in results:
            found = [_lines([result], route, passed, order) for route, order in SERIES[:10]]
            cells = [share(lines[0].hit_rate) if lines else "" for lines in found]
            yield row(f"{passed:.0%}", title(result.case), str(result.seed), share(result.old),
                      *cells)  # fmt: skip


def _lines(results: Sequence[Result], route: str, passed: float, order: str = RANDOM) -> list[Line]:
    """Where nothing or everything is passed there is no order."""
    found = (result.line(route, passed, order if 0.0 < passed < 1.0 else "") for result in results)
    return [line for line in found if line is not None]


def _kept(lines: Sequence[Line]) -> str:
    kept = [line.kept for line in lines if line.kept is not None]
    return f"{median(kept):.0%}" if kept else ""


def _mean(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    return share(mean(there)) if there else ""


def _control(result: Result) -> bool:
    return "-hash-" in result.case


def _real(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if not _control(result)]


def _worth(results: Sequence[Result]) -> list[Result]:
    return [result for result in _real(results) if result.worth]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.case for result in results))


def title(case: str) -> str:
    """``characters: small CNN → larger CNN, 2,000 classes``."""
    data, old, new, *size = case.split("-")
    classes = f", {int(size[0]):,} classes" if size else ""
    return f"{data}: {WORDS.get(old, old)} → {WORDS.get(new, new)}{classes}"


LEFT, TOP, WIDTH, HEIGHT, SPAN, TALL = 50, 30, 760, 330, 480, 250
STYLE = """\
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 12px; }
.grid { stroke: #d0d7de; }
polyline { fill: none; stroke-width: 2; }
.s0 { stroke: #0969da; }
.s1 { stroke: #bc4c00; }
.s2 { stroke: #1a7f37; stroke-dasharray: 6 3; }
.s3 { stroke: #1a7f37; }
.s4 { stroke: #6e7781; stroke-dasharray: 2 3; }
.s5 { stroke: #8250df; }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9; }
  .grid { stroke: #30363d; }
  .s0 { stroke: #58a6ff; }
  .s1 { stroke: #f0883e; }
  .s2 { stroke: #3fb950; }
  .s3 { stroke: #3fb950; }
  .s4 { stroke: #8b949e; }
  .s5 { stroke: #a371f7; }
}"""


def figure(results: Sequence[Result]) -> str:
    """The median share kept by the share passed, one line a route; light and dark."""
    worth = _worth(results)
    bottom = -1.0
    drawn = []
    for at, passed in enumerate(SHARES):
        x = _x(at)
        drawn.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + TALL}"/>')
        drawn.append(text(x, TOP + TALL + 16, f"{passed:.0%}", anchor="middle"))
    for quarter in range(-4, 6):
        y = _y(quarter / 4, bottom)
        drawn.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{LEFT + SPAN}" y2="{y}"/>')
        drawn.append(text(LEFT - 6, y + 4, f"{25 * quarter}%", anchor="end"))
    for at, (route, order, words) in enumerate(DRAWN):
        points = []
        for place, passed in enumerate(SHARES):
            kept = [line.kept for line in _lines(worth, route, passed, order)
                    if line.kept is not None]  # fmt: skip
            if kept:
                points.append(f"{_x(place)},{_y(median(kept), bottom)}")
        y = TOP + 14 + 18 * at
        x = LEFT + SPAN + 20
        drawn.append(f'<polyline class="s{at}" points="{" ".join(points)}"/>')
        drawn.append(f'<polyline class="s{at}" points="{x},{y} {x + 22},{y}"/>')
        drawn.append(text(x + 28, y + 4, words))
    drawn.append(text(LEFT, TOP - 12, "median share of the gain kept", kind="title"))
    drawn.append(text(LEFT + SPAN / 2, TOP + TALL + 34, "share of the gallery passed",
                      anchor="middle"))  # fmt: skip
    return drawing(WIDTH, HEIGHT, "share of the gain kept by share passed", STYLE, drawn)


def _x(at: int) -> float:
    return round(LEFT + 10 + at * (SPAN - 20) / (len(SHARES) - 1), 1)


def _y(value: float, bottom: float) -> float:
    """What lies under the picture's foot is drawn at it."""
    part = (max(bottom, min(1.25, value)) - bottom) / (1.25 - bottom)
    return round(TOP + (1 - part) * TALL, 1)
