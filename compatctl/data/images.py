"""From a file's bytes to an encoder's pixels; the same code serves encoding and training."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["bilinear", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop", "pad"]
MAX_PIXELS = 100_000_000
WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an RGB image becomes ``(height, width, 3)`` uint8 pixels.

    ``fit``: ``stretch`` ignores the aspect ratio, ``crop`` scales the shorter side and cuts the
    middle out, ``pad`` scales the longer side and fills with white.

    Raises:
        InputError: a size outside 1 .. 4096 or an unknown name.
    """

    height: int
    width: int
    resize: Resize = "bicubic"
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if type(value) is not int or not 1 <= value <= 4096:
                raise InputError(f"preprocessing: {name} must be 1 to 4096 pixels, got {value!r}")
        for name, value, known in (
            ("resize", self.resize, ("bilinear", "bicubic", "lanczos")),
            ("fit", self.fit, ("stretch", "crop", "pad")),
        ):
            if value not in known:
                raise InputError(f"preprocessing: {name} must be one of {known}, got {value!r}")


def decode(data: bytes, name: str) -> Image.Image:
    """An RGB image, turned as its EXIF says, transparency over white.

    Raises:
        InputError: not an image, truncated, or over 100 million pixels; the message has ``name``.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{name}: {image.width} x {image.height} pixels are too many")
                image.load()
                turned = ImageOps.exif_transpose(image)
                return _rgb(turned)
    except InputError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(
            f"{name}: the image does not decode: {error}",
            tip="mend or remove it, or pass --skip-bad to leave such items out",
        ) from None


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in {"RGBA", "LA"}:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """``(height, width, 3)`` uint8 pixels of an RGB image."""
    from PIL import Image, ImageOps

    method = Image.Resampling[preprocessing.resize.upper()]
    size = (preprocessing.width, preprocessing.height)
    if preprocessing.fit == "stretch":
        out = image if image.size == size else image.resize(size, method)
    elif preprocessing.fit == "crop":
        out = ImageOps.fit(image, size, method)
    else:
        out = ImageOps.pad(image, size, method, color=WHITE)
    return np.asarray(out, np.uint8)
