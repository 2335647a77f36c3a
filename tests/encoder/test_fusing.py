"""A fused encoder gives the unit of the weighted mean of two encoders' embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import DIM, SIDE, SMALL, UNIT, by_hand, metadata, projection, save
from text_kit import sentences, text_model, write_text_model

from compatctl.data import Dataset, Preprocessing, from_texts
from compatctl.encoder import Encoder, ImageInput, fuse, read_model_bytes, seal
from compatctl.errors import InputError


def small(exports: tuple[Path, Path], out: Path, seed: int, **change: object) -> Path:
    """The small network of a seed, sealed with a preprocessing."""
    size = {"height": SIDE, "width": SIDE, **change}
    image = ImageInput(name="image", preprocessing=Preprocessing(**size))  # type: ignore[arg-type]
    seal(exports[0] / f"small{seed}.onnx", out, (image,))
    return out


def mean(old: Path, new: Path, weight: float, dataset: Dataset) -> np.ndarray:
    """The same mean by numpy, of the two encoders' embeddings."""
    mixed = (1 - weight) * Encoder.load(old).embed(dataset).features + weight * Encoder.load(
        new
    ).embed(dataset).features
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_the_fused_embedding_is_the_unit_of_the_mean(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset, weight: float
) -> None:
    """On real images, with one shared input, equal to numpy's mean within 1e-5."""
    old, new = (small(exports, tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    fuse(old, new, weight, tmp_path / "fused.onnx")
    fused = Encoder.load(tmp_path / "fused.onnx")
    assert fused.inputs == (SMALL,)
    features = fused.embed(dataset).features
    assert np.abs(features - mean(old, new, weight, dataset)).max() < 1e-5


def test_each_preprocessing_is_an_input(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """Two encoders that resize differently each get their own pixels of the same image."""
    old = small(exports, tmp_path / "old.onnx", 0)
    new = small(exports, tmp_path / "new.onnx", 1, fit="pad", resize="bilinear")
    fuse(old, new, 0.4, tmp_path / "fused.onnx")
    fused = Encoder.load(tmp_path / "fused.onnx")
    assert [source.name for source in fused.inputs] == ["image", "image_2"]
    features = fused.embed(dataset).features
    assert np.abs(features - mean(old, new, 0.4, dataset)).max() < 1e-5


def test_a_fused_model_can_be_fused_again(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """Fused with one of its parts and with itself, it gives the mean of the means."""
    a = small(exports, tmp_path / "a.onnx", 0)
    b = small(exports, tmp_path / "b.onnx", 1, fit="pad")
    fuse(a, b, 0.3, tmp_path / "ab.onnx")
    for other in (a, b, tmp_path / "ab.onnx"):
        fuse(tmp_path / "ab.onnx", other, 0.6, tmp_path / "again.onnx")
        again = Encoder.load(tmp_path / "again.onnx")
        assert len(again.inputs) == 2
        expected = mean(tmp_path / "ab.onnx", other, 0.6, dataset)
        assert np.abs(again.embed(dataset).features - expected).max() < 1e-5


def test_names_of_the_added_nodes_do_not_collide(tmp_path: Path, dataset: Dataset) -> None:
    """Encoders whose weights have the names of the added nodes fuse correctly."""
    paths = []
    for seed, name in enumerate(("old_weight", "mixed")):
        multiply = helper.make_node("MatMul", ["raw", name], ["new_share"])
        unit = helper.make_node("LpNormalization", ["new_share"], ["embedding"])
        model = by_hand([multiply, unit], {name: projection(seed, DIM)})
        paths.append(save(model, tmp_path / f"{seed}.onnx"))
    fuse(paths[0], paths[1], 0.5, tmp_path / "fused.onnx")
    features = Encoder.load(tmp_path / "fused.onnx").embed(dataset).features
    assert np.abs(features - mean(paths[0], paths[1], 0.5, dataset)).max() < 1e-5


def test_operator_sets_are_converted_to_the_newer(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """The converted model computes the same."""
    old = save(by_hand([UNIT], opset=13), tmp_path / "old.onnx")
    unit = helper.make_node("LpNormalization", ["root"], ["embedding"])
    root = [helper.make_node("Sqrt", ["raw"], ["root"]), unit]
    new = save(by_hand(root, opset=17), tmp_path / "new.onnx")
    newest = small(exports, tmp_path / "newest.onnx", 0)
    for first, second in ((old, new), (new, old), (newest, old), (new, newest)):
        fuse(first, second, 0.3, tmp_path / "fused.onnx")
        features = Encoder.load(tmp_path / "fused.onnx").embed(dataset).features
        assert np.abs(features - mean(first, second, 0.3, dataset)).max() < 1e-5


def test_fusing_is_deterministic(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """The same files and weight give the same bytes; another weight or order gives others."""
    a, b = (small(exports, tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    models = []
    for old, new, weight in ((a, b, 0.3), (a, b, 0.3), (a, b, 0.4), (b, a, 0.3)):
        fuse(old, new, weight, tmp_path / "fused.onnx")
        models.append((tmp_path / "fused.onnx").read_bytes())
    assert models[0] == models[1]
    assert len(set(models)) == 3


def test_encoders_without_a_mean_are_refused(tmp_path: Path) -> None:
    """Other dimensions, a weight outside 0 .. 1, a file that is not an encoder."""
    eight = save(by_hand([UNIT]), tmp_path / "8.onnx")
    wide = by_hand([UNIT], {"weight": projection(0, dim=12)})
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    twelve = save(wide, tmp_path / "12.onnx", metadata(dim=12))
    assert Encoder.load(twelve).dim == 12
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match=r"has 8 dimensions, .* has 12"):
        fuse(eight, twelve, 0.5, tmp_path / "out.onnx")
    with pytest.raises(InputError, match="not an ONNX"):
        fuse(eight, tmp_path / "text.onnx", 0.5, tmp_path / "out.onnx")
    for weight in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            fuse(eight, eight, weight, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_two_text_models_each_read_a_text_by_their_own_tokens(tmp_path: Path) -> None:
    """Where one puts a prefix before each text, its batches have more tokens than the other's: in
    one file each input has a length of its own, for texts of any lengths."""
    sealed = []
    for seed, (name, prefix) in enumerate((("old", ""), ("new", "red car "))):
        folder = tmp_path / name
        folder.mkdir()
        raw = write_text_model(folder / "m.onnx", text_model(seed=seed), document_prefix=prefix)
        (tmp_path / f"{name}.onnx").write_bytes(read_model_bytes(raw))
        sealed.append(tmp_path / f"{name}.onnx")
    fuse(*sealed, 0.4, tmp_path / "fused.onnx")
    fused = Encoder.load(tmp_path / "fused.onnx")
    assert [source.shape for source in fused.inputs] == [("length",), ("text_2_length",)]
    texts = from_texts([*sentences(20), *sentences(20, seed=1, most=2)])
    features = fused.embed(texts, batch_size=7).features
    assert np.abs(features - mean(*sealed, 0.4, texts)).max() < 1e-5
