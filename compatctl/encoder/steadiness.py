"""An embedding must depend on its image only.

The gate embeds 64 images at once, a search one. A model whose output depends on the batch (batch
norm in training mode, attention over the batch axis, one scale for the whole batch) or on chance
(dropout left on) would be evaluated with other embeddings than those that it serves. So a few
images are embedded alone, in batches of several sizes, in another order, and twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Pixels, Rows, Vectors
from compatctl.data import Dataset, Item, prepare
from compatctl.encoder.images import SYNTHETIC_SIZES, synthetic_image
from compatctl.encoder.runtime import BATCH_SIZE, Encoder
from compatctl.errors import InputError, UnsteadyError

LIMIT = 1e-3
"""The largest L2 distance between unit rows of one image; a cosine of 0.9999995. Kernels that add
in another order for another batch size differ by 1e-6 to 1e-4."""

IMAGES, REAL = 32, 24
"""The number of images, and the most of them from the data. The others are synthetic: a data set
may consist of copies, which make a batch of equal images."""

_SPLITS = (2, 3, 7)
_TIPS = {
    "DynamicQuantizeLinear": "DynamicQuantizeLinear takes one scale from all images of a batch: "
    "quantise with fixed scales (onnxruntime.quantization.quantize_static)",
}
_DEFAULT_TIP = (
    "export the model in evaluation mode (model.eval()), without operations over the batch axis"
)


def iter_differences(encoder: Encoder, images: Dataset) -> Iterator[tuple[str, float]]:
    """Compare embeddings of the same images alone and in several batches.

    Yields how they were made, and the largest L2 distance between two of one image. A large batch
    (64, or the most that the encoder takes) has every image twice; it runs twice and in reverse.
    Images that do not decode are skipped; nothing is yielded where none is left.
    """
    pixels = _pixels(encoder, images)
    n = len(pixels[0])
    if not n:
        return
    alone = _embed(encoder, pixels, [np.array([row]) for row in range(n)])
    again = _embed(encoder, pixels, [np.array([row]) for row in range(min(n, 4))])
    yield "alone, and alone again", _distance(again, alone[:4])
    size = max(1, min(BATCH_SIZE, encoder.largest_batch))
    order = np.concatenate([np.arange(n), np.random.default_rng(0).permutation(n)])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    first, second = (_embed(encoder, pixels, batches) for _ in range(2))
    yield "in one batch twice", _distance(first, second)
    size = len(batches[0])
    yield f"alone and in a batch of {size}", _distance(first, alone[order])
    reverse = [batch[::-1] for batch in batches]
    turned = _embed(encoder, pixels, reverse)
    yield f"in two orders of a batch of {size}", _distance(turned, alone[np.concatenate(reverse)])
    small = [batch for batch in np.split(np.arange(n), np.cumsum(_SPLITS)) if len(batch)]
    yield "alone and in a small batch", _distance(_embed(encoder, pixels, small), alone)


def check_steady(encoder: Encoder, data: Dataset | None = None) -> float:
    """Refuse an encoder that embeds one image in several ways; the largest difference (L2).

    The images are synthetic, and up to ``REAL`` from all over ``data``.

    Raises:
        UnsteadyError: two embeddings of one image differ by more than ``LIMIT``; the message says
            how they were made, and by how much they differ.
    """
    largest = 0.0
    for comparison, distance in iter_differences(encoder, sample_images(data)):
        if np.isnan(distance):
            raise UnsteadyError(
                f"{encoder.name} gives vectors that are not finite, or not one for every image: "
                f"{comparison}, nothing could be compared",
                tip="look for weights that are not finite, and for a division by zero",
            )
        if not distance <= LIMIT:
            raise UnsteadyError(
                f"{encoder.name} embeds one image in several ways: {comparison}, its "
                f"vectors differ by {distance:.3g} (L2), the limit is {LIMIT:g}; they "
                "depend on the other images of the batch, or are random",
                tip=next((_TIPS[op] for op in _TIPS if op in encoder.operators), _DEFAULT_TIP),
            )
        largest = max(largest, distance)
    return largest


def sample_images(data: Dataset | None) -> Dataset:
    """``IMAGES`` images: up to ``REAL`` items from all over the data, and synthetic ones."""
    real = Dataset(items=(), sources=())
    if data is not None and len(data):
        real = data.take(np.unique(np.linspace(0, len(data) - 1, REAL).astype(np.int64)))
    numbers = range(IMAGES - len(real))
    images = tuple(
        synthetic_image(number, *SYNTHETIC_SIZES[number % 4]) // (1 + number % 3)
        + 5 * (number % 16)
        for number in numbers
    )
    items = tuple(Item(id=f"made {number}", label="", split="test") for number in numbers)
    return Dataset(items=(*items, *real.items), sources=(*images, *real.sources))


def _pixels(encoder: Encoder, images: Dataset) -> list[Pixels]:
    """The pixels (n, H, W, 3) for each input of the images that decode."""
    pixels: list[list[Pixels]] = [[] for _ in encoder.inputs]
    for row in range(len(images)):
        try:
            image = images.read(row)
        except InputError:
            continue
        for part, source in zip(pixels, encoder.inputs, strict=True):
            part.append(prepare(image, source.preprocessing))
    return [np.array(part, np.uint8) for part in pixels]


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Each output's rows, (n, D) and maybe (n, D_free)."""

    rows: tuple[Vectors, ...]

    def __getitem__(self, selected: slice | Rows) -> _Outputs:
        return _Outputs(tuple(part[selected] for part in self.rows))


def _embed(encoder: Encoder, pixels: list[Pixels], batches: list[Rows]) -> _Outputs:
    """The outputs for the batches, one after the other."""
    inputs = [source.name for source in encoder.inputs]
    outputs = [
        encoder.outputs({name: part[rows] for name, part in zip(inputs, pixels, strict=True)})
        for rows in batches
    ]
    return _Outputs(tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


def _distance(first: _Outputs, second: _Outputs) -> float:
    """The largest L2 distance between rows of one output; NaN where one is NaN or shapes differ."""
    pairs = list(zip(first.rows, second.rows, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("nan")
    largest = [np.linalg.norm(a - b, axis=1).max(initial=0.0) for a, b in pairs]
    return float(np.max(largest))  # NaN if one is NaN
