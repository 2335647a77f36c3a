"""Embedding real images: each row is right, in order and of unit length; errors name the item."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import DIM, SIDE, SMALL, UNIT, by_hand, draw, save
from PIL import Image
from text_kit import write_text_model

from compatctl.data import Dataset, from_files, from_texts, load, prepare
from compatctl.encoder import Encoder, seal
from compatctl.encoder.texts import unknown_token
from compatctl.errors import InputError
from compatctl.notices import collected


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    """The mean colour of an image, projected to unit rows."""
    return Encoder.load(save(by_hand([UNIT]), tmp_path / "colour.onnx"))


@pytest.mark.parametrize("batch_size", [1, 4, 15, 64])
def test_rows_are_in_order_whatever_the_batch(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset, batch_size: int
) -> None:
    """Row i is the embedding of item i, equal to that of its pixels alone."""
    seal(exports[0] / "small0.onnx", tmp_path / "m.onnx", (SMALL,))
    encoder = Encoder.load(tmp_path / "m.onnx", threads=1)
    embedded = encoder.embed(dataset, batch_size=batch_size)
    assert embedded.features.shape == (15, DIM)
    assert embedded.features.dtype == np.float32
    assert embedded.rows.tolist() == list(range(15))
    assert embedded.bad == ()
    for row in range(15):
        pixels = prepare(dataset.read(row), SMALL.preprocessing)[None]
        assert np.abs(encoder.run({"image": pixels}) - embedded.features[row]).max() < 1e-6


def test_progress_counts_items_to_the_end(encoder: Encoder, dataset: Dataset) -> None:
    """Progress begins before the first batch, grows by batches and ends at the total."""
    calls: list[tuple[int, int]] = []
    encoder.embed(
        dataset, batch_size=6, progress=lambda _, count, total: calls.append((count, total))
    )
    assert calls == [(0, 15), (6, 15), (12, 15), (15, 15)]


def test_no_items_give_no_rows(encoder: Encoder, dataset: Dataset) -> None:
    """An empty data set is not an error."""
    assert encoder.embed(dataset.take([])).features.shape == (0, DIM)


def test_the_first_bad_image_is_named(encoder: Encoder, images: Path) -> None:
    """Without skip_bad, a corrupt or missing image stops the run with its id."""
    data = load(images)
    bad = data.ids[7]
    (images / bad).write_bytes((images / bad).read_bytes()[:60])
    with pytest.raises(InputError, match=bad):
        encoder.embed(data, batch_size=4)
    (images / bad).unlink()
    with pytest.raises(InputError, match=f"{bad}: cannot be read"):
        encoder.embed(data, batch_size=4)
    assert not [thread for thread in threading.enumerate() if "compatctl-decode" in thread.name]


def test_skip_bad_skips_and_lists(encoder: Encoder, images: Path) -> None:
    """Bad items are listed with their reasons; the other rows do not change."""
    data = load(images)
    whole = encoder.embed(data)
    for row in (0, 7, 14):
        (images / data.ids[row]).write_bytes(b"broken")
    embedded = encoder.embed(data, batch_size=4, skip_bad=True)
    assert [item.id for item in embedded.bad] == [data.ids[row] for row in (0, 7, 14)]
    assert all("does not decode" in item.reason for item in embedded.bad)
    assert embedded.rows.tolist() == [row for row in range(15) if row not in {0, 7, 14}]
    assert np.abs(embedded.features - whole.features[embedded.rows]).max() < 1e-6


def test_only_bad_images_give_no_rows(encoder: Encoder, tmp_path: Path) -> None:
    """A data set without a readable image gives no rows, and lists every item."""
    embedded = encoder.embed(
        from_files([tmp_path / f"{i}.png" for i in range(9)]), 2, skip_bad=True
    )
    assert embedded.features.shape == (0, DIM)
    assert len(embedded.bad) == 9


def test_a_row_not_of_unit_length_names_the_item(tmp_path: Path, dataset: Dataset) -> None:
    """NaN, zero and wrong norms are errors of the model, never skipped."""
    dark = dataset.ids[0]
    cases = {
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
    for norm, nodes in cases.items():
        model = by_hand(nodes, {"long": np.array(1.5, np.float32)})
        encoder = Encoder.load(save(model, tmp_path / "m.onnx"))
        for skip_bad in (False, True):
            with pytest.raises(InputError, match=f"'{dark}' has the norm {norm}, expected 1"):
                encoder.embed(dataset, skip_bad=skip_bad)


def test_one_bad_row_among_good_ones_is_found(tmp_path: Path, images: Path) -> None:
    """An embedding that fails for one image only, here a black one, names that image."""
    Image.new("RGB", (20, 20)).save(images / "class1" / "black.png")
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"'class1/black\.png' has the norm (0|nan)"):
        encoder.embed(load(images), batch_size=4)


def test_a_batch_of_wrong_inputs_is_refused(encoder: Encoder) -> None:
    """run() turns ONNX Runtime's errors about names, types and sizes into InputError."""
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
    """Reading is at most two batches ahead, however many items there are."""
    reads: list[int] = []
    ahead: list[int] = []

    class Counted(Dataset):
        """A data set that counts reads."""

        def read_hashed(self, row: int, *, look: bool = False) -> tuple[Image.Image, bytes]:
            """Count, and return the image and its digest."""
            reads.append(row)
            return super().read_hashed(row, look=look)

    many = [row % 15 for row in range(300)]
    counted = Counted(
        items=tuple(dataset.items[row] for row in many),
        sources=tuple(dataset.sources[row] for row in many),
    )
    encoder.embed(
        counted, batch_size=5, progress=lambda _, count, total: ahead.append(len(reads) - count)
    )
    assert len(reads) == 300
    assert 0 < max(ahead) <= 10


def test_every_row_has_the_digest_of_its_item(encoder: Encoder, dataset: Dataset) -> None:
    """The digests are those of ``Dataset.digest``, for files, bytes and arrays."""
    files = dataset.take(range(4))
    originals = tuple(files.original(row, 1 << 20) for row in range(4))
    pixels = tuple(np.asarray(files.read(row)) for row in range(4))
    for sources in (files.sources, originals, pixels):
        copy = Dataset(items=files.items, sources=sources)
        embedded = encoder.embed(copy, batch_size=3)
        assert [digest.tobytes().hex() for digest in embedded.digests] == [
            copy.digest(row) for row in range(4)
        ]


def test_texts_that_the_tokenizer_does_not_know_are_named(tmp_path: Path) -> None:
    """Half of the words and more are unknown: counted by item; fewer are no notice."""
    encoder = Encoder.load(write_text_model(tmp_path / "m.onnx"))
    texts = ["red car", "RED CAR", "red zzz", "red car zzz", "zzz qqq red"]
    with collected() as notices:
        encoder.embed(from_texts(texts))
    found = {entry["kind"]: entry["names"] for entry in notices.entries()}
    assert found == {"unknown-tokens": ["RED CAR", "red zzz", "zzz qqq red"]}


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        ({"vocab": {"a": 0, "<unk>": 3}, "unk_token": "<unk>"}, 3),
        ({"vocab": [["a", 0.0]], "unk_id": 0}, 0),
        ({"vocab": {"a": 0}, "unk_token": None}, None),
        ({"vocab": {"a": 0}}, None),
    ],
)
def test_the_unknown_token_is_that_of_the_model(
    model: dict[str, object], unknown: int | None
) -> None:
    """Words and pieces name it, a Unigram model numbers it, bytes have none."""
    assert unknown_token(json.dumps({"model": model})) == unknown


def test_items_that_get_one_vector_are_named(tmp_path: Path) -> None:
    """Blank images among others get one vector: they are counted, and named by their ids."""
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    for row in range(12):
        draw(row).save(tmp_path / f"{row}.png")
    paths = [tmp_path / f"{row}.png" for row in range(12)]
    with collected() as notices:
        encoder.embed(from_files(paths))
    assert notices.entries() == []
    for row in range(4, 10):
        Image.new("RGB", (40, 40), "grey").save(paths[row])
    with collected() as notices:
        encoder.embed(from_files(paths))
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == ("equal-vectors", 6)
    assert set(entry["names"]) <= {str(path) for path in paths[4:10]}
