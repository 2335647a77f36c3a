"""The model files of lifted rows: each embedder of the gallery with the adapter behind it.

The catalogue names a row's model by the digest of its file. No embedder of the gallery returns a
mapped vector, so each mapped row gets a new model file that does, checked here on real images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery, indexed_rows
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import CANARY_LIMIT, Encoder
from compatctl.errors import InputError
from compatctl.manifest import ModelShare

IMAGES = 64
LIMIT = CANARY_LIMIT
"""The largest L2 distance allowed between a mapped stored vector and the lifted file's output."""


@dataclass(frozen=True, kw_only=True)
class LiftedModel:
    """The file ``sha256`` stands for ``rows`` rows that the model ``source_sha256`` embedded.

    ``difference`` is the largest L2 distance, over ``images`` images, between the file's output and
    the mapped vectors: the ``stored`` ones or, where no image of such a row is at hand, what the
    source model returns now.
    """

    sha256: str
    source_sha256: str
    rows: int
    images: int
    stored: bool
    difference: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LiftedModelFile:
    """A lifted model, and the file to put into the store."""

    model: LiftedModel
    file: ModelFile


def lifted_model_files(
    gallery: DeployedGallery, data: Dataset, adapter: Adapter, pairs: Rows
) -> list[LiftedModelFile]:
    """Every embedder of gallery rows, with the adapter behind it. A file carries its embedder's
    training record and the ``pairs`` (n,) that the adapter was fitted on.

    Raises:
        InputError: a file's output differs from the mapped vectors by more than ``LIMIT``.
        DamagedError: a model's file is missing or changed.
    """
    fitted_on = TrainingRecord.of_pairs(data, pairs)
    return [
        _lifted_file(gallery, share, data, adapter, fitted_on)
        for share in gallery.manifest.models
        if share.rows
    ]


def _lifted_file(
    gallery: DeployedGallery,
    share: ModelShare,
    data: Dataset,
    adapter: Adapter,
    fitted_on: TrainingRecord,
) -> LiftedModelFile:
    path = gallery.store.verified_path("models", share.sha256)
    name = Path(f"{Path(share.name).stem}.lifted.onnx")
    text = onnx_files.read_record(path)
    record = TrainingRecord(whole=False) if text is None else TrainingRecord.from_text(text, path)
    record = replace(record, registry=None, memory_sha256=None).including(fitted_on)
    content = onnx_files.bridge(path.read_bytes(), path, adapter)
    lifted = ModelFile(path=name, data=onnx_files.with_record(content, name, record.to_text()))
    rows, vectors = _stored_examples(gallery, share.sha256, data)
    embedded = lifted.encoder.embed(data.take(rows), skip_bad=True)
    expected, stored = adapter(vectors[embedded.rows]), len(embedded.rows) > 0
    if not stored:
        items = data.take(_evenly(np.arange(len(data))))
        embedded = lifted.encoder.embed(items, skip_bad=True)
        expected = adapter(Encoder.load(path).embed(items, skip_bad=True).features)
    distances = np.linalg.norm(expected - embedded.features, axis=1)
    model = LiftedModel(
        sha256=lifted.encoder.sha256,
        source_sha256=share.sha256,
        rows=share.rows,
        images=len(embedded.rows),
        stored=stored,
        difference=float(distances.max(initial=0.0)),
    )
    _check_difference(model, share.name)
    lifted.release()
    return LiftedModelFile(model=model, file=lifted)


def _stored_examples(gallery: DeployedGallery, sha256: str, data: Dataset) -> tuple[Rows, Vectors]:
    """About 64 rows (n,) of the data that this model embedded, and their stored vectors (n, D)."""
    catalog = gallery.catalog
    rows, catalog_rows = indexed_rows(data, catalog)
    own = np.flatnonzero(catalog.model_of[catalog_rows] == catalog.models.index(sha256))
    chosen = _evenly(own)
    return rows[chosen], gallery.index.vectors(catalog.keys[catalog_rows[chosen]])


def _evenly(rows: Rows) -> Rows:
    return rows[:: max(1, len(rows) // IMAGES)][:IMAGES]


def _check_difference(model: LiftedModel, name: str) -> None:
    if not model.images:
        raise InputError(f"no item decodes to compare the lifted {name} on")
    if not model.difference <= LIMIT:
        what = (
            "the mapped vectors of the gallery" if model.stored else "the map of its own features"
        )
        raise InputError(
            f"the lifted file of {name} differs from {what} by {model.difference:.2g} (L2, over "
            f"{model.images} items); the limit is {LIMIT:g}",
            tip="another --kind may have smaller values. If the model no longer returns the stored "
            "vectors, no file can stand for the mapped ones: re-embed the gallery",
        )
