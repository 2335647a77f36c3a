"""A Parquet file of images from the first store to the switch, beside the same images as files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shop_kit import Shop
from tiny_backbone import build

NAMES = {"sku": "id", "picture": "path", "kind": "label", "fold": "split"}
"""Column of the Parquet file -> column of the CSV."""


def parquet_of(table: Path, target: Path) -> Path:
    """The rows of a CSV in row groups of 100, with the images' bytes, under a shop's columns."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, Any] = {
        name: pa.array([row[column] for row in rows])
        for name, column in NAMES.items()
        if column != "path"
    }
    images = [(table.parent / row["path"]).read_bytes() for row in rows]
    columns["picture"] = pa.array(images, pa.binary())
    for name in rows[0].keys() - set(NAMES.values()):
        columns[name] = pa.array([row[name] or None for row in rows])
    pq.write_table(pa.table(columns), target, row_group_size=100)
    return target


@pytest.fixture
def stored(shop: Shop, tmp_path: Path) -> Shop:
    """A project whose data are a Parquet file and nothing else, with the encoders of the shop."""
    folder = tmp_path / "stored"
    folder.mkdir()
    for name in ("old.onnx", "new.onnx", "worse.onnx"):
        shutil.copy(shop.path(name), folder / name)
    parquet_of(shop.data(), folder / "items.parquet")
    text = shop.path("compatctl.yaml").read_text().splitlines()
    lines = [line for line in text if not line.startswith("data:")]
    names = ", ".join(f"{known}: {column}" for column, known in NAMES.items())
    lines += ["data: items.parquet", f"columns: {{{names}}}"]
    (folder / "compatctl.yaml").write_text("\n".join(lines) + "\n")
    return Shop(folder)


def test_a_parquet_file_of_images_goes_all_the_way(shop: Shop, stored: Shop) -> None:
    """init, verify, deploy, search and rollback give what they give for the same image files."""
    begun = stored.run("init", "--model", stored.path("old.onnx"))
    assert begun.code == 0, begun.stderr
    assert begun.json["rows"] == shop.manifest()["index"]["count"]
    assert "notices" not in begun.json
    reports = []
    for project in (shop, stored):
        judged = project.run("verify", project.path("old.onnx"), project.path("new.onnx"))
        assert judged.code == 0, judged.stderr
        reports.append(judged.json)
    files, parquet = reports
    assert parquet["data"] == {**files["data"], "name": "items.parquet"}
    for part in ("groups", "verdict"):
        assert parquet[part] == files[part]
    worse = stored.run("verify", stored.path("old.onnx"), stored.path("worse.onnx"))
    assert worse.code == 3, worse.stderr
    assert stored.run("verify", stored.path("old.onnx"), stored.path("new.onnx")).code == 0
    switched = stored.run("deploy")
    assert switched.code == 0, switched.stderr
    with shop.data().open(newline="", encoding="utf-8") as file:
        image = shop.data().parent / next(csv.DictReader(file))["path"]
    answers = []
    assert shop.run("deploy").code == 0
    for project in (shop, stored):
        found = project.run("search", image, "-k", 3)
        assert found.code == 0, found.stderr
        answers.append([hit["id"] for hit in found.json["queries"][0]["hits"]])
    assert answers[0] == answers[1]
    assert stored.run("rollback").code == 0
    assert stored.run("add").json["present"] == begun.json["rows"]


RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
junction: {kind: mlp, hidden: 64, dropout: 0.0}
objective: {frame: prototypes, lambda: 0.5, scale: 16.0}
optimiser: {epochs: 2, batch_size: 64, lr: 0.003}
rehearsal: {per_class: 2}
"""


def test_training_on_a_parquet_file_gives_the_model_that_files_give(
    shop: Shop, stored: Shop
) -> None:
    """The same model and rehearsal memory, byte for byte, and record, from images in any order."""
    assert stored.run("init", "--model", stored.path("old.onnx")).code == 0
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    files: list[dict[str, bytes]] = []
    for project in (shop, stored):
        recipe = project.path("recipe.yaml")
        recipe.write_text(RECIPE)
        base = shop.path("new.ckpt")
        trained = project.run("finetune", "--base", base, "--recipe", recipe)
        assert trained.code == 0, trained.stderr
        folder = project.path("build/candidate")
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) >= 3
    records = [json.loads(found.pop("training.json")) for found in files]
    assert files[0] == files[1]
    differing = {key for key in records[0] if records[0][key] != records[1][key]}
    assert differing <= {"seconds"}
