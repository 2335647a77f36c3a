"""A canary shows whether a model still gives the embeddings that it gave in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import UNIT, by_hand, save
from PIL import Image

from compatctl.data import Preprocessing, prepare
from compatctl.encoder import CANARY_LIMIT as LIMIT
from compatctl.encoder import Canary, Encoder
from compatctl.errors import CompatError, DamagedError, InputError


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    """A small real encoder."""
    return Encoder.load(save(by_hand([UNIT]), tmp_path / "a.onnx"))


def test_a_canary_is_the_same_after_writing_and_reading(encoder: Encoder, tmp_path: Path) -> None:
    """Its images and rows are equal, and the same runtime gives the same embeddings."""
    canary = Canary.from_encoder(encoder)
    canary.write(tmp_path / "c.npz")
    read = Canary.read(tmp_path / "c.npz")
    np.testing.assert_array_equal(read.rows, canary.rows)
    assert all(np.array_equal(*both) for both in zip(read.items, canary.items, strict=True))
    assert "onnxruntime" in read.runtime
    assert read.difference(encoder) <= 1e-6
    read.check_unchanged(encoder)


def test_the_four_images_differ(encoder: Encoder) -> None:
    """They have many colours and sizes other than the input's, so that resizing is tested too."""
    canary = Canary.from_encoder(encoder)
    assert len({image.shape for image in canary.items}) == len(canary.items) == 4
    assert all(len(np.unique(image)) > 100 for image in canary.items)
    size = Preprocessing(height=16, width=16, resize="bilinear", fit="stretch")
    small = [prepare(Image.fromarray(image), size).ravel() for image in canary.items]
    similarity = np.corrcoef(np.array(small, float))
    assert np.abs(similarity[~np.eye(4, dtype=bool)]).max() < 0.98


@pytest.mark.parametrize(("angle", "refused"), [(LIMIT / 2, False), (LIMIT * 2, True)])
def test_the_limit_is_an_l2_distance(encoder: Encoder, angle: float, refused: bool) -> None:
    """A row rotated by half the limit passes; by twice the limit it is refused."""
    canary = Canary.from_encoder(encoder)
    rows = canary.rows.astype(np.float64)
    direction = np.random.default_rng(0).standard_normal(rows.shape[1])
    direction -= (direction @ rows[0]) * rows[0]
    rows[0] = rows[0] * np.cos(angle) + direction / np.linalg.norm(direction) * np.sin(angle)
    rotated = replace(canary, rows=rows.astype(np.float32))
    assert rotated.difference(encoder) == pytest.approx(angle, rel=0.02)
    if refused:
        with pytest.raises(InputError, match=f"differs by {angle:.1g}"):
            rotated.check_unchanged(encoder)
    else:
        rotated.check_unchanged(encoder)


def test_files_that_are_not_canaries_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    """A missing array, another type or length, rows of another dimension."""
    canary = Canary.from_encoder(encoder)
    whole = {"rows": canary.rows, "runtime": np.array("x")}
    images = {f"image_{i}": image for i, image in enumerate(canary.items)}
    broken = (
        whole,
        {**images, "rows": canary.rows},
        {**images, **whole, "rows": canary.rows[:-1]},
        {**images, **whole, "rows": canary.rows.astype(np.float64)},
        {**images, **whole, "image_0": canary.items[0].astype(np.float32)},
        {**images, **whole, "image_0": canary.items[0][..., :2]},
    )
    for number, arrays in enumerate(broken):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        with pytest.raises(DamagedError, match=path.name):
            Canary.read(path)
    with pytest.raises(CompatError):
        replace(canary, rows=canary.rows[:, :-1]).difference(encoder)
