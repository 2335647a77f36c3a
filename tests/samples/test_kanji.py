"""The kanji example: its recipes, its network, and its data set."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from compatctl.recipe import Project, Recipe

FOLDER = Path(__file__).parents[2] / "examples" / "kanji"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kanji_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script that draws the images, imported without running it."""
    return _module("build")


def test_the_characters_are_jis_level_1(build: ModuleType) -> None:
    """There are 2,965 different kanji; the first and the last are those of the standard."""
    characters = build.characters()
    assert len(characters) == len(set(characters)) == 2965
    assert characters[0] == "亜"
    assert characters[-1] == "腕"
    assert all(len(character) == 1 for character in characters)


def test_splits_are_by_class(build: ModuleType) -> None:
    """The first byte of sha1 gives 1,802 characters to train, 263 to validation, 900 to test."""
    for name in build.characters()[::100]:
        byte = hashlib.sha1(name.encode()).digest()[0]
        expected = "train" if byte < 153 else "validation" if byte < 178 else "test"
        assert build.split_of(name) == expected
    splits = [build.split_of(name) for name in build.characters()]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [1802, 263, 900]


def test_packages_are_pinned_and_licensed(build: ModuleType) -> None:
    """Nine packages give ten fonts, each with a size, a SHA-256 and a licence."""
    assert len(build.PACKAGES) == 9
    fonts = [font for package in build.PACKAGES for font, _ in package.fonts]
    assert len(set(fonts)) == len(fonts) == 10
    assert build.GALLERY in fonts
    for package in build.PACKAGES:
        assert package.bytes > 0
        assert len(package.sha256) == 64
        assert package.licence


def test_another_version_of_a_package_is_refused(build: ModuleType, tmp_path: Path) -> None:
    """A .deb with another digest ends the script, and the message has the expected digest."""
    package = build.PACKAGES[0]
    (tmp_path / f"{package.name}_9_all.deb").write_bytes(b"another version")
    with pytest.raises(SystemExit, match=package.sha256):
        build.fetch(package, tmp_path)


def test_the_downloads_are_announced(build: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The announcement names every package and the total in megabytes."""
    build.announce()
    output = capsys.readouterr().out
    assert "113 MB" in output
    assert all(package.name in output for package in build.PACKAGES)


@pytest.mark.parametrize(
    ("name", "frame"), [("old", "free"), ("pretrain", "free"), ("new", "prototypes")]
)
def test_recipes_load(name: str, frame: str) -> None:
    """Every recipe of the example is valid and trains the whole network in its frame."""
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    assert recipe.objective.frame == (frame,)
    assert recipe.train == "full"


def test_the_objective_is_the_default_one() -> None:
    """The loss of new.yaml is that of recipes/default.yaml, without anchors."""
    ours = Recipe.load(FOLDER / "new.yaml").objective
    default = Recipe.load(FOLDER.parents[1] / "recipes" / "default.yaml").objective
    assert (ours.frame, ours.lambda_, ours.scale) == (default.frame, default.lambda_, default.scale)
    assert ours.anchors is None


def test_the_project_file_loads() -> None:
    """compatctl.yaml of the example is valid and keeps the default policy."""
    project = Project.load(FOLDER / "compatctl.yaml")
    assert project.policy == "default"
    assert project.data == FOLDER / "kanji.npz"


def test_the_network_reads_small_grey_images() -> None:
    """(N, 3, 32, 32) gives (N, features), which depend only on the first channel."""
    torch = pytest.importorskip("torch")
    network = _module("cnn").build(width=8, features=16).eval()
    images = torch.rand(2, 3, 32, 32)
    out = network(images)
    assert out.shape == (2, 16)
    images[:, 1:] = 0
    assert torch.equal(network(images), out)
