"""A model with more than one answer for one image is refused by every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from shop_kit import Shop, store_files


def _spoilt(shop: Shop, how: str) -> Path:
    """The new encoder, whose feature is centred by the batch's mean, or has noise of its own."""
    model = onnx.load(shop.path("new.onnx"))
    last = next(entry for entry in model.graph.node if entry.op_type == "LpNormalization")
    at, raw = list(model.graph.node).index(last), last.input[0]
    if how == "batch":
        half = numpy_helper.from_array(np.array(0.3, np.float32), "some")
        model.graph.initializer.append(half)
        nodes = [
            helper.make_node("ReduceMean", [raw, "axis"], ["of_batch"], keepdims=1),
            helper.make_node("Mul", ["of_batch", "some"], ["part"]),
            helper.make_node("Sub", [raw, "part"], ["mixed"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    else:
        nodes = [
            helper.make_node("RandomNormalLike", [raw], ["noise"], scale=0.01),
            helper.make_node("Add", [raw, "noise"], ["mixed"]),
        ]
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)
    last.input[0] = "mixed"
    path = shop.path(f"{how}.onnx")
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("how", ["batch", "chance"])
def test_verify_refuses_an_unsteady_model_and_replaces_an_earlier_report(
    shop: Shop, how: str
) -> None:
    """Exit 5 before anything is judged; the new report gives the reason, and so does deploy."""
    report, model = shop.path("report.json"), _spoilt(shop, how)
    passed = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", report)
    assert passed.code == 0, passed.stderr
    result = shop.run("verify", shop.path("old.onnx"), model, "--report", report)
    assert result.code == 5
    assert result.json["error"]["kind"] == "UnsteadyError"
    assert json.loads(report.read_bytes())["refused"]["message"] == result.json["error"]["message"]
    before = store_files(shop)
    for named in ((), ("--model", model)):
        deployed = shop.run("deploy", "--report", report, *named)
        assert deployed.code in {3, 5}
        assert any(word in deployed.stderr for word in ("refused the model", "random", "answer"))
    assert store_files(shop) == before


@pytest.mark.parametrize("how", ["batch", "chance"])
def test_every_command_refuses_an_unsteady_model(shop: Shop, how: str, tmp_path: Path) -> None:
    """Not by init, not by force, not as a part of a fused or bridged model, not in a matrix."""
    model, before = _spoilt(shop, how), store_files(shop)
    for words in (
        ("init", "--model", model, "--store", tmp_path / "store"),
        ("deploy", "--model", model, "--force", "--reason", "x"),
        ("fuse", shop.path("old.onnx"), model, "--output", tmp_path / "f.onnx", "--weight", 0.5),
        ("bridge", model, "--output", tmp_path / "b.onnx", "--kind", "orthogonal"),
        ("lift", model, "--force", "--reason", "x"),
        ("matrix", shop.path("old.onnx"), model),
    ):
        result = shop.run(*words)
        assert result.code == 5, (words, result.stderr)
        assert result.json["error"]["kind"] == "UnsteadyError", result.stderr
    assert store_files(shop) == before
    assert not list(tmp_path.glob("*.onnx"))
    assert not (tmp_path / "store").exists()


def test_a_dry_run_of_verify_leaves_the_report(shop: Shop) -> None:
    """A dry run writes nothing, not even a refusal."""
    report, model = shop.path("report.json"), _spoilt(shop, "batch")
    report.write_bytes(b"{}")
    result = shop.run("verify", shop.path("old.onnx"), model, "--report", report, "--dry-run")
    assert result.code == 5
    assert report.read_bytes() == b"{}"
