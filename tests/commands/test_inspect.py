"""inspect says what a file is by its content, what is missing, and runs nothing of it."""

from __future__ import annotations

import csv
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from shop_kit import Shop, run

from compatctl.encoder.import_onnx import ImportSpec
from compatctl.files import describe_tensors


def inspected(path: Path) -> dict[str, Any]:
    """The JSON of inspect."""
    result = run("inspect", path, "--json")
    assert result.code == 0, result.stderr
    table = run("inspect", path)
    assert table.code == 0
    assert table.stdout.startswith(str(path))
    found: dict[str, Any] = result.json
    return found


def foreign(path: Path, shape: list[Any], outputs: dict[str, list[Any]]) -> None:
    """An ONNX file of another tool: one input, and its mean as each of the outputs."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], [name], axes=[2, 3], keepdims=int(len(sides) == 4))
        for name, sides in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def test_a_model_of_another_tool_gets_its_preprocessing_file(tmp_path: Path) -> None:
    """Size, layout and output are the model's; written and corrected, the file is used; the
    template of export is the same file."""
    path = tmp_path / "m.onnx"
    foreign(path, [1, 3, 48, 64], {"map": [1, 3, 1, 1], "vec": [1, 3]})
    found = inspected(path)
    assert found["kind"] == "ONNX file of another tool"
    assert found["facts"]["inputs"] == ["x: float32 (1, 3, 48, 64)"]
    assert (found["facts"]["opset"], found["facts"]["fixed_batch"]) == (13, 1)
    content = found["write"]["content"]
    assert found["write"]["name"] == str(tmp_path / "m.preprocessing.json")
    assert {k: content[k] for k in ("height", "width", "layout", "output")} == {
        "height": 48, "width": 64, "layout": "NCHW", "output": "vec",
    }  # fmt: skip
    assert set(content) == set(ImportSpec.__dataclass_fields__)
    printed = run("export", "--preprocessing-template", path)
    assert json.loads(printed.stdout) == content
    target = tmp_path / "m.preprocessing.json"
    assert run("export", "--preprocessing-template", path, "-o", target).code == 0
    assert run("export", "--preprocessing-template", path, "-o", target).code == 2
    sealed = tmp_path / "sealed.onnx"
    result = run("export", path, "-o", sealed, "--json")
    assert result.code == 0, result.stderr
    assert result.json["dim"] == 3
    found = inspected(sealed)
    assert (found["kind"], found["missing"]) == ("sealed model", [])
    assert "embedding of 3 dimensions" in found["contract"]


def test_a_template_without_a_model_has_every_entry() -> None:
    """Every entry of a preprocessing file, with values that are accepted."""
    template = json.loads(run("export", "--preprocessing-template").stdout)
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in template.items()}
    assert ImportSpec(**listed).preprocessing.height == 224


@pytest.mark.parametrize("old_form", [False, True])
def test_a_checkpoint_is_named_by_its_tensors(tmp_path: Path, old_form: bool) -> None:
    """Names, shapes, types and wrappers are those that torch saved, in both of its forms and in
    safetensors; objects are named and not made."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    weight = torch.nn.Parameter(torch.zeros(2, 5, dtype=torch.float16))
    checkpoint = {"state_dict": state, "ema": {"w": weight}, "epoch": 3, "path": Path("x")}
    torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=not old_form)
    found = inspected(tmp_path / "c.pt")
    assert found["kind"] == "checkpoint"
    assert found["facts"]["groups"] == {"state_dict": len(state), "ema": 1}
    assert found["facts"]["wrappers"] == ["state_dict", "ema"]
    assert any("Path" in name for name in found["facts"]["objects"])
    tensors = describe_tensors(tmp_path / "c.pt").tensors
    for name, value in state.items():
        entry = tensors[f"state_dict.{name}"]
        assert (entry.shape, f"torch.{entry.dtype}") == (tuple(value.shape), str(value.dtype))
    assert (tensors["ema.w"].shape, tensors["ema.w"].dtype) == ((2, 5), "float16")
    save_file(net.state_dict(), tmp_path / "c.safetensors")
    safe = describe_tensors(tmp_path / "c.safetensors").tensors
    assert {name: entry.shape for name, entry in safe.items()} == {
        name: tuple(value.shape) for name, value in net.state_dict().items()
    }


class _Trap:
    """Runs code where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    """A pickle that would make a file makes none; what it would call is named."""
    trap = tmp_path / "made"
    for protocol in (2, 4):
        content = {"weights": _Trap(trap), "more": [1, {"a": {1, 2}}]}
        (tmp_path / "p.pt").write_bytes(pickle.dumps(content, protocol))
        found = inspected(tmp_path / "p.pt")
        assert not trap.exists()
        assert found["kind"] == "pickle"
        assert any("Path" in name for name in found["facts"]["objects"])
    pickle.loads((tmp_path / "p.pt").read_bytes())
    assert trap.exists()


def test_damaged_files_are_refused_or_unknown(tmp_path: Path) -> None:
    """Cut pickles, false headers and text are exit 5 or said to be unknown, and never a crash."""
    whole = pickle.dumps({"a": list(range(300))}, 4)
    names = {
        "cut.pt": whole[:40], "memo.pt": b"\x80\x02r\xff\xff\xff\xffN.",
        "none.safetensors": struct.pack("<Q", 1 << 60), "list.safetensors": b"\x02" + b"\0" * 7
        + b"[]", "empty.onnx": b"", "short.npy": b"\x93NUMPY\x01",
    }  # fmt: skip
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
        assert run("inspect", tmp_path / name).code in {0, 5}, name
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 4)
    assert inspected(tmp_path / "noise.bin")["kind"] == "unknown"
    assert run("inspect", tmp_path / "gone").code == 5


def test_indexes_are_told_by_their_headers(shop: Shop, tmp_path: Path) -> None:
    """An hnswlib file by its layout, FAISS by four characters: dimension and rows."""
    (index,) = (
        shop.path("store/blobs/indexes").glob("*")
        if (shop.path("store/blobs/indexes").is_dir())
        else [p for p in shop.path("store").rglob("*") if "index" in p.parent.name and p.is_file()]
    )
    manifest = shop.manifest()["index"]
    found = inspected(index)
    assert found["kind"] == "hnswlib index"
    facts = found["facts"]
    assert (facts["count"], facts["dim"]) == (manifest["count"], manifest["dim"])
    assert "space" in found["missing"][0]
    for code, kind, lossy in ((b"IxFI", "Flat", False), (b"IwPQ", "IVF,PQ", True)):
        header = struct.pack("<4siqqqBi", code, 96, 1234, 1 << 20, 1 << 20, 1, 0)
        (tmp_path / "x.bin").write_bytes(header + bytes(64))
        facts = inspected(tmp_path / "x.bin")["facts"]
        assert (facts["kind"], facts["dim"], facts["rows"]) == (kind, 96, 1234)
        assert (facts["metric"], facts["lossy"]) == ("ip", lossy)


def test_the_columns_of_a_table_are_listed_in_words(tmp_path: Path) -> None:
    """By their names alone."""
    path = tmp_path / "items.csv"
    path.write_text("id,path,label\na,a.png,x\n", encoding="utf-8")
    lines = run("inspect", path).stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines if line.startswith("  columns")] == [
        ["columns", "id, path, label"]
    ]


def test_a_table_is_told_by_its_columns(tmp_path: Path) -> None:
    """Columns and rows of each form; what is missing to be items is said."""
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [("sku", "path", "category"), ("1", "a;b.png", "c"), (), ("2", "x\ny.png", "c")]
        )
    facts = inspected(tmp_path / "a.csv")
    assert facts["facts"]["columns"] == ["sku", "path", "category"]
    assert (facts["facts"]["rows"], facts["facts"]["separator"]) == (2, ";")
    assert facts["missing"][0] == "a column label"
    (tmp_path / "b.jsonl").write_text('{"id": 1, "text": "a"}\n\n{"label": "c"}\n')
    found = inspected(tmp_path / "b.jsonl")
    assert (found["facts"]["rows"], found["missing"]) == (2, [])
    features = np.zeros((5, 7), np.float32)
    np.savez(tmp_path / "f.npz", ids=np.arange(5), labels=np.arange(5), features=features)
    found = inspected(tmp_path / "f.npz")
    assert (found["kind"], found["facts"]["rows"]) == ("feature table", 5)
    assert found["facts"]["shapes"]["features"] == "<f4 [5, 7]"
    np.save(tmp_path / "v.npy", features)
    assert inspected(tmp_path / "v.npy")["facts"]["shapes"] == {"": "<f4 [5, 7]"}
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"path": ["a", "b"], "label": ["c", "c"]}), tmp_path / "p.parquet")
    found = inspected(tmp_path / "p.parquet")
    assert (found["facts"]["columns"], found["facts"]["rows"]) == (["path", "label"], 2)


def test_settings_and_stores_are_told_by_their_entries(shop: Shop) -> None:
    """A project, a policy, a recipe, a report and a store, each by its own reader."""
    root = Path(__file__).parents[2]
    assert inspected(shop.path("compatctl.yaml"))["kind"] == "project"
    assert inspected(root / "recipes" / "default.yaml")["kind"] == "recipe"
    assert inspected(root / "compatctl" / "policies" / "default.yaml")["kind"] == "policy"
    store = inspected(shop.path("store"))
    assert (store["kind"], store["facts"]["rows"]) == ("store", shop.manifest()["index"]["count"])
    broken = shop.path("broken.yaml")
    broken.write_text("backbonne: {}\n")
    found = inspected(broken)
    assert found["kind"] == "YAML file"
    assert any("backbonne" in line for line in found["missing"])
    broken.write_text("train: head\nbackbonne: {}\n")
    found = inspected(broken)
    assert found["kind"] == "recipe"
    assert found["missing"][0] == f"{broken}: unknown key backbonne"


def test_settings_are_checked_before_a_commit(shop: Shop) -> None:
    """--check has a line for each file; it ends with 5 if one of them, or a recipe or policy
    that a project names, cannot be used."""
    root = Path(__file__).parents[2]
    good = [root / "recipes" / "default.yaml", root / "compatctl" / "policies" / "strict.yaml"]
    done = run("inspect", "--check", *good, shop.path("compatctl.yaml"))
    assert done.code == 0
    kinds = [line.rpartition(": ")[2] for line in done.stdout.splitlines()]
    assert kinds == ["recipe", "policy", "project"]
    recipe = shop.path("mine.yaml")
    recipe.write_text("train: hed\n")
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "recipe: mine.yaml\n")
    done = run("inspect", "--check", *good, project, shop.path("none.yaml"), "--json")
    assert done.code == 5
    lacking = {Path(entry["path"]).name: entry["missing"] for entry in done.json["files"]}
    assert [name for name, lacks in lacking.items() if lacks] == ["compatctl.yaml", "none.yaml"]
    assert "hed" in lacking["compatctl.yaml"][0]
    assert done.json["unusable"] == 2


def test_several_files_are_only_checked(shop: Shop) -> None:
    """Without --check one file is described, and a second one is a usage error."""
    done = run("inspect", shop.path("compatctl.yaml"), shop.path("store"))
    assert done.code == 2
    assert "inspect --check" in done.stderr


def test_a_model_and_a_table_are_inspected_without_torch(tmp_path: Path) -> None:
    """torch and hnswlib are not loaded for an ONNX file or a table."""
    foreign(tmp_path / "m.onnx", [1, 3, 48, 64], {"vec": [1, 3]})
    (tmp_path / "t.csv").write_text("path,label\na,b\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom compatctl.commands.inspect import inspect\n"
        "for name in sys.argv[1:]: inspect(Path(name))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    names = [str(tmp_path / name) for name in ("m.onnx", "t.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True
    )
    assert not {"torch", "safetensors", "hnswlib"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.onnx", b"<!DOCTYPE html><p>404", "HTML page"),
        ("t.csv", b"<html>", "HTML page"),
        ("t.csv", b"\x1f\x8b\x08\x00", "gzip file"),
        ("x", b"<?xml version='1.0'?><Error/>", "XML text"),
    ],
)
def test_what_is_none_of_ours_is_said_to_be_what_it_is(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    """An error page or an archive, whatever its name, and what to do about it."""
    (tmp_path / name).write_bytes(content)
    found = inspected(tmp_path / name)
    assert (found["kind"], len(found["missing"])) == (kind, 1)


def test_pointers_and_json_that_nests_too_deep_are_refused(tmp_path: Path) -> None:
    """A pointer of Git LFS names the command; a hostile table is no traceback."""
    (tmp_path / "i.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "t.jsonl").write_bytes(b'{"id":' + b"[" * 100_000)
    for name, words in (("i.bin", "git lfs pull"), ("t.jsonl", "recursion")):
        result = run("inspect", tmp_path / name)
        assert (result.code, words in result.stderr) == (5, True), result.stderr
