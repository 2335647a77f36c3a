"""The order in which a backfill re-embeds items: computed, or from a file of what people want."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np

from compatctl.core.arrays import NO_CLASS, Codes, Floats, Rows, Vectors, as_rows
from compatctl.core.gallery_order import answer_doubt, hubness, mean_distance, uncertainty
from compatctl.core.hash_order import hash_key
from compatctl.data import (
    header_of,
    is_answer_log,
    read_answer_log,
    read_traffic,
    warn_of_near_known,
)
from compatctl.errors import InputError, UsageError
from compatctl.manifest import Catalog
from compatctl.notices import MAX_NAMES, notice
from compatctl.printable import listed
from compatctl.recipe import read_ids

MAX_IDS_SHOWN = 5

HUB_QUERIES = 10_000
"""Rows, the first by hash, that search the gallery for the orders by its neighbours."""


class Order(StrEnum):
    """Which rows come first; equals follow in the order of the sha256 of their ids.

    ``HASH``: that order alone, as good as random and the same at each run. ``TRAFFIC``: those with
    the largest count in a file. The others are computed from the stored vectors: ``UNCERTAINTY``,
    rows nearer to another class's mean than to their own, or where the store has no two classes
    rows that are hardly a first answer, or nearly one; ``MEAN_DISTANCE``, rows far from their
    class's mean; ``HUBNESS``, rows that are neighbours of many.
    """

    HASH = "hash"
    TRAFFIC = "traffic"
    UNCERTAINTY = "uncertainty"
    MEAN_DISTANCE = "mean-distance"
    HUBNESS = "hubness"


OTHER_NAMES = {"random": Order.HASH, "hubs": Order.HUBNESS}
"""Second names of orders."""


def named_order(text: str) -> Order | Path:
    """The order of this name, or else the file.

    Raises:
        UsageError: there is no name.
    """
    if not text:
        raise UsageError("--order is empty", tip=f"the orders are {', '.join(Order)}, or a file")
    return Order(text) if text in set(Order) else OTHER_NAMES.get(text, Path(text))


def priority_of(
    order: Order | Path,
    catalog: Catalog,
    vectors: Callable[[], Vectors],
    *,
    traffic: Path | None = None,
) -> Floats:
    """(N,) each row's priority, the highest first.

    ``vectors`` reads the stored vectors (N, D), if the order needs them. ``traffic`` is the file of
    the order by traffic. A file is known by its content: a CSV with the columns id and count, a
    service's log of answers (JSON lines, or parts in Parquet), or ids, one a line.

    Raises:
        UsageError: an order by traffic without its file, the reverse, or no such file or order.
        InputError: a bad file, or one that names no item of the store.
    """
    if (order == Order.TRAFFIC) != (traffic is not None):
        raise UsageError(
            "--order traffic and --traffic FILE go together",
            tip="the file is a CSV with the columns id and count, or a log of answers; "
            "--order FILE takes either too",
        )
    if isinstance(order, Path):
        if not order.is_file() and not order.is_dir():
            raise UsageError(
                f"--order {order} is no file of ids, and no order",
                tip=f"the orders are {', '.join((*Order, *OTHER_NAMES))}",
            )
        return _file_priority(catalog, order)
    if traffic is not None:
        log = traffic.exists() and is_answer_log(traffic)
        return _file_priority(catalog, traffic) if log else _table_priority(catalog, traffic)
    return order_priority(order, catalog, vectors)


def order_priority(order: Order, catalog: Catalog, vectors: Callable[[], Vectors]) -> Floats:
    """(N,) the priority by an order that needs no file; ``vectors`` as in ``priority_of``."""
    if order == Order.HUBNESS:
        return hubness(vectors(), _searching(catalog))
    if order in {Order.UNCERTAINTY, Order.MEAN_DISTANCE}:
        codes = _class_codes(catalog)
        if order == Order.UNCERTAINTY and len(np.unique(codes[codes != NO_CLASS])) < 2:
            return answer_doubt(vectors(), _searching(catalog))
        score = uncertainty if order == Order.UNCERTAINTY else mean_distance
        return score(vectors(), codes)
    return np.zeros(len(catalog))


def listed_priority(catalog: Catalog, first: Sequence[str]) -> Floats:
    """(N,) the priority of rows by a list of ids, the first one first; unlisted rows come last.

    Raises:
        InputError: a listed id is not in the catalogue.
    """
    if unknown := [item for item in first if item not in catalog.row_of]:
        raise InputError(
            f"{len(unknown)} of {len(first)} ids in the order are not in the store: "
            f"{listed(unknown, MAX_IDS_SHOWN)}",
            tip="list ids of gallery items, as they stand in the data",
        )
    priority = np.zeros(len(catalog))
    for position, item in enumerate(first):
        priority[catalog.row_of[item]] = len(first) - position
    return priority


def _file_priority(catalog: Catalog, path: Path) -> Floats:
    if is_answer_log(path):
        counts = read_answer_log(path, catalog.row_of.__contains__)
        if not counts:
            raise InputError(
                f"{path}: no answer has an item of the store",
                tip="give the log of the service that answers from this store",
            )
        return _counted(catalog, counts)
    if header_of(path, ("id", "count")):
        return _table_priority(catalog, path)
    return listed_priority(catalog, read_ids(path))


def _table_priority(catalog: Catalog, path: Path) -> Floats:
    """(N,) each row's count by a table, with a notice of items that the store lacks."""
    counts = read_traffic(path)
    if unknown := [item for item in counts if item not in catalog.row_of]:
        warn_of_near_known(path, "ids", unknown, catalog.ids, told=("counted", "the store"))
        what, result = "items with traffic that are not in the store", "their counts do not matter"
        notice("unknown-items", path, what, unknown[:MAX_NAMES], result, count=len(unknown))
    return _counted(catalog, counts)


def _counted(catalog: Catalog, counts: Mapping[str, float]) -> Floats:
    """(N,) each row's count; 0 for an item without one. Items that the store lacks are ignored."""
    if catalog.row_of.keys().isdisjoint(counts):
        raise InputError(
            f"none of the {len(counts)} items with traffic is in the store: "
            f"{listed(list(counts), MAX_IDS_SHOWN)}",
            tip="the column id holds ids of gallery items, as they stand in the data",
        )
    return np.array([counts.get(item, 0.0) for item in catalog.ids])


def _searching(catalog: Catalog) -> Rows:
    """The rows, ascending, that search the gallery: a sample of a large one."""
    rows = sorted(range(len(catalog)), key=lambda row: hash_key(catalog.ids[row]))
    return as_rows(sorted(rows[:HUB_QUERIES]))


def _class_codes(catalog: Catalog) -> Codes:
    """(N,) class codes; ``NO_CLASS`` where the class is unknown."""
    code = {label: position for position, label in enumerate(dict.fromkeys(catalog.labels))}
    code[""] = NO_CLASS
    return as_rows(code[label] for label in catalog.labels)
