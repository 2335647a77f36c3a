"""How much of a deployed gallery went through a new model: the axis of every figure.

Re-embedding passes every gallery row through the new model. An upgrade that promises not to must
say how many rows it passed. Three kinds of rows are counted, each row once in each: *trained*,
labelled training items that are gallery rows; *passed*, rows that were embedded to make the
candidate or the gallery for any other reason (pairs of an adapter, unlabelled images, rows that a
backfill writes, rows that re-scoring embedded); *measured*, all other rows, embedded only to
measure or to choose (validation and test queries, a self-test). The budget of a project limits
``passed``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools


@dataclass(frozen=True, kw_only=True)
class GalleryPass:
    """Counts of distinct gallery rows. ``share`` is ``passed / rows``, in [0, 1].

    A labelled training item that a backfill writes is both trained and passed. ``by`` says for what
    the rows were embedded: purpose -> rows, where one row may count for several purposes. Purposes
    without a row are left out. Rows that may have passed, and cannot be named any more, count as
    others than those that can.
    """

    rows: int
    trained: int
    passed: int
    measured: int
    share: float
    by: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        rows: int,
        trained: Bools,
        passed: dict[str, Bools],
        measured: Bools,
        unnamed: dict[str, int] | None = None,
    ) -> Self:
        """Count masks (``rows``,) of the gallery; ``passed`` gives one for each purpose.

        ``unnamed``: for each purpose how many more rows may have passed, at most.
        """
        unnamed = unnamed or {}
        made = np.zeros(rows, bool)
        for mask in passed.values():
            made |= mask
        n_passed = min(rows, int(made.sum()) + sum(unnamed.values()))
        masks = {"training": trained, **passed, "measurement": measured}
        purposes = {name: int(mask.sum()) + unnamed.get(name, 0) for name, mask in masks.items()}
        return cls(
            rows=rows,
            trained=int(trained.sum()),
            passed=n_passed,
            measured=int((measured & ~made & ~trained).sum()),
            share=n_passed / max(1, rows),
            by={name: min(rows, count) for name, count in purposes.items() if count},
        )

    @property
    def text(self) -> str:
        """The counts in words."""
        return (
            f"gallery passed: {self.share:.2%}, {self.passed} of {self.rows} rows; labelled "
            f"training items: {self.trained} rows; embedded only to measure: {self.measured}"
        )
