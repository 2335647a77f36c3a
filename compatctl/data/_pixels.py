"""From a file's bytes to an RGB image, and from there to an encoder's input."""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, BinaryIO, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import PerceptualHashes, Pixels
from compatctl.core.perceptual_hash import COLOURS, FIELDS
from compatctl.data._png import without_texts
from compatctl.errors import InputError
from compatctl.files import other_kind
from compatctl.files.npz import PARSE_ERRORS
from compatctl.notices import notice

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["bilinear", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop", "pad"]
CropOffset = Literal["floor", "round"]

MAX_PIXELS = 89_478_485
"""Largest width x height that is decoded: 256 MiB of RGB."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, whatever a file's name. Pillow would run EPS in Ghostscript."""

GREY_BITS = (8, 10, 12, 16)
"""Depths of a pixel that a grey image of more than 8 bits a pixel may use."""

MAX_SIDE = 4096
"""Largest input height or width of an encoder, in pixels."""

DOUBTFUL_BITS = 14
"""An image of 16 bits that uses no more may be one of 14, or a dark one."""

DARK_COLOUR_BITS = 12
"""A 16-bit colour image that uses no more may be one of as many, or a dark one."""

MIN_CROP_SHARE = 0.1
"""Smallest crop_share; a smaller one would enlarge an image beyond reason."""

WHITE = (255, 255, 255)

BAD_IMAGE_TIP = "repair or remove it; compatctl init --skip-bad leaves such items out, as others do"

_DECODER_ERRORS = (OSError, *PARSE_ERRORS)
_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
"""Formats of which a second frame is another picture; in MPO it is a preview or a depth."""
_EMPTY_EXIF = 20
"""Bytes of EXIF data without an entry."""
_UNREAD = {
    b"ftypheic": "HEIC",
    b"ftypheix": "HEIC",
    b"ftypmif1": "HEIF",
    b"ftyp": "a video or an HEIF image",
    b"JXL": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"jP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"<svg": "SVG",
    b"8BPS": "a Photoshop document",
}
"""Bytes among the first 16 -> the format."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an RGB image becomes the (height, width, 3) uint8 input of an encoder.

    ``height`` and ``width`` are in pixels, 1 .. 4096. If the aspect differs, ``stretch`` distorts
    the image, ``crop`` keeps the largest centred box, and ``pad`` adds borders of the colour
    ``border`` (red, green, blue; 0 .. 255).

    ``crop_share`` is timm's ``crop_pct``: with ``crop``, the image is resized to
    ``floor(side / crop_share)`` on its shorter side, and the centre is cut out. ``crop_offset``
    says where, to whole pixels: ``floor`` of half the rest, as transformers does and the default
    is for a share below 1; or ``round``, half to even, as torchvision and timm do. With a share of
    1 and no offset the box is not rounded. With either, height and width are equal.

    Raises:
        InputError: a size out of range, an unknown word, or entries that exclude each other.
    """

    height: int
    width: int
    resize: Resize = "bicubic"
    fit: Fit = "crop"
    crop_share: float = 1.0
    crop_offset: CropOffset | None = None
    border: tuple[int, ...] = WHITE

    @classmethod
    def of(cls, described: object) -> Self:
        """The entries of these names of another description, all of them.

        Raises:
            InputError: as the class.
        """
        return cls(**{entry.name: getattr(described, entry.name) for entry in fields(cls)})

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if type(side) is not int or not 1 <= side <= MAX_SIDE:
                raise InputError(f"preprocessing: {name} must be 1 .. {MAX_SIDE}, got {side!r}")
        for name, word, words in (
            ("resize", self.resize, get_args(Resize)),
            ("fit", self.fit, get_args(Fit)),
            ("crop_offset", self.crop_offset, (None, *get_args(CropOffset))),
        ):
            if word not in words:
                raise InputError(f"preprocessing: {name} is one of {words}, got {word!r}")
        self._check_share()
        self._check_border()

    def _check_border(self) -> None:
        valid = isinstance(self.border, tuple) and len(self.border) == 3
        if not valid or not all(type(v) is int and 0 <= v <= 255 for v in self.border):
            raise InputError(
                f"preprocessing: border is 3 whole numbers, 0 .. 255; got {self.border!r}"
            )
        if self.border != WHITE and self.fit != "pad":
            raise InputError("preprocessing: border has no effect without the fit pad")

    def _check_share(self) -> None:
        share = self.crop_share
        if type(share) not in {int, float} or not MIN_CROP_SHARE <= share <= 1:
            raise InputError(
                f"preprocessing: crop_share must be {MIN_CROP_SHARE} .. 1, got {share!r}"
            )
        if self.whole_pixels and (self.fit != "crop" or self.height != self.width):
            raise InputError(
                "preprocessing: crop_share and crop_offset need the fit crop, and an equal height "
                f"and width; got {self.fit}, {self.height} and {self.width}"
            )

    @property
    def whole_pixels(self) -> bool:
        """Whether the centre is cut out of a resized image, to whole pixels."""
        return self.crop_share != 1 or self.crop_offset is not None


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """An RGB image at the encoder's size: (height, width, 3) uint8, contiguous."""
    from PIL import Image, ImageOps

    size = (preprocessing.width, preprocessing.height)
    method = Image.Resampling[preprocessing.resize.upper()]
    if preprocessing.fit == "stretch":
        image = image.resize(size, method)
    elif preprocessing.fit == "crop" and not preprocessing.whole_pixels:
        image = ImageOps.fit(image, size, method)
    elif preprocessing.fit == "crop":
        image = _resized_centre(image, preprocessing, method)
    else:
        scale = min(size[0] / image.width, size[1] / image.height)
        inner = [max(1, round(side * scale)) for side in image.size]
        page = Image.new("RGB", size, preprocessing.border)
        corner = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
        page.paste(image.resize((inner[0], inner[1]), method), corner)
        image = page
    return np.array(image, np.uint8)


def _resized_centre(
    image: Image.Image, preprocessing: Preprocessing, method: Image.Resampling
) -> Image.Image:
    """The centre, cut out to whole pixels after the shorter side is resized."""
    side, short = preprocessing.width, min(image.size)
    resized = math.floor(side / preprocessing.crop_share)
    width, height = (int(resized * own / short) for own in image.size)
    half = round if preprocessing.crop_offset == "round" else math.floor
    left, top = half((width - side) / 2), half((height - side) / 2)
    # only what the centre needs is resized: a thin image would become huge
    x, y = image.width / width, image.height / height
    return image.resize(
        (side, side), method, box=(left * x, top * y, (left + side) * x, (top + side) * y)
    )


def decode(file: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame to RGB: upright by its EXIF, transparency on white.

    Deep grey is scaled to 8 bits, from 16, 12, 10 or 8 bits: the fewest that hold its brightest
    pixel. There is a notice of any but 16. Texts and profiles of a PNG are not read, however long.

    Raises:
        InputError: it does not decode, has more than ``max_pixels``, or pixels without a known
            range; the message begins with ``name``.
    """
    from PIL import Image

    try:
        try:
            return _decoded(file, name, max_pixels)
        except _DECODER_ERRORS:
            bare = without_texts(file)
            if bare is None:
                raise
            return _decoded(bare, name, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name}: too many pixels to decode: {error}", tip=BAD_IMAGE_TIP
        ) from error
    except _DECODER_ERRORS as error:
        reason, tip = _reason(error, file)
        raise InputError(f"{name}: does not decode as an image: {reason}", tip=tip) from error


def _decoded(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    from PIL import Image, ImageOps

    image = Image.open(file, formats=_formats())
    if image.width * image.height > max_pixels:
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels; at most {max_pixels} are decoded"
        )
    deep = ";16" in str(getattr(image, "tile", ""))
    image.load()
    if deep and not image.mode.startswith("I"):
        _warn_of_dark_colour(image, name)
    _warn_of_the_rest(image, name)
    return _rgb(ImageOps.exif_transpose(image), name)


def _warn_of_the_rest(image: Image.Image, name: str) -> None:
    """Warn of further frames, and of EXIF that cannot be read, as the image may lie on its side."""
    if image.format in _ANIMATED and getattr(image, "is_animated", False):
        what = "images of several frames or pages"
        notice("first-frame", "images", what, [name], "the first one is read")
    if len(image.info.get("exif", b"")) > _EMPTY_EXIF and not image.getexif():
        what = "images whose EXIF data cannot be read"
        notice("damaged-exif", "images", what, [name], "they are taken as upright")


@functools.cache
def _formats() -> tuple[str, ...]:
    """The ``FORMATS`` that the installed pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception, file: BinaryIO) -> tuple[str, str]:
    """Why a file does not decode, and what to do."""
    if "cannot identify" not in str(error):
        return str(error), BAD_IMAGE_TIP
    # pillow's message for unknown bytes shows the file object's address
    file.seek(0)
    head = file.read(64)
    if not head:
        return "it is empty", BAD_IMAGE_TIP
    if known := next((kind for begin, kind in _UNREAD.items() if begin in head[:16]), None):
        return f"it is {known}, which is not read", "convert it to JPEG or PNG"
    kind = other_kind(head)
    return (f"it is {kind[0]}", kind[1]) if kind else ("unknown format", BAD_IMAGE_TIP)


def thumbnail(image: Image.Image, side: int = 256) -> bytes:
    """A JPEG of an RGB image, of at most ``side`` pixels a side."""
    small = image.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


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
        image = Image.fromarray(_eight_bits(np.asarray(image, np.int64), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, (*WHITE, 255))
        flat = Image.alpha_composite(page, image)
        is_changed = image.getextrema() != flat.getextrema()
        if is_changed and flat.convert("RGB").getextrema() == ((255, 255),) * 3:
            what = "images with transparency of which nothing is left on white"
            notice("transparent-image", "images", what, [name], "they are all white")
        image = flat
    return image.convert("RGB")


def _eight_bits(deep: NDArray[np.int64], name: str) -> NDArray[np.uint8]:
    """Grey pixels (H, W) of ``GREY_BITS``, in 8 bits, rounded."""
    low, high = int(deep.min()), int(deep.max())
    bits = next((bits for bits in GREY_BITS if high < 1 << bits), 0)
    if low < 0 or not bits:
        raise InputError(
            f"{name}: grey pixels from {low} to {high} have no known range; save it as 8 bits"
        )
    if high and bits < GREY_BITS[-1]:
        what = f"deep grey images read as {bits} bits, by their brightest pixel"
        notice("pixel-depth", "images", what, [name])
    elif 0 < high < 1 << DOUBTFUL_BITS:
        what = "16-bit grey images without a bright pixel"
        result = f"if they have {DOUBTFUL_BITS} bits, save them as 8 bits"
        notice("pixel-depth", "images", what, [name], result)
    white = (1 << bits) - 1
    return ((deep * 510 + white) // (2 * white)).astype(np.uint8)


def _warn_of_dark_colour(image: Image.Image, name: str) -> None:
    """Warn of 16-bit colours, of which pillow reads the upper 8 bits, if these are nearly 0."""
    colours = image.convert("RGB").getextrema()
    brightest = max(int(high) for _, high in colours)  # type: ignore[misc]
    if 0 < brightest < 1 << (DARK_COLOUR_BITS - 8):
        what = "16-bit colour images that are nearly black"
        result = f"if they have {DARK_COLOUR_BITS} bits, save them as 8 bits"
        notice("pixel-depth", "images", what, [name], result)
