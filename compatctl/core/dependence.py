"""Do queries depend on each other by something that is not resampled, such as their user?

Two figures of each column: how alike the changes of queries with one value are (intraclass
correlation), and by how much the scatter of the gain would grow, were the column resampled besides
what is (design effect). The second is trusted only where it is far beyond chance. What it would be
by chance is found by turning the signs of whole units that are resampled: that leaves everything as
it is that they account for, and takes away what values of the column have in common beyond them.

Shapes: ``Q`` queries, ``K`` kinds of units that are resampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.units import crossed_moments, unit_cells, unit_sets

FLIPS = 60
"""Draws of signs; their scatter is known to a tenth."""
SIGMAS = 3.5
"""How far beyond chance, in standard deviations, dependence must lie to be spoken of: of 1,000
columns of chance about three do, of 20 values each, and of many values fewer."""
LEAST_EFFECT = 1.2
"""A design effect below this lengthens an interval by less than a tenth."""


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What one column, or the class, says of the change from old to new hits."""

    column: str
    n_units: int
    """Values that two queries have, or more."""
    icc: float
    """Intraclass correlation, at most 1; 0 where queries of one value are no more alike."""
    design_effect: float
    """Variance of the gain with the column resampled besides, over that without; >= 1."""
    sigmas: float
    """How far that is beyond chance, in standard deviations."""
    used: bool
    """Whether it is resampled."""

    @property
    def unmodelled(self) -> bool:
        """Whether it carries dependence that is not resampled."""
        return not self.used and self.sigmas >= SIGMAS and self.design_effect >= LEAST_EFFECT


def measure_dependence(  # noqa: PLR0917 - what happened, and what it may depend on
    change: Floats,
    has_match: Bools,
    classes: Codes,
    unit: tuple[str, ...],
    columns: Mapping[str, Codes],
    rng: np.random.Generator,
) -> tuple[Dependence, ...]:
    """By each column that says anything: one value alone, or one a query, says nothing.

    Args:
        change: (Q,) new hit less old hit.
        has_match: (Q,) the queries that have something to find.
        classes: (Q,) or (Q, K) codes of what is resampled, and
        unit: the name of each kind.
        columns: name -> (Q,) codes.
        rng: draws the signs; a fixed seed keeps a report the same.
    """
    taken, n = classes[has_match], int(has_match.sum())
    beyond = change[has_match] - (change[has_match].mean() if n else 0.0)
    found = []
    for name, codes in columns.items():
        column = np.unique(codes[has_match], return_inverse=True)[1]
        sizes = np.bincount(column)
        if not 1 < len(sizes) < n:
            continue
        effect, sigmas = (1.0, 0.0) if name in unit else _beyond(beyond, taken, column, rng)
        found.append(
            Dependence(
                column=name,
                n_units=int((sizes > 1).sum()),
                icc=intraclass(beyond, column),
                design_effect=effect,
                sigmas=sigmas,
                used=name in unit,
            )
        )
    return tuple(found)


def worst_design_effect(found: Iterable[Dependence], least_units: int) -> float:
    """The largest design effect of a column that carries dependence and has units enough to be
    resampled; 1 where none does."""
    return max(
        (o.design_effect for o in found if o.unmodelled and o.n_units >= least_units), default=1.0
    )


def describe_dependence(found: Iterable[Dependence], least_units: int) -> str:
    """What the design effect is of, for people."""
    names = [one.column for one in found if one.unmodelled and one.n_units >= least_units]
    if not names:
        return "No column carries dependence beyond what is resampled"
    return f"The variance of the gain is larger where {', '.join(names)} is resampled besides"


def intraclass(values: Floats, units: Codes) -> float:
    """The intraclass correlation of values (n,) by units (n,), codes from 0: the estimate of the
    analysis of variance (Donner, International Statistical Review 54, 1986), 0 if below."""
    sizes = np.bincount(units).astype(np.float64)
    n, k = sizes.sum(), len(sizes)
    means = np.bincount(units, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (k - 1)
    within = float(((values - means[units]) ** 2).sum()) / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    scatter = between + (size - 1) * within
    return max(0.0, (between - within) / scatter) if scatter > 0 else 0.0


def _beyond(
    beyond: Floats, taken: Codes, column: Codes, rng: np.random.Generator
) -> tuple[float, float]:
    """The design effect of the column, and its distance from chance in standard deviations."""
    base = taken[:, None] if taken.ndim == 1 else taken
    kinds, at = unit_cells(np.concatenate([base, column[:, None]], axis=1))
    sums = np.bincount(at, beyond).astype(np.float64)
    sets, K = unit_sets(kinds), base.shape[1]
    new = [(sign, units) for sign, members, units in sets if K in members]
    without, _, _ = crossed_moments(unit_sets(kinds[:, :K]), sums)

    def added(values: Floats) -> float:
        return sum(sign * float((np.bincount(units, values) ** 2).sum()) for sign, units in new)

    extra = added(sums)
    if extra <= 0 or without <= 0:
        return 1.0, 0.0
    chance = []
    for _ in range(FLIPS):
        signs = np.ones(len(sums))
        for units in kinds[:, :K].T:
            signs *= (rng.integers(0, 2, int(units.max()) + 1) * 2 - 1)[units]
        chance.append(added(signs * sums))
    scatter = float(np.std(chance))
    return 1.0 + extra / without, extra / scatter if scatter > 0 else 0.0
