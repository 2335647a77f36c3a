"""What is resampled: the queries' classes, crossed with the columns given as ``--cluster``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.dependence import Dependence
from compatctl.core.policy import Policy
from compatctl.core.sampling_units import minimal_kinds
from compatctl.data import Dataset
from compatctl.errors import InputError

CLASS, QUERY = "class", "query"


@dataclass(frozen=True, kw_only=True, eq=False)
class ResamplingUnits:
    """``classes`` (Q,), or (Q, K) where K kinds of units cross; ``unit`` says what each kind is."""

    classes: Rows
    unit: tuple[str, ...]


def resampling_units(
    labels: Rows, columns: Mapping[str, Sequence[str]], *, judged: bool = False
) -> ResamplingUnits:
    """The units of queries with these class codes (Q,) and (Q,) values of each cluster column.

    A query without a value is a unit of its own. Classes or a column are left out if each of their
    units lies within a unit of another. If relevance was ``judged`` and all queries have one label,
    or each its own, that is no class: the units are those of the columns, or single queries.
    """
    kinds = {CLASS: labels} | {name: _codes(values) for name, values in columns.items()}
    if judged and len(np.unique(labels)) in {0, 1, len(labels)}:
        del kinds[CLASS]
    if not kinds:
        return ResamplingUnits(classes=np.arange(len(labels)), unit=(QUERY,))
    classes, kept = minimal_kinds(list(kinds.values()))
    names = list(kinds)
    return ResamplingUnits(classes=classes, unit=tuple(names[index] for index in kept))


def column_codes(labels: Rows, columns: Mapping[str, Sequence[str]]) -> dict[str, Rows]:
    """(Q,) codes of the classes and of every column by which queries may depend on each other."""
    return {CLASS: labels} | {name: _codes(values) for name, values in columns.items()}


def all_columns(data: Dataset, rows: Iterable[int]) -> dict[str, list[str]]:
    """Column -> values of the rows, for every column of these rows; empty: the item has none."""
    items = [data.items[row] for row in rows]
    names = sorted({name for item in items for name in item.slices})
    return {name: [item.slices.get(name, "") for item in items] for name in names}


def columns_of(data: Dataset, rows: Iterable[int], names: Iterable[str]) -> dict[str, list[str]]:
    """Column -> values of the rows of the data, for the named columns; empty: the item has none.

    Raises:
        InputError: a column that no item of the data has.
    """
    wanted = tuple(names)
    known = {name for item in data.items for name in item.slices} if wanted else set()
    rows = list(rows)
    for column in wanted:
        if column not in known:
            raise InputError(
                f"no item of the data has the column {column}",
                tip=f"columns: {', '.join(sorted(known)) or 'none'}",
            )
    return {name: [data.items[row].slices.get(name, "") for row in rows] for name in wanted}


def can_resample(policy: Policy, column: Dependence) -> bool:
    """Whether a column carries dependence and has enough values to be resampled."""
    return column.unmodelled and column.n_units >= policy.min_classes


def dependence_warnings(policy: Policy, columns: Iterable[Dependence]) -> tuple[str, ...]:
    """A sentence for each column that carries dependence beyond what is resampled."""
    return tuple(
        f"column {column.column} carries dependence that is not resampled (intraclass correlation "
        f"{column.icc:.2f}, design effect {column.design_effect:.2f}): "
        + (
            f"verify --cluster {column.column}"
            if can_resample(policy, column)
            else f"with {column.n_units} values only, judge them one by one with --slice "
            f"{column.column}"
        )
        for column in columns
        if column.unmodelled
    )


def _codes(values: Sequence[str]) -> Rows:
    """(Q,) codes of the values; every empty value gets its own."""
    named = np.array([bool(value) for value in values], dtype=bool)
    codes = np.unique(np.array(values, dtype=object), return_inverse=True)[1].astype(np.int64)
    codes[~named] = len(values) + np.flatnonzero(~named)
    return codes
