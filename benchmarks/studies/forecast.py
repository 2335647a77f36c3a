"""Does the forecast of ``plan`` hold? Hit rate predicted from few labelled classes, and measured.

The cases are those of ``share_passed.py``, with unseen classes in the whole gallery and nothing of
it passed. The recipe is trained on a sixteenth to all of the training classes. Three successive
shares predict the larger ones, twice and four times the largest of the three. Their intervals of
80% should contain the measured hit rate in at least 8 of 10 cases.

    python -m benchmarks.studies.forecast [--cases emoji-lite0-lite2] [--seeds 0,1,2] [--work DIR]

Needs the extra ``demo``; for kanji ``examples/kanji/data/kanji.npz``, and for characters
``examples/characters/data/characters.npz`` (or ``--kanji FILE``, ``--characters FILE``).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.arguments import study_parser
from benchmarks.common.cases import CASES, LARGE, Workshop
from compatctl.core.arrays import Bools
from compatctl.core.power_law import LEVEL, Range
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.migration.forecast import RUNS, first_classes, law_of
from compatctl.migration.routes import RouteInputs, train_model

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One prediction: classes, how many times those that it was made from, the predicted misses of
    one run, and the measured ones of each run."""

    classes: int
    times: int
    predicted: Range
    measured: tuple[float, ...]

    @property
    def inside(self) -> tuple[bool, ...]:
        """Whether each run is in the interval."""
        high = self.predicted.high
        assert high is not None
        return tuple(self.predicted.low <= misses <= high for misses in self.measured)


def checks(inputs: RouteInputs, runs: int) -> Iterator[Check]:
    """Predictions for the shares that are larger than three others."""
    points = [_point(inputs, share, runs) for share in SHARES]
    has_match = inputs.truth.has_match()
    for start in range(len(points) - 3):
        law, _ = law_of(points[start : start + 3], inputs.truth, [])
        for step, (amount, hits) in enumerate(points[start + 3 :], 1):
            yield Check(
                classes=round(amount),
                times=2**step,
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
    shared = ("seeds", "work", "kanji", "characters", "threads")
    parser = study_parser(__doc__, *shared, cases=(*CASES, *LARGE))
    parser.set_defaults(cases=[*CASES])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inside: dict[int, list[bool]] = defaultdict(list)
    print("| case | seed | classes | times | predicted hit@1 (interval) | measured | inside |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        workshop = Workshop(
            work=options.work or Path(temporary), kanji=options.kanji, characters=options.characters
        )
        for case in options.cases:
            for seed in options.seeds:
                for check in checks(workshop.inputs(replace(case, seed=seed)), RUNS):
                    print(_line(case.name, seed, check), flush=True)
                    inside[check.times] += check.inside
    for times, held in sorted(inside.items()):
        print(
            f"inside at {times} times the classes: {sum(held)} of {len(held)} "
            f"({np.mean(held):.2f}; promised {LEVEL})"
        )


def _line(case: str, seed: int, check: Check) -> str:
    predicted = check.predicted
    low, value, high = (
        1 - misses for misses in (predicted.high or 1.0, predicted.value, predicted.low)
    )
    measured = ", ".join(f"{1 - misses:.3f}" for misses in check.measured)
    inside: Sequence[str] = ["yes" if held else "no" for held in check.inside]
    between = f"{value:.3f} ({low:.3f} to {high:.3f})"
    cells = (case, seed, check.classes, check.times, between, measured, ", ".join(inside))
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
