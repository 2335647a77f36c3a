"""How a store that re-scores answers before a backfill, and how it would answer after.

The first stage is that of the index with and without the backfilled rows. Its candidates are
re-scored with the free vectors of the side file, the images that a query may embed and the store's
merge rule.

A backfilled row counts as passed: in a project that limits what may pass it takes the room of a row
that re-scoring could embed. What lasts there is compared, as in ``verify``: the side file filled up
to the limit, by the hash of the id, and nothing embedded any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Rows, Vectors, as_rows
from compatctl.core.hash_order import hash_key
from compatctl.core.nearest import Neighbours
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import kept_rows
from compatctl.deployment.rescoring import PassedRows
from compatctl.evaluation.served_today import ServedToday
from compatctl.manifest import Catalog
from compatctl.progress import Progress
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class RescoredTrial:
    """How the answers of a trial were re-scored.

    Attributes:
        candidates: the first answers that were ranked again.
        kept: gallery rows with a free vector in the side file.
        passes: the images that a query could embed; 0 where the project limits what may pass.
        room, room_after: rows that re-scoring may still embed without the backfill and with it,
            which counted as embedded; None: no limit.
        first_stage: hit rate of the index as it is, without re-scoring, in [0, 1].
    """

    candidates: int
    kept: int
    passes: int
    room: int | None
    room_after: int | None
    first_stage: float

    @property
    def less_room(self) -> str:
        """What the backfill takes from re-scoring; empty if nothing."""
        if self.room == self.room_after:
            return ""
        return (
            "the backfilled rows count for max_gallery_pass: re-scoring could embed "
            f"{self.room} rows more, and then {self.room_after}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RescoredService:
    """Orders the first answers of queries with these free vectors (Q, F) before and after."""

    queries: Vectors
    today: ServedToday
    later: ServedToday
    rooms: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        project: Project,
        gallery: DeployedGallery,
        data: Dataset,
        *,
        queries: Vectors | None,
        rows: Rows,
        digests: Bytes,
        progress: Progress,
    ) -> Self | None:
        """The service of a store that re-scores; None: it does not. ``rows`` (n,) of the catalogue
        are backfilled from images with these ``digests`` (n, 32).

        Raises:
            DamagedError: the side file is damaged.
        """
        today = ServedToday.of_store(gallery, data, progress)
        if today is None or queries is None:
            return None
        catalog = gallery.catalog
        written = catalog.reassigned(rows, gallery.manifest.query_model, digests)
        if project.max_gallery_pass >= 1.0:
            return cls(queries=queries, today=today, later=replace(today, catalog=written))
        passed, kept = PassedRows.of(gallery, gallery.encoder), kept_rows(today.side, catalog)
        new = np.zeros(len(catalog), bool)
        new[rows] = True
        rooms = passed.room(project, kept), passed.room(project, kept | new)
        ended = replace(today, settings=replace(today.settings, passes=0))
        gone = passed.unkept | kept
        return cls(
            queries=queries,
            today=replace(ended, filled=_first(catalog, ~gone, rooms[0])),
            later=replace(ended, catalog=written, filled=_first(catalog, ~(gone | new), rooms[1])),
            rooms=rooms,
        )

    def before(self, first: Neighbours) -> Neighbours:
        """The answers (Q, C) of the index as it is, as the store ranks them."""
        return self.today(first, self.queries)

    def after(self, first: Neighbours) -> Neighbours:
        """The answers (Q, C) of an index with backfilled rows, as the store would rank them."""
        return self.later(first, self.queries)

    @property
    def measured(self) -> Rows:
        """(n,) gallery rows that were embedded to measure; their vectors are not kept."""
        return np.unique(self.today.free.known.rows)

    def trial(self, first_stage: float) -> RescoredTrial:
        """What a report says of it."""
        return RescoredTrial(
            candidates=self.today.settings.candidates,
            kept=self.today.kept,
            passes=self.today.settings.passes,
            room=self.rooms and self.rooms[0],
            room_after=self.rooms and self.rooms[1],
            first_stage=first_stage,
        )


def _first(catalog: Catalog, free: Bools, n: int) -> Bools:
    """(N,) the first ``n`` of the rows that are ``free`` (N,), by the hash of their ids."""
    rows = sorted(np.flatnonzero(free).tolist(), key=lambda row: hash_key(catalog.ids[row]))
    chosen = np.zeros(len(catalog), bool)
    chosen[as_rows(rows[:n])] = True
    return chosen
