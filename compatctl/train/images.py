"""Images into batches: decoded by threads while the network works, changed at random by seed.

A change depends on (seed, epoch, item) and on nothing else, so that a resumed run sees the same
images as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from compatctl.core.arrays import Pixels
from compatctl.data import Dataset, Preprocessing, prepare
from compatctl.recipe import Augmentation, InputSpec

THREADS = 4
AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """A row of a data set. ``seed`` seeds the image's random change; None: unchanged."""

    dataset: Dataset
    row: int
    seed: tuple[int, ...] | None = None


def preprocessing(spec: InputSpec) -> Preprocessing:
    """The part of the recipe's input that happens outside the network."""
    return Preprocessing(height=spec.height, width=spec.width, resize=spec.resize, fit=spec.fit)


class ImageReader:
    """Reads images with a pool of threads; a context manager."""

    def __init__(self, spec: InputSpec, change: Augmentation) -> None:
        self.spec = spec
        self._preprocessing = preprocessing(spec)
        self._change = change
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compatctl-read")

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, batches: Sequence[Sequence[ImageRef]]) -> Iterator[Pixels]:
        """(B, H, W, 3) uint8 for each batch in order, the next ``AHEAD`` already on their way.

        Raises:
            InputError: an image does not decode; the message names it.
        """
        waiting: list[list[Future[Pixels]]] = []
        for batch in batches:
            waiting.append([self._pool.submit(self._one, ref) for ref in batch])
            if len(waiting) > AHEAD:
                yield np.stack([future.result() for future in waiting.pop(0)])
        for rest in waiting:
            yield np.stack([future.result() for future in rest])

    def _one(self, ref: ImageRef) -> Pixels:
        if ref.seed is None:
            image, _ = ref.dataset.read_hashed(ref.row, look=True)
        else:
            image = ref.dataset.read(ref.row)
            image = augment(image, self._change, np.random.default_rng(ref.seed))
        pixels: Pixels = prepare(image, self._preprocessing)
        return pixels


def augment(image: Image.Image, change: Augmentation, rng: np.random.Generator) -> Image.Image:
    """A random variant of an RGB image: crop, mirror, rotation and shift, colours, in this order.

    What comes into the frame from outside has the colour of the upper left pixel. The same ``rng``
    state gives the same image.
    """
    corner = image.getpixel((0, 0))
    fill = tuple(int(one) for one in corner) if isinstance(corner, tuple) else (0, 0, 0)
    if change.crop < 1.0:
        image = _crop(image, change.crop, rng)
    if change.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if change.rotate > 0.0 or change.shift > 0.0:
        shift = [rng.uniform(-change.shift, change.shift) * side for side in image.size]
        image = image.rotate(
            rng.uniform(-change.rotate, change.rotate),
            resample=Image.Resampling.BICUBIC,
            translate=(round(shift[0]), round(shift[1])),
            fillcolor=fill,
        )
    if change.colour > 0.0:
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(1.0 + rng.uniform(-change.colour, change.colour))
    return image


def _crop(image: Image.Image, least: float, rng: np.random.Generator) -> Image.Image:
    """A box of ``least`` .. 1 of the area and an aspect within 3/4 .. 4/3 of the image's own."""
    area, aspect = rng.uniform(least, 1.0), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    width = max(1, round(image.width * min(1.0, float(np.sqrt(area * aspect)))))
    height = max(1, round(image.height * min(1.0, float(np.sqrt(area / aspect)))))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
