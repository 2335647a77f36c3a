"""A sealed file is self-contained and identifies its model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models import DIM, SIDE, SMALL, UNIT, by_hand, value

from compatctl.data import Preprocessing
from compatctl.encoder import Encoder, ImageInput, seal
from compatctl.errors import InputError


def sealed(raw: Path, out: Path) -> Path:
    """Seal an export of the small network."""
    seal(raw, out, (SMALL,))
    return out


def test_one_network_has_the_same_bytes_from_any_folder(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """Exports from two folders and source files differ, and are equal once sealed."""
    here, elsewhere = exports
    raw = [(folder / "small0.onnx").read_bytes() for folder in exports]
    assert raw[0] != raw[1]
    first = sealed(here / "small0.onnx", tmp_path / "one.onnx").read_bytes()
    second = sealed(elsewhere / "small0.onnx", tmp_path / "two.onnx").read_bytes()
    assert first == second
    for folder in (here, elsewhere, Path.cwd(), tmp_path):
        assert str(folder).encode() not in first
    assert b"_source.py" in raw[0]
    assert b"_source.py" not in first


def test_other_weights_give_another_identity(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """Two networks of one shape have two digests, though one export has external weights."""
    first = Encoder.load(sealed(exports[0] / "small0.onnx", tmp_path / "0.onnx"))
    second = Encoder.load(sealed(exports[0] / "small1.onnx", tmp_path / "1.onnx"))
    assert first.sha256 != second.sha256
    assert first.sha256 == hashlib.sha256((tmp_path / "0.onnx").read_bytes()).hexdigest()


def test_another_preprocessing_gives_another_identity(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """The digest covers how images are resized, which is outside the graph."""
    raw, digests = exports[0] / "small0.onnx", set()
    for fit in ("crop", "pad"):
        size = Preprocessing(height=SIDE, width=SIDE, fit=fit)  # type: ignore[arg-type]
        seal(raw, tmp_path / "m.onnx", (ImageInput(name="image", preprocessing=size),))
        encoder = Encoder.load(tmp_path / "m.onnx")
        assert encoder.inputs == (ImageInput(name="image", preprocessing=size),)
        digests.add(encoder.sha256)
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["small0", "small1"])
def test_the_sealed_file_computes_what_torch_did(
    exports: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Sealing changes no value and includes external weights: the file runs alone."""
    folder = exports[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    encoder = Encoder.load(sealed(folder / f"{name}.onnx", alone / "m.onnx"))
    assert [file.name for file in alone.iterdir()] == ["m.onnx"]
    rows = encoder.run({"image": np.load(folder / "images.npy")})
    assert np.abs(rows - np.load(folder / f"{name}.npy")).max() < 1e-5


def test_parts_that_do_not_compute_are_dropped(tmp_path: Path) -> None:
    """Doc strings, producer, versions and metadata of others do not reach the file."""
    model = by_hand([UNIT])
    plain, dressed = tmp_path / "plain.onnx", tmp_path / "dressed.onnx"
    onnx.save(model, plain)
    model.producer_name, model.producer_version, model.model_version = "made", "1.2", 9
    model.doc_string = model.graph.doc_string = "secret-word"
    model.graph.name = "another"
    model.metadata_props.add(key="author", value="secret-word")
    model.graph.value_info.append(value("raw", TensorProto.FLOAT, ["n", DIM]))
    for part in (model.graph.node[0], model.graph.initializer[0], model.graph.input[0]):
        part.doc_string = "secret-word"
        part.metadata_props.add(key="trace", value="secret-word")
    model.graph.node[0].attribute[0].doc_string = "secret-word"
    model.opset_import.add(domain="unused.domain", version=3)
    onnx.save(model, dressed)
    assert b"secret-word" in dressed.read_bytes()
    first, second = (sealed(raw, tmp_path / f"{raw.stem}-sealed.onnx") for raw in (plain, dressed))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "features"}, "'features' float32 .*expected 'embedding'"),
        ({"input": "pixels"}, "its inputs are 'pixels'"),
        ({"side": 24}, r"'image' uint8 \(batch, 24, 24, 3\)"),
        ({"batch": 2}, r"'image' uint8 \(2, 16, 16, 3\)"),
    ],
)
def test_an_export_with_other_inputs_or_outputs_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Names, sizes and the free batch are checked before anything is written."""
    model = by_hand([UNIT])
    if "output" in change:
        model.graph.output[0].name = model.graph.node[-1].output[0] = str(change["output"])
    if "input" in change:
        model.graph.input[0].name = model.graph.node[0].input[0] = str(change["input"])
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if "side" in change:
        dims[1].dim_value = dims[2].dim_value = 24
    if "batch" in change:
        dims[0].dim_value = 2
    onnx.save(model, tmp_path / "raw.onnx")
    with pytest.raises(InputError, match=message):
        seal(tmp_path / "raw.onnx", tmp_path / "out.onnx", (SMALL,))
    assert not (tmp_path / "out.onnx").exists()


def test_an_export_without_its_external_weights_is_refused(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    """Missing external weights are an error, not an empty tensor."""
    raw = tmp_path / "small1.onnx"
    raw.write_bytes((exports[0] / "small1.onnx").read_bytes())
    with pytest.raises(InputError, match=r"small1\.onnx"):
        seal(raw, tmp_path / "out.onnx", (SMALL,))


def test_files_that_are_not_onnx_are_not_sealed(tmp_path: Path) -> None:
    """A text file and a missing file are input errors."""
    (tmp_path / "text.onnx").write_text("hello")
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(InputError, match="not an ONNX"):
            seal(tmp_path / name, tmp_path / "out.onnx", (SMALL,))
