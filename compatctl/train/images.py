"""Batches of images: decoded by threads while the network runs, augmented by seed.

An augmentation depends only on its seed, so a resumed run sees the same images as an uninterrupted
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from compatctl.core.arrays import Pixels
from compatctl.core.digest_prefixes import name_prefix
from compatctl.data import Preprocessing, prepare
from compatctl.recipe import Augmentation, InputSpec, Recipe
from compatctl.train.items import ItemRef

THREADS = 4
AHEAD = 2
BATCH_PIXELS = 32 * 160 * 160
"""Pixels of an inference batch; at twice the size, an image takes three times as long."""


def changed_views(images: Sequence[ItemRef], recipe: Recipe) -> list[ItemRef]:
    """What heads train on beside the images: ``augmentation.views`` - 1 variants, view by view.

    A variant depends on the recipe's seed and on the item's id alone, so that heads trained on
    different items share it.
    """
    return [
        replace(ref, seed=(recipe.seed, view, name_prefix(ref.id)))
        for view in range(1, recipe.augmentation.views)
        for ref in images
    ]


def preprocessing(spec: InputSpec) -> Preprocessing:
    """The part of the recipe's input processing that runs outside the network.

    Raises:
        InputError: entries that exclude each other, such as a crop_share with another fit.
    """
    return Preprocessing.of(spec)


class ImageReader:
    """Reads images with a pool of threads; a context manager."""

    def __init__(self, spec: InputSpec, augmentation: Augmentation) -> None:
        self.spec = spec
        self.augmentation = augmentation
        self._preprocessing = preprocessing(spec)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compatctl-read")

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def batch_size(self) -> int:
        """Images of a batch without gradient."""
        return min(256, max(1, BATCH_PIXELS // (self.spec.height * self.spec.width)))

    def batches(self, batches: Sequence[Sequence[ItemRef]]) -> Iterator[Pixels]:
        """(B, H, W, 3) uint8 for each batch in order; the next ``AHEAD`` are read meanwhile.

        Raises:
            InputError: an image does not decode; the message names it.
        """
        pending: list[list[Future[Pixels]]] = []
        for batch in batches:
            pending.append([self._pool.submit(self._read, ref) for ref in batch])
            if len(pending) > AHEAD:
                yield np.stack([future.result() for future in pending.pop(0)])
        for futures in pending:
            yield np.stack([future.result() for future in futures])

    def _read(self, ref: ItemRef) -> Pixels:
        if ref.seed is None:
            image, _ = ref.dataset.read_hashed(ref.row, look=True)
        else:
            image = ref.dataset.read(ref.row)
            image = augment(image, self.augmentation, np.random.default_rng(ref.seed))
        return prepare(image, self._preprocessing)


def augment(image: Image.Image, change: Augmentation, rng: np.random.Generator) -> Image.Image:
    """A random variant of an RGB image: crop, mirror, rotation and shift, colours, in this order.

    Uncovered areas take the colour of the upper left pixel. The same ``rng`` state gives the same
    image.
    """
    corner = image.getpixel((0, 0))
    fill = tuple(int(channel) for channel in corner) if isinstance(corner, tuple) else (0, 0, 0)
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


def _crop(image: Image.Image, min_share: float, rng: np.random.Generator) -> Image.Image:
    """A box of ``min_share`` .. 1 of the area, its aspect ratio 3/4 .. 4/3 of the image's."""
    area, aspect = rng.uniform(min_share, 1.0), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    width = max(1, round(image.width * min(1.0, float(np.sqrt(area * aspect)))))
    height = max(1, round(image.height * min(1.0, float(np.sqrt(area / aspect)))))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
