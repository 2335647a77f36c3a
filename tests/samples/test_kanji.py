"""The kanji example: its recipes, its network, and its data set."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from examples_kit import EXAMPLES, program, script

from compatctl.recipe import Project, Recipe

FOLDER = EXAMPLES / "kanji"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script that draws the images, imported without running it."""
    return script("kanji/build")


def test_the_characters_are_jis_level_1(build: ModuleType) -> None:
    """There are 2,965 different kanji; the first and the last are those of the standard."""
    characters = build.characters()
    assert len(characters) == len(set(characters)) == 2965
    assert characters[0] == "亜"
    assert characters[-1] == "腕"
    assert all(len(character) == 1 for character in characters)


def test_splits_are_by_class(build: ModuleType) -> None:
    """The first byte of sha1 gives 1,802 characters to train, 263 to validation, 900 to test."""
    for character in build.characters()[::100]:
        byte = hashlib.sha1(character.encode()).digest()[0]
        expected = "train" if byte < 153 else "validation" if byte < 178 else "test"
        assert build.split_of(character) == expected
    splits = [build.split_of(character) for character in build.characters()]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [1802, 263, 900]


@pytest.mark.parametrize(
    ("name", "frame"), [("old", "free"), ("pretrain", "free"), ("new", "prototypes")]
)
def test_recipes_load(name: str, frame: str) -> None:
    """Every recipe of the example is valid and trains the whole network in its frame."""
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    assert recipe.objective.frame == (frame,)
    assert recipe.train == "full"


def test_the_candidate_trains_by_the_cross_entropy_alone() -> None:
    """new.yaml has the default frame, stage taps and junction, and lambda 1."""
    ours = Recipe.load(FOLDER / "new.yaml")
    default = Recipe.load(FOLDER.parents[1] / "recipes" / "default.yaml")
    assert (ours.objective.frame, ours.objective.lambda_) == (default.objective.frame, (1.0,))
    assert (ours.backbone.taps, ours.junction) == (default.backbone.taps, default.junction)


def test_the_project_file_loads() -> None:
    """compatctl.yaml of the example is valid and keeps the default policy."""
    project = Project.load(FOLDER / "compatctl.yaml")
    assert project.policy == "default"
    assert project.data == FOLDER / "kanji.npz"


def test_the_network_reads_small_grey_images() -> None:
    """(N, 3, 32, 32) gives (N, features), which depend only on the first channel."""
    torch = pytest.importorskip("torch")
    network = script("kanji/cnn").build(width=8, features=16).eval()
    images = torch.rand(2, 3, 32, 32)
    out = network(images)
    assert out.shape == (2, 16)
    images[:, 1:] = 0
    assert torch.equal(network(images), out)


def test_the_incoming_model_is_pretrained_with_the_network_of_the_folder(tmp_path: Path) -> None:
    """run.py writes the weights and the model of its cnn.py, which the recipes name."""
    pytest.importorskip("torch")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    (tmp_path / "latin.ttf").write_bytes(program())
    typefaces = script("typefaces")
    latin = typefaces.Typeface(name="latin", file="latin.ttf")
    images = dict(typefaces.drawn(latin, tmp_path / "latin.ttf", letters))
    assert len(images) == len(letters)
    for name in ("cnn.py", "pretrain.yaml"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    np.savez(
        tmp_path / "elsewhere.npz",
        images=np.stack([*images.values()] * 2),
        ids=np.array([f"{copy}/{letter}" for copy in (0, 1) for letter in letters]),
        labels=np.array([*letters] * 2),
        split=np.array(["train"] * 2 * len(letters)),
    )
    code = (
        "import sys; from pathlib import Path; folder = Path(sys.argv[1]); import run; "
        "run.enter(folder); run.scratch(folder, 0); run.pretrain(folder, 0)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(FOLDER)!r}; {code}", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in ("scratch.ckpt", "new.ckpt", "independent.onnx"):
        assert (tmp_path / name).stat().st_size > 0
