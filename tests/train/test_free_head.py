"""The free head: trained on the same features without the gallery, and exported beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import train_kit as kit

from compatctl.train import embed_outputs, export, train


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_free_head_tells_classes_apart_without_the_gallery(tmp_path: Path, mode: str) -> None:
    """It finds training items of the same class among themselves, and is no copy of the other."""
    data = kit.dataset(tmp_path)
    text = kit.RECIPE.replace("taps: null", "taps: auto").replace("kind: linear", "kind: residual")
    trained = train(
        recipe=kit.recipe(tmp_path, text, train=f"train: {mode}"),
        base=kit.base(tmp_path),
        data=data,
        reference=kit.gallery(data),
        work=tmp_path,
    )
    items = data.filter(split="train")
    compatible, free = embed_outputs(trained.network, kit.pixels(items))
    scores = free @ free.T
    np.fill_diagonal(scores, -1.0)
    labels = np.array(items.labels)
    assert (labels[scores.argmax(1)] == labels).mean() > 0.6
    assert np.abs(np.linalg.norm(free, axis=1) - 1).max() < 1e-5
    assert not np.allclose(free, compatible, atol=0.1)


def test_it_leaves_the_compatible_head_as_it_was(tmp_path: Path) -> None:
    """With and without a free head, the same recipe gives the same embeddings."""
    data = kit.dataset(tmp_path)
    embedded = []
    for free in ("true", "false"):
        trained = train(
            recipe=kit.recipe(tmp_path, free_head=f"free_head: {free}"),
            base=kit.base(tmp_path),
            data=data,
            reference=kit.gallery(data),
            work=tmp_path,
        )
        assert (trained.network.free is not None) == (free == "true")
        embedded.append(kit.features(trained, data))
    assert np.array_equal(*embedded)


def test_a_model_without_a_gallery_has_none(tmp_path: Path) -> None:
    """Its only head is free already."""
    trained = train(
        recipe=kit.recipe(
            tmp_path, objective="objective: {frame: free, lambda: 1.0, scale: 16.0, dim: 8}"
        ),
        base=kit.base(tmp_path),
        data=kit.dataset(tmp_path),
        reference=None,
        work=tmp_path,
    )
    assert trained.network.free is None


def test_one_file_has_both_outputs(tmp_path: Path) -> None:
    """ONNX Runtime gives for both outputs what torch computes, for any number of images."""
    data = kit.dataset(tmp_path, per_class=4)
    trained = train(
        recipe=kit.recipe(tmp_path),
        base=kit.base(tmp_path),
        data=data,
        reference=kit.gallery(data),
        work=tmp_path,
    )
    export(trained.network, tmp_path / "raw.onnx", 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "raw.onnx")
    assert [output.name for output in session.get_outputs()] == ["embedding", "free"]
    images = kit.pixels(data)
    for n in (1, len(images)):
        outputs = session.run(None, {"image": images[:n]})
        expected = embed_outputs(trained.network, images[:n])
        for output, value in zip(outputs, expected, strict=True):
            assert output.dtype == np.float32
            assert np.abs(output - value).max() < 1e-5
