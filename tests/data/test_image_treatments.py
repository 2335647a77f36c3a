"""Each kind of image has one treatment, the same in training, in the gallery and in queries."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from compatctl.data import Preprocessing, from_files, load, prepare
from compatctl.errors import InputError
from compatctl.recipe import Augmentation, InputSpec
from compatctl.train.images import ImageReader
from compatctl.train.items import ItemRef

SIDE = 8
PREPARED = Preprocessing(height=SIDE, width=SIDE, resize="bilinear", fit="stretch")


def base() -> Image.Image:
    """Four plain quarters, so that no codec and no resize changes their inside."""
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    for corner, colour in (
        ((0, 0), (200, 30, 30)),
        ((16, 0), (30, 200, 30)),
        ((0, 16), (30, 30, 200)),
    ):
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image's bytes in a format."""
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG whose EXIF says how to turn it, of pixels that need it."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(
        base().transpose(undo[orientation]), "jpeg", exif=exif, quality=100, subsampling=0
    )


def palette_with_alpha() -> bytes:
    """A PNG palette with an alpha for each colour: the last quarter is a clear red."""
    image = base().convert("RGBA")
    image.paste((255, 0, 0, 0), (16, 16, 32, 32))
    return encoded(image.quantize(8, method=Image.Quantize.FASTOCTREE), "png")


def animated(kind: str) -> bytes:
    """Two frames; the second is black."""
    black = Image.new("RGB", (32, 32))
    return encoded(base(), kind, save_all=True, append_images=[black], lossless=True)


def deep_grey() -> bytes:
    """16 bits over the whole range."""
    pixels = np.asarray(base().convert("L"), np.uint16) * 257
    return encoded(Image.fromarray(pixels), "png")


def deep_colour() -> bytes:
    """A PNG of 16 bits a channel: each byte twice."""
    pixels = np.repeat(np.asarray(base())[..., None], 2, axis=-1).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", 32, 32, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for name, part in chunks:
        data += struct.pack(">I", len(part)) + name + part
        data += struct.pack(">I", zlib.crc32(name + part))
    return data


def with_profile() -> bytes:
    """A colour profile, which is not applied."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encoded(base(), "png", icc_profile=profile)


def grey() -> Image.Image:
    """The image in grey, as RGB."""
    return base().convert("L").convert("RGB")


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image]]] = {
    **{f"EXIF {n}": ((lambda n=n: turned(n)), base) for n in range(2, 9)},
    "CMYK JPEG": (lambda: encoded(base().convert("CMYK"), "jpeg", quality=100), base),
    "CMYK TIFF": (lambda: encoded(base().convert("CMYK"), "tiff"), base),
    "palette with alpha": (palette_with_alpha, base),
    "palette": (lambda: encoded(base().quantize(8), "gif"), base),
    "GIF": (lambda: animated("gif"), base),
    "animated PNG": (lambda: animated("png"), base),
    "animated WebP": (lambda: animated("webp"), base),
    "16-bit grey": (deep_grey, grey),
    "16-bit colour": (deep_colour, base),
    "grey": (lambda: encoded(base().convert("L"), "jpeg", quality=100), grey),
    "1 bit": (
        lambda: encoded(base().convert("1", dither=Image.Dither.NONE), "png"),
        lambda: base().convert("1", dither=Image.Dither.NONE).convert("RGB"),
    ),
    "profile": (with_profile, base),
}


def everywhere(folder: Path, data: bytes) -> dict[str, NDArray[np.uint8]]:
    """The encoder's input of an image in training, in the gallery and in a query, as file and in a
    Parquet table."""
    path = folder / "class" / "image.png"
    path.parent.mkdir()
    path.write_bytes(data)
    pq.write_table(pa.table({"id": ["a"], "label": ["x"], "image": [data]}), folder / "t.parquet")
    spec = InputSpec(height=SIDE, width=SIDE, resize="bilinear", fit="stretch")
    found = {}
    for name, gallery in (
        ("file", load(path.parent.parent)),
        ("table", load(folder / "t.parquet")),
    ):
        with ImageReader(spec, Augmentation()) as reader:
            (batch,) = reader.batches([[ItemRef(dataset=gallery, row=0)]])
        found[f"training, {name}"] = batch[0]
        found[f"gallery, {name}"] = prepare(gallery.read_hashed(0)[0], PREPARED)
    found["query"] = prepare(from_files([path]).read(0), PREPARED)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_image_gives_the_same_pixels_everywhere(tmp_path: Path, kind: str) -> None:
    """Those of the plain image that it shows, within the rounding of its codec."""
    write, show = KINDS[kind]
    expected = prepare(show(), PREPARED).astype(np.int64)
    for place, pixels in everywhere(tmp_path, write()).items():
        inside = (pixels.astype(np.int64) - expected)[[1, 1, 6, 6], [1, 6, 1, 6]]
        assert np.abs(inside).max() <= 3, place


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff"])
def test_a_file_that_is_cut_short_is_refused_everywhere(tmp_path: Path, kind: str) -> None:
    """Half of the pixels is no image, in training, in the gallery and in queries."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    data = data[: len(data) // 2]
    path = tmp_path / "class" / "image.png"
    path.parent.mkdir()
    path.write_bytes(data)
    pq.write_table(pa.table({"id": ["a"], "label": ["x"], "image": [data]}), tmp_path / "t.parquet")
    spec = InputSpec(height=SIDE, width=SIDE)
    for gallery in (load(tmp_path), load(tmp_path / "t.parquet")):
        with pytest.raises(InputError, match="does not decode"):
            gallery.read_hashed(0)
        with ImageReader(spec, Augmentation()) as reader, pytest.raises(InputError):
            list(reader.batches([[ItemRef(dataset=gallery, row=0)]]))
        assert len(gallery.readable()[1]) == 1
    with pytest.raises(InputError, match="does not decode"):
        from_files([path]).read(0)
