"""Upgrades of galleries that were not born on a simplex, on real images, by every route.

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.legacy [--cases emoji-lite0-lite2,...] [--seeds 0,1,2] [--work DIR]
                                        [--json FILE] [--docs docs/legacy.md]

A case with a seed is an old model, a new backbone and a gallery (``common/cases.py``). Validation
classes choose what a route leaves open, and the route; test classes, which no model saw, judge by
the default policy. With --json, results in the file are not measured again, and new ones are added.
--docs writes the tables, and a figure beside them, of all results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.baselines import measure_baselines
from benchmarks.common.cases import CASES, KANJI, Case, Workshop, chosen
from benchmarks.common.judge import ROUTES, SINGLE, Line, Result, judge
from benchmarks.common.legacy_docs import figure, page, summary
from compatctl.files import write_atomic
from compatctl.migration.routes import Route, RouteInputs, measure_routes, train_free_models
from compatctl.recipe import load_policy


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results, requested = _read(arguments.json) if arguments.json else [], _cases(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(work=arguments.work or Path(temporary), kanji=arguments.kanji)
        for case in (
            replace(variant, seed=seed) for seed in arguments.seeds for variant in requested
        ):
            key = (case.name, case.seed, case.share)
            if key in {(variant.case, variant.seed, variant.share) for variant in results}:
                continue
            start = time.monotonic()
            inputs = shop.inputs(case)
            built = time.monotonic()
            result = run_case(inputs, case)
            print(_shown(result), flush=True)
            seconds = (built - start, time.monotonic() - built)
            print("built in {:.0f} s, measured in {:.0f} s\n".format(*seconds), file=sys.stderr)
            results.append(result)
            if arguments.json:
                _write(arguments.json, results)
    ordered = _ordered(results)
    print("\n".join(summary(ordered)))
    if arguments.docs:
        text = page(ordered, arguments.docs.with_suffix(".svg").name)
        write_atomic(arguments.docs, text.encode())
        write_atomic(arguments.docs.with_suffix(".svg"), figure(ordered).encode())


def _cases(arguments: argparse.Namespace) -> Sequence[Case]:
    """Those that were asked for and whose images are there."""
    requested: Sequence[Case] = arguments.cases
    if arguments.kanji.exists() or all(variant.data != "kanji" for variant in requested):
        return requested
    print(
        f"no images at {arguments.kanji}: cases of characters are left out; "
        "examples/kanji/build.py draws them",
        file=sys.stderr,
    )
    return [variant for variant in requested if variant.data != "kanji"]


def run_case(inputs: RouteInputs, case: Case) -> Result:
    """Every route of one case with one seed."""
    test = np.array([inputs.data.items[int(row)].split == "test" for row in inputs.query_rows])
    free = train_free_models(inputs, [(~test, np.ones_like(test))])
    measured = [*measure_routes(inputs, free), *measure_baselines(inputs, free)]
    lines = judge(inputs, measured, test, load_policy("default"))
    return Result(
        case=case.name,
        seed=case.seed,
        share=case.share,
        queries=int((test & inputs.truth.has_match()).sum()),
        classes=len(np.unique(inputs.truth.classes[test & inputs.truth.has_match()])),
        old=next(line.recall for line in lines if line.route == Route.KEEP),
        free=next(line.recall for line in lines if line.route == Route.REEMBED),
        lines=lines,
    )


def _shown(result: Result) -> str:
    """A table for the terminal."""
    head = f"{result.case}, seed {result.seed}: {result.queries} queries, {result.classes} classes"
    rows = [f"{'route':24s}{'recall@1':>9s}{'gain':>8s}  {'95% interval':17s}{'kept':>6s}"
            f"{'flips':>7s}  gate"]  # fmt: skip
    for line in result.lines:
        kept = "" if line.gain_retained is None else f"{line.gain_retained:.0%}"
        rows.append(
            f"{line.route:24s}{line.recall:9.3f}{line.gain:+8.3f}  "
            f"[{line.low:+.3f}, {line.high:+.3f}] {kept:>6s}{line.negative_flips:7.3f}  "
            f"{line.outcome:12s} {line.setting}"
        )
    best, single = result.best(ROUTES), result.best(SINGLE)
    chosen = f"validation classes choose {best.route} ({best.outcome}); with one encoder " \
        f"{single.route} ({single.outcome})"  # fmt: skip
    return "\n".join([head, *rows, chosen])


def _read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    return [
        Result(**{**entry, "lines": tuple(Line(**line) for line in entry["lines"])})
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]


def _write(path: Path, results: Sequence[Result]) -> None:
    rows = [asdict(result) for result in _ordered(results)]
    write_atomic(path, (json.dumps(rows, indent=1) + "\n").encode())


def _ordered(results: Iterable[Result]) -> list[Result]:
    names = [case.name for case in CASES]
    return sorted(results, key=lambda result: (names.index(result.case), result.seed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", type=partial(chosen, among=CASES), default=CASES)
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default="0,1,2")
    parser.add_argument("--work", type=Path, help="what is made stays here; else it is temporary")
    parser.add_argument("--kanji", type=Path, default=KANJI)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
