"""From a file's bytes to an RGB image, and from there to an encoder's input."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

import numpy as np

from compatctl.core.arrays import PerceptualHashes, Pixels
from compatctl.core.perceptual_hash import COLOURS, FIELDS
from compatctl.errors import InputError
from compatctl.files.npz import PARSE_ERRORS

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["bilinear", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop", "pad"]

MAX_PIXELS = 89_478_485
"""Largest width x height that is decoded: 256 MiB of RGB."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, whatever a file's name. Pillow would run EPS in Ghostscript."""

MAX_SIDE = 4096
"""Largest input height or width of an encoder, in pixels."""

WHITE = (255, 255, 255)

BAD_IMAGE_TIP = "repair or remove it, or skip such items with --skip-bad"

_DECODER_ERRORS = (OSError, *PARSE_ERRORS)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an RGB image becomes the (height, width, 3) uint8 input of an encoder.

    ``height`` and ``width`` are in pixels, 1 .. 4096. If the aspect differs, ``stretch`` distorts
    the image, ``crop`` keeps the largest centred box, and ``pad`` adds white borders.

    Raises:
        InputError: a size out of range, or an unknown word.
    """

    height: int
    width: int
    resize: Resize = "bicubic"
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if type(side) is not int or not 1 <= side <= MAX_SIDE:
                raise InputError(f"preprocessing: {name} must be 1 .. {MAX_SIDE}, got {side!r}")
        for name, word, words in (
            ("resize", self.resize, get_args(Resize)),
            ("fit", self.fit, get_args(Fit)),
        ):
            if word not in words:
                raise InputError(f"preprocessing: {name} is one of {words}, got {word!r}")


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """An RGB image at the encoder's size: (height, width, 3) uint8, contiguous."""
    from PIL import Image, ImageOps

    size = (preprocessing.width, preprocessing.height)
    method = Image.Resampling[preprocessing.resize.upper()]
    if preprocessing.fit == "stretch":
        image = image.resize(size, method)
    elif preprocessing.fit == "crop":
        image = ImageOps.fit(image, size, method)
    else:
        scale = min(size[0] / image.width, size[1] / image.height)
        inner = [max(1, round(side * scale)) for side in image.size]
        page = Image.new("RGB", size, WHITE)
        corner = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
        page.paste(image.resize((inner[0], inner[1]), method), corner)
        image = page
    return np.array(image, np.uint8)


def decode(file: BinaryIO, name: str) -> Image.Image:
    """Decode the first frame to RGB: upright by its EXIF, transparency on white.

    16-bit grey is scaled to 8 bits.

    Raises:
        InputError: it does not decode, has more than ``MAX_PIXELS``, or floating point pixels; the
            message begins with ``name``.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(file, formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                f"{name}: {image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded"
            )
        image.load()
        return _rgb(ImageOps.exif_transpose(image), name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: too many pixels to decode: {error}") from error
    except _DECODER_ERRORS as error:
        raise InputError(
            f"{name}: does not decode as an image: {_reason(error)}", tip=BAD_IMAGE_TIP
        ) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The ``FORMATS`` that the installed pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    # pillow's message for unknown bytes shows the file object's address
    return "unknown format" if "cannot identify" in str(error) else str(error)


def from_array(pixels: Pixels) -> Image.Image:
    """(H, W, 3) or (H, W) uint8 pixels as an RGB image."""
    from PIL import Image

    return Image.fromarray(pixels).convert("RGB")


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


def _rgb(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise InputError(f"{name}: floating point pixels have no known range; save it as 8 bits")
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, (*WHITE, 255))
        image = Image.alpha_composite(page, image)
    return image.convert("RGB")
