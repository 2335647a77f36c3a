"""finetune on real images: the candidate's files, its record, and what verify makes of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shop_kit import DIM, Shop
from tiny_backbone import build

from compatctl.data import load
from compatctl.encoder import Encoder, ImageInput

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {{height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}}
junction: {{kind: mlp, hidden: 64, dropout: 0.0}}
objective: {{frame: {frame}, lambda: {weight}, scale: {scale}}}
optimiser: {{epochs: 3, batch_size: 64, lr: 0.003}}
"""


def _recipe(shop: Shop, *, frame: str = "prototypes", weight: str = "0.5", **more: str) -> Path:
    path = shop.path("recipe.yaml")
    values = {"scale": "16.0", **more}
    path.write_text(RECIPE.format(frame=frame, weight=weight, **values))
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    return path


def _finetune(shop: Shop, recipe: Path, *more: object) -> object:
    result = shop.run("finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe, *more)
    assert result.code == 0, result.stderr
    return result.json


def test_the_candidate_and_its_record(shop: Shop) -> None:
    """The output is the candidate's file; the record has every training item by id and digest."""
    result = _finetune(shop, _recipe(shop))
    output, model = shop.path("new.onnx"), shop.path("build/candidate/model.onnx")
    assert output.read_bytes() == model.read_bytes()
    assert result["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()  # type: ignore[index]
    record = json.loads(shop.path("build/candidate/training.json").read_bytes())
    train = load(shop.data()).filter(split="train")
    assert {item["id"] for item in record["items"]} == set(train.ids)
    digests = {item["id"]: item["sha256"] for item in record["items"]}
    assert digests[train.ids[5]] == train.digest(5)
    assert record["classes"] == sorted(set(train.labels))
    counts = {
        "gallery": len(train.filter(role="gallery")),
        "encoder": len(train.filter(role="query")),
    }
    assert record["old_features"] == counts
    assert record["parity"] < 1e-4
    assert Encoder.load(output).dim == DIM


def test_the_candidate_prepares_images_as_its_recipe_says(shop: Shop) -> None:
    """Training, file and parity check share one preprocessing, the share of the crop included."""
    recipe = _recipe(shop)
    text = recipe.read_text()
    assert "fit: stretch" in text
    recipe.write_text(text.replace("fit: stretch", "crop_share: 0.8, crop_offset: round"))
    _finetune(shop, recipe)
    (taken,) = Encoder.load(shop.path("new.onnx")).inputs
    assert isinstance(taken, ImageInput)
    found = taken.preprocessing
    assert (found.fit, found.crop_share, found.crop_offset) == ("crop", 0.8, "round")
    record = json.loads(shop.path("build/candidate/training.json").read_bytes())
    assert record["parity"] < 1e-4


def test_the_same_seed_gives_the_same_file_and_another_seed_another(shop: Shop) -> None:
    """Two runs write the same ONNX bytes; --seed changes them."""
    recipe = _recipe(shop)
    shas = [_finetune(shop, recipe, "--seed", seed)["sha256"] for seed in (3, 3, 4)]  # type: ignore[index]
    assert shas[0] == shas[1] != shas[2]


def test_more_classes_than_vertices_are_refused(shop: Shop) -> None:
    """40 training classes do not fit a simplex in 32 dimensions: exit 5 says what to do."""
    recipe = _recipe(shop, frame="simplex")
    result = shop.run("finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    assert (result.code, "prototypes" in result.stderr) == (5, True), result.stderr


def test_a_simplex_without_a_store_needs_its_dimension(shop: Shop) -> None:
    """Neither a store nor objective.dim: exit 5 names both; with ``dim`` no store is needed."""
    recipe = _recipe(shop, frame="simplex")
    files = ("--base", shop.path("new.ckpt"), "--recipe", recipe, "--store", shop.path("none"))
    result = shop.run("finetune", *files, "--dry-run")
    assert (result.code, "no objective.dim" in result.stderr) == (5, True), result.stderr
    assert "no store at" in result.stderr
    assert "needs dim: 128" in result.stderr
    recipe.write_text(recipe.read_text().replace("frame: simplex", "frame: simplex, dim: 128"))
    assert shop.run("finetune", *files, "--dry-run").code == 0


def test_settings_are_chosen_on_validation_classes(shop: Shop) -> None:
    """Lists in the recipe are searched; the record has every trial and the best one's number."""
    _finetune(shop, _recipe(shop, weight="[0.1, 1.0]"))
    record = json.loads(shop.path("build/candidate/training.json").read_bytes())
    hit_rates = [trial["validation_hit_at_1"] for trial in record["trials"]]
    assert len(hit_rates) == 2
    assert record["choice"] == int(np.argmax(hit_rates))


@pytest.mark.parametrize(
    ("broken", "word"),
    [("stte: 1\n", "stte"), ("seed: 1e-3\n", "seed"), ("train: half\n", "train")],
)
def test_wrong_recipes_are_refused(shop: Shop, broken: str, word: str) -> None:
    """An unknown key, a wrong type and an unknown word end in exit 5 and name the key."""
    recipe = _recipe(shop)
    recipe.write_text(recipe.read_text() + broken)
    result = shop.run("finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    assert (result.code, word in result.stderr) == (5, True), result.stderr


def test_a_checkpoint_of_another_architecture_is_refused(shop: Shop) -> None:
    """Tensors of other shapes are exit 5; the message says so and nothing is written."""
    recipe = _recipe(shop)
    torch.save(build(width=48).state_dict(), shop.path("new.ckpt"))
    before = shop.path("new.onnx").read_bytes()
    result = shop.run("finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    assert result.code == 5, result.stderr
    assert shop.path("new.onnx").read_bytes() == before


def test_a_dry_run_counts_and_writes_nothing(shop: Shop) -> None:
    """--dry-run tells how many items would train and be embedded; no candidate appears."""
    recipe = _recipe(shop)
    planned = _finetune(shop, recipe, "--dry-run")
    train = load(shop.data()).filter(split="train")
    assert planned["training_items"] == len(train)  # type: ignore[index]
    assert planned["to_embed_with_the_old_model"] == len(train.filter(role="query"))  # type: ignore[index]
    assert not shop.path("build").exists()


@pytest.mark.parametrize("flag", ["--resume", "--skip-bad"])
def test_a_dry_run_refuses_options_without_effect(shop: Shop, flag: str) -> None:
    """--dry-run with --resume or --skip-bad is exit 2, and the message names the option."""
    _recipe(shop)
    refused = shop.run("finetune", "--base", shop.path("new.ckpt"), "--dry-run", flag)
    assert refused.code == 2
    assert flag in refused.stderr


def test_earlier_items_are_rehearsed(shop: Shop, emoji: Path) -> None:
    """--memory adds the given number of earlier images of each class; the recipe must rehearse."""
    recipe = _recipe(shop)
    lines = shop.data().read_text().splitlines()
    labels = sorted({line.split(",")[2] for line in lines[1:] if ",train," in line})[:10]
    kept = [line for line in lines[1:] if line.split(",")[2] in labels]
    fresh = [line for line in lines[1:] if line.split(",")[2] not in labels]
    for name, part in (("memory.csv", kept), ("fresh.csv", fresh)):
        (emoji / name).write_text("\n".join([lines[0], *part]) + "\n")
    given = ("--data", emoji / "fresh.csv", "--memory", emoji / "memory.csv")
    start = ("finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    unwanted = shop.run(*start, *given)
    assert (unwanted.code, "rehearsal" in unwanted.stderr) == (5, True), unwanted.stderr
    recipe.write_text(recipe.read_text() + "rehearsal: {per_class: 2}\n")
    vain = shop.run(*start, "--data", emoji / "fresh.csv", "--memory", emoji / "fresh.csv")
    assert (vain.code, "train anyway" in vain.stderr) == (5, True), vain.stderr
    result = _finetune(shop, recipe, *given)
    record = json.loads(shop.path("build/candidate/training.json").read_bytes())
    assert record["memory_items"] == result["rehearsed"] == 2 * len(labels)  # type: ignore[index]
    assert set(labels) < set(record["classes"])
    assert result["items"] == len(record["items"])  # type: ignore[index]
    assert result["remembered"] == 2 * len(record["classes"])  # type: ignore[index]


def test_what_was_trained_is_not_lost_where_it_cannot_be_written(shop: Shop) -> None:
    """The checkpoint stays until the candidate is written: the same command with --resume trains no
    epoch again and gives the uninterrupted candidate, and then the checkpoint is gone."""
    recipe = _recipe(shop)
    options = ("--base", shop.path("new.ckpt"), "--recipe", recipe)
    model = shop.path("build/candidate/model.onnx")
    checkpoint = model.with_name("checkpoint.pt")
    model.mkdir(parents=True)  # as a full disk: nothing can be written there
    failed = shop.run("finetune", *options)
    assert failed.code == 5
    assert str(model) in failed.stderr
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 3
    model.rmdir()
    resumed = _finetune(shop, recipe, "--resume")
    assert not checkpoint.exists()
    again = _finetune(shop, recipe)
    assert resumed["sha256"] == again["sha256"]  # type: ignore[index]


@pytest.mark.parametrize("option", ["--candidate", "--output"])
def test_where_nothing_can_be_written_is_refused_before_the_training(
    shop: Shop, option: str
) -> None:
    """A file is where a folder should be, or the other way round; a link leads nowhere."""
    recipe = _recipe(shop)
    shop.path("taken").write_text("")
    shop.path("nowhere").symlink_to("gone")
    for name in ("taken", "nowhere"):
        result = shop.run(
            "finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe,
            option, shop.path(f"{name}/new.onnx"),
        )  # fmt: skip
        assert result.code == 5, result.stderr
        assert name in result.stderr
    assert not shop.path("build/candidate/checkpoint.pt").exists()
