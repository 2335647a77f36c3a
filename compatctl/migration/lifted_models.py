"""The models that lifted rows are of: each embedder of the gallery, with the map behind it, a file.

A row's model is a file, by its digest. A mapped vector is what no embedder of the gallery gives, so
its model is a new file that gives it, and that must be seen on real images before it may be said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import CANARY_LIMIT, Encoder
from compatctl.errors import InputError
from compatctl.manifest import ModelShare

IMAGES = 64
LIMIT = CANARY_LIMIT
"""The largest L2 distance between a mapped stored vector and what the lifted file gives."""


@dataclass(frozen=True, kw_only=True)
class LiftedModel:
    """``sha256``: the file whose ``rows`` these are; ``of``: the model that embedded them before.

    ``difference``: the largest L2 distance, over ``images`` images, between what the file gives and
    the mapped vectors: the ``stored`` ones, or, where no image of such a row is at hand, what the
    model gives now.
    """

    sha256: str
    of: str
    rows: int
    images: int
    stored: bool
    difference: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LiftedModelFile:
    """A lifted model, and the file that is put into the store."""

    told: LiftedModel
    candidate: ModelFile


def lifted_model_files(
    gallery: DeployedGallery, data: Dataset, adapter: Adapter, pairs: Rows
) -> list[LiftedModelFile]:
    """Every model that rows of the gallery are of, with the map behind it. A file carries what its
    embedder has seen, and the ``pairs`` (n,) that the map was fitted on.

    Raises:
        InputError: a file gives other vectors than the mapped ones, by more than ``LIMIT``.
        DamagedError: a model's file is missing or changed.
    """
    fitted_on = TrainingRecord.of_pairs(data, pairs)
    shares = [one for one in gallery.manifest.models if one.rows]
    return [_lifted(gallery, one, data, adapter, fitted_on) for one in shares]


def _lifted(
    gallery: DeployedGallery,
    share: ModelShare,
    data: Dataset,
    adapter: Adapter,
    fitted_on: TrainingRecord,
) -> LiftedModelFile:
    path = gallery.store.verified_path("models", share.sha256)
    name = Path(f"{Path(share.name).stem}.lifted.onnx")
    record = onnx_files.read_record(path)
    before = (
        TrainingRecord.from_text(record, path)
        if record is not None
        else TrainingRecord(whole=False)
    )
    before = replace(before, registry=None, memory_sha256=None)
    file = onnx_files.bridge(path.read_bytes(), path, adapter)
    file = onnx_files.with_record(file, name, before.including(fitted_on).to_text())
    made = ModelFile(path=name, data=file)
    rows, vectors = _at_hand(gallery, share.sha256, data)
    done = made.encoder.embed(data.take(rows), skip_bad=True)
    wanted, stored = adapter(vectors[done.rows]), len(done.rows) > 0
    if not stored:
        items = data.take(_even(np.arange(len(data))))
        done = made.encoder.embed(items, skip_bad=True)
        wanted = adapter(Encoder.load(path).embed(items, skip_bad=True).features)
    difference = float(np.linalg.norm(wanted - done.features, axis=1).max(initial=0.0))
    _refuse_another(difference, len(done.rows), share, stored=stored)
    told = LiftedModel(
        sha256=made.encoder.sha256,
        of=share.sha256,
        rows=share.rows,
        images=len(done.rows),
        stored=stored,
        difference=difference,
    )
    made.release()
    return LiftedModelFile(told=told, candidate=made)


def _at_hand(gallery: DeployedGallery, sha256: str, data: Dataset) -> tuple[Rows, Vectors]:
    """Rows (n,) of the data whose vector (n, D) is stored, made by that model; 64 or more."""
    catalog = gallery.catalog
    own = np.flatnonzero(catalog.model_of == catalog.models.index(sha256))
    held = _even(as_rows(row for row in own.tolist() if catalog.ids[row] in data.row_of))
    rows = as_rows(data.row_of[catalog.ids[row]] for row in held)
    return rows, gallery.index.vectors(catalog.keys[held])


def _even(rows: Rows) -> Rows:
    return rows[:: max(1, len(rows) // IMAGES)][:IMAGES]


def _refuse_another(difference: float, images: int, share: ModelShare, *, stored: bool) -> None:
    if not images:
        raise InputError(f"no image decodes to compare the lifted {share.name} on")
    if not difference <= LIMIT:
        what = "the mapped vectors of the gallery" if stored else "the map of its own features"
        raise InputError(
            f"the lifted file of {share.name} differs from {what} by {difference:.2g} (L2, over "
            f"{images} images); the limit is {LIMIT:g}",
            tip="another --kind may do: its numbers are smaller. Where the model no longer gives "
            "the vectors that are stored, no file can stand for the mapped ones: re-embed",
        )
