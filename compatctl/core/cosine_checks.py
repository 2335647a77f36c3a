"""The compatibility inequalities of a group of queries, as measurements for the gate."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Codes
from compatctl.core.compatibility import Inequalities
from compatctl.core.dependence import Dependence, describe_dependence, worst_design_effect
from compatctl.core.gate import Measurement
from compatctl.core.resampling import estimate_diff, estimate_same


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupSample:
    """Whose cosines: a group's name, what is resampled of its queries, and how many count."""

    group: str
    classes: Codes
    """(Q,), or (Q, K) of units of K kinds that cross."""
    unit: tuple[str, ...]
    n_queries: int
    may_decide: bool


def cosine_measurements(
    both: Inequalities,
    asked: GroupSample,
    draw: Callable[[], np.random.Generator],
    replicates: int,
    only: Container[tuple[str, str]] | None = None,
) -> list[Measurement]:
    """The change of the mean cosine to items of the same class (1a), and of other classes (1b);
    ``only`` those of these names and groups."""

    def measured(name: str, negated: bool, n: int, detail: str) -> Measurement:
        sums = both.sums.negated() if negated else both.sums
        estimate = estimate_diff if negated else estimate_same
        return Measurement(
            name=name,
            group=asked.group,
            estimate=estimate(sums, replicates, draw(), asked.classes),
            n=n,
            n_queries=asked.n_queries,
            may_decide=asked.may_decide,
            unit=asked.unit,
            detail=detail,
        )

    wanted = {
        "same_class": (
            False,
            both.new_old.n_same,
            "The mean cosine to old gallery items of the query's class moves by "
            f"{both.same_gain:+.5f} from old to new queries, and should not fall (1a)",
        ),
        "different_class": (
            True,
            both.new_old.n_diff,
            "The mean cosine to old gallery items of other classes moves by "
            f"{-both.diff_gain:+.5f} from old to new queries, and may rise by a margin (1b)",
        ),
    }
    return [
        measured(name, *what)
        for name, what in wanted.items()
        if only is None or (name, asked.group) in only
    ]


def design_effect(found: Sequence[Dependence], asked: GroupSample, min_classes: int) -> Measurement:
    """What the column that queries depend on each other by most would do to the variance."""
    return Measurement(
        name="design_effect",
        group=asked.group,
        estimate=worst_design_effect(found, min_classes),
        n=asked.n_queries,
        n_queries=asked.n_queries,
        may_decide=asked.may_decide,
        detail=describe_dependence(found, min_classes),
    )
