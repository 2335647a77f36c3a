"""A trained network as a sealed ONNX file, compared with torch on real items."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.data import Dataset, prepare
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.text_export import TextFolder
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, ImageInput, check_steady
from compatctl.migration.adapters import composed_parity
from compatctl.recipe import Recipe

if TYPE_CHECKING:
    from compatctl.core.arrays import Vectors
    from compatctl.train import TextModel, TrainResult

MODEL_FILE = "model.onnx"

Exported = tuple[bytes, Encoder, TrainingRecord]
"""A sealed file that carries the record, its encoder, and the record with the parity."""

_UNFAITHFUL = "the backbone uses an operation that does not export faithfully"


def export_images(
    trained: TrainResult, recipe: Recipe, data: Dataset, record: TrainingRecord
) -> Exported:
    """A network of images.

    Raises:
        InputError: a component of an embedding by the file differs by more than 1e-3 from the
            network's, on real images.
    """
    from compatctl.train import embed_outputs, preprocessing
    from compatctl.train import export as export_onnx

    size = preprocessing(recipe.image_backbone.input)
    with tempfile.TemporaryDirectory() as scratch:
        raw, sealed = Path(scratch) / "raw.onnx", Path(scratch) / "sealed.onnx"
        export_onnx(trained.network, raw, size.height, size.width)
        onnx_files.seal(raw, sealed, (ImageInput(name="image", preprocessing=size),))
        content = sealed.read_bytes()
    encoder = Encoder.from_bytes(content, Path(MODEL_FILE))
    check_steady(encoder, data)
    sample = onnx_files.parity_items(data)
    images = np.stack([prepare(sample.read(row), size) for row in range(len(sample))])
    parity = _parity(encoder.outputs({"image": images}), embed_outputs(trained.network, images))
    return _with_record(content, replace(record, parity=parity))


def export_behind(
    trained: TrainResult, base: ModelFile, data: Dataset, record: TrainingRecord
) -> Exported:
    """A head that was trained on an encoder's embeddings: that encoder's file with the head's
    layers behind it, and its own embedding as the output ``free``.

    Raises:
        InputError: as ``export_images``.
    """
    from compatctl.train import embed

    content = onnx_files.bridge(base.data, base.path, trained.head.as_adapter())
    encoder = Encoder.from_bytes(content, Path(MODEL_FILE))
    check_steady(encoder, data)
    parity = composed_parity(
        data,
        encoder,
        base.encoder,
        partial(embed, trained.network),
        tip="a larger weight_decay in the recipe keeps the head's weights smaller",
    )
    return _with_record(content, replace(record, parity=parity))


def export_texts(
    trained: TrainResult, folder: TextFolder, data: Dataset, record: TrainingRecord
) -> Exported:
    """A network of texts, whose weights trained in place: the folder's, with both heads behind it.

    Raises:
        InputError: as ``export_images``.
    """
    from compatctl.train import embed_outputs

    free = trained.network.free
    with tempfile.TemporaryDirectory() as scratch:
        content = onnx_files.bridge(
            folder.seal(Path(scratch)),
            folder.folder,
            trained.head.as_adapter(),
            None if free is None else free.as_adapter(),
        )
    encoder = Encoder.from_bytes(content, Path(MODEL_FILE))
    check_steady(encoder, data)
    sample = onnx_files.parity_items(data)
    roles = [item.role for item in sample.items]
    texts = [encoder.prepare(sample.content(row), role)[0] for row, role in enumerate(roles)]
    batch = encoder.batch(texts)
    (ids,) = batch.values()
    expected = embed_outputs(trained.network, ids)  # without a free head the file has one still
    parity = _parity(encoder.outputs(batch)[: len(expected)], expected)
    return _with_record(content, replace(record, parity=parity))


def text_base(folder: TextFolder) -> TextModel:
    """The model of a folder as a base whose network trains."""
    from compatctl.train import TextModel

    source = folder.source
    return TextModel(
        model=folder.model,
        pooling=folder.spec.pooling,
        tokens=lambda text, role: source.prepare(text, role)[0],
        stack=source.stack,
        sha256=folder.sha256,
    )


def _parity(actual: tuple[Vectors, ...], expected: tuple[Vectors, ...]) -> float:
    """The largest difference of any output of the file from the network's."""
    what = "the exported ONNX file differs from the trained network"
    pairs = zip(actual, expected, strict=True)
    return max(onnx_files.check_parity(*pair, what, tip=_UNFAITHFUL) for pair in pairs)


def _with_record(content: bytes, record: TrainingRecord) -> Exported:
    path = Path(MODEL_FILE)
    content = onnx_files.with_record(content, path, record.to_text())
    return content, Encoder.from_bytes(content, path), record
