"""Do queries depend on each other by a column that is not resampled, such as their user?

For each column there are two figures. The intraclass correlation says how alike the changes of
queries with one value are. The design effect is the variance of the gain with the column resampled
too, over the variance without. It is trusted only if it is far beyond chance. Chance is found by
flipping the signs of whole resampled units at random: this keeps what those units account for, and
removes what the values of the column have in common beyond them.

Shapes: ``Q`` queries, ``K`` kinds of resampled units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.sampling_units import crossed_moments, unit_cells, unit_sets

FLIPS = 60
"""Draws of signs; 60 give their scatter to within a tenth."""
SIGMAS = 3.5
"""Standard deviations beyond chance from which dependence is reported. Of 1,000 independent columns
of 20 values each, about three exceed it; with many values, fewer."""
MIN_EFFECT = 1.2
"""A smaller design effect lengthens an interval by less than a tenth."""


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """How the change from old to new hits depends on one column, or on the class."""

    column: str
    n_units: int
    """Values that two or more queries have."""
    icc: float
    """Intraclass correlation, at most 1; 0 if queries with one value are no more alike."""
    design_effect: float
    """Variance of the gain with the column resampled too, over that without; >= 1."""
    sigmas: float
    """Standard deviations of the design effect beyond chance."""
    used: bool
    """Whether the column is resampled."""

    @property
    def unmodelled(self) -> bool:
        """Whether the column carries dependence that is not resampled."""
        return not self.used and self.sigmas >= SIGMAS and self.design_effect >= MIN_EFFECT


def measure_dependence(  # noqa: PLR0917 - what happened, and what it may depend on
    change: Floats,
    has_match: Bools,
    classes: Codes,
    unit: tuple[str, ...],
    columns: Mapping[str, Codes],
    rng: np.random.Generator,
) -> tuple[Dependence, ...]:
    """Dependence on each column that has more than one value and fewer values than queries.

    Args:
        change: (Q,) new hit minus old hit.
        has_match: (Q,) queries with a match.
        classes: (Q,) or (Q, K) codes of what is resampled.
        unit: the name of each kind of ``classes``.
        columns: name -> (Q,) codes.
        rng: draws the signs; a fixed seed keeps a report reproducible.
    """
    resampled, n = classes[has_match], int(has_match.sum())
    residual = change[has_match] - (change[has_match].mean() if n else 0.0)
    dependences = []
    for name, codes in columns.items():
        column = np.unique(codes[has_match], return_inverse=True)[1]
        sizes = np.bincount(column)
        if not 1 < len(sizes) < n:
            continue
        used = name in unit
        effect, sigmas = (1.0, 0.0) if used else _effect(residual, resampled, column, rng)
        dependences.append(
            Dependence(
                column=name,
                n_units=int((sizes > 1).sum()),
                icc=intraclass(residual, column),
                design_effect=effect,
                sigmas=sigmas,
                used=used,
            )
        )
    return tuple(dependences)


def worst_design_effect(dependences: Iterable[Dependence], min_units: int) -> float:
    """The largest unmodelled design effect of a column with at least ``min_units`` values, or 1."""
    return max(
        (d.design_effect for d in dependences if d.unmodelled and d.n_units >= min_units),
        default=1.0,
    )


def describe_dependence(dependences: Iterable[Dependence], min_units: int) -> str:
    """One sentence about the columns behind ``worst_design_effect``."""
    names = [d.column for d in dependences if d.unmodelled and d.n_units >= min_units]
    if not names:
        return "No column carries dependence beyond what is resampled"
    return f"The variance of the gain is larger if {', '.join(names)} is resampled too"


def intraclass(values: Floats, units: Codes) -> float:
    """The intraclass correlation of values (n,) by units (n,), codes from 0; at least 0.

    This is the analysis-of-variance estimate (Donner, International Statistical Review 54, 1986).
    """
    sizes = np.bincount(units).astype(np.float64)
    n, k = sizes.sum(), len(sizes)
    means = np.bincount(units, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (k - 1)
    within = float(((values - means[units]) ** 2).sum()) / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    scatter = between + (size - 1) * within
    return max(0.0, (between - within) / scatter) if scatter > 0 else 0.0


def _effect(
    residual: Floats, resampled: Codes, column: Codes, rng: np.random.Generator
) -> tuple[float, float]:
    """The design effect of the column, and its distance from chance in standard deviations."""
    base = resampled[:, None] if resampled.ndim == 1 else resampled
    kinds, cell = unit_cells(np.concatenate([base, column[:, None]], axis=1))
    sums = np.bincount(cell, residual).astype(np.float64)
    sets, K = unit_sets(kinds), base.shape[1]
    with_column = [(sign, units) for sign, members, units in sets if K in members]
    without, _, _ = crossed_moments(unit_sets(kinds[:, :K]), sums)

    def added(values: Floats) -> float:
        return sum(
            sign * float((np.bincount(units, values) ** 2).sum()) for sign, units in with_column
        )

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
