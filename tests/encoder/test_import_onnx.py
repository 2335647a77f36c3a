"""Imported ONNX models compute what they did with their own preprocessing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_models import DIM, SIDE, UNIT, by_hand, graph_model, projection, save, value

from compatctl.encoder import Encoder, check_steady, fuse, read_model_bytes
from compatctl.errors import InputError
from compatctl.notices import DataWarning

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


def write_spec(path: Path, entries: object) -> Path:
    """Write a preprocessing file."""
    path.write_text(json.dumps(entries))
    return path


def nhwc(**more: object) -> onnx.ModelProto:
    """An image model built elsewhere: float NHWC pixels to rows of any length."""
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


def test_an_imported_torch_export_gives_torchs_embeddings(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """NCHW, BGR, scale, mean, std and the norm are inside the graph."""
    folder, out = exports[0], tmp_path / "out.onnx"
    out.write_bytes(
        read_model_bytes(folder / "bare.onnx", write_spec(tmp_path / "bare.json", BARE))
    )
    encoder = Encoder.load(out)
    size = encoder.inputs[0].preprocessing
    assert (size.height, size.width, size.resize, size.fit) == (SIDE, SIDE, "bilinear", "stretch")
    rows = encoder.run({"image": np.load(folder / "images.npy")})
    assert np.abs(rows - np.load(folder / "bare.npy")).max() < 1e-5


def test_names_of_the_added_nodes_do_not_collide_with_the_models(tmp_path: Path) -> None:
    """A model whose values have those names computes the same; the default pixels are 0 .. 255."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    encoder = Encoder.load(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", PLAIN))
    images = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    raw = images.mean((1, 2)) @ projection(4)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(encoder.run({"image": images}) - expected).max() < 1e-5


def test_a_branch_still_reads_values_of_the_outer_graph(tmp_path: Path) -> None:
    """A branch that uses a value from outside gives the same rows after wrapping."""
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
    spec = write_spec(tmp_path / "m.json", PLAIN)
    images = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    rows = [
        Encoder.load(tmp_path / name, spec).run({"image": images})
        for name in ("m.onnx", "plain.onnx")
    ]
    assert np.abs(rows[0] - rows[1]).max() < 1e-6


def test_one_model_and_preprocessing_have_one_identity(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """Importing is deterministic in any folder; another preprocessing gives other bytes."""
    models = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(exports[0] / "bare.onnx", tmp_path / name / f"{name}.onnx")
        spec = write_spec(tmp_path / name / "spec.json", BARE)
        models.append(read_model_bytes(tmp_path / name / f"{name}.onnx", spec))
        (tmp_path / "out.onnx").write_bytes(models[-1])
        encoder = Encoder.load(tmp_path / name / f"{name}.onnx", spec)
        assert encoder.sha256 == Encoder.load(tmp_path / "out.onnx").sha256
    assert models[0] == models[1]
    other = write_spec(tmp_path / "other.json", {**BARE, "channels": "RGB"})
    assert read_model_bytes(exports[0] / "bare.onnx", other) != models[0]


def test_the_preprocessing_file_beside_the_model_is_the_default(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """NAME.preprocessing.json beside NAME.onnx is used where none is named."""
    shutil.copy(exports[0] / "bare.onnx", tmp_path / "old.onnx")
    spec = write_spec(tmp_path / "old.preprocessing.json", BARE)
    encoder = Encoder.load(tmp_path / "old.onnx")
    assert encoder.sha256 == Encoder.load(tmp_path / "old.onnx", spec).sha256


def test_the_preprocessing_of_a_sealed_file_cannot_be_replaced(tmp_path: Path) -> None:
    """A preprocessing file is refused if named, and not read if it lies beside the model."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx")
    stray = write_spec(tmp_path / "m.preprocessing.json", {"format": 99})
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
        ({"output": "logits"}, r"its outputs are features \(\?, 8\); .*'logits'"),
        ({"normalise": 1}, "normalise must be"),
    ],
)
def test_a_wrong_preprocessing_file_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Every entry is checked, and unknown entries are refused."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message):
        Encoder.load(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", {**PLAIN, **change}))


def test_an_unreadable_preprocessing_file_is_refused(tmp_path: Path) -> None:
    """It is missing, not JSON, a list, or without the size."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"gone\.json"):
        Encoder.load(tmp_path / "m.onnx", tmp_path / "gone.json")
    texts = {"{": "not JSON", "[]": "one JSON object", '{"format": 1}': "height"}
    for text, message in texts.items():
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Encoder.load(tmp_path / "m.onnx", tmp_path / "m.json")


def test_models_that_cannot_be_imported_are_refused(tmp_path: Path) -> None:
    """Ambiguous outputs, an int32 or second input, an old operator set, maps instead of vectors."""
    spec = write_spec(tmp_path / "m.json", PLAIN)
    pixels = value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])
    features = value("features", TensorProto.FLOAT, ["n", DIM])
    for model, message in (
        (nhwc(outputs=[features, value("image", TensorProto.FLOAT, ["n", 3])]), "its outputs are"),
        (nhwc(given=[pixels, value("mask", TensorProto.FLOAT, ["n"])]), "expected one input"),
        (nhwc(given=[value("pixels", TensorProto.INT32, ["n", SIDE, SIDE, 3])]), "in float32"),
        (nhwc(opset=6), "operator set 6 is too old"),
        (nhwc(outputs=[value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])]), "one vector an"),
    ):
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=message):
            Encoder.load(tmp_path / "m.onnx", spec)


def fixed(size: int, *, declared: bool, opset: int = 17) -> onnx.ModelProto:
    """A model that a Reshape, and maybe its input, binds to batches of ``size``."""
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["features"]),
    ]
    batch = size if declared else "n"
    return graph_model(
        nodes,
        given=[value("pixels", TensorProto.FLOAT, [batch, SIDE, SIDE, 3])],
        outputs=[value("features", TensorProto.FLOAT, [batch, DIM])],
        weights={
            "shape": np.array([size, SIDE * SIDE * 3]),
            "weight": projection(3, SIDE * SIDE * 3),
        },
        opset=opset,
    )


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("size", "opset"), [(1, 11), (1, 17), (4, 17), (5, 13)])
def test_a_fixed_batch_runs_block_by_block(
    tmp_path: Path, size: int, opset: int, declared: bool
) -> None:
    """Any number of images gives the rows of one image after the other; a notice says so."""
    size = size if declared or size != 5 else 8  # 5 is found only where the model declares it
    onnx.save(fixed(size, declared=declared, opset=opset), tmp_path / "m.onnx")
    spec = write_spec(tmp_path / "m.json", PLAIN)
    with pytest.warns(DataWarning, match=f"block by block.*m.onnx: {size}"):
        encoder = Encoder.load(tmp_path / "m.onnx", spec)
    weight = projection(3, SIDE * SIDE * 3)
    for count in (1, 2, 3, 4, 9):
        images = np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        for image, row in zip(images, encoder.run({"image": images}), strict=True):
            raw = image.reshape(-1).astype(np.float64) @ weight
            assert np.abs(row - raw / np.linalg.norm(raw)).max() < 1e-6


def test_a_fixed_batch_is_fused_and_checked_as_any_other(tmp_path: Path) -> None:
    """The sealed file is deterministic, steady, and a part of a fused file."""
    onnx.save(fixed(1, declared=True), tmp_path / "one.onnx")
    onnx.save(nhwc(), tmp_path / "any.onnx")
    spec = write_spec(tmp_path / "m.json", PLAIN)
    with pytest.warns(DataWarning):
        sealed, again = (read_model_bytes(tmp_path / "one.onnx", spec) for _ in range(2))
    assert sealed == again
    (tmp_path / "sealed.onnx").write_bytes(sealed)
    (tmp_path / "other.onnx").write_bytes(read_model_bytes(tmp_path / "any.onnx", spec))
    one, other = (Encoder.load(tmp_path / name) for name in ("sealed.onnx", "other.onnx"))
    check_steady(one)
    fuse(tmp_path / "sealed.onnx", tmp_path / "other.onnx", 0.5, tmp_path / "fused.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    fused = Encoder.load(tmp_path / "fused.onnx").run({"image": images})
    mean = one.run({"image": images}) + other.run({"image": images})
    assert np.abs(fused - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() < 1e-5


def test_a_model_that_fails_on_every_batch_is_refused(tmp_path: Path) -> None:
    """And so is one of an operator set that cannot run block by block, before the first batch."""
    spec = write_spec(tmp_path / "m.json", PLAIN)
    for model in (fixed(3, declared=False), fixed(1, declared=True, opset=10)):
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=r"fails on a batch|fixed batch of 1") as refused:
            Encoder.load(tmp_path / "m.onnx", spec)
        assert "free batch axis" in refused.value.tip or "Reshape" in refused.value.message


def test_the_layout_is_that_of_the_declared_shape(tmp_path: Path) -> None:
    """Three channels last are read as NHWC with a notice; the rows are those of the layout."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    silent = {key: entry for key, entry in PLAIN.items() if key != "layout"}
    told = read_model_bytes(tmp_path / "m.onnx", write_spec(tmp_path / "told.json", PLAIN))
    with pytest.warns(DataWarning, match=r"read as NHWC, by their shape: 1 \(pixels"):
        guessed = read_model_bytes(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", silent))
    assert guessed == told


def test_the_embedding_is_the_output_that_the_file_names(tmp_path: Path) -> None:
    """With several outputs one is named; a map is refused with the vectors beside it; a map of
    one place is a vector."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["map"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["place"]),
        helper.make_node("Flatten", ["place"], ["vector"], axis=1),
    ]
    shapes = {"map": ["n", 3, SIDE, SIDE], "place": ["n", 3, 1, 1], "vector": ["n", 3]}
    outputs = [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    given = [value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])]
    onnx.save(graph_model(nodes, given=given, outputs=outputs), tmp_path / "m.onnx")

    def read(name: str | None) -> NDArray[np.float32]:
        spec = write_spec(tmp_path / "m.json", {**PLAIN, **({"output": name} if name else {})})
        images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
        return Encoder.load(tmp_path / "m.onnx", spec).run({"image": images})

    assert np.array_equal(read("place"), read("vector"))
    with pytest.raises(InputError, match=r"map \(\?, 3, 16, 16\), place .*vector \(\?, 3\)"):
        read(None)
    with pytest.raises(InputError, match="more than one vector an image") as refused:
        read("map")
    assert '"output": "vector"' in refused.value.tip


@pytest.mark.parametrize(
    ("real", "declared"),
    [
        ([-1, DIM, 1, 1], ["n", DIM, 1, 1]),
        ([-1, DIM, 1, 1], ["n", "d", "h", "w"]),
        ([-1, DIM, 1, 1], None),
        ([-1, 1, 1, DIM], ["n", 1, 1, DIM]),
        ([-1, 1, DIM], ["n", 1, DIM]),
        ([-1, 1, DIM], ["n", "t", DIM]),
    ],
    ids=str,
)
def test_an_output_of_one_place_is_a_vector_however_it_is_declared(
    tmp_path: Path, real: list[int], declared: list[int | str] | None
) -> None:
    """Its rows are those of the model without the further axes; a real map is refused by a run."""
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    spec = write_spec(tmp_path / "m.json", PLAIN)
    onnx.save(nhwc(), tmp_path / "plain.onnx")
    expected = Encoder.load(tmp_path / "plain.onnx", spec).run({"image": images})

    def reshaped(shape: list[int], name: str) -> Path:
        model = nhwc()
        model.graph.node.append(helper.make_node("Reshape", ["features", "shape"], ["o"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "shape"))
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, declared)
        model.graph.ClearField("output")
        model.graph.output.append(output)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    rows = Encoder.load(reshaped(real, "m.onnx"), spec).run({"image": images})
    np.testing.assert_array_equal(rows, expected)
    several = [-1, 2, DIM // 2] + [1] * (len(real) - 3)
    with pytest.raises(InputError, match=r"more than one vector an image|ONNX Runtime"):
        Encoder.load(reshaped(several, "map.onnx"), spec)


@pytest.mark.parametrize(
    ("name", "content", "words", "tip"),
    [
        ("m.onnx", b"<!DOCTYPE html><html>", "it is an HTML page", "fetch"),
        ("m.onnx", b"", "it is empty", "fetch"),
        ("m.onnx", b"\x1f\x8b\x08\0", "it is a gzip file", "unpack"),
        ("m.onnx", b"PK\x03\x04" + b"\0" * 40, "it is a zip archive", "compatctl export"),
        ("m.onnx", b"\x80\x02}q\0." + b"\0" * 40, "it is a pickle", "compatctl export"),
        ("m.pt", b"PK\x03\x04" + b"\0" * 40, "a checkpoint by its name", "compatctl export"),
    ],
)
def test_a_file_that_is_no_onnx_is_said_to_be_what_it_is(
    tmp_path: Path, name: str, content: bytes, words: str, tip: str
) -> None:
    """An error page, a packed file, a checkpoint."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        read_model_bytes(tmp_path / name, write_spec(tmp_path / "m.json", PLAIN))
    assert tip in refused.value.tip


def test_entries_of_other_tools_are_named_with_ours(tmp_path: Path) -> None:
    """A configuration of timm or transformers: each entry, and what it is called here."""
    entries = {"crop_pct": 0.875, "image_mean": [0, 0, 0], "resample": 3}
    onnx.save(nhwc(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'crop_pct', 'image_mean', 'resample'") as refused:
        read_model_bytes(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", PLAIN | entries))
    for words in ("crop_pct is crop_share", "image_mean is mean", "3 bicubic"):
        assert words in refused.value.tip


def test_a_quantised_model_is_read(tmp_path: Path) -> None:
    """int8 weights behind DequantizeLinear, activations through QuantizeLinear: the rows are those
    of the same arithmetic in numpy."""
    whole = np.random.default_rng(2).integers(-127, 128, (3, DIM)).astype(np.int8)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("QuantizeLinear", ["mean", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["mean2"]),
        helper.make_node("DequantizeLinear", ["whole", "unit", "none"], ["weight"]),
        helper.make_node("MatMul", ["mean2", "weight"], ["features"]),
    ]
    weights = {
        "whole": whole, "step": np.float32(2), "zero": np.uint8(0), "unit": np.float32(0.01),
        "none": np.int8(0),
    }  # fmt: skip
    given = [value("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])]
    outputs = [value("features", TensorProto.FLOAT, ["n", DIM])]
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    onnx.save(
        graph_model(nodes, given=given, outputs=outputs, weights=arrays, opset=13),
        tmp_path / "m.onnx",
    )
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    encoder = Encoder.load(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", PLAIN))
    mean = np.clip(np.rint(images.mean((1, 2), dtype=np.float32) / 2), 0, 255) * 2
    raw = mean @ (whole * np.float32(0.01))
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(encoder.run({"image": images}) - expected).max() < 1e-5


def typed(kind: int, out: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The model of ``nhwc``, with pixels of one type and an embedding of another."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["single"], ["image"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["image", "scale"], ["long"]),
        helper.make_node("Cast", ["long"], ["features"], to=out),
    ]
    return graph_model(
        nodes,
        given=[value("pixels", kind, ["n", SIDE, SIDE, 3])],
        outputs=[value("features", out, ["n", DIM])],
        weights={"scale": projection(4)},
    )


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
@pytest.mark.parametrize("out", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_images_and_embeddings_of_other_types_are_cast(tmp_path: Path, kind: int, out: int) -> None:
    """The embeddings are those of the same model in float32, up to half precision."""
    spec = write_spec(tmp_path / "m.json", PLAIN)
    images = {"image": np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)}
    onnx.save(nhwc(), tmp_path / "single.onnx")
    onnx.save(typed(kind, out), tmp_path / "typed.onnx")
    expected = Encoder.load(tmp_path / "single.onnx", spec).run(images)
    rows = Encoder.load(tmp_path / "typed.onnx", spec).run(images)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() < (2e-3 if out == TensorProto.FLOAT16 else 1e-6)


def test_other_types_are_named(tmp_path: Path) -> None:
    """Bytes with a scale, and whole numbers of other widths: the message says what it takes."""
    for kind, more, message in (
        (TensorProto.UINT8, {"scale": 1 / 255}, r"its input is pixels \(uint8\), scaled"),
        (TensorProto.INT32, {}, r"float64 or uint8; it has pixels \(int32\)"),
    ):
        onnx.save(typed(kind), tmp_path / "m.onnx")
        spec = write_spec(tmp_path / "m.json", {**PLAIN, **more})
        with pytest.raises(InputError, match=message):
            Encoder.load(tmp_path / "m.onnx", spec)


def test_crop_share_and_border_are_kept_in_the_file(tmp_path: Path) -> None:
    """A file without them has the bytes that it had before they existed."""
    onnx.save(nhwc(), tmp_path / "m.onnx")
    for number, more in enumerate(
        (
            {"crop_share": 0.875, "crop_offset": "round"},
            {"fit": "pad", "border": [0, 0, 0]},
            {"crop_share": 1.0, "border": [255, 255, 255]},
        )
    ):
        spec = write_spec(tmp_path / "m.json", {**PLAIN, **more})
        sealed = tmp_path / f"{number}.onnx"
        sealed.write_bytes(read_model_bytes(tmp_path / "m.onnx", spec))
        read = Encoder.load(sealed).inputs[0].preprocessing
        assert read.crop_share == more.get("crop_share", 1.0)
        assert read.crop_offset == more.get("crop_offset")
        assert list(read.border) == more.get("border", [255, 255, 255])
    plain = write_spec(tmp_path / "m.json", PLAIN)
    assert sealed.read_bytes() == read_model_bytes(tmp_path / "m.onnx", plain)


def test_weights_listed_as_inputs_do_not_count_as_inputs(tmp_path: Path) -> None:
    """Old exporters list every weight among the inputs; the images are still the only input."""
    model = nhwc()
    model.graph.input.append(value("scale", TensorProto.FLOAT, [3, DIM]))
    onnx.save(model, tmp_path / "m.onnx")
    encoder = Encoder.load(tmp_path / "m.onnx", write_spec(tmp_path / "m.json", PLAIN))
    assert [source.name for source in encoder.inputs] == ["image"]
    images: NDArray[np.uint8] = np.full((1, SIDE, SIDE, 3), 9, np.uint8)
    assert encoder.run({"image": images}).shape == (1, DIM)
