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
    """A group of queries and what is resampled of it."""

    group: str
    classes: Codes
    """(Q,), or (Q, K) for K crossed kinds of units."""
    unit: tuple[str, ...]
    n_queries: int
    """Queries with a match."""
    may_decide: bool


def cosine_measurements(
    inequalities: Inequalities,
    sample: GroupSample,
    draw: Callable[[], np.random.Generator],
    replicates: int,
    only: Container[tuple[str, str]] | None = None,
) -> list[Measurement]:
    """The change of the mean cosine to items of the same class (1a) and of other classes (1b).

    ``only`` keeps the measurements with these names and groups.
    """

    def measure(name: str, negated: bool, n: int, detail: str) -> Measurement:
        sums = inequalities.sums.negated() if negated else inequalities.sums
        estimate = estimate_diff if negated else estimate_same
        return Measurement(
            name=name,
            group=sample.group,
            estimate=estimate(sums, replicates, draw(), sample.classes),
            n=n,
            n_queries=sample.n_queries,
            may_decide=sample.may_decide,
            unit=sample.unit,
            detail=detail,
        )

    checks = {
        "same_class": (
            False,
            inequalities.new_old.n_same,
            "The mean cosine to old gallery items of the query's class moves by "
            f"{inequalities.same_gain:+.5f} from old to new queries, and should not fall (1a)",
        ),
        "different_class": (
            True,
            inequalities.new_old.n_diff,
            "The mean cosine to old gallery items of other classes moves by "
            f"{-inequalities.diff_gain:+.5f} from old to new queries, "
            "and may rise by a margin (1b)",
        ),
    }
    return [
        measure(name, *arguments)
        for name, arguments in checks.items()
        if only is None or (name, sample.group) in only
    ]


def design_effect(
    dependences: Sequence[Dependence], sample: GroupSample, min_classes: int
) -> Measurement:
    """The design effect of the column on which queries depend most."""
    return Measurement(
        name="design_effect",
        group=sample.group,
        estimate=worst_design_effect(dependences, min_classes),
        n=sample.n_queries,
        n_queries=sample.n_queries,
        may_decide=sample.may_decide,
        detail=describe_dependence(dependences, min_classes),
    )
