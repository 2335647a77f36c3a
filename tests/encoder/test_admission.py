"""Files that are not valid encoders are refused when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import DIM, SIDE, UNIT, by_hand, graph_model, metadata, save, value

from compatctl.encoder import Encoder
from compatctl.errors import InputError


def refuses(path: Path, message: str) -> None:
    """Loading raises an InputError with this message and the name of the file."""
    with pytest.raises(InputError, match=message) as error:
        Encoder.load(path)
    assert path.name in error.value.message


def test_a_valid_encoder_loads(tmp_path: Path) -> None:
    """The smallest encoder built by hand gives unit rows."""
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    assert (encoder.dim, encoder.name) == (DIM, "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    rows = encoder.run({"image": images})
    assert rows.dtype == np.float32
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5


def test_files_that_are_not_onnx_are_refused(tmp_path: Path) -> None:
    """A missing file, an empty one, text, a PNG header, a truncated model, a folder."""
    whole = by_hand([UNIT]).SerializeToString()
    for name, data in (
        ("empty.onnx", b""),
        ("text.onnx", b"this is a text\n"),
        ("image.onnx", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("cut.onnx", whole[: len(whole) // 2]),
    ):
        (tmp_path / name).write_bytes(data)
        refuses(tmp_path / name, "not an ONNX")
    refuses(tmp_path / "missing.onnx", "No such file")
    (tmp_path / "folder.onnx").mkdir()
    refuses(tmp_path / "folder.onnx", "folder")


def test_weights_in_another_file_are_refused(exports: tuple[Path, Path]) -> None:
    """torch's default export writes weights beside the file, where no digest covers them."""
    assert (exports[0] / "small1.onnx.data").is_file()
    refuses(exports[0] / "small1.onnx", "are in another file")


def outside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same tensor, marked as stored in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def test_external_data_hidden_in_nodes_is_refused(tmp_path: Path) -> None:
    """A constant's attribute, a branch's initializer and a function's constant are checked."""
    (tmp_path / "weights.bin").write_bytes(bytes(4 * DIM))
    zeros = numpy_helper.from_array(np.zeros(DIM, np.float32), "zeros")
    constant = helper.make_node("Constant", [], ["c"], value=outside(zeros))
    add = helper.make_node("Add", ["raw", "c"], ["moved"])
    last = helper.make_node("LpNormalization", ["moved"], ["embedding"])
    refuses(save(by_hand([constant, add, last]), tmp_path / "constant.onnx"), "another file")
    branch = helper.make_graph(
        [helper.make_node("Add", ["raw", "zeros"], ["out"])],
        "branch",
        [],
        [value("out", TensorProto.FLOAT, ["batch", DIM])],
        [zeros],
    )
    choose = helper.make_node("If", ["yes"], ["moved"], then_branch=branch, else_branch=branch)
    model = by_hand([choose, last], {"yes": np.array(True)})
    refuses(save(model, tmp_path / "branch.onnx"), "another file")
    call = helper.make_node("Shift", ["raw"], ["moved"], domain="local")
    model = by_hand([call, last])
    body = [constant, helper.make_node("Add", ["x", "c"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Shift", ["x"], ["y"], body, opset))
    model.opset_import.add(domain="local", version=1)
    refuses(save(model, tmp_path / "function.onnx"), "another file")


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    """An operator that ONNX does not define is refused, in branches too."""
    custom = helper.make_node("Whiten", ["raw"], ["embedding"], domain="com.example")
    refuses(save(by_hand([custom]), tmp_path / "m.onnx"), r"com\.example\.Whiten")
    branch = helper.make_graph(
        [helper.make_node("Whiten", ["raw"], ["out"], domain="com.example")],
        "branch",
        [],
        [value("out", TensorProto.FLOAT, ["batch", DIM])],
    )
    choose = helper.make_node("If", ["yes"], ["embedding"], then_branch=branch, else_branch=branch)
    model = by_hand([choose], {"yes": np.array(True)})
    refuses(save(model, tmp_path / "nested.onnx"), r"com\.example\.Whiten")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"the format \[\]"),
        (metadata(format=2), "the format 2; this version reads 1"),
        (metadata(author="x"), "'author'"),
        (metadata(dim="8"), "its metadata must be"),
        (metadata(inputs=[]), "names no input"),
        (metadata(inputs=[{"name": "image"}]), "an input in its metadata must have"),
        (json.dumps({"format": 1, "dim": DIM}), "its metadata must be"),
        (metadata().replace("bicubic", "nearest"), "resize is one of"),
        (metadata().replace("16", "24"), r"takes 'image' uint8 \(batch, 24, 24, 3\)"),
        (metadata().replace("image", "pixels"), "takes 'pixels'"),
        (metadata(dim=9), r"expected 'embedding' float32 \(batch, 9\)"),
    ],
)
def test_metadata_that_contradicts_the_graph_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    """Unknown keys, newer formats and other inputs or outputs are errors."""
    refuses(save(by_hand([UNIT]), tmp_path / "m.onnx", text), message)


def test_a_file_without_metadata_needs_a_preprocessing_file(tmp_path: Path) -> None:
    """It is refused with the name of the preprocessing file that is missing."""
    onnx.save(by_hand([UNIT]), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="carries no preprocessing") as error:
        Encoder.load(tmp_path / "m.onnx")
    assert "m.preprocessing.json" in error.value.tip


def test_wrong_outputs_are_refused(tmp_path: Path) -> None:
    """Another name, another type, a fixed batch, a second output."""
    cast = helper.make_node("Cast", ["unit"], ["embedding"], to=TensorProto.DOUBLE)
    unit = helper.make_node("LpNormalization", ["raw"], ["unit"])
    double = by_hand([unit, cast], outputs=[value("embedding", TensorProto.DOUBLE, ["b", DIM])])
    refuses(save(double, tmp_path / "double.onnx"), "'embedding' double")
    renamed = by_hand([unit], outputs=[value("unit", TensorProto.FLOAT, ["b", DIM])])
    refuses(save(renamed, tmp_path / "renamed.onnx"), "its outputs are 'unit'")
    fixed = by_hand([UNIT], outputs=[value("embedding", TensorProto.FLOAT, [1, DIM])])
    refuses(save(fixed, tmp_path / "fixed.onnx"), r"float32 \(1, 8\)")
    second = [value("embedding", TensorProto.FLOAT, ["b", DIM]), value("raw", 1, ["b", DIM])]
    refuses(save(by_hand([UNIT], outputs=second), tmp_path / "two.onnx"), "'raw' float32")


def test_float_and_fixed_batch_inputs_are_refused(tmp_path: Path) -> None:
    """An encoder takes uint8 images in a batch of any size."""
    for name, kind, shape, message in (
        ("float", TensorProto.FLOAT, ["b", SIDE, SIDE, 3], "'image' float32"),
        ("fixed", TensorProto.UINT8, [1, SIDE, SIDE, 3], r"uint8 \(1, 16, 16, 3\)"),
        ("free", TensorProto.UINT8, ["b", "h", "w", 3], r"uint8 \(batch, \?, \?, 3\)"),
    ):
        model = by_hand([UNIT], given=[value("image", kind, shape)])
        refuses(save(model, tmp_path / f"{name}.onnx"), message)


def test_a_model_that_does_not_run_on_a_batch_is_refused(tmp_path: Path) -> None:
    """Two images are run: a model for one image, one that merges rows, and a wrong dimension."""
    reshape = helper.make_node("Reshape", ["raw", "shape"], ["flat"])
    unit = helper.make_node("LpNormalization", ["flat"], ["embedding"])
    single = by_hand([reshape, unit], {"shape": np.array([1, DIM])})
    refuses(save(single, tmp_path / "single.onnx"), "fails on a batch")
    merged = by_hand([reshape, unit], {"shape": np.array([-1, 2 * DIM])})
    refuses(save(merged, tmp_path / "merged.onnx"), "ONNX Runtime|two items came out")
    slim = graph_model(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["colour"], axes=[1, 2], keepdims=0),
            helper.make_node("Reshape", ["colour", "shape"], ["flat"]),
            helper.make_node("LpNormalization", ["flat"], ["embedding"]),
        ],
        given=[value("image", TensorProto.UINT8, ["b", SIDE, SIDE, 3])],
        weights={"shape": np.array([-1, 3])},
    )
    refuses(save(slim, tmp_path / "slim.onnx"), "gives 3 dimensions|ONNX Runtime refuses")


def test_a_graph_with_a_missing_value_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime refuses a node whose input no node gives; the error is an InputError."""
    broken = by_hand([helper.make_node("LpNormalization", ["nowhere"], ["embedding"])])
    refuses(save(broken, tmp_path / "m.onnx"), "ONNX Runtime refuses it")


@pytest.mark.parametrize("newer", ["ir_version", "opset"])
def test_a_graph_of_a_newer_format_is_told_what_helps(tmp_path: Path, newer: str) -> None:
    """The preprocessing file, which other refusals point at, has no part in it."""
    model = by_hand([helper.make_node("LpNormalization", ["image"], ["embedding"])])
    if newer == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    with pytest.raises(InputError, match="ONNX Runtime refuses it") as refused:
        Encoder.load(save(model, tmp_path / "m.onnx"))
    assert "older operator set" in refused.value.tip


def test_a_changed_byte_gives_an_input_error_or_an_encoder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No corrupt file raises another library's error or prints anything."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx")
    data = path.read_bytes()
    refused = 0
    for offset in range(0, len(data), 3):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
        try:
            Encoder.load(path)
        except InputError:
            refused += 1
    assert refused > len(data) // 6
    assert capfd.readouterr().out == ""
