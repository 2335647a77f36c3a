"""finetune with images without labels: who takes part, what is counted, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shop_kit import Result, Shop
from tiny_backbone import build

from compatctl.data import Dataset, load
from compatctl.deployment.old_features import CACHE_FILE

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 16, width: 16, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
junction: {kind: linear}
objective: {frame: prototypes, lambda: 0.5, scale: 16.0}
optimiser: {epochs: 1, batch_size: 64, lr: 0.003}
unlabelled: more
"""
FRESH, HELD_OUT, TRAINING, STORED = 20, 4, 3, 5


@dataclass(frozen=True)
class World:
    """A project, the folder that its recipe names, and what was copied into it."""

    shop: Shop
    folder: Path
    data: Dataset
    stored: Sequence[str]
    """Ids of gallery items whose images are in the folder"""

    def finetune(self, *more: object) -> Result:
        """Run it with the project's recipe."""
        files = ("--base", self.shop.path("new.ckpt"), "--recipe", self.shop.path("recipe.yaml"))
        return self.shop.run("finetune", *files, *more)

    def record(self) -> dict[str, Any]:
        """The candidate's training.json."""
        path = self.shop.path("build/candidate/training.json")
        read: dict[str, Any] = json.loads(path.read_bytes())
        return read

    def project(self, text: str) -> None:
        """Replace max_gallery_pass: 1.0 in compatctl.yaml."""
        path = self.shop.path("compatctl.yaml")
        path.write_text(path.read_text().replace("max_gallery_pass: 1.0\n", text))

    def copy(self, row: int, name: str) -> None:
        """The bytes of an item's image under another name."""
        source = self.data.sources[row]
        assert isinstance(source, Path)
        shutil.copy(source, self.folder / name)


@pytest.fixture
def world(shop: Shop) -> World:
    """Fresh drawings (real ones, mirrored), and copies of held-out, training and gallery items."""
    data, folder = load(shop.data()), shop.path("more")
    shop.path("recipe.yaml").write_text(RECIPE)
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    rows = {
        key: [i for i, item in enumerate(data.items) if (item.split, item.role) == key]
        for key in (("test", "query"), ("train", "query"), ("test", "gallery"))
    }
    (folder / "sub").mkdir(parents=True)
    stored = rows["test", "gallery"][:STORED]
    world = World(shop, folder, data, [data.ids[row] for row in stored])
    for number, row in enumerate(rows["test", "query"][-FRESH:]):
        mirrored = data.read(row).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.rotate(30).save(folder / "sub" / f"{number}.png")
    for number, row in enumerate(rows["test", "query"][:HELD_OUT]):
        world.copy(row, f"held-{number}.png")
    for number, row in enumerate(rows["train", "query"][:TRAINING]):
        world.copy(row, f"train-{number}.png")
    for number, row in enumerate(stored):
        world.copy(row, f"stored-{number}.png")
    shutil.copy(folder / "sub" / "0.png", folder / "twice.png")
    return world


def test_who_takes_part_and_what_is_counted(world: World) -> None:
    """Held-out and training images and copies stay out, and are named; gallery rows have their own
    ids and stored vectors, and count as passed; verify knows every image."""
    result = world.finetune()
    assert result.code == 0, result.stderr
    assert result.json["unlabelled"] == FRESH + STORED
    assert result.json["left_out"] == {
        "held-out queries": HELD_OUT,
        "labelled training items": TRAINING,
        "copies": 1,
    }
    for words in ("4 held-out queries, 3 labelled", f"{FRESH} unlabelled images have a label or"):
        assert any(words in line for line in result.json["warnings"])
        assert words in result.stderr
    passed, record = result.json["gallery_pass"], world.record()
    assert (passed["passed"], passed["by"]["pairs"]) == (STORED, STORED)
    unlabelled = {entry["id"]: entry for entry in record["unlabelled"]}
    assert set(world.stored) < set(unlabelled)
    fresh = {f"more/sub/{number}.png" for number in range(FRESH)} - {"more/sub/0.png"}
    assert fresh < set(unlabelled)
    assert all(entry["look"] for entry in unlabelled.values())
    train = world.data.filter(split="train")
    assert {entry["id"] for entry in record["items"]} == set(train.ids)
    assert record["classes"] == sorted(set(train.labels))
    assert record["old_features"]["encoder"] == len(train.filter(role="query")) + FRESH
    old = world.shop.path("old.onnx")
    report = world.shop.run("verify", old, world.shop.path("new.onnx"))
    assert report.code in {0, 3, 4}, report.stderr
    assert report.json["gallery_pass"]["passed"] == STORED


def test_a_near_copy_of_a_held_out_image_is_found_by_verify(world: World) -> None:
    """A re-compressed held-out query in the folder has other bytes; verify takes it out."""
    queries = world.data.filter(split="test", role="query")
    near = []
    for name in ("plain", "leaking"):
        result = world.finetune()
        assert result.code == 0, result.stderr
        new = world.shop.path("new.onnx")
        report = world.shop.run("verify", world.shop.path("old.onnx"), new)
        assert report.code in {0, 3, 4}, report.stderr
        checks = report.json["verdict"]["checks"]
        near.append(next(entry for entry in checks if entry["name"] == "near_copies"))
        if name == "plain":
            for row in range(30):
                queries.read(row).save(world.folder / f"{row}.jpg", quality=90)
    assert near[1]["estimate"] > near[0]["estimate"] + 10 / len(queries)


def test_gallery_rows_need_the_projects_permission(world: World) -> None:
    """With max_gallery_pass 0 gallery images in the folder are refused; without them it runs."""
    world.project("")
    refused = world.finetune()
    assert (refused.code, f"would pass {STORED} of" in refused.stderr) == (2, True), refused.stderr
    assert "max_gallery_pass" in refused.stderr
    for number in range(STORED):
        (world.folder / f"stored-{number}.png").unlink()
    result = world.finetune()
    assert result.code == 0, result.stderr
    assert result.json["gallery_pass"]["share"] == 0.0


def test_without_the_old_model_only_stored_vectors_serve(world: World) -> None:
    """old_model_gone refuses images outside the gallery and counts them; gallery images train."""
    world.project("max_gallery_pass: 1.0\nold_model_gone: true\n")
    refused = world.finetune()
    assert refused.code == 5
    assert f"{FRESH} unlabelled images have no stored vector" in refused.stderr
    shutil.rmtree(world.folder / "sub")
    (world.folder / "twice.png").unlink()
    result = world.finetune()
    assert (result.code, result.json["unlabelled"]) == (0, STORED), result.stderr


def test_old_features_are_embedded_once(world: World) -> None:
    """A second run finds the features of the first, damaged or not, and gives the same file;
    removing an item deletes them."""
    first = world.finetune("--dry-run").json["unlabelled"]
    assert (first["items"], first["gallery_rows"], first["known"]) == (FRESH + STORED, STORED, 0)
    assert first["memory_bytes"] >= 4 * (FRESH + STORED) * (32 + 64)
    assert not world.shop.path("build").exists()
    sha256 = world.finetune().json["sha256"]
    cost = world.finetune("--dry-run").json["unlabelled"]
    assert (cost["known"], cost["old_model_s"]) == (FRESH, 0.0)
    cache = world.shop.path("build/candidate") / CACHE_FILE
    before = cache.stat().st_mtime_ns
    assert world.finetune().json["sha256"] == sha256
    assert cache.stat().st_mtime_ns == before
    cache.write_bytes(cache.read_bytes()[:-40])
    assert world.finetune().json["sha256"] == sha256
    removed = world.shop.run("remove", world.stored[0])
    assert removed.code == 0, removed.stderr
    assert not cache.exists()
    assert world.stored[0] not in {entry["id"] for entry in world.record()["unlabelled"]}


def test_bad_images_and_folders(world: World) -> None:
    """A bad image is named, or skipped and listed; a missing or useless folder is refused."""
    (world.folder / "bad.png").write_bytes(b"no image")
    refused = world.finetune()
    assert (refused.code, "more/bad.png" in refused.stderr) == (5, True), refused.stderr
    result = world.finetune("--skip-bad")
    assert (result.code, result.json["skipped"]) == (0, ["more/bad.png"]), result.stderr
    shutil.rmtree(world.folder)
    assert "no data at" in world.finetune().stderr
    world.folder.mkdir()
    assert "no item in it" in world.finetune().stderr
    world.copy(world.data.row_of[world.data.filter(split="test", role="query").ids[0]], "a.png")
    useless = world.finetune()
    assert (useless.code, "1 held-out queries" in useless.stderr) == (5, True), useless.stderr


def test_a_table_speaks_the_projects_ids(world: World) -> None:
    """An id of a held-out query stays out with any image; one of a gallery item with another image
    is refused; a table's own held-out rows stay out."""
    query = world.data.filter(split="test", role="query").ids[0]
    table = world.folder / "items.csv"
    rows = [f"{query},sub/1.png,", "mine,sub/2.png,", "theirs,sub/3.png,validation"]
    table.write_text("\n".join(["id,path,split", *rows]) + "\n")
    recipe = world.shop.path("recipe.yaml")
    recipe.write_text(RECIPE.replace("unlabelled: more", "unlabelled: more/items.csv"))
    result = world.finetune()
    assert result.code == 0, result.stderr
    assert (result.json["unlabelled"], result.json["left_out"]) == (1, {"held-out queries": 2})
    table.write_text(f"id,path\n{world.stored[0]},sub/1.png\n")
    refused = world.finetune()
    assert (refused.code, "another image" in refused.stderr) == (5, True), refused.stderr


def test_where_nothing_is_contrasted_they_are_refused(world: World) -> None:
    """lambda 1.0, a model without a gallery, and begin each say why."""
    recipe = world.shop.path("recipe.yaml")
    recipe.write_text(RECIPE.replace("lambda: 0.5", "lambda: 1.0"))
    assert "lambda: 1.0 leaves out" in world.finetune().stderr
    recipe.write_text(RECIPE.replace("frame: prototypes, lambda: 0.5", "frame: free, dim: 32"))
    assert "needs a deployed gallery" in world.finetune().stderr
    started = world.shop.run(
        "begin", "--base", world.shop.path("new.ckpt"), "--recipe", recipe, "--dim", "64",
        "--store", world.shop.path("first"),
    )  # fmt: skip
    assert (started.code, "needs a deployed gallery" in started.stderr) == (5, True), started.stderr


def test_plan_says_that_it_leaves_them_out(world: World) -> None:
    """No route is tried with them."""
    files = ("--base", world.shop.path("new.ckpt"), "--recipe", world.shop.path("recipe.yaml"))
    planned = world.shop.run("plan", *files, "--limit", "100")
    assert planned.code == 0, planned.stderr
    assert any("unlabelled images of more" in line for line in planned.json["warnings"])
    assert np.isfinite(planned.json["seconds"])
