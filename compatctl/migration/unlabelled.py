"""Unlabelled images of a fine-tuning: which of a folder's images take part, and what they cost.

An image is that of a known item if its bytes are the same; in a table the id tells as well. Known
images take the known item's id, so that records, counts and erasures name one item once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset, load_unlabelled
from compatctl.deployment.changed_items import image_digests
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import gallery_pass, require_budget
from compatctl.deployment.old_features import CACHE_FILE, OldFeatures
from compatctl.deployment.project import require
from compatctl.deployment.training_record import RecordedItem, TrainingRecord
from compatctl.errors import InputError
from compatctl.evaluation.protocol import query_rows
from compatctl.printable import listed
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, Recipe

HELD_OUT, TRAINING, COPIES = "held-out queries", "labelled training items", "copies"
SAMPLE = 64
"""Images that a dry run embeds to forecast the time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlabelledItems:
    """The images that take part.

    Attributes:
        items: their labels are empty; an item of the gallery has the id that it has there.
        stored: (n,) rows of ``items`` that are gallery rows; their stored vectors are old features.
        left_out: reason -> number of images that do not take part.
        labels_ignored: how many images came with a label or in a sub-folder.
        skipped: ids of images that do not decode.
    """

    items: Dataset
    stored: Rows
    left_out: dict[str, int]
    labels_ignored: int
    skipped: tuple[str, ...]

    @property
    def outside(self) -> Dataset:
        """The items whose old feature is not stored."""
        return self.items.take(np.setdiff1d(np.arange(len(self.items)), self.stored))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out, and what was ignored."""
        warnings = []
        if self.left_out:
            parts = (f"{count} {reason}" for reason, count in self.left_out.items())
            warnings.append(f"unlabelled images that do not take part: {', '.join(parts)}")
        if self.labels_ignored:
            warnings.append(
                f"{self.labels_ignored} unlabelled images have a label or lie in a sub-folder: "
                "labels and sub-folders do not count"
            )
        return tuple(warnings)


@dataclass(frozen=True, kw_only=True)
class UnlabelledCost:
    """What the unlabelled images of a run cost, from ``SAMPLE`` of them on this machine.

    Attributes:
        items: images that take part.
        gallery_rows: of these, gallery rows, which need no pass of the old model.
        known: of these, images whose old feature an earlier run has kept.
        left_out: as ``UnlabelledItems.left_out``.
        old_model_s: seconds of the old model over the others.
        new_model_s: seconds of the new backbone: over every view with ``train: head``, over one
            pass without gradient, times the epochs, with ``train: full``, where training adds more.
        memory_bytes: features that stay in memory during training.
    """

    items: int
    gallery_rows: int
    known: int
    left_out: dict[str, int]
    labels_ignored: int
    old_model_s: float
    new_model_s: float
    memory_bytes: int


def unlabelled_items(
    project: Project,
    recipe: Recipe,
    data: Dataset,
    memory: Dataset | None,
    gallery: DeployedGallery | None,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> UnlabelledItems | None:
    """Load the recipe's unlabelled images and choose those that take part; None without any.

    Held-out queries, labelled training items and second copies of an image are left out. Gallery
    rows take part as far as ``max_gallery_pass`` allows.

    Raises:
        InputError: there is no gallery; no image is left; an image does not decode (unless
            ``skip_bad``); an id is that of a gallery item with another image; the old model is gone
            and an image has no stored vector.
        UsageError: more gallery rows would pass than the project allows.
    """
    if recipe.unlabelled is None or gallery is None:
        return None
    folder = require(project.recipe, "recipe").parent / recipe.unlabelled
    items, labels_ignored = load_unlabelled(
        folder, data_root=project.data_root, columns=project.columns
    )
    items, skipped = items.readable() if skip_bad else (items, ())
    known = _KnownItems(data=data, memory=memory, gallery=gallery)
    kept, left_out = known.choose(items, progress)
    if not len(kept):
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(
            f"none of the {len(items)} unlabelled images in {folder} takes part: {reasons}",
            tip="name a folder with other images, or write unlabelled: null",
        )
    row_of = gallery.catalog.row_of
    stored = np.array([row for row, item in enumerate(kept.ids) if item in row_of], np.int64)
    chosen = UnlabelledItems(
        items=kept,
        stored=stored,
        left_out=left_out,
        labels_ignored=labels_ignored,
        skipped=skipped,
    )
    _require_budget(project, gallery, chosen)
    _require_old_features(project, chosen)
    return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class _KnownItems:
    """Items of the data, the memory and the gallery, by id and by the bytes of their image."""

    data: Dataset
    memory: Dataset | None
    gallery: DeployedGallery

    @cached_property
    def reasons(self) -> Mapping[str | bytes, str]:
        """Id or digest -> why the image is left out."""
        splits = [query_rows(self.data, split) for split in ("validation", "test")]
        training = [row for row, item in enumerate(self.data.items) if item.split == "train"]
        found: dict[str | bytes, str] = {}
        parts = [(self.data, np.array(training, np.int64), TRAINING)]
        if self.memory is not None:
            parts.append((self.memory, np.arange(len(self.memory)), TRAINING))
        parts.append((self.data, np.concatenate(splits), HELD_OUT))
        for items, rows, reason in parts:  # held-out queries last: their reason counts
            found |= {items.ids[row]: reason for row in rows}
            found |= {d.tobytes(): reason for d in image_digests(items, rows) if d.any()}
        return found

    @cached_property
    def stored_id(self) -> Mapping[bytes, str]:
        """Digest -> id of the gallery rows; those without a digest by the data's image."""
        catalog = self.gallery.catalog
        digests = catalog.digests.copy()
        row_of = self.data.row_of
        unknown = np.flatnonzero(~catalog.digest_known).tolist()
        at_hand = as_rows(row for row in unknown if catalog.ids[row] in row_of)
        own = as_rows(row_of[catalog.ids[int(row)]] for row in at_hand)
        digests[at_hand] = image_digests(self.data, own)
        ids = zip(digests, catalog.ids, strict=True)
        return {digest.tobytes(): item for digest, item in ids if digest.any()}

    def choose(self, items: Dataset, progress: Progress) -> tuple[Dataset, dict[str, int]]:
        """The items that take part, under the ids of the gallery, and reason -> left-out items.

        Raises:
            InputError: an image cannot be read; or an id is that of a gallery row with another
                image.
        """
        digests = image_digests(items, np.arange(len(items)), progress)
        for unread in np.flatnonzero(~digests.any(axis=1)).tolist():
            items.digest(unread)  # raises: the file cannot be read
        left_out: dict[str, int] = {}
        ids: dict[str, int] = {}
        seen: set[bytes] = set()
        foreign = []
        for row, item in enumerate(items.items):
            image = digests[row].tobytes()
            reason = self.reasons.get(image) or self.reasons.get(item.id)
            reason = HELD_OUT if item.split != "train" else reason
            reason = reason or (COPIES if image in seen else None)
            if reason is not None:
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            seen.add(image)
            stored = self.stored_id.get(image)
            if stored is None and self._has_other_image(item.id):
                foreign.append(item.id)
            ids[stored or item.id] = row
        if foreign:
            raise InputError(
                f"{len(foreign)} unlabelled images have the id of a gallery item and another image:"
                f" {listed(foreign)}",
                tip="give them ids of their own; or compatctl add --changed, if the item changed",
            )
        return items.take(ids.values()).with_ids(tuple(ids)), left_out

    def _has_other_image(self, item: str) -> bool:
        """Whether the gallery has this id, with an image whose digest is known."""
        catalog = self.gallery.catalog
        row = catalog.row_of.get(item)
        return row is not None and bool(catalog.digest_known[row])


def _require_budget(project: Project, gallery: DeployedGallery, chosen: UnlabelledItems) -> None:
    """Refuse more gallery rows than the project lets pass."""
    items = chosen.items
    entries = [
        RecordedItem(id=items.ids[int(row)], sha256=items.digest(int(row))) for row in chosen.stored
    ]
    require_budget(
        project,
        gallery_pass(gallery.catalog, TrainingRecord.of(unlabelled=entries)),
        "training on the unlabelled images",
        tip="take the gallery's images out of the folder; ",
    )


def _require_old_features(project: Project, chosen: UnlabelledItems) -> None:
    """Refuse images that only the old model could embed, where it is gone."""
    outside = chosen.outside
    if project.old_model_gone and len(outside):
        raise InputError(
            f"{len(outside)} unlabelled images have no stored vector, and the old model can no "
            f"longer embed them (old_model_gone: true): {listed(outside.ids)}",
            tip="only images of gallery items have one; they need max_gallery_pass",
        )


def _seconds_each(run: Callable[[range], None], n: int) -> float:
    """Seconds an image, without what the first one costs: the shortest of two runs of each kind."""
    shortest = []
    for rows in (range(1), range(n)):
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            run(rows)
            seconds.append(time.monotonic() - start)
        shortest.append(min(seconds))
    if n == 1:
        return shortest[0]
    return max(0.0, shortest[1] - shortest[0]) / (n - 1)


def unlabelled_cost(
    chosen: UnlabelledItems, project: Project, recipe: Recipe, base: Path, gallery: DeployedGallery
) -> UnlabelledCost:
    """What the images cost; embeds ``SAMPLE`` of them with both models.

    Raises:
        InputError: as ``Encoder.embed`` and ``Features.extract``.
    """
    from compatctl.train import Features

    items, encoder, outside = chosen.items, gallery.encoder, chosen.outside
    cache = OldFeatures.read(project.candidate / CACHE_FILE, encoder.sha256, encoder.dim)
    missing = len(cache.missing(outside))
    sample = items.take(range(min(SAMPLE, len(items))))
    features = Features.extract(recipe, base, sample, [0])

    def old_model(rows: range) -> None:
        encoder.embed(sample.take(rows))

    def new_model(rows: range) -> None:
        Features.extract(recipe, base, sample, rows)

    old_s, new_s = (_seconds_each(run, len(sample)) for run in (old_model, new_model))
    head = recipe.train == "head"
    passes = recipe.augmentation.views if head else recipe.optimiser.epochs
    values = encoder.dim + (features.table.shape[1] * passes if head else 0)
    return UnlabelledCost(
        items=len(items),
        gallery_rows=len(chosen.stored),
        known=len(outside) - missing,
        left_out=chosen.left_out,
        labels_ignored=chosen.labels_ignored,
        old_model_s=round(missing * old_s, 3),
        new_model_s=round(len(items) * passes * new_s, 3),
        memory_bytes=4 * len(items) * values,
    )
