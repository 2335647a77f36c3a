"""Which gallery rows the new model embeds for the self-test and the mixed gallery.

A verification must not cost what re-embedding costs. So of a large gallery a sample is embedded,
the same in every run; old and new queries search the same sample.
"""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset, Judgments

SELF_TEST_ROWS = 20_000
"""The most gallery rows that are embedded for it."""


def self_test_rows(
    data: Dataset,
    available: Rows,
    queries: Rows,
    judged: Judgments | None = None,
    *,
    limit: int = SELF_TEST_ROWS,
) -> Rows:
    """(n,) ascending rows of the data: all that are available, or ``limit`` of them.

    Half of the limit is for rows that queries look for: those of their classes, class by class in
    the order of a hash, or those with a judgment. All others follow by the hash of their id.

    Args:
        available: (m,) ascending gallery rows whose image the data have.
        queries: (Q,) rows of the data.
        judged: the user's judgments; with them labels do not count.
    """
    if len(available) <= limit:
        return available
    keys = {row: hash_key(data.items[row].id) for row in available.tolist()}
    if judged is None:
        labels = {row: data.items[row].label for row in keys}
        wanted = {data.items[row].label for row in queries.tolist()}
        order = {label: hash_key(label) for label in wanted}
        sought = [row for row in keys if labels[row] in wanted]
        sought.sort(key=lambda row: (order[labels[row]], keys[row]))
    else:
        items = {judged.item_ids[code] for code in np.unique(judged.item)}
        sought = [row for row in keys if data.items[row].id in items]
        sought.sort(key=lambda row: keys[row])
    first = sought[: limit // 2]
    others = sorted(keys.keys() - set(first), key=lambda row: keys[row])
    return as_rows(sorted([*first, *others[: limit - len(first)]]))
