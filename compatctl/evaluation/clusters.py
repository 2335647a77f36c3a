"""What is resampled: the queries' classes, crossed with the columns that were named as clusters."""

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
    """What is drawn of queries with these class codes (Q,) and values (Q,) of each cluster column.

    A query without a value is a unit of its own. Classes are always drawn as well, unless each lies
    within a unit of a column, and a column has no say where each of its units lies within a class.
    Where relevance was ``judged`` and all queries have one label, that is no class: then it is the
    columns alone, or each query.
    """
    kinds = {CLASS: labels} | {name: _codes(values) for name, values in columns.items()}
    if judged and len(np.unique(labels)) < 2:
        del kinds[CLASS]
    if not kinds:
        return ResamplingUnits(classes=np.arange(len(labels)), unit=(QUERY,))
    classes, kept = minimal_kinds(list(kinds.values()))
    names = list(kinds)
    return ResamplingUnits(classes=classes, unit=tuple(names[at] for at in kept))


def column_codes(labels: Rows, columns: Mapping[str, Sequence[str]]) -> dict[str, Rows]:
    """(Q,) codes of the classes and of every column, by which queries may depend on each other."""
    return {CLASS: labels} | {name: _codes(values) for name, values in columns.items()}


def all_columns(data: Dataset, rows: Iterable[int]) -> dict[str, list[str]]:
    """The values of every column that any of the rows has; empty where one has none."""
    items = [data.items[row] for row in rows]
    names = sorted({name for item in items for name in item.slices})
    return {name: [item.slices.get(name, "") for item in items] for name in names}


def columns_of(data: Dataset, rows: Iterable[int], names: Iterable[str]) -> dict[str, list[str]]:
    """The values of some columns for some rows of the data; empty where an item has none.

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


def can_resample(policy: Policy, one: Dependence) -> bool:
    """Whether a column carries dependence and has values enough to be resampled."""
    return one.unmodelled and one.n_units >= policy.min_classes


def dependence_warnings(policy: Policy, found: Iterable[Dependence]) -> tuple[str, ...]:
    """A sentence for each column that carries dependence beyond what is resampled."""
    return tuple(
        f"column {one.column} carries dependence that is not resampled (intraclass correlation "
        f"{one.icc:.2f}, design effect {one.design_effect:.2f}): "
        + (
            f"verify --cluster {one.column}"
            if can_resample(policy, one)
            else f"with {one.n_units} values only, judge them one by one with --slice {one.column}"
        )
        for one in found
        if one.unmodelled
    )


def _codes(values: Sequence[str]) -> Rows:
    """(Q,) codes of the values; one of its own for every empty value."""
    named = np.array([bool(value) for value in values], dtype=bool)
    codes = np.unique(np.array(values, dtype=object), return_inverse=True)[1].astype(np.int64)
    codes[~named] = len(values) + np.flatnonzero(~named)
    return codes
