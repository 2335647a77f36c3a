"""Every route and baseline against the share of the gallery that passed the new model.

    python examples/kanji/build.py         once: 2,965 characters
    python examples/characters/build.py    once: 18,502 characters
    python -m benchmarks.studies.share_passed [--cases emoji-lite0-lite2,...] [--seeds 0,1,2]
                                              [--work DIR] [--json FILE]
                                              [--docs docs/share-passed.md]

A case with a seed is an old model, a new backbone and a gallery (``common/cases.py``). A case of
the large set may have other numbers of training classes and rows: characters-cnn-larger-500-9000.
The routes are those of ``common/passing.py``. Validation classes choose what a route leaves open;
test classes, which no model saw, judge. With --json, results in the file are not measured again,
and new ones are added. --docs writes the tables, and a figure beside them, of all results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.arguments import cases_at_hand, study_parser
from benchmarks.common.cases import (
    CASES,
    CNNS,
    CONTROLS,
    LARGE,
    Case,
    Workshop,
)
from benchmarks.common.passing import SHARES, Line, Result, measure
from benchmarks.common.share_docs import figure, page, summary
from benchmarks.common.whole import small_network_recipe
from compatctl.files import write_atomic
from compatctl.migration.routes import RouteInputs

ALL = (*CASES, *LARGE, *CONTROLS)


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results = read(arguments.json) if arguments.json else []
    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(
            work=arguments.work or Path(temporary),
            kanji=arguments.kanji,
            characters=arguments.characters,
        )
        for case in (
            replace(variant, seed=seed)
            for seed in arguments.seeds
            for variant in cases_at_hand(arguments)
        ):
            if (case.name, case.seed) in {(result.case, result.seed) for result in results}:
                continue
            start = time.monotonic()
            inputs = shop.inputs(case)
            built = time.monotonic()
            results.append(run_case(inputs, case))
            print(shown(results[-1]), flush=True)
            seconds = (built - start, time.monotonic() - built)
            print("built in {:.0f} s, measured in {:.0f} s\n".format(*seconds), file=sys.stderr)
            if arguments.json:
                write(arguments.json, results)
    results = _ordered(results)
    print("\n".join(summary(results)))
    if arguments.docs:
        picture = arguments.docs.with_suffix(".svg")
        write_atomic(arguments.docs, page(results, picture.name).encode())
        write_atomic(picture, figure(results).encode())


def run_case(inputs: RouteInputs, case: Case, shares: Sequence[float] = SHARES) -> Result:
    """Every route of one case with one seed."""
    whole = small_network_recipe(inputs.recipe) if case.new in CNNS else None
    lines = measure(inputs, shares, whole)
    split = np.array([inputs.data.items[int(row)].split for row in inputs.query_rows])
    test = (split == "test") & inputs.truth.has_match()
    labelled = [inputs.data.items[int(row)].split == "train" for row in inputs.gallery_rows]
    return Result(
        case=case.name,
        seed=case.seed,
        queries=int(test.sum()),
        classes=len(np.unique(inputs.truth.classes[test])),
        rows=len(inputs.gallery_rows),
        labelled=float(np.mean(labelled)),
        old=lines[0].hit_rate,
        free=lines[-1].hit_rate,
        lines=tuple(lines),
    )


def shown(result: Result) -> str:
    """A table for the terminal."""
    rows = [
        f"{result.case}, seed {result.seed}: {result.queries} queries, {result.classes} classes, "
        f"{result.rows} rows, {result.labelled:.0%} of them labelled training items",
        f"{'passed':>7s}  {'route':20s}{'order':12s}{'hit_rate@1':>8s}{'gain':>8s}  "
        f"{'95% interval':17s}{'kept':>6s}{'flips':>7s}  gate",
    ]
    for line in result.lines:
        kept = "" if line.kept is None else f"{line.kept:.0%}"
        parts = "".join(
            f"; {name} {value:.3f}"
            for name, value in (("touched", line.touched), ("untouched", line.untouched))
            if value is not None
        )
        rows.append(
            f"{line.passed:7.1%}  {line.route:20s}{line.order:12s}{line.hit_rate:8.3f}"
            f"{line.gain:+8.3f}  [{line.low:+.3f}, {line.high:+.3f}] {kept:>6s}{line.flips:7.3f}  "
            f"{line.gate or '':12s} {line.setting}{parts}"
        )
    return "\n".join(rows)


def read(path: Path) -> list[Result]:
    """Results of earlier runs; none where there is no file."""
    if not path.exists():
        return []
    return [
        Result(**{**entry, "lines": tuple(Line(**line) for line in entry["lines"])})
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]


def write(path: Path, results: Sequence[Result]) -> None:
    """All results, in the order of the cases."""
    rows = [asdict(result) for result in _ordered(results)]
    write_atomic(path, (json.dumps(rows, indent=1) + "\n").encode())


def _ordered(results: Iterable[Result]) -> list[Result]:
    names = {case.name: place for place, case in enumerate(ALL)}
    return sorted(
        results, key=lambda entry: (names.get(entry.case, len(names)), entry.case, entry.seed)
    )


def _arguments() -> argparse.Namespace:
    shared = ("seeds", "work", "kanji", "characters", "threads", "json", "docs")
    return study_parser(__doc__, *shared, cases=ALL).parse_args()


if __name__ == "__main__":
    main()
