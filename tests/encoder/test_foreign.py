"""Foreign ONNX files: wrapped so that they compute what they did with their own preprocessing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_models import DIM, SIDE, UNIT, by_hand, graph_model, projection, save, value

from compatctl.encoder import Encoder, read_model_bytes
from compatctl.errors import InputError

BARE = {
    "format": 1,
    "height": SIDE,
    "width": SIDE,
    "resize": "bilinear",
    "fit": "stretch",
    "layout": "NCHW",
    "channels": "BGR",
    "scale": 1 / 255,
    "mean": [0.4, 0.4, 0.4],
    "std": [0.2, 0.3, 0.4],
    "output": "embedding",
    "normalise": True,
}
PLAIN = {"format": 1, "height": SIDE, "width": SIDE, "layout": "NHWC"}


def side(path: Path, entries: object) -> Path:
    """A preprocessing file."""
    path.write_text(json.dumps(entries))
    return path


def nhwc(**more: object) -> onnx.ModelProto:
    """A stranger's model by hand: float NHWC pixels to rows of any length."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["image"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["image", "scale"], ["features"]),
    ]
    options = {
        "given": [value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])],
        "outputs": [value("features", TensorProto.FLOAT, ["n", DIM])],
        "weights": {"scale": projection(4)},
    }
    return graph_model(nodes, **{**options, **more})  # type: ignore[arg-type]


def test_a_torch_export_with_its_own_preprocessing(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """NCHW, BGR, scale, mean, std and the norm inside the graph give torch's numbers."""
    folder, out = exports[0], tmp_path / "out.onnx"
    out.write_bytes(read_model_bytes(folder / "bare.onnx", side(tmp_path / "bare.json", BARE)))
    encoder = Encoder.load(out)
    size = encoder.inputs[0].preprocessing
    assert (size.height, size.width, size.resize, size.fit) == (SIDE, SIDE, "bilinear", "stretch")
    found = encoder.run({"image": np.load(folder / "images.npy")})
    assert np.abs(found - np.load(folder / "bare.npy")).max() < 1e-5


def test_nhwc_models_whose_names_are_ours(tmp_path: Path) -> None:
    """Inner values named as our own nodes' do not collide; defaults leave pixels 0 .. 255."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    encoder = Encoder.load(tmp_path / "m.onnx", side(tmp_path / "m.json", PLAIN))
    images = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    raw = images.mean((1, 2)) @ projection(4)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(encoder.run({"image": images}) - expected).max() < 1e-5


def test_subgraphs_keep_reading_their_outer_values(tmp_path: Path) -> None:
    """A branch that reads a value of the graph around it still does so after wrapping."""
    branch = helper.make_graph(
        [helper.make_node("Mul", ["features", "two"], ["out"])],
        "branch",
        [],
        [value("out", TensorProto.FLOAT, ["n", DIM])],
    )
    model = nhwc()
    choose = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
    model.graph.node.append(choose)
    model.graph.output[0].name = "chosen"
    for name, array in (("yes", np.array(True)), ("two", np.array(2, np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(nhwc(), tmp_path / "plain.onnx")
    told = side(tmp_path / "m.json", PLAIN)
    images = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    rows = [
        Encoder.load(tmp_path / name, told).run({"image": images})
        for name in ("m.onnx", "plain.onnx")
    ]
    assert np.abs(rows[0] - rows[1]).max() < 1e-6


def test_the_same_two_files_are_the_same_model(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """Admission is deterministic, from any folder; the identity changes with the preprocessing."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(exports[0] / "bare.onnx", tmp_path / name / f"{name}.onnx")
        told = side(tmp_path / name / "told.json", BARE)
        made.append(read_model_bytes(tmp_path / name / f"{name}.onnx", told))
        (tmp_path / "out.onnx").write_bytes(made[-1])
        found = Encoder.load(tmp_path / name / f"{name}.onnx", told)
        assert found.sha256 == Encoder.load(tmp_path / "out.onnx").sha256
    assert made[0] == made[1]
    other = side(tmp_path / "other.json", {**BARE, "channels": "RGB"})
    assert read_model_bytes(exports[0] / "bare.onnx", other) != made[0]


def test_the_file_beside_the_model_is_found(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """NAME.preprocessing.json beside NAME.onnx is taken where none is named."""
    shutil.copy(exports[0] / "bare.onnx", tmp_path / "old.onnx")
    told = side(tmp_path / "old.preprocessing.json", BARE)
    found = Encoder.load(tmp_path / "old.onnx")
    assert found.sha256 == Encoder.load(tmp_path / "old.onnx", told).sha256


def test_a_sealed_file_takes_no_other_preprocessing(tmp_path: Path) -> None:
    """What the file says itself cannot be replaced from outside, and a stray file is not read."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx")
    stray = side(tmp_path / "m.preprocessing.json", {"format": 99})
    assert Encoder.load(path).dim == DIM
    with pytest.raises(InputError, match="carries its own preprocessing"):
        Encoder.load(path, stray)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format must be 1"),
        ({"colour": "RGB"}, "unknown entry 'colour'"),
        ({"height": None}, "height must be"),
        ({"height": 0}, "height must be"),
        ({"height": 24}, r"its input is .*NHWC \[24, 16, 3\]"),
        ({"resize": "nearest"}, "resize is one of"),
        ({"layout": "CHWN"}, "layout must be"),
        ({"layout": "NCHW"}, "says NCHW"),
        ({"channels": "GBR"}, "channels must be"),
        ({"scale": "1/255"}, "scale must be"),
        ({"scale": 0}, "scale must be"),
        ({"mean": [0.5]}, "mean must be"),
        ({"mean": 0.5}, "mean must be"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be"),
        ({"output": 3}, "output must be"),
        ({"output": "logits"}, "its outputs are features; .*'logits'"),
        ({"normalise": 1}, "normalise must be"),
    ],
)
def test_a_wrong_preprocessing_file_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Every entry is checked; nothing unknown is let through."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message):
        Encoder.load(tmp_path / "m.onnx", side(tmp_path / "m.json", {**PLAIN, **change}))


def test_a_preprocessing_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing, no JSON, a list, or without the size."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"gone\.json"):
        Encoder.load(tmp_path / "m.onnx", tmp_path / "gone.json")
    texts = {"{": "not JSON", "[]": "one JSON object", '{"format": 1}': "height"}
    for text, message in texts.items():
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Encoder.load(tmp_path / "m.onnx", tmp_path / "m.json")


def test_foreign_models_that_cannot_be_wrapped_are_refused(tmp_path: Path) -> None:
    """Outputs without a choice, uint8 or two inputs, an old operator set, four axes out."""
    told = side(tmp_path / "m.json", PLAIN)
    pixels = value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])
    features = value("features", TensorProto.FLOAT, ["n", DIM])
    for model, message in (
        (nhwc(outputs=[features, value("image", TensorProto.FLOAT, ["n", 3])]), "its outputs are"),
        (nhwc(given=[pixels, value("mask", TensorProto.FLOAT, ["n"])]), "expected one input"),
        (nhwc(given=[value("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])]), "in float32"),
        (nhwc(opset=6), "operator set 6 is too old"),
        (nhwc(outputs=[value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])]), "came out as"),
    ):
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=message):
            Encoder.load(tmp_path / "m.onnx", told)


def test_a_model_for_one_image_is_refused(tmp_path: Path) -> None:
    """A foreign graph with a fixed batch fails at admission, not at the first real batch."""
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["features"], axes=[2], keepdims=0),
    ]
    given = [value("pixels", TensorProto.FLOAT, [1, SIDE, SIDE, 3])]
    outputs = [value("features", TensorProto.FLOAT, [1, 3])]
    model = graph_model(
        nodes, given=given, outputs=outputs, weights={"shape": np.array([1, 3, SIDE * SIDE])}
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="fails on a batch"):
        Encoder.load(tmp_path / "m.onnx", side(tmp_path / "m.json", PLAIN))


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """Old exporters list every weight among the inputs; images are still the only one."""
    model = nhwc()
    model.graph.input.append(value("scale", TensorProto.FLOAT, [3, DIM]))
    onnx.save(model, tmp_path / "m.onnx")
    encoder = Encoder.load(tmp_path / "m.onnx", side(tmp_path / "m.json", PLAIN))
    assert [one.name for one in encoder.inputs] == ["image"]
    images: NDArray[np.uint8] = np.full((1, SIDE, SIDE, 3), 9, np.uint8)
    assert encoder.run({"image": images}).shape == (1, DIM)
