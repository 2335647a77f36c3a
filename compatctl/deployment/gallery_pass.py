"""Which rows of the deployed gallery a candidate passed through its model, by its record.

A gallery row was passed if its id, or its image's digest where the catalogue knows it, is in the
record. So one image under two ids counts as two rows, and one row under two purposes as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Bools, Rows
from compatctl.core.digest_prefixes import DigestPrefixes, name_prefix
from compatctl.core.gallery_pass import GalleryPass
from compatctl.data import Dataset
from compatctl.deployment.query_model_pass import EARLIER, PAIRS, PENDING, RESCORED, STORED
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import parity_items, sampled_items
from compatctl.errors import UsageError
from compatctl.manifest import Catalog, Manifest
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import NOTHING, Store, written_rows
from compatctl.store.pending_rows import PendingRows
from compatctl.store.side_file import SideFile


def gallery_pass(
    catalog: Catalog,
    record: TrainingRecord | None,
    *,
    made: ModelRows | None = None,
    measured: Iterable[str] = (),
) -> GalleryPass:
    """Count the rows of a catalogue that a candidate passed.

    Args:
        record: its training record; None counts no row by it.
        made: the rows whose vectors it made, or will make.
        measured: ids of items that were embedded to measure, in addition to the record's.
    """
    record = record or TrainingRecord()
    items = _Items.of(catalog)
    measured_ids = record.measured_ids | DigestPrefixes.from_ints(map(name_prefix, measured))
    own = items.among(record.own("ids"), record.own("digests"))
    trained = items.among(record.ids, record.digests)
    passed = {PAIRS: items.among(record.unlabelled_ids, record.unlabelled_digests) & own}
    return GalleryPass.of(
        rows=len(catalog),
        trained=trained & own,
        passed=passed | (made.by_purpose if made else {}),
        measured=measured_ids.contains(items.names),
        unnamed={EARLIER: made.unnamed} if made else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelRows:
    """Rows (N,) of a gallery whose vectors one model made.

    Attributes:
        stored: its vectors are in the gallery.
        earlier: others whose vectors were in the gallery of an earlier generation.
        rescored: its side file has their free vectors.
        pending: others that an unfinished backfill embedded; None: none.
        unnamed: how many more, at most, it wrote in galleries that were deleted since.
    """

    stored: Bools
    earlier: Bools
    rescored: Bools
    pending: Bools | None = None
    unnamed: int = 0

    @classmethod
    def of(cls, store: Store, catalog: Catalog, sha256: str) -> Self:
        """Those of a model, by the store's current generation and its history.

        Raises:
            DamagedError: the side file, a catalogue or a manifest is missing or changed.
        """
        stored = rows_of_model(catalog, sha256)
        earlier, unnamed = _earlier_rows(store, catalog, sha256, stored)
        rescored = rescored_rows(store.path, catalog, sha256)
        kept = PendingRows.existing(store.path, sha256)
        pending = None if kept is None else kept.holds(catalog.ids) & ~stored & ~earlier
        return cls(
            stored=stored, earlier=earlier, rescored=rescored, pending=pending, unnamed=unnamed
        )

    def writing(self, rows: Rows) -> Self:
        """The same once it wrote rows (n,) too."""
        stored = self.stored.copy()
        stored[rows] = True
        pending = None if self.pending is None else self.pending & ~stored
        return replace(self, stored=stored, earlier=self.earlier & ~stored, pending=pending)

    @property
    def by_purpose(self) -> dict[str, Bools]:
        """Purpose -> (N,)."""
        named = {STORED: self.stored, EARLIER: self.earlier, RESCORED: self.rescored}
        return named if self.pending is None else {**named, PENDING: self.pending}


def _earlier_rows(store: Store, catalog: Catalog, sha256: str, stored: Bools) -> tuple[Bools, int]:
    """(N,) other rows than those ``stored`` (N,) that a model wrote in an earlier generation, and
    how many more at most in generations whose catalogue is deleted."""
    history = store.history()
    undone = [
        before
        for before, state in pairwise(history)
        if _rows(before, sha256)
        and before.catalog != state.catalog
        and (state.restores is not None or _rows(state, sha256) < _rows(before, sha256))
    ]
    if not undone:
        return np.zeros(len(catalog), bool), 0
    first = max(store.manifest.oldest_restorable, store.manifest.oldest_gallery)
    kept = {state.catalog: state for state in undone if state.generation >= first}
    ids = {catalog.ids[row] for row in np.flatnonzero(stored).tolist()}
    for state in kept.values():
        other = store.catalog(state)
        ids |= {other.ids[row] for row in np.flatnonzero(rows_of_model(other, sha256)).tolist()}
    rows = np.fromiter((item in ids for item in catalog.ids), bool, len(catalog))
    if all(state.catalog in kept for state in undone):
        return rows & ~stored, 0
    *_, last = written_rows(history)
    return rows & ~stored, max(0, last.get(sha256, NOTHING).most - int(rows.sum()))


def _rows(state: Manifest, sha256: str) -> int:
    return sum(share.rows for share in state.models if share.sha256 == sha256)


def paired_rows(catalog: Catalog, record: TrainingRecord) -> Bools:
    """(N,) rows that a model passed as pairs of an adapter or as unlabelled images."""
    items = _Items.of(catalog)
    own = items.among(record.own("ids"), record.own("digests"))
    return items.among(record.unlabelled_ids, record.unlabelled_digests) & own


def rows_of_model(catalog: Catalog, sha256: str) -> Bools:
    """(N,) rows whose vectors this model made."""
    own = [position for position, model in enumerate(catalog.models) if model == sha256]
    return np.isin(catalog.model_of, own)


def rescored_rows(store: Path, catalog: Catalog, sha256: str) -> Bools:
    """(N,) rows of which the side file of this model has a free vector.

    Raises:
        DamagedError: the side file is damaged.
    """
    return kept_rows(SideFile.existing(store, sha256), catalog)


def kept_rows(side: SideFile | None, catalog: Catalog) -> Bools:
    """(N,) rows with a free vector in the side file, of whatever image."""
    return np.zeros(len(catalog), bool) if side is None else side.holds(catalog.ids)


def room_left(project: Project, passed: Bools, unnamed: int = 0) -> int:
    """How many more gallery rows the project lets pass, beside those that ``passed`` (N,) and
    ``unnamed`` others."""
    return max(0, project.allowed_rows(len(passed)) - int(passed.sum()) - unnamed)


def checked_ids(data: Dataset) -> set[str]:
    """Ids of the items on which a command compares and tests the file of a new model."""
    return {*parity_items(data).ids, *sampled_items(data).ids}


def require_budget(project: Project, passed: GalleryPass, subject: str, *, tip: str = "") -> None:
    """Refuse to pass more of the gallery than the project allows.

    Raises:
        UsageError: the share is over ``max_gallery_pass``; ``subject`` is what would pass it.
    """
    budget = project.max_gallery_pass
    if passed.share <= budget + 1e-12:
        return
    raised = math.ceil(passed.share * 10_000) / 10_000
    earlier = passed.by.get(EARLIER, 0)
    undone = f", {earlier} of them in an earlier generation," if earlier else ""
    raise UsageError(
        f"{subject} would pass {passed.passed} of {passed.rows} gallery rows{undone} through the "
        f"new model, a share of {passed.share:.4g}; the project allows {budget:g} "
        "(max_gallery_pass)",
        tip=f"{tip}to allow it, set max_gallery_pass: {raised:g} in {PROJECT_FILE}",
    )


def require_rescoring_budget(project: Project) -> None:
    """Refuse re-scoring where the project allows no gallery row to pass.

    Raises:
        UsageError: ``max_gallery_pass`` is 0.
    """
    if project.max_gallery_pass <= 0.0:
        raise UsageError(
            "re-scoring passes every gallery row that queries retrieve through the new model, in "
            "the end perhaps all of them; the project allows none (max_gallery_pass: 0)",
            tip=f"set max_gallery_pass: 1.0 in {PROJECT_FILE}, or less to end it at that share",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Items:
    """Items of a catalogue; ``names`` (N,) are prefixes of their ids' digests."""

    catalog: Catalog
    names: NDArray[np.uint64]

    @classmethod
    def of(cls, catalog: Catalog) -> _Items:
        names = np.fromiter(map(name_prefix, catalog.ids), np.uint64, len(catalog))
        return cls(catalog=catalog, names=names)

    def among(self, ids: DigestPrefixes, digests: DigestPrefixes) -> Bools:
        """(N,) items with one of these ids, or an image with one of these digests, as far as the
        catalogue knows them."""
        catalog = self.catalog
        prefixes = np.ascontiguousarray(catalog.digests[:, :8]).view(">u8").reshape(-1)
        images = digests.contains(prefixes.astype(np.uint64)) & catalog.digest_known
        return np.asarray(ids.contains(self.names) | images, bool)
