"""From bytes to RGB, and from RGB to an encoder's input."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compatctl.data import Preprocessing, decode, from_files, prepare
from compatctl.errors import InputError
from compatctl.notices import collected


def encoded(image: Image.Image, kind: str = "png", **options: object) -> io.BytesIO:
    """The image's bytes in a format."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)  # type: ignore[arg-type]
    file.seek(0)
    return file


def gradient(width: int, height: int) -> Image.Image:
    """An image whose every pixel tells its place."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 7], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_exif_orientation_is_applied() -> None:
    """A JPEG whose EXIF says that it is rotated is turned upright."""
    image = gradient(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(image, "jpeg", exif=exif, quality=95), "x")
    assert turned.size == (20, 40)
    expected = np.asarray(image.rotate(-90, expand=True), np.int64)
    assert np.abs(np.asarray(turned, np.int64) - expected).mean() < 4


def test_transparency_lies_on_white() -> None:
    """Alpha of every kind is composited on white: RGBA, grey with alpha, palette with a key."""
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    keyed = Image.new("P", (4, 4), 0)
    keyed.putpalette([9, 9, 9] * 256)
    assert decode(encoded(clear), "x").getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half), "x").getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(keyed, transparency=0), "x").getpixel((0, 0)) == (255, 255, 255)


def test_every_other_mode_becomes_rgb() -> None:
    """Grey, palette, 1 bit and CMYK images keep their colour as RGB."""
    for mode, value, kind, expected in (
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), "tiff", (255, 255, 255)),
        ("RGB", (1, 2, 3), "bmp", (1, 2, 3)),
    ):
        image = decode(encoded(Image.new(mode, (3, 3), value), kind), "x")
        assert image.mode == "RGB"
        assert image.getpixel((1, 1)) == expected
    palette = gradient(8, 8).quantize(16)
    assert np.array_equal(
        np.asarray(decode(encoded(palette), "x")), np.asarray(palette.convert("RGB"))
    )


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    """A 16-bit image spans 0 .. 255 afterwards instead of turning white."""
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(deep)), "x")
    assert np.asarray(image)[..., 0].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(8, "png"), (10, "png"), (12, "png"), (12, "tiff"), (10, "tiff"), (8, "tiff")],
)
def test_grey_of_fewer_bits_than_its_file_is_scaled_by_them(bits: int, kind: str) -> None:
    """8, 10 and 12 bits in a file of 16 or 32: as bright as the same in 8 bits, and said."""
    grey = np.asarray(gradient(20, 16).convert("L"), np.int64)
    grey = grey * 255 // grey.max()
    deep = (grey * ((1 << bits) - 1) + 127) // 255
    kept = deep.astype(np.int32 if bits == 8 and kind == "tiff" else np.uint16)
    with collected() as notices:
        image = decode(encoded(Image.fromarray(kept), kind), "x/1")
    assert np.array_equal(np.asarray(image)[..., 0], grey)
    (entry,) = notices.entries()
    assert (entry["kind"], entry["names"]) == ("pixel-depth", ["x/1"])
    assert f"read as {bits} bits" in entry["message"]


def test_deep_grey_of_a_full_range_or_black_has_no_notice() -> None:
    """One of 14 bits, or a dark one, is read as 16 and said; a range of no depth is refused."""
    with collected() as notices:
        image = decode(encoded(Image.fromarray(np.full((4, 4), 16_383, np.uint16))), "x")
    assert image.getpixel((0, 0)) == (64, 64, 64)
    assert [entry["kind"] for entry in notices.entries()] == ["pixel-depth"]
    with collected() as notices:
        for value in (0, 65535):
            decode(encoded(Image.fromarray(np.full((4, 4), value, np.uint16))), "x")
    assert notices.entries() == []
    for value in (-1, 70_000):
        image = Image.fromarray(np.full((4, 4), value, np.int32))
        with pytest.raises(InputError, match=f"x: grey pixels from {value} to {value}"):
            decode(encoded(image, "tiff"), "x")


def png(*chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return io.BytesIO(b"".join(parts))


@pytest.mark.parametrize("brightness", [4095, 65535])
def test_dark_16_bit_colour_is_said(brightness: int) -> None:
    """12 bits in a 48-bit PNG look black: pillow reads the upper bytes."""
    row = b"\0" + struct.pack(">3H", brightness, 0, 0) * 4
    header = struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)
    file = png((b"IHDR", header), (b"IDAT", zlib.compress(row * 4)), (b"IEND", b""))
    with collected() as notices:
        decode(file, "x")
    assert len(notices.entries()) == (brightness == 4095)


def test_long_texts_and_profiles_of_a_png_change_no_pixel() -> None:
    """A workflow, a comment and a colour profile of megabytes; before and behind the pixels."""
    image = gradient(30, 20)
    head, *_, end = chunks_of(encoded(image).getvalue())
    pixels = [part for part in chunks_of(encoded(image).getvalue()) if part[0] == b"IDAT"]
    packed = zlib.compress(b"x" * 3_000_000)
    texts = (
        (b"zTXt", b"workflow\0\0" + packed),
        (b"iTXt", b"note\0\1\0\0\0" + packed),
        (b"iCCP", b"wide\0\0" + packed),
    )
    for text in texts:
        for order in ([head, text, *pixels, end], [head, *pixels, text, end]):
            assert np.array_equal(np.asarray(decode(png(*order), "x")), np.asarray(image))
    with pytest.raises(InputError, match="x: does not decode"):
        decode(png(head, texts[0], end), "x")


def test_a_png_with_a_long_text_is_still_turned_upright() -> None:
    """The orientation in its XMP is kept."""
    image = gradient(30, 20)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    head, *rest = chunks_of(encoded(image).getvalue())
    orientation = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    text = (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000))
    assert decode(png(head, orientation, *rest), "x").size == (20, 30)
    assert decode(png(head, orientation, text, *rest), "x").size == (20, 30)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and bytes of each chunk of a PNG."""
    at, chunks = 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def test_floating_point_pixels_are_refused() -> None:
    """An image without a known range is an error, not a guess."""
    image = Image.fromarray(np.full((3, 3), 0.5, np.float32))
    with pytest.raises(InputError, match="floating point"):
        decode(encoded(image, "tiff"), "x")


def test_the_error_of_undecodable_bytes_names_the_item() -> None:
    """Text, nothing, a cut-off PNG, a cut-off JPEG: each error begins with the item's name."""
    png, jpeg = (encoded(gradient(64, 64), kind).getvalue() for kind in ("png", "jpeg"))
    for data in (b"hello", b"", png[: len(png) // 2], jpeg[: len(jpeg) // 2], png[:30]):
        with pytest.raises(InputError, match=r"^cats/7: does not decode"):
            decode(io.BytesIO(data), "cats/7")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><p>404", "it is an HTML page"),
        (b"\x1f\x8b\x08\0\0", "it is a gzip file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIC"),
        (b"<svg xmlns='x'/>", "it is SVG"),
        (b"\0\0\0\x0cjP  \r\n", "it is JPEG 2000"),
    ],
)
def test_what_is_no_image_is_said_to_be_what_it_is(content: bytes, words: str) -> None:
    """An error page or another format under the name of a JPEG."""
    with pytest.raises(InputError, match=words) as refused:
        decode(io.BytesIO(content), "x.jpg")
    assert refused.value.tip


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_further_frames_are_said(form: str) -> None:
    """The first is read, with a notice; a picture alone, and the preview of an MPO, have none."""
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    said = {}
    for save, more in ((form, [second]), (form, []), ("MPO", [second])):
        file = io.BytesIO()
        first.save(file, save, save_all=True, append_images=more)
        with collected() as notices:
            red, _, blue = decode(file, "x").getpixel((4, 4))  # type: ignore[misc]
        assert red - blue > 150
        said[save, bool(more)] = [entry["kind"] for entry in notices.entries()]
    assert said == {(form, True): ["first-frame"], (form, False): [], ("MPO", True): []}


def test_an_image_of_which_nothing_is_left_is_said() -> None:
    """Transparent everywhere, or white on nothing; a visible mark is no notice."""
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    logo = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    logo.paste((255, 255, 255, 255), (2, 2, 5, 5))
    mark = logo.copy()
    mark.putpixel((3, 3), (0, 0, 0, 255))
    for image, kinds in ((clear, ["transparent-image"]), (logo, ["transparent-image"]), (mark, [])):
        file = io.BytesIO()
        image.save(file, "PNG")
        with collected() as notices:
            decode(file, "x.png")
        assert [entry["kind"] for entry in notices.entries()] == kinds


def test_exif_that_cannot_be_read_is_said_by_name() -> None:
    """The image is taken as upright; no warning of the library is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    content = bytearray(file.getvalue())
    content[content.index(b"Exif\0\0") + 6] ^= 0xFF
    for data, size, kinds in (
        (file.getvalue(), (4, 8), []),
        (bytes(content), (8, 4), ["damaged-exif"]),
    ):
        with collected() as notices:
            assert decode(io.BytesIO(data), "x.jpg").size == size
        assert [entry["kind"] for entry in notices.entries()] == kinds


def test_every_flipped_byte_decodes_or_is_refused() -> None:
    """No corruption of a real file escapes as another library's error."""
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        data = encoded(gradient(16, 16), kind).getvalue()
        for position in range(0, len(data), max(1, len(data) // 60)):
            broken = bytearray(data)
            broken[position] ^= 0xFF
            with contextlib.suppress(InputError):
                assert decode(io.BytesIO(bytes(broken)), "x").mode == "RGB"


@pytest.mark.filterwarnings("ignore")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """A small file that declares a huge image is refused before its pixels take memory."""
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 9_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"bomb\.png: .*10000 x 9000 pixels"):
        from_files([path]).read(0)
    header = bytearray(path.read_bytes())
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    path.write_bytes(bytes(header))
    with pytest.raises(InputError, match=r"bomb\.png"):
        from_files([path]).read(0)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "lanczos"])
def test_prepare_gives_the_given_size(fit: str, resize: str) -> None:
    """Any image, even one pixel thin, becomes (height, width, 3) uint8."""
    size = Preprocessing(height=24, width=16, resize=resize, fit=fit)  # type: ignore[arg-type]
    for image in (gradient(50, 20), gradient(1, 300), gradient(300, 1), gradient(16, 24)):
        pixels = prepare(image, size)
        assert pixels.shape == (24, 16, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
    assert np.array_equal(prepare(gradient(16, 24), size), np.asarray(gradient(16, 24)))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (40, 40), (33, 17), (300, 11)])
@pytest.mark.parametrize("share", [1.0, 0.95, 0.875])
@pytest.mark.parametrize("offset", ["floor", "round"])
def test_a_crop_share_resizes_and_then_cuts_out_the_centre(
    size: tuple[int, int], share: float, offset: str
) -> None:
    """As torchvision's Resize and CenterCrop do one after the other, pixel by pixel."""
    image = gradient(*size)
    short = math.floor(16 / share)
    whole = [int(short * side / min(size)) for side in size]
    resized = image.resize((whole[0], whole[1]), Image.Resampling.BICUBIC)
    corner = [(side - 16) / 2 for side in whole]
    left, top = (round(at) if offset == "round" else math.floor(at) for at in corner)
    expected = np.asarray(resized.crop((left, top, left + 16, top + 16)), np.int64)
    preprocessing = Preprocessing(
        height=16,
        width=16,
        crop_share=share,
        crop_offset=offset,  # type: ignore[arg-type]
    )
    assert np.abs(prepare(image, preprocessing) - expected).max() <= 1


def test_borders_have_their_colour() -> None:
    """White by default, or as the model was trained: black, grey."""
    image = Image.new("RGB", (40, 10), (1, 2, 3))
    for border in ((255, 255, 255), (0, 0, 0), (114, 114, 114)):
        pixels = prepare(image, Preprocessing(height=20, width=20, fit="pad", border=border))
        assert tuple(pixels[0, 0].tolist()) == border
        assert tuple(pixels[10, 10].tolist()) == (1, 2, 3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"crop_share": 0}, "crop_share must be"),
        ({"crop_share": 1.5}, "crop_share must be"),
        ({"crop_share": 0.9, "fit": "pad"}, "need the fit crop"),
        ({"crop_share": 0.9, "width": 9}, "an equal height"),
        ({"crop_offset": "ceil"}, "crop_offset is one of"),
        ({"border": (0, 0, 0)}, "no effect without the fit pad"),
        ({"border": (0, 0, 256), "fit": "pad"}, "border is 3 whole numbers"),
        ({"border": (0, 0), "fit": "pad"}, "border is 3 whole numbers"),
    ],
)
def test_entries_that_exclude_each_other_are_refused(
    entries: dict[str, object], message: str
) -> None:
    """No entry is without effect."""
    with pytest.raises(InputError, match=message):
        Preprocessing(**{"height": 8, "width": 8, **entries})  # type: ignore[arg-type]


def test_each_fit_handles_another_aspect() -> None:
    """Crop loses the sides, pad adds white borders, stretch keeps every corner."""
    image = Image.new("RGB", (60, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    sizes = {
        fit: prepare(image, Preprocessing(height=20, width=20, fit=fit))  # type: ignore[arg-type]
        for fit in ("stretch", "crop", "pad")
    }
    assert sizes["crop"][10, 2].tolist() == [0, 0, 255]
    assert sizes["stretch"][10, 2].tolist() == [255, 0, 0]
    assert sizes["pad"][1, 10].tolist() == [255, 255, 255]
    assert sizes["pad"][10, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"height": 0}, {"width": 5000}, {"height": 8.0}, {"resize": "nearest"}, {"fit": "cover"}],
)
def test_an_invalid_preprocessing_is_refused(wrong: dict[str, object]) -> None:
    """Sizes and words are checked where the value is made."""
    with pytest.raises(InputError, match="preprocessing:"):
        Preprocessing(**{"height": 8, "width": 8, **wrong})  # type: ignore[arg-type]


def test_importing_data_loads_no_pillow() -> None:
    """Commands that only describe data stay light."""
    code = "import sys, compatctl.data; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_eps_program_named_as_an_image_does_not_run(tmp_path: Path) -> None:
    """Pillow runs EPS in Ghostscript whatever the file's name; it is not decoded here."""
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        Image.new("RGB", (4, 4)).save(file, "eps")
    with path.open("rb") as file, pytest.raises(InputError, match="unknown format"):
        decode(file, "a.png")
