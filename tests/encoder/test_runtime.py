"""Embedding real images: every row right, in order, unit; every failure named."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import DIM, SIDE, SMALL, UNIT, by_hand, save
from PIL import Image

from compatctl.data import Dataset, from_files, load, prepare
from compatctl.encoder import Encoder, seal
from compatctl.errors import InputError


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    """The mean colour of an image, projected to unit rows."""
    return Encoder.load(save(by_hand([UNIT]), tmp_path / "colour.onnx"))


@pytest.mark.parametrize("batch_size", [1, 4, 15, 64])
def test_rows_are_in_order_whatever_the_batch(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset, batch_size: int
) -> None:
    """Row i is the feature of item i, equal to running its pixels alone."""
    seal(exports[0] / "small0.onnx", tmp_path / "m.onnx", (SMALL,))
    encoder = Encoder.load(tmp_path / "m.onnx", threads=1)
    done = encoder.embed(dataset, batch_size=batch_size)
    assert done.features.shape == (15, DIM)
    assert done.features.dtype == np.float32
    assert done.rows.tolist() == list(range(15))
    assert done.bad == ()
    for row in range(15):
        pixels = prepare(dataset.read(row), SMALL.preprocessing)[None]
        assert np.abs(encoder.run({"image": pixels}) - done.features[row]).max() < 1e-6


def test_progress_counts_items_to_the_end(encoder: Encoder, dataset: Dataset) -> None:
    """Progress grows by batches and ends at the total."""
    seen: list[tuple[int, int]] = []
    encoder.embed(dataset, batch_size=6, progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(6, 15), (12, 15), (15, 15)]


def test_no_item_gives_no_row(encoder: Encoder, dataset: Dataset) -> None:
    """An empty selection is not an error here."""
    assert encoder.embed(dataset.take([])).features.shape == (0, DIM)


def test_the_first_bad_image_is_named(encoder: Encoder, images: Path) -> None:
    """Without skip_bad a corrupted image stops the run with its id; so does a missing one."""
    data = load(images)
    bad = data.ids[7]
    (images / bad).write_bytes((images / bad).read_bytes()[:60])
    with pytest.raises(InputError, match=bad):
        encoder.embed(data, batch_size=4)
    (images / bad).unlink()
    with pytest.raises(InputError, match=f"{bad}: cannot be read"):
        encoder.embed(data, batch_size=4)
    assert not [one for one in threading.enumerate() if "compatctl-decode" in one.name]


def test_skip_bad_leaves_out_and_lists(encoder: Encoder, images: Path) -> None:
    """Bad items are listed with their reasons; the other rows are what they were."""
    data = load(images)
    whole = encoder.embed(data)
    for row in (0, 7, 14):
        (images / data.ids[row]).write_bytes(b"broken")
    done = encoder.embed(data, batch_size=4, skip_bad=True)
    assert [one.id for one in done.bad] == [data.ids[row] for row in (0, 7, 14)]
    assert all("does not decode" in one.reason for one in done.bad)
    assert done.rows.tolist() == [row for row in range(15) if row not in {0, 7, 14}]
    assert np.abs(done.features - whole.features[done.rows]).max() < 1e-6


def test_nothing_but_bad_images(encoder: Encoder, tmp_path: Path) -> None:
    """A set without a readable image gives no row and the whole list."""
    done = encoder.embed(from_files([tmp_path / f"{at}.png" for at in range(9)]), 2, skip_bad=True)
    assert done.features.shape == (0, DIM)
    assert len(done.bad) == 9


def test_rows_that_are_not_unit_name_the_item(tmp_path: Path, dataset: Dataset) -> None:
    """NaN, zero and wrong norms are errors of the model at a named item, never skipped."""
    dark = dataset.ids[0]
    made = {
        "nan": [
            helper.make_node("Sub", ["raw", "raw"], ["zero"]),
            helper.make_node("Div", ["zero", "zero"], ["embedding"]),
        ],
        "0": [helper.make_node("Sub", ["raw", "raw"], ["embedding"])],
        "1.5": [
            helper.make_node("LpNormalization", ["raw"], ["unit"]),
            helper.make_node("Mul", ["unit", "long"], ["embedding"]),
        ],
    }
    for norm, nodes in made.items():
        model = by_hand(nodes, {"long": np.array(1.5, np.float32)})
        encoder = Encoder.load(save(model, tmp_path / "m.onnx"))
        for skip_bad in (False, True):
            with pytest.raises(InputError, match=f"'{dark}' has the norm {norm}, expected 1"):
                encoder.embed(dataset, skip_bad=skip_bad)


def test_one_bad_row_among_good_ones_is_found(tmp_path: Path, images: Path) -> None:
    """A row that fails for one image only, here a black one, is told by that image's name."""
    Image.new("RGB", (20, 20)).save(images / "class1" / "black.png")
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"'class1/black\.png' has the norm (0|nan)"):
        encoder.embed(load(images), batch_size=4)


def test_a_batch_of_another_form_is_refused(encoder: Encoder) -> None:
    """run() turns ONNX Runtime's complaints about names, types and sizes into InputError."""
    good = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    for images in (
        {"pixels": good},
        {"image": good.astype(np.float32)},
        {"image": good[:, :8]},
        {},
    ):
        with pytest.raises(InputError, match="ONNX Runtime fails"):
            encoder.run(images)  # type: ignore[arg-type]


def test_only_a_few_batches_are_read_ahead(encoder: Encoder, dataset: Dataset) -> None:
    """However many items there are, reading is never further ahead than two batches."""
    begun: list[int] = []
    ahead: list[int] = []

    class Counted(Dataset):
        """A data set that counts what was asked of it."""

        def read_hashed(self, row: int, *, look: bool = False) -> tuple[Image.Image, bytes]:
            """The image and its digest, counted."""
            begun.append(row)
            return super().read_hashed(row, look=look)

    many = [row % 15 for row in range(300)]
    counted = Counted(
        items=tuple(dataset.items[row] for row in many),
        sources=tuple(dataset.sources[row] for row in many),
    )
    encoder.embed(
        counted, batch_size=5, progress=lambda _, done, total: ahead.append(len(begun) - done)
    )
    assert len(begun) == 300
    assert 0 < max(ahead) <= 10


def test_every_row_comes_with_the_digest_of_what_was_read(
    encoder: Encoder, dataset: Dataset
) -> None:
    """The digests are those of ``Dataset.digest``, of files, of bytes and of arrays."""
    files = dataset.take(range(4))
    held = tuple(files.original(row, 1 << 20) for row in range(4))
    pixels = tuple(np.asarray(files.read(row)) for row in range(4))
    for sources in (files.sources, held, pixels):
        here = Dataset(items=files.items, sources=sources)
        done = encoder.embed(here, batch_size=3)
        assert [one.tobytes().hex() for one in done.digests] == [
            here.digest(row) for row in range(4)
        ]
