"""What is resampled: classes, or crossed kinds of units such as classes and users.

Queries of one class are not independent, nor are queries of one user. If both matter, the variance
of a total is ``V(class) + V(user) - V(class x user)``, where ``V(k)`` is the sum of squared totals
by unit of kind k (Cameron, Gelbach and Miller, Journal of Business and Economic Statistics 29,
2011). A pair of queries then counts once, whatever it shares.

Shapes: ``Q`` queries, ``K`` kinds of units, ``C`` cells (combinations of units that occur).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.errors import InputError

MAX_KINDS = 4
"""Kinds of units that may cross; sums are taken by each of their 2^K - 1 subsets."""

UnitSet = tuple[int, tuple[int, ...], Codes]
"""A set of kinds: its sign in the sum, its members, and (C,) the unit of each cell."""


def unit_cells(classes: Codes) -> tuple[Codes, Codes]:
    """Split ``classes``, (Q,) or (Q, K), into cells.

    Returns:
        (C, K) unit codes from 0 of each cell, and (Q,) each query's cell.
    """
    columns = classes[:, None] if classes.ndim == 1 else classes
    cell = np.zeros(len(columns), dtype=np.int64)
    for column in columns.T:
        codes = np.unique(column, return_inverse=True)[1]
        cell = np.unique(cell * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    first = np.zeros(int(cell.max(initial=-1)) + 1, dtype=np.int64)
    first[cell[::-1]] = np.arange(len(cell))[::-1]
    kinds = [np.unique(column[first], return_inverse=True)[1] for column in columns.T]
    return np.stack(kinds, axis=1).astype(np.int64), cell.astype(np.int64)


def count_units(classes: Codes, has_match: Bools) -> int:
    """Units among the queries with a match, of the kind that has fewest."""
    columns = classes[:, None] if classes.ndim == 1 else classes
    return min(len(np.unique(column[has_match])) for column in columns.T)


def minimal_kinds(columns: Sequence[Codes]) -> tuple[Codes, tuple[int, ...]]:
    """The columns (Q,) of codes that must be resampled, as (Q,) or (Q, K), and their positions.

    A column is redundant if each of its units lies within one unit of another column: resampling
    the larger unit includes it. Of equal columns the first is kept.

    Raises:
        InputError: more than ``MAX_KINDS`` columns are left.
    """
    sizes = [len(np.unique(column)) for column in columns]
    kept = []
    for i, column in enumerate(columns):
        redundant = any(
            j != i
            and int(unit_cells(np.stack([column, other], axis=1))[1].max(initial=-1)) + 1
            == sizes[i]
            and (sizes[j] < sizes[i] or j < i)
            for j, other in enumerate(columns)
        )
        if not redundant:
            kept.append(i)
    if len(kept) > MAX_KINDS:
        raise InputError(
            f"at most {MAX_KINDS} kinds of units can cross, got {len(kept)}",
            tip="name fewer columns: those that carry most dependence",
        )
    if len(kept) == 1:
        return columns[kept[0]], tuple(kept)
    return np.stack([columns[i] for i in kept], axis=1), tuple(kept)


def crossed_moments(sets: Sequence[UnitSet], contributions: Floats) -> tuple[float, float, Floats]:
    """Moments of the total of ``contributions`` (C,) of cells; ``sets`` is from ``unit_sets``.

    Returns:
        The second moment, at least that of each kind alone; the third moment; and (K,) the second
        moments of each kind alone.
    """
    second = third = 0.0
    alone = np.zeros(sum(len(members) == 1 for _, members, _ in sets))
    for sign, members, unit in sets:
        sums = np.bincount(unit, contributions)
        squares = float((sums**2).sum())
        second += sign * squares
        third += sign * float((sums**3).sum())
        if len(members) == 1:
            alone[members[0]] = squares
    return max(second, float(alone.max(initial=0.0))), third, alone


def unit_sets(kinds: Codes) -> list[UnitSet]:
    """Every nonempty subset of the kinds (C, K), with its sign and the cells' units."""
    K = kinds.shape[1]
    return [
        ((-1) ** (size + 1), members, unit_cells(kinds[:, members])[1])
        for size in range(1, K + 1)
        for members in combinations(range(K), size)
    ]
