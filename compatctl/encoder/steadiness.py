"""One answer for one input: an encoder's vector of an image may depend on that image only.

The gate embeds 64 images at once, a search one. A model whose answer depends on its batch (batch
norm in training mode, attention over the batch axis, a scale that is taken over the whole batch) or
on chance (dropout that was left on) is judged by other vectors than those that it serves with. So a
few images are embedded alone, in batches of several sizes, in another order, and twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Pixels, Vectors
from compatctl.data import Dataset, Item, prepare
from compatctl.encoder.runtime import BATCH_SIZE, Encoder
from compatctl.errors import InputError, UnsteadyError

LIMIT = 1e-3
"""The largest L2 distance between unit rows of one image; a cosine of 0.9999995. Kernels that add
in another order for another batch size differ by 1e-6 to 1e-4."""

IMAGES, REAL = 32, 24
"""How many images are tried, and how many of them at most are of the data. The others are made: a
data set may consist of copies, which keep each other company without a difference."""

SIZES = ((96, 128), (131, 97), (64, 64), (240, 180))
"""Height and width of made images: not those of any model, so that they must be resized."""

_SPLITS = (2, 3, 7)
_CAUSES = {
    "DynamicQuantizeLinear": "DynamicQuantizeLinear takes one scale from all images of a batch: "
    "quantise with fixed scales (onnxruntime.quantization.quantize_static)",
}
_OTHERWISE = (
    "export the model in evaluation mode (model.eval()), without operations over the batch axis"
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest L2 distance between two answers for one image, and ``how`` they were asked."""

    how: str
    distance: float


def iter_differences(encoder: Encoder, images: Dataset) -> Iterator[Difference]:
    """How far the answers for up to 32 images part, asked in several ways, one by one.

    Each is alone, in a batch of 64 (or the most that the encoder takes) in which every image is
    twice, in that batch again and in reverse, and in small batches. Images that do not decode are
    left out, and nothing is yielded where none is left.
    """
    pixels = _pixels(encoder, images)
    n = len(pixels[0])
    if not n:
        return
    alone = _rows(encoder, pixels, [np.array([at]) for at in range(n)])
    again = _rows(encoder, pixels, [np.array([at]) for at in range(min(n, 4))])
    yield Difference(how="alone, and alone again", distance=_apart(again, alone[: len(again)]))
    most = max(1, min(BATCH_SIZE, encoder.largest_batch))
    order = np.concatenate([np.arange(n), np.random.default_rng(0).permutation(n)])
    batches = [order[at : at + most] for at in range(0, len(order), most)]
    first, second = (_rows(encoder, pixels, batches) for _ in range(2))
    yield Difference(how="in one batch twice", distance=_apart(first, second))
    largest = len(batches[0])
    yield Difference(how=f"alone and in a batch of {largest}", distance=_apart(first, alone[order]))
    turned = [one[::-1] for one in batches]
    yield Difference(
        how=f"in two orders of a batch of {largest}",
        distance=_apart(_rows(encoder, pixels, turned), alone[np.concatenate(turned)]),
    )
    small = [one for one in np.split(np.arange(n), np.cumsum(_SPLITS)) if len(one)]
    yield Difference(
        how="alone and in a small batch", distance=_apart(_rows(encoder, pixels, small), alone)
    )


def refuse_unsteady(encoder: Encoder, data: Dataset | None = None) -> float:
    """Refuse an encoder that has more than one answer for one image; the largest difference (L2).

    Made images are tried, and up to ``REAL`` of ``data``, from all over it.

    Raises:
        UnsteadyError: two answers for one image differ by more than ``LIMIT``; the message says how
            they were asked, and by how much.
    """
    found = 0.0
    for one in iter_differences(encoder, sample(data)):
        if np.isnan(one.distance):
            raise UnsteadyError(
                f"{encoder.name} gives vectors that are not finite, or not one for every image: "
                f"{one.how}, nothing could be compared",
                tip="look for weights that are not finite, and for a division by zero",
            )
        if not one.distance <= LIMIT:
            raise UnsteadyError(
                f"{encoder.name} has more than one answer for one image: {one.how}, its vectors "
                f"differ by {one.distance:.3g} (L2), the limit is {LIMIT:g}; they depend on the "
                "other images of the batch, or are random",
                tip=next((_CAUSES[op] for op in _CAUSES if op in encoder.operators), _OTHERWISE),
            )
        found = max(found, one.distance)
    return found


def sample(data: Dataset | None) -> Dataset:
    """``IMAGES`` images: up to ``REAL`` items from all over the data, and made ones."""
    real = Dataset(items=(), sources=())
    if data is not None and len(data):
        real = data.take(np.unique(np.linspace(0, len(data) - 1, REAL).astype(np.int64)))
    made = range(IMAGES - len(real))
    images = tuple(
        synthetic_image(at, *SIZES[at % 4]) // (1 + at % 3) + 5 * (at % 16) for at in made
    )
    items = tuple(Item(id=f"made {at}", label="", split="test") for at in made)
    return Dataset(items=(*items, *real.items), sources=(*images, *real.sources))


def synthetic_image(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Ramps, a chequered field and noise, from whole numbers only: the same on every machine."""
    y, x = np.indices((height, width), np.int64)
    ramp = (x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height))
    field = ((x // 7 + y // 5 + number) % 2) * 90
    noise = ((x * 73856093) ^ (y * 19349663) ^ ((number + 1) * 83492791)) % 64
    added = [field if at == number % 3 else noise for at in range(3)]
    planes = [(plane + more) % 256 for plane, more in zip(ramp, added, strict=True)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def _pixels(encoder: Encoder, images: Dataset) -> list[Pixels]:
    """What the graph takes, by input (n, H, W, 3), of the images that decode."""
    found: list[list[Pixels]] = [[] for _ in encoder.inputs]
    for row in range(len(images)):
        try:
            image = images.read(row)
        except InputError:
            continue
        for at, one in enumerate(encoder.inputs):
            found[at].append(prepare(image, one.preprocessing))
    return [np.array(one, np.uint8) for one in found]


def _rows(encoder: Encoder, pixels: list[Pixels], batches: list[NDArray[np.int64]]) -> Vectors:
    """The rows of the batches, one after the other."""
    names = [one.name for one in encoder.inputs]
    return np.concatenate(
        [
            encoder.run({name: part[rows] for name, part in zip(names, pixels, strict=True)})
            for rows in batches
        ]
    )


def _apart(first: Vectors, second: Vectors) -> float:
    """The largest L2 distance of rows; not a number where one is not."""
    if first.shape != second.shape:
        return float("nan")
    return float(np.linalg.norm(first - second, axis=1).max(initial=0.0))
