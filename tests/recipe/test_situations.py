"""The recipes of recipes/, one for each situation: finetune with each keeps what its file promises.

The backbone is replaced by small networks, and epochs are few; the rest is as shipped. The data are
emoji of 32 pixels: an old model that knows some classes, and a wider network trained elsewhere.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shop_kit import Shop

from benchmarks.common.cnn import build
from compatctl.data import born_on_simplex
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.training_inputs import build_reference
from compatctl.samples import emoji_source, unpack_emoji
from compatctl.store import Store

RECIPES = Path(__file__).parents[2] / "recipes"
OLD, NEW = {"width": 12, "features": 64}, {"width": 24, "features": 128}
KNOWN, LABELLED, ELSEWHERE = 60, 120, 300
"""Training classes, in order: the old model's, the labelled ones; the rest trained the new network.
Those between have images and no labels."""
VALIDATION, TEST = 80, 100
PRETRAINED = {
    "junction": {"kind": "linear", "standardise": False},
    "objective": {"frame": "free", "lambda": 1.0, "scale": 16.0, "dim": 128},
    "train": "full",
    "optimiser": {
        "epochs": 8,
        "batch_size": 64,
        "backbone_lr": 0.002,
        "weight_decay": 0.05,
        "frozen_norm": False,
    },
    "free_head": False,
}
"""How an ordinary model is trained."""

Row = Mapping[str, str]


def _backbone(size: Mapping[str, int]) -> dict[str, Any]:
    middle = [127.5] * 3
    return {
        "factory": "benchmarks.common.cnn:build",
        "args": {**size, "pool": False},
        "input": {"height": 32, "width": 32, "fit": "stretch", "mean": middle, "std": middle},
    }


@dataclass(frozen=True)
class Town:
    """A folder with images, checkpoints, the old model's file, and projects below it."""

    folder: Path
    rows: Sequence[Row]
    classes: Mapping[str, Sequence[str]]
    """Split -> its classes, in order"""

    def table(self, path: Path, keep: Callable[[Row], bool]) -> None:
        """Write a table of the rows that are kept, with paths from its folder."""
        deeper = "../" * len(path.parent.relative_to(self.folder).parts)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(
                {**row, "path": deeper + row["path"]} for row in self.rows if keep(row)
            )

    def project(self, name: str, training: Collection[str]) -> Shop:
        """A project whose training classes are these; held-out classes are those of the town."""
        folder = self.folder / name
        folder.mkdir()
        held_out = {*self.classes["validation"][:VALIDATION], *self.classes["test"][:TEST]}
        self.table(folder / "items.csv", lambda row: row["label"] in held_out | {*training})
        (folder / "compatctl.yaml").write_text(
            f"format: 1\ndata: items.csv\ndata_root: {self.folder}\nrecipe: recipe.yaml\n"
            "factories: [benchmarks.common.cnn]\n"
        )
        return Shop(folder)


def write_recipe(shop: Shop, name: str, size: Mapping[str, int], **optimiser: float) -> None:
    """A shipped recipe with this backbone and these settings of the optimiser."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe["backbone"] = _backbone(size)
    recipe["optimiser"] = {**recipe.get("optimiser", {}), **optimiser}
    shop.path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def run(shop: Shop, command: str, *more: object) -> Any:
    """The result of a command that must succeed; verify may pass, fail or not tell."""
    result = shop.run(command, *more)
    assert result.code in ({0, 3, 4} if command == "verify" else {0}), result.stderr
    return result.json


def hit_rates(shop: Shop, old: Path, new: Path, *more: object) -> tuple[float, float]:
    """hit@1 of old and of new queries of unseen classes on the deployed gallery."""
    report = run(shop, "verify", old, new, "--no-self-test", *more)
    hit_rate = report["groups"][0]["hit_rate"]
    return hit_rate["old_old"]["1"], hit_rate["new_old"]["1"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Both networks are trained; no store is there yet."""
    folder = tmp_path_factory.mktemp("town")
    rows = list(csv.DictReader(unpack_emoji(emoji_source(), folder).open(encoding="utf-8")))
    classes = {
        split: list(dict.fromkeys(row["label"] for row in rows if row["split"] == split))
        for split in ("train", "validation", "test")
    }
    town = Town(folder, rows, classes)
    train = classes["train"]
    for name, size, known, seed in (
        ("old", OLD, train[:KNOWN], 0),
        ("new", NEW, train[ELSEWHERE:], 1),
    ):
        shop = town.project(name, known)
        recipe = {"backbone": {**_backbone(size), "taps": None}, **PRETRAINED}
        shop.path("recipe.yaml").write_text(json.dumps(recipe))
        torch.manual_seed(seed)
        torch.save(build(**size, pool=False).state_dict(), shop.path("start.ckpt"))
        run(shop, "finetune", "--base", shop.path("start.ckpt"))
    return town


@pytest.fixture(scope="module")
def old(town: Town) -> Path:
    """The deployed model of the galleries that an ordinary model filled."""
    return town.folder / "old" / "new.onnx"


@pytest.fixture(scope="module")
def better(town: Town) -> Path:
    """The incoming checkpoint."""
    return town.folder / "new" / "build/candidate/weights.safetensors"


@pytest.fixture(scope="module")
def legacy(town: Town, old: Path, better: Path) -> tuple[Shop, float, float]:
    """A store of the old model, fine-tuned by legacy.yaml; hit rate on validation and test."""
    shop = town.project("legacy", town.classes["train"][:LABELLED])
    run(shop, "init", "--model", old)
    write_recipe(shop, "legacy", NEW, epochs=15)
    result = run(shop, "finetune", "--base", better)
    assert (result["frame"], result["gallery_pass"]["passed"]) == ("prototypes", 0)
    return shop, result["validation_hit_rate"], hit_rates(shop, old, shop.path("new.onnx"))[1]


def test_legacy(town: Town, old: Path, legacy: tuple[Shop, float, float]) -> None:
    """Nothing passes; unseen classes are found many times more often than by the network as it
    came; the file has the free head."""
    shop, _, hit_rate = legacy
    naive = hit_rates(shop, old, town.folder / "new" / "new.onnx")[1]
    assert hit_rate > 10 * naive
    fused = shop.path("fused.onnx")
    run(shop, "fuse", old, shop.path("new.onnx"), "-o", fused)
    before, after = hit_rates(shop, old, fused)
    assert after > before - 0.03
    assert after > hit_rate


def test_unlabelled(town: Town, old: Path, better: Path, legacy: tuple[Shop, float, float]) -> None:
    """Images without labels raise the hit rate of one encoder, and pass nothing of the gallery."""
    shop = Shop(town.folder / "legacy")
    write_recipe(shop, "unlabelled", NEW, epochs=15)
    folder = shop.path("unlabelled")
    folder.mkdir()
    more = {*town.classes["train"][LABELLED:ELSEWHERE], *town.classes["test"][TEST:]}
    rows = [row for row in town.rows if row["label"] in more]
    for row in rows:
        shutil.copy(town.folder / row["path"], folder / f"{row['vendor']}-{row['label']}.png")
    result = run(shop, "finetune", "--base", better)
    assert result["unlabelled"] + sum(result["left_out"].values()) == len(rows) > 1000
    assert result["gallery_pass"]["passed"] == 0
    _, validation, hit_rate = legacy
    assert result["validation_hit_rate"] > validation
    assert hit_rates(shop, old, shop.path("new.onnx"))[1] > hit_rate + 0.02


def test_small_network(
    town: Town, old: Path, better: Path, legacy: tuple[Shop, float, float]
) -> None:
    """The whole network finds more than the head of legacy.yaml on the same network."""
    shop = Shop(town.folder / "legacy")
    write_recipe(shop, "small-network", NEW)
    result = run(shop, "finetune", "--base", better)
    assert (result["frame"], result["gallery_pass"]["passed"]) == ("prototypes", 0)
    _, validation, hit_rate = legacy
    assert result["validation_hit_rate"] > validation
    assert hit_rates(shop, old, shop.path("new.onnx"))[1] > hit_rate + 0.01


def test_faces(town: Town, old: Path, better: Path) -> None:
    """More identities than dimensions, three images each: held-out pairs are told apart as well as
    by the old model, and deploy insists on the pairs of the project."""
    shop = town.project("faces", town.classes["train"][:ELSEWHERE])
    vendors = sorted({row["vendor"] for row in town.rows if row["role"] == "query"})
    held_out = {*town.classes["validation"][:VALIDATION], *town.classes["test"][:TEST]}
    training = {*town.classes["train"][:ELSEWHERE]}
    few = {"noto", *vendors[:2]}
    town.table(
        shop.path("items.csv"),
        lambda row: row["label"] in held_out or (row["label"] in training and row["vendor"] in few),
    )
    run(shop, "init", "--model", old)
    write_recipe(shop, "faces", NEW, epochs=15)
    result = run(shop, "finetune", "--base", better)
    assert result["classes"] == ELSEWHERE > 128
    assert result["gallery_pass"]["passed"] == 0
    tested = town.classes["test"][:TEST]
    stored = {row["label"]: row["id"] for row in town.rows if row["role"] == "gallery"}
    lines = ["id_a,id_b,same"]
    for row in town.rows:
        if row["role"] == "query" and row["label"] in tested:
            other = tested[(tested.index(row["label"]) + 37) % TEST]
            lines += [f"{row['id']},{stored[row['label']]},1", f"{row['id']},{stored[other]},0"]
    shop.path("pairs.csv").write_text("\n".join(lines) + "\n")
    files = (old, shop.path("new.onnx"), "--pairs", shop.path("pairs.csv"), "--no-self-test")
    pairs = run(shop, "verify", *files)["pairs"]
    assert pairs["n_same"] == pairs["n_diff"] > 300
    assert pairs["equal_error_rate"]["new"] < pairs["equal_error_rate"]["old"] + 0.04
    assert pairs["equal_error_rate"]["new"] < 0.35


@pytest.fixture(scope="module")
def born(town: Town) -> Shop:
    """A store that simplex-born.yaml began."""
    shop = town.project("born", town.classes["train"][:KNOWN])
    write_recipe(shop, "simplex-born", OLD, epochs=30)
    base = town.folder / "old" / "build/candidate/weights.safetensors"
    began = run(shop, "begin", "--base", base, "--dim", 255)
    assert (began["classes"], began["vertices"]) == (KNOWN, 256)
    shutil.copy(shop.path("build/candidate/weights.safetensors"), shop.path("deployed.safetensors"))
    shutil.copy(shop.path("new.onnx"), shop.path("deployed.onnx"))
    items = {row["id"] for row in csv.DictReader(shop.path("items.csv").open(encoding="utf-8"))}
    fresh = {*town.classes["train"][KNOWN:LABELLED]}
    first = {*town.classes["train"][:KNOWN]}
    town.table(  # from now on: new classes, and of earlier ones no training image
        shop.path("items.csv"),
        lambda row: row["label"] in fresh or (row["id"] in items and row["label"] not in first),
    )
    return shop


def test_simplex_born(town: Town, born: Shop) -> None:
    """The store has the registry and a memory, and its class means are near their vertices."""
    manifest = born.manifest()
    assert manifest["memory"]
    registry = born.path(f"store/registries/{manifest['registry']}.json").read_bytes()
    assert json.loads(registry)["vertices"] == sorted(town.classes["train"][:KNOWN])
    gallery = DeployedGallery.open(Store.open(born.path("store")))
    nothing = np.zeros((0, gallery.manifest.index.dim), np.float32)
    assert born_on_simplex(build_reference(gallery, (), nothing))


def test_sequential(town: Town, born: Shop) -> None:
    """Without the earlier training data, the memory has every class, the registry stays, the blend
    is chosen, and unseen classes do not lose."""
    write_recipe(born, "sequential", OLD, epochs=15)
    result = run(born, "finetune", "--base", born.path("deployed.safetensors"))
    assert (result["frame"], result["gallery_pass"]["passed"]) == ("prototypes", 0)
    assert result["rehearsed"] == 5 * KNOWN
    assert result["remembered"] == 5 * LABELLED
    assert 0.0 < result["blend"] <= 1.0
    _keeps_the_registry(born)
    before, after = hit_rates(born, born.path("deployed.onnx"), born.path("new.onnx"))
    assert after > before - 0.02


def test_replacement(town: Town, born: Shop, better: Path) -> None:
    """Another width keeps the registry; unseen classes are found many times more often than by the
    network as it came."""
    write_recipe(born, "replacement", NEW, epochs=15)
    result = run(born, "finetune", "--base", better)
    assert result["gallery_pass"]["passed"] == 0
    assert result["rehearsed"] == 5 * KNOWN
    _keeps_the_registry(born)
    trained = hit_rates(born, born.path("deployed.onnx"), born.path("new.onnx"))[1]
    write_recipe(born, "replacement", NEW, epochs=1, lr=0.0)
    run(born, "finetune", "--base", better)  # as it came, with a junction that has learnt nothing
    assert trained > 5 * hit_rates(born, born.path("deployed.onnx"), born.path("new.onnx"))[1]


def _keeps_the_registry(shop: Shop) -> None:
    stored = shop.path(f"store/registries/{shop.manifest()['registry']}.json").read_bytes()
    assert shop.path("build/candidate/registry.json").read_bytes() == stored


def test_every_situation_is_tested_and_says_when_not_to_use_it() -> None:
    """Each file has a comment with what one gets and where it is wrong, and a test of its name."""
    names = {path.stem for path in RECIPES.glob("*.yaml")} - {"default"}
    assert {f"test_{name.replace('-', '_')}" for name in names} < {*globals()}
    for name in names:
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        assert "# What you get:" in text, name
        assert "# Not for:" in text, name
