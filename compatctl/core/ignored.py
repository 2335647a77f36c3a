"""Gallery rows that a query ignores: neither right nor wrong answers.

In person re-identification an item of the query's person from the query's own camera is removed
before ranking (Zheng et al., Market-1501, ICCV 2015). The same applies to frames of one shot,
images of one product and copies of one file.

Rows are sorted once by group, so a query ignores one range of each grouping. Memory is that of the
gallery's codes, whatever the group sizes.

Shapes: ``Q`` queries, ``G`` gallery rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from compatctl.core.arrays import Bools, Codes, as_labels
from compatctl.errors import InputError

_CELLS = 2**22
"""Pairs yielded at once, unless one query has more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ignored:
    """Each query ignores the rows of its own group, in one or more groupings."""

    n_rows: int
    """G, the factor in keys; only rows ``first`` to ``last`` are considered."""
    groups: tuple[tuple[Codes, Codes], ...]
    """For each grouping (Q,) each query's group, negative for none, and sorted keys
    ``group * G + row``."""
    first: int = 0
    last: int | None = None

    @classmethod
    def from_groups(cls, *codes: tuple[Codes, Codes], n_queries: int, n_rows: int) -> Ignored:
        """From (Q,) query codes and (G,) gallery codes of each grouping; negative is no group.

        Raises:
            InputError: wrong shapes or types.
        """
        groups = []
        for query_codes, row_codes in codes:
            queries = as_labels(query_codes, n_queries, "query groups")
            rows = as_labels(row_codes, n_rows, "gallery groups")
            # Only rows in the group of some query matter.
            shared = np.flatnonzero((rows >= 0) & np.isin(rows, queries))
            groups.append((queries, np.sort(rows[shared] * max(n_rows, 1) + shared)))
        return cls(n_rows=n_rows, groups=tuple(groups))

    def pairs(self, queries: slice, first: int = 0, last: int | None = None) -> tuple[Codes, Codes]:
        """Ignored pairs of a slice of queries and the rows ``first`` to ``last``, each once.

        Returns (n,) positions in the slice, ascending, and (n,) rows.
        """
        last = self._rows if last is None else min(last, self._rows)
        factor = self._factor
        parts = []
        for query_groups, keys in self.groups:
            group = query_groups[queries]
            low = np.searchsorted(keys, group * factor + self.first + first)
            high = np.searchsorted(keys, group * factor + self.first + last)
            counts = np.where(group >= 0, high - low, 0)
            query = np.repeat(np.arange(len(group)), counts)
            index = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts - low, counts)
            parts.append(query * factor + keys[index] % factor)
        pairs = (
            parts[0]
            if len(parts) == 1
            else np.unique(np.concatenate([*parts, np.zeros(0, np.int64)]))
        )
        return pairs // factor, pairs % factor - self.first

    def blocks(self) -> Iterator[tuple[Codes, Codes]]:
        """Yield (n,) queries and (n,) rows of all ignored pairs, each once, 2^22 at a time."""
        counts = np.zeros(self._queries, dtype=np.int64)  # a pair of two groupings counts twice
        for group, keys in self.groups:
            low, high = (np.searchsorted(keys, (group + i) * self._factor) for i in (0, 1))
            counts += np.where(group >= 0, high - low, 0)
        block = (np.cumsum(counts) - counts) // _CELLS
        starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), self._queries]
        for start, stop in pairwise(starts):
            query, row = self.pairs(slice(start, stop))
            yield query + start, row

    def contains(self, rows: Codes) -> Bools:
        """(Q, k) whether each query ignores each of its ``rows`` (Q, k); -1 is no row."""
        ignored = np.zeros(rows.shape, dtype=bool)
        for group, keys in self.groups:
            if len(keys):
                key = group[:, None] * self._factor + rows + self.first
                index = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
                ignored |= (keys[index] == key) & (rows >= 0) & (group[:, None] >= 0)
        return ignored

    def select_queries(self, which: Bools | Codes) -> Ignored:
        """The same for some queries, given as a mask (Q,) or as positions."""
        return replace(self, groups=tuple((group[which], keys) for group, keys in self.groups))

    def with_queries(self, n: int) -> Ignored:
        """The same and ``n`` more queries at the end, which ignore no row."""
        none = np.full(n, -1, np.int64)
        return replace(
            self, groups=tuple((np.concatenate([group, none]), keys) for group, keys in self.groups)
        )

    def row_range(self, first: int, last: int) -> Ignored:
        """The same for the gallery rows ``first`` to ``last``, renumbered from 0."""
        if not 0 <= first <= last <= self._rows:
            raise InputError(f"rows {first} to {last} are not among {self._rows}")
        return replace(self, first=self.first + first, last=self.first + last)

    def remap_rows(self, position: Codes) -> Ignored:
        """The same with row g moved to ``position[g]``, or dropped if that is -1.

        ``position`` is (G,); it must keep the order of the rows.
        """
        n = int((position >= 0).sum())
        groups = []
        for query_groups, keys in self.groups:
            row = keys % self._factor - self.first
            mask = (row >= 0) & (row < self._rows)
            mask[mask] = position[row[mask]] >= 0
            remapped = keys[mask] // self._factor * max(n, 1) + position[row[mask]]
            groups.append((query_groups, remapped))
        return Ignored(n_rows=n, groups=tuple(groups))

    @property
    def _factor(self) -> int:
        return max(self.n_rows, 1)

    @property
    def _rows(self) -> int:
        return (self.n_rows if self.last is None else self.last) - self.first

    @property
    def _queries(self) -> int:
        return len(self.groups[0][0]) if self.groups else 0
