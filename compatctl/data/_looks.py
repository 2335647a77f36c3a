"""What an image looks like, in the few bytes of ``core.looks``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import PerceptualHashes
from compatctl.core.perceptual_hash import COLOURS, FIELDS, WIDTH
from compatctl.data._dataset import Dataset
from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


def look_of(image: Image.Image) -> PerceptualHashes:
    """(24,) uint8: the mean brightness of 4 x 4 fields and the two mean colours of 2 x 2."""
    from PIL import Image

    small = image.convert("YCbCr").resize((8 * FIELDS, 8 * FIELDS), Image.Resampling.BILINEAR)
    brightness, *colours = small.split()
    planes = [(brightness, FIELDS), *((one, COLOURS) for one in colours)]
    parts = [np.asarray(one.resize((n, n), Image.Resampling.BOX)).reshape(-1) for one, n in planes]
    return np.concatenate(parts)


def looks_of(data: Dataset, rows: Sequence[int]) -> tuple[PerceptualHashes, np.ndarray]:
    """Looks (n, 24) uint8 of the rows whose image decodes, and (n,) their places in ``rows``."""
    found = np.zeros((len(rows), WIDTH), np.uint8)
    good = np.zeros(len(rows), bool)

    def one(at: int) -> None:
        try:
            found[at] = look_of(data.read(int(rows[at])))
        except InputError:
            return
        good[at] = True

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compatctl-look") as pool:
        for _ in pool.map(one, range(len(rows))):
            pass
    return found[good], np.flatnonzero(good)
