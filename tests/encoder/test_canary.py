"""Canaries: does a model still give the vectors that it gave when it was taken in?"""

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


def test_a_canary_comes_out_as_it_was(encoder: Encoder, tmp_path: Path) -> None:
    """Written and read, its images and rows are the same, and the same runtime agrees with them."""
    made = Canary.from_encoder(encoder)
    made.write(tmp_path / "c.npz")
    read = Canary.read(tmp_path / "c.npz")
    np.testing.assert_array_equal(read.rows, made.rows)
    assert all(np.array_equal(*both) for both in zip(read.images, made.images, strict=True))
    assert "onnxruntime" in read.runtime
    assert read.difference(encoder) <= 1e-6
    read.check_unchanged(encoder)


def test_its_images_are_four_and_not_one(encoder: Encoder) -> None:
    """Many-coloured, of other sizes than the input, so that resizing is in it, and all unlike."""
    made = Canary.from_encoder(encoder)
    assert len({image.shape for image in made.images}) == len(made.images) == 4
    assert all(len(np.unique(image)) > 100 for image in made.images)
    size = Preprocessing(height=16, width=16, resize="bilinear", fit="stretch")
    small = [prepare(Image.fromarray(image), size).ravel() for image in made.images]
    alike = np.corrcoef(np.array(small, float))
    assert np.abs(alike[~np.eye(4, dtype=bool)]).max() < 0.98


@pytest.mark.parametrize(("angle", "refused"), [(LIMIT / 2, False), (LIMIT * 2, True)])
def test_the_limit_is_an_l2_distance(encoder: Encoder, angle: float, refused: bool) -> None:
    """One row turned by half the limit passes; by twice the limit it is refused, with figure."""
    made = Canary.from_encoder(encoder)
    rows = made.rows.astype(np.float64)
    aside = np.random.default_rng(0).standard_normal(rows.shape[1])
    aside -= (aside @ rows[0]) * rows[0]
    rows[0] = rows[0] * np.cos(angle) + aside / np.linalg.norm(aside) * np.sin(angle)
    turned = replace(made, rows=rows.astype(np.float32))
    assert turned.difference(encoder) == pytest.approx(angle, rel=0.02)
    if refused:
        with pytest.raises(InputError, match=f"differs by {angle:.1g}"):
            turned.check_unchanged(encoder)
    else:
        turned.check_unchanged(encoder)


def test_what_is_no_canary_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    """A missing array, another type, another length, rows of another dimension."""
    made = Canary.from_encoder(encoder)
    whole = {"rows": made.rows, "runtime": np.array("x")}
    images = {f"image_{at}": image for at, image in enumerate(made.images)}
    broken = (
        whole,
        {**images, "rows": made.rows},
        {**images, **whole, "rows": made.rows[:-1]},
        {**images, **whole, "rows": made.rows.astype(np.float64)},
        {**images, **whole, "image_0": made.images[0].astype(np.float32)},
        {**images, **whole, "image_0": made.images[0][..., :2]},
    )
    for number, arrays in enumerate(broken):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        with pytest.raises(DamagedError, match=path.name):
            Canary.read(path)
    with pytest.raises(CompatError):
        replace(made, rows=made.rows[:, :-1]).difference(encoder)
