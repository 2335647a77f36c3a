"""An image model in a folder of transformers is fine-tuned: its head, its layers, or by LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shop_kit import Result, run
from test_export import save_image_folder

from compatctl.encoder import Encoder

pytest.importorskip("torch")
pytest.importorskip("transformers")

CLASSES = 24


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of images by an exported ViT; a folder of DINOv2, with another preprocessing."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
        for number in range(4):
            smooth = Image.fromarray(coarse).resize((50 + number, 60), Image.Resampling.BICUBIC)
            noisy = np.asarray(smooth, np.float32) + rng.normal(0, 25, (60, 50 + number, 3))
            path = tmp_path / "images" / f"class{label}" / f"{label}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
    save_image_folder("vit", tmp_path / "old")
    save_image_folder("dinov2", tmp_path / "new")
    assert run("export", "transformers:old", "-o", "old.onnx").code == 0
    made = run("init", "--model", "old.onnx", "--data", "images")
    assert made.code == 0, made.stderr
    return tmp_path


def _finetune(base: str = "new", **settings: Any) -> Result:
    recipe = {"format": 1, "optimiser": {"epochs": 2, "batch_size": 16}, **settings}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    flags = ("--recipe", "recipe.yaml", "--data", "images", "--output", "tuned.onnx", "--json")
    return run("finetune", "--base", base, *flags)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": "full", "layers": 1, "augmentation": {"flip": True}},
        {"train": "lora", "lora": {"rank": 2}, "free_head": False},
    ],
    ids=["head", "last layer", "lora"],
)
def test_the_file_is_the_trained_network(shop: Path, settings: dict[str, Any]) -> None:
    """It equals torch on the images, by the folder's own preprocessing, in the gallery's dimension;
    and its weights are the base of the next run, whose recipe names the folder, if the project
    permits it."""
    if settings.get("train") == "lora":
        pytest.importorskip("peft")
    tuned = _finetune(**settings)
    assert tuned.code == 0, tuned.stderr
    assert tuned.json["parity"] < 1e-3
    encoder = Encoder.load(Path("tuned.onnx"))
    assert encoder.dim == 32
    (source,) = encoder.inputs
    assert source.shape == (64, 64, 3)
    assert run("verify", "tuned.onnx", "--data", "images", "--dry-run").code in {0, 3, 4}
    recipe = json.loads(Path("build/candidate/training.json").read_text())["recipe"]
    weights = tuned.json["weights"]
    refused = _finetune(weights, backbone=recipe["backbone"])
    assert refused.code == 5
    assert "makes no network that this project permits" in refused.stderr
    Path("compatctl.yaml").write_text('factories: ["transformers:new"]\n')
    again = _finetune(weights, backbone=recipe["backbone"])
    assert again.code == 0, again.stderr


def test_a_recipe_of_a_folder_names_no_other_network(shop: Path) -> None:
    """A backbone beside a folder as the base is refused."""
    backbone = {"factory": "timm:resnet18", "input": {"height": 32, "width": 32}}
    refused = _finetune(backbone=backbone)
    assert refused.code == 5
    assert "the recipe names a backbone" in refused.stderr
