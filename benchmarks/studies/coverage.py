"""Whether intervals hold the truth and verdicts err as rarely as they claim: by simulation.

Every run draws a held-out set whose truth is known and asks the library for its interval or its
verdict. Tables: coverage of 95% intervals; checks that pass at their limit; slices that are all at
their limit; harm in few or in large classes; queries that depend on each other by user; power, and
what ``needed`` promises. With ``--compare``, other ways to resample, on the
same data. Tables that go through features or through ``measure`` take half of the runs.

    python -m benchmarks.studies.coverage [--runs N] [--seed S] [--json] [--compare]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.common import dependence, simulate
from compatctl.core.estimate import Estimate, SkewCorrection
from compatctl.core.gate import Check, Measurement, SampleSizeNeeded, judge
from compatctl.core.measurements import GroupEvidence, measure
from compatctl.core.policy import Policy
from compatctl.core.retrieval import NEVER, Retrieval

Row = dict[str, Any]
CLASSES = (10, 20, 50, 200)
SIZES = ("equal", "unequal", "heavy", "single")
OPEN: dict[str, Any] = {"min_queries": 1, "min_classes": 1, "different_class_margin": None}
OPEN["min_slice_gain"] = None
"""One check decides, however little evidence there is."""


def coverage_rows(runs: int, seed: int) -> Iterator[Row]:
    """Coverage of the intervals of outcomes of queries."""
    kinds: list[tuple[str, simulate.Draw, Sequence[float]]] = [
        ("hit gain", simulate.hit_changes, (0.0, 0.1)),
        ("negative flips", simulate.flips, (0.002, 0.02, 0.05)),
        ("mAP gain", simulate.precision_changes, (0.0, 0.1)),
    ]
    for statistic, draw, truths in kinds:
        for truth in truths:
            for kind in SIZES:
                for classes in (6, *CLASSES) if statistic == "hit gain" else CLASSES:
                    name = f"{statistic} {truth:g}"
                    rng = simulate.generator(seed, f"{name} {kind} {classes}")
                    sizes = simulate.class_sizes(kind, (runs, classes), rng)
                    cells = simulate.estimates(draw(sizes, truth, rng), rng)
                    yield _covered(name, kind, classes, simulate.covered(cells, truth))


def cosine_rows(runs: int, seed: int) -> Iterator[Row]:
    """Coverage of the intervals of mean cosines, from features."""
    for roles in (False, True):
        for kind in SIZES if roles else SIZES[:3]:
            for classes in CLASSES:
                name = "query and gallery items" if roles else "every item is both"
                rng = simulate.generator(seed, f"{name} {kind} {classes}")
                both = simulate.cosine_estimates(classes, kind, roles, runs, rng=rng)
                for what, cells, truth in zip(
                    ("same-class", "different-class"), both, simulate.true_gains(), strict=True
                ):
                    covered = simulate.covered(cells, truth)
                    yield _covered(f"{what} cosine, {name}", kind, classes, covered)


def _covered(name: str, kind: str, classes: int, found: simulate.Coverage) -> Row:
    return {
        "what": name,
        "sizes": kind,
        "classes": classes,
        **asdict(found),
        "error": found.error,
        "short": found.short,
    }


def group(
    sizes: simulate.Numbers,
    gain: float,
    rng: simulate.Generator,
    *,
    slices: int = 0,
    background: dict[str, float] | None = None,
) -> GroupEvidence:
    """Evidence of one run, as searches would have given it; slices part the queries at random."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    better, worse = simulate.chances((len(sizes),), gain, rng, **(background or {}))
    toss = rng.random(len(labels))
    up, down = toss < better[labels], toss > 1 - worse[labels]
    old = (rng.random(len(labels)) < 0.6) & ~up | down
    part = rng.integers(0, max(slices, 1), len(labels))
    return GroupEvidence(
        name="unseen",
        classes=labels,
        old_old=_retrieval(old),
        new_old=_retrieval((old | up) & ~down),
        slices={f"part {s}": part == s for s in range(slices)},
    )


def _retrieval(hits: simulate.Numbers) -> Retrieval:
    first = np.where(hits, 1, NEVER)
    precision = np.where(hits, 1.0, 0.1)
    hit_rate = {k: float(hits.mean()) for k in (1, 5)}
    return Retrieval(
        n_queries=len(hits),
        n_without_match=0,
        hit_rate=hit_rate,
        map_at_k=float(precision.mean()),
        map_k=100,
        first_hit=first,
        average_precision=precision,
        recall={10: precision},
        ndcg={10: precision},
    )


LOSS: Row = {"min_hit_gain": -0.02}
ALONE = {"flips": 0.0, "spread": 0.0}
LIMITS: list[tuple[str, str, Row, float, dict[str, float]]] = [
    ("no gain", "hit_gain", {"min_hit_gain": 0.0}, 0.0, {}),
    ("a loss of the margin .02", "hit_gain", LOSS, -0.02, {}),
    ("the same, and nothing improves", "hit_gain", LOSS, -0.02, ALONE),
    *(
        (
            f"negative flips at the limit {most:g}",
            "negative_flips",
            {"max_negative_flips": most},
            0.0,
            {"flips": most, "spread": 0.0},
        )
        for most in (0.05, 0.02)
    ),
]
"""What is true, the check, its limit, the true gain, and the flips behind it."""


def false_passes(what: int, kind: str, classes: int, runs: int, seed: int) -> Row:
    """Share of runs that pass although the truth is at the limit; alpha / 2 is nominal."""
    said, name, limit, gain, background = LIMITS[what]
    rng = simulate.generator(seed, f"{said} {kind} {classes}")
    policy = Policy(**OPEN, **limit)
    passed = 0
    for _ in range(runs):
        sizes = simulate.class_sizes(kind, (classes,), rng)
        cells = measure(
            policy, group(sizes, gain, rng, background=background), lambda: rng, policy.replicates
        )
        checks = {check.name: check for check in judge(policy, cells).checks}
        passed += checks[name].outcome == "pass"
    return {"what": said, "sizes": kind, "classes": classes, "passed": passed / runs, "runs": runs}


def false_pass_rows(runs: int, seed: int) -> Iterator[Row]:
    """Every check at its limit."""
    for what in range(len(LIMITS)):
        for kind in ("equal", "heavy") if what < 2 else ("equal",):
            for classes in (20, 50, 200):
                yield false_passes(what, kind, classes, runs, seed)


def family(runs: int, seed: int, slices: int = 10) -> Row:
    """200 classes of 10 queries, the gain and all slices exactly at their limit of -.1."""
    rng = simulate.generator(seed, "family")
    policy = Policy(**{**OPEN, "min_hit_gain": -0.1, "min_slice_gain": -0.1})
    limit, nominal = policy.rules["slice_gain"].limit, policy.alpha / 2
    wrong = np.zeros(4)
    for _ in range(runs):
        sizes = np.full(200, 10)
        cells = measure(
            policy, group(sizes, -0.1, rng, slices=slices), lambda: rng, policy.replicates
        )
        outcomes = {check.outcome for check in judge(policy, cells).checks if check.decides}
        alone = [
            (cell.estimate.p_above(limit) <= nominal, cell.estimate.p_below(limit) <= nominal)
            for cell in cells
            if cell.name in ("hit_gain", "slice_gain") and isinstance(cell.estimate, Estimate)
        ]
        wrong += ["pass" in outcomes, "fail" in outcomes, *map(any, zip(*alone, strict=True))]
    names = ("any_passes", "any_fails", "any_passes_unadjusted", "any_fails_unadjusted")
    return {**dict(zip(names, (wrong / runs).tolist(), strict=True)), "runs": runs}


def decided(found: Sequence[Estimate], policy: Policy, queries: int) -> list[Check]:
    """The hit gain's check of each run."""
    return [
        judge(
            policy,
            [
                Measurement(
                    name="hit_gain",
                    group="unseen",
                    estimate=cell,
                    n=queries,
                    n_queries=queries,
                    may_decide=True,
                    detail="simulated",
                )
            ],
        ).checks[0]
        for cell in found
    ]


def gains(
    gain: float, kind: str, classes: int, runs: int, rng: simulate.Generator
) -> list[Estimate]:
    """Estimates of a hit gain."""
    sizes = simulate.class_sizes(kind, (runs, classes), rng)
    return simulate.estimates(simulate.hit_changes(sizes, gain, rng), rng)


def power(gain: float, classes: int, runs: int, seed: int) -> Row:
    """Share of runs that pass at a stated gain, with four queries a class."""
    rng = simulate.generator(seed, f"power {gain} {classes}")
    policy = Policy(**OPEN)
    cells = decided(gains(gain, "equal", classes, runs, rng), policy, 4 * classes)
    passed = np.mean([check.outcome == "pass" for check in cells])
    return {"gain": gain, "classes": classes, "passed": float(passed), "runs": runs}


def needed(gain: float, kind: str, pilot: int, runs: int, seed: int) -> Row:
    """What an open check asks for at its true effect and spread, and how often that settles it."""
    rng = simulate.generator(seed, f"needed {gain} {kind} {pilot}")
    policy = Policy(**OPEN)
    cells = gains(gain, kind, pilot, runs, rng)
    spread = np.std([cell.value for cell in cells])
    places = (np.arange(policy.replicates) + 0.5) / policy.replicates
    exact = Estimate(
        value=gain,
        replicates=gain + spread * np.array([NormalDist().inv_cdf(p) for p in places]),
        n_empty=0,
        n_classes=pilot,
        bounds=(-1.0, 1.0),
        skew_low=_typical([cell.skew_low for cell in cells]),
        skew_high=_typical([cell.skew_high for cell in cells]),
    )
    needed = decided([exact], policy, 4 * pilot)[0].needed
    if needed is None:
        raise ValueError(f"{pilot} classes settle a gain of {gain:g}: take a smaller pilot")
    settled = _settled(gain, kind, needed, runs, rng)
    return {
        "gain": gain,
        "sizes": kind,
        "pilot": pilot,
        **asdict(needed),
        "settled": settled,
        "runs": runs,
    }


def _typical(found: Sequence[SkewCorrection | None]) -> SkewCorrection:
    """The mean of the corrections of many pilots."""
    rows = [(cell.error, cell.skewness, cell.shift) for cell in found if cell is not None]
    error, skewness, shift = np.mean(rows, axis=0)
    return SkewCorrection(error=float(error), skewness=float(skewness), shift=float(shift))


def _settled(
    gain: float, kind: str, asked: SampleSizeNeeded, runs: int, rng: simulate.Generator
) -> float:
    checks = decided(gains(gain, kind, asked.classes, runs, rng), Policy(**OPEN), asked.queries)
    return float(np.mean([check.outcome == asked.to_show for check in checks]))


def compare_rows(runs: int, seed: int) -> Iterator[Row]:
    """Coverage and length of other intervals of the same data."""
    kinds: list[tuple[str, simulate.Draw, float, str]] = [
        ("hit gain 0", simulate.hit_changes, 0.0, "equal"),
        ("hit gain 0", simulate.hit_changes, 0.0, "heavy"),
        ("negative flips 0.05", simulate.flips, 0.05, "equal"),
    ]
    for what, draw, truth, kind in kinds:
        for classes in CLASSES:
            rng = simulate.generator(seed, f"compare {what} {kind} {classes}")
            by = simulate.alternatives(draw, truth, kind, classes, runs=runs, rng=rng)
            for method, cells in by.items():
                yield {**_covered(what, kind, classes, cells), "method": method}


def tables(runs: int, seed: int, compare: bool) -> dict[str, list[Row]]:
    """Every table, as rows."""
    half = max(1, runs // 2)
    if compare:
        return {"compare": list(compare_rows(half, seed))}
    few, many = (("equal", 20), ("heavy", 20)), (("equal", 50), ("heavy", 50))
    return {
        "coverage": [*coverage_rows(runs, seed), *cosine_rows(half, seed)],
        "false passes": list(false_pass_rows(half, seed)),
        "lopsided harm": list(dependence.lopsided_rows(half, seed)),
        "units": list(dependence.unit_rows(half, seed)),
        "slices": [family(half, seed)],
        "power": [
            power(gain, classes, runs, seed)
            for gain in (0.02, 0.05, 0.1)
            for classes in (20, 50, 200, 500)
        ],
        "needed": [
            needed(gain, kind, pilot, runs, seed)
            for gain, pilots in ((0.1, few), (0.05, many), (-0.05, many))
            for kind, pilot in pilots
        ],
    }


def grid(rows: Sequence[Row], left: Sequence[str], cell: str) -> list[str]:
    """A table in Markdown: one line for each value of ``left``, one column a number of classes."""
    columns = sorted({row["classes"] for row in rows})
    lines = ["| " + " | ".join([*left, *map(str, columns)]) + " |"]
    lines.append("|---" * (len(left) + len(columns)) + "|")
    names = list(dict.fromkeys(tuple(str(row[key]) for key in left) for row in rows))
    for name in names:
        cells = {
            row["classes"]: cell.format(**row, star="*" if row.get("short") else "")
            for row in rows
            if tuple(str(row[key]) for key in left) == name
        }
        lines.append("| " + " | ".join([*name, *(cells.get(c, "") for c in columns)]) + " |")
    return lines


def listed(rows: Sequence[Row]) -> list[str]:
    """A table in Markdown, one line a row."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return ["| " + " | ".join(str(value) for value in line) + " |" for line in lines]


def show(found: dict[str, list[Row]]) -> None:
    """Print every table; ``*`` marks a coverage below 95% by more than three standard errors."""
    misses = "{coverage:.3f}{star} ({truth_above:.3f}, {truth_below:.3f}) {length:.3g}"
    layout = {
        "coverage": (("what", "sizes"), misses),
        "false passes": (("what", "sizes"), "{passed:.3f}"),
        "power": (("gain",), "{passed:.3f}"),
        "compare": (("what", "sizes", "method"), "{coverage:.3f}{star} {length:.3f}"),
    }
    for title, rows in found.items():
        runs = sorted({row["runs"] for row in rows})
        error = [f"{n} runs, s.e. of .95 {math.sqrt(0.95 * 0.05 / n):.4f}" for n in runs]
        print(f"\n{title}: {'; '.join(error)}\n")
        print("\n".join(grid(rows, *layout[title]) if title in layout else listed(rows)))


def main() -> None:
    """Print the tables, or all their numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the numbers of every cell")
    parser.add_argument("--compare", action="store_true", help="other ways to resample instead")
    options = parser.parse_args()
    cells = tables(options.runs, options.seed, options.compare)
    if options.json:
        print(json.dumps({"runs": options.runs, "seed": options.seed, "tables": cells}, indent=1))
    else:
        show(cells)


if __name__ == "__main__":
    main()
