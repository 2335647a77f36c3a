"""Does the forecast of ``plan`` hold? Recall predicted from few labelled classes, and measured.

The cases are those of ``legacy.py``, with unseen classes in the whole gallery and nothing of it
passed. The recipe is trained on a sixteenth to all of the training classes. Three successive shares
predict the next, twice as large, of which the intervals of 80% should contain the measured recall
in at least 8 of 10 cases.

    python -m benchmarks.studies.forecast [--cases emoji-lite0-lite2] [--seeds 0 1 2] [--work DIR]

Needs the extra ``demo``, and for kanji ``examples/kanji/data/kanji.npz``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.cases import CASES, Workshop, chosen
from compatctl.core.arrays import Bools
from compatctl.core.power_law import LEVEL, Range
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.migration.forecast import RUNS, first_classes, law_of
from compatctl.migration.routes import RouteInputs, train_model

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One prediction: classes, predicted misses of one run, and the measured ones of each run."""

    classes: int
    predicted: Range
    measured: tuple[float, ...]

    @property
    def inside(self) -> tuple[bool, ...]:
        """Whether each run is in the interval."""
        high = self.predicted.high
        assert high is not None
        return tuple(self.predicted.low <= misses <= high for misses in self.measured)


def checks(inputs: RouteInputs, runs: int) -> Iterator[Check]:
    """Predictions for the shares that have three smaller ones."""
    points = [_point(inputs, share, runs) for share in SHARES]
    has_match = inputs.truth.has_match()
    for at in range(3, len(points)):
        law, _ = law_of(points[at - 3 : at], inputs.truth, [])
        amount, hits = points[at]
        yield Check(
            classes=round(amount),
            predicted=law.predict(amount),
            measured=tuple(1.0 - float(run[has_match].mean()) for run in hits),
        )


def _point(inputs: RouteInputs, share: float, runs: int) -> tuple[float, list[Bools]]:
    """The number of classes of a share, and which queries each run finds."""
    classes, hits = 0, []
    for run in range(runs):
        data = first_classes(inputs.data, share, run)
        classes = len({item.label for item in data.items if item.split == "train"})
        recipe = replace(inputs.recipe, seed=inputs.recipe.seed + run)
        tuned = train_model(replace(inputs, data=data), recipe, inputs.reference)
        stored = inputs.reference.gallery_features
        hits.append(retrieval(inputs.truth, tuned.queries, stored, (1,), map_k=1).hit1)
    return float(classes), hits


def main() -> None:
    """Measure, and print one line a prediction."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/legacy"))
    parser.add_argument("--kanji", type=Path, default=Workshop.kanji)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workshop, inside = Workshop(work=options.work, kanji=options.kanji), list[bool]()
    print("| case | seed | classes | predicted recall@1 (interval) | measured | inside |")
    print("|---|---|---|---|---|---|")
    for case in chosen(options.cases, CASES):
        for seed in options.seeds:
            for check in checks(workshop.inputs(replace(case, seed=seed)), RUNS):
                print(_line(case.name, seed, check), flush=True)
                inside += check.inside
    print(f"inside: {sum(inside)} of {len(inside)} ({np.mean(inside):.2f}; promised {LEVEL})")


def _line(case: str, seed: int, check: Check) -> str:
    predicted = check.predicted
    low, value, high = (
        1 - misses for misses in (predicted.high or 1.0, predicted.value, predicted.low)
    )
    measured = ", ".join(f"{1 - misses:.3f}" for misses in check.measured)
    inside: Sequence[str] = ["yes" if held else "no" for held in check.inside]
    cells = (case, seed, check.classes, f"{value:.3f} ({low:.3f} to {high:.3f})", measured,
             ", ".join(inside))  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
