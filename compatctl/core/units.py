"""What is drawn: classes, or units of several kinds that cross, such as classes and users.

Queries that share a class are not independent, nor are those that share a user. Where both matter
the scatter of a total is that of the sums by class and of the sums by user, less that of the sums
by both at once, which is in each of them (Cameron, Gelbach and Miller, Journal of Business and
Economic Statistics 29, 2011): a pair of queries counts once, whatever it shares.

Shapes: ``Q`` queries, ``K`` kinds of units, ``C`` cells (combinations that occur).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.errors import InputError

MAX_KINDS = 4
"""Kinds of units that may cross: every set of them is summed by."""

UnitSet = tuple[int, tuple[int, ...], Codes]
"""Sign, members and (C,) units of a set of kinds."""


def unit_cells(classes: Codes) -> tuple[Codes, Codes]:
    """(C, K) codes from 0 of each kind by cell, in the order of the codes, and (Q,) each query's
    cell; ``classes`` is (Q,) for one kind, or (Q, K)."""
    columns = classes[:, None] if classes.ndim == 1 else classes
    at = np.zeros(len(columns), dtype=np.int64)
    for column in columns.T:
        codes = np.unique(column, return_inverse=True)[1]
        at = np.unique(at * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    first = np.zeros(int(at.max(initial=-1)) + 1, dtype=np.int64)
    first[at[::-1]] = np.arange(len(at))[::-1]
    kinds = [np.unique(column[first], return_inverse=True)[1] for column in columns.T]
    return np.stack(kinds, axis=1).astype(np.int64), at.astype(np.int64)


def count_units(classes: Codes, has_match: Bools) -> int:
    """How many units the counted queries (Q,) bool are of; of the kind that has fewest."""
    columns = classes[:, None] if classes.ndim == 1 else classes
    return min(len(np.unique(column[has_match])) for column in columns.T)


def minimal_kinds(columns: Sequence[Codes]) -> tuple[Codes, tuple[int, ...]]:
    """The columns (Q,) of codes that are needed, as (Q,) or (Q, K), and their positions.

    One whose units each lie within a unit of another says nothing besides it: drawn whole, the
    larger unit takes it along. Of equal ones the first is kept.

    Raises:
        InputError: more than ``MOST_KINDS`` kinds are left.
    """
    sizes = [len(np.unique(one)) for one in columns]
    kept = []
    for i, one in enumerate(columns):
        within = [
            j
            for j, other in enumerate(columns)
            if j != i
            and int(unit_cells(np.stack([one, other], axis=1))[1].max(initial=-1)) + 1 == sizes[i]
            and (sizes[j] < sizes[i] or j < i)
        ]
        if not within:
            kept.append(i)
    if len(kept) > MAX_KINDS:
        raise InputError(
            f"at most {MAX_KINDS} kinds of units can cross, got {len(kept)}",
            tip="name fewer columns: those that carry most dependence",
        )
    if len(kept) == 1:
        return columns[kept[0]], tuple(kept)
    return np.stack([columns[i] for i in kept], axis=1), tuple(kept)


def crossed_moments(sets: Sequence[UnitSet], beyond: Floats) -> tuple[float, float, Floats]:
    """Second and third moment of the total of contributions ``beyond`` (C,) of cells, and (K,) the
    second moments by each kind alone; ``sets`` as ``unit_sets`` gives them.

    The second is not less than by any kind alone.
    """
    second = third = 0.0
    alone = np.zeros(sum(len(members) == 1 for _, members, _ in sets))
    for sign, members, at in sets:
        sums = np.bincount(at, beyond)
        squares = float((sums**2).sum())
        second += sign * squares
        third += sign * float((sums**3).sum())
        if len(members) == 1:
            alone[members[0]] = squares
    return max(second, float(alone.max(initial=0.0))), third, alone


def unit_sets(kinds: Codes) -> list[UnitSet]:
    """Every set of the kinds (C, K) by which cells are summed."""
    K = kinds.shape[1]
    return [
        ((-1) ** (size + 1), members, unit_cells(kinds[:, members])[1])
        for size in range(1, K + 1)
        for members in combinations(range(K), size)
    ]
