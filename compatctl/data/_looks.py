"""What an image looks like, in the few bytes of ``core.perceptual_hash``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import PerceptualHashes
from compatctl.core.perceptual_hash import COLOURS, FIELDS

if TYPE_CHECKING:
    from PIL import Image


def look_of(image: Image.Image) -> PerceptualHashes:
    """(24,) uint8: the mean brightness of 4 x 4 fields and the two mean colours of 2 x 2.

    No look is all zeros: no colour has both Cb and Cr near 0.
    """
    from PIL import Image

    small = image.convert("YCbCr").resize((8 * FIELDS, 8 * FIELDS), Image.Resampling.BILINEAR)
    brightness, *colours = small.split()
    planes = [(brightness, FIELDS), *((plane, COLOURS) for plane in colours)]
    means = [plane.resize((n, n), Image.Resampling.BOX) for plane, n in planes]
    return np.concatenate([np.asarray(mean).reshape(-1) for mean in means])
