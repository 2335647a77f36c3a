"""Which rows of the deployed gallery a candidate passed through its model, by its record.

A gallery row was passed if its id, or its image's digest where the catalogue knows it, is in the
record. So one image under two ids counts as two rows, and one row under two purposes as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools
from compatctl.core.digest_prefixes import DigestPrefixes, name_prefix
from compatctl.core.gallery_pass import GalleryPass
from compatctl.data import Dataset
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import parity_images, sample_images
from compatctl.errors import UsageError
from compatctl.manifest import Catalog
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store.side_file import SideFile

PAIRS, STORED, RESCORED = "pairs", "stored", "re-scored"
"""Purposes of passed rows: pairs of an adapter and unlabelled images; vectors in the gallery that
the model made; free vectors in its side file."""


def gallery_pass(
    catalog: Catalog,
    record: TrainingRecord | None,
    *,
    rewritten: Bools | None = None,
    rescored: Bools | None = None,
    measured: Iterable[str] = (),
) -> GalleryPass:
    """Count the rows of a catalogue that a candidate passed.

    Args:
        record: its training record; None counts no row by it.
        rewritten: (N,) rows whose stored vectors it made, or will make.
        rescored: (N,) rows whose free vectors it made.
        measured: ids of items that were embedded to measure, in addition to the record's.
    """
    record = record or TrainingRecord()
    names = np.fromiter(map(name_prefix, catalog.ids), np.uint64, len(catalog))
    measured_ids = record.measured_ids | DigestPrefixes.from_ints(map(name_prefix, measured))
    own = record.own("ids").contains(names) | _same_image(catalog, record.own("digests"))
    trained = record.ids.contains(names) | _same_image(catalog, record.digests)
    paired = record.unlabelled_ids.contains(names) | _same_image(catalog, record.unlabelled_digests)
    made = {PAIRS: paired & own}
    if rewritten is not None:
        made[STORED] = rewritten
    if rescored is not None:
        made[RESCORED] = rescored
    return GalleryPass.of(
        rows=len(catalog),
        trained=trained & own,
        passed=made,
        measured=measured_ids.contains(names),
    )


def rows_of_model(catalog: Catalog, sha256: str) -> Bools:
    """(N,) rows whose vectors this model made."""
    own = [position for position, model in enumerate(catalog.models) if model == sha256]
    return np.isin(catalog.model_of, own)


def rescored_rows(store: Path, catalog: Catalog, sha256: str) -> Bools:
    """(N,) rows of which the side file of this model has a free vector.

    Raises:
        DamagedError: the side file is damaged.
    """
    side = SideFile.existing(store, sha256)
    return np.zeros(len(catalog), bool) if side is None else side.holds(catalog.ids)


def rescoring_room(project: Project, passed: GalleryPass) -> int:
    """How many more gallery rows the project allows to pass; negative where too many passed."""
    return math.floor(project.max_gallery_pass * passed.rows + 1e-9) - passed.passed


def checked_ids(data: Dataset) -> set[str]:
    """Ids of the items on which a command compares and tests the file of a new model."""
    return {*parity_images(data).ids, *sample_images(data).ids} & {*data.ids}


def require_budget(project: Project, passed: GalleryPass, subject: str, *, tip: str = "") -> None:
    """Refuse to pass more of the gallery than the project allows.

    Raises:
        UsageError: the share is over ``max_gallery_pass``; ``subject`` is what would pass it.
    """
    budget = project.max_gallery_pass
    if passed.share <= budget + 1e-12:
        return
    raised = math.ceil(passed.share * 10_000) / 10_000
    raise UsageError(
        f"{subject} would pass {passed.passed} of {passed.rows} gallery rows through the new "
        f"model, a share of {passed.share:.4g}; the project allows {budget:g} (max_gallery_pass)",
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


def _same_image(catalog: Catalog, digests: DigestPrefixes) -> Bools:
    """(N,) rows whose image has one of these digests, as far as the catalogue knows them."""
    prefixes = np.ascontiguousarray(catalog.digests[:, :8]).view(">u8").reshape(-1)
    found: Bools = digests.contains(prefixes.astype(np.uint64)) & catalog.digest_known
    return found
