"""The large character set: which characters, which typefaces, and what a small one comes out as."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from examples_kit import needs_dpkg, package_of, script

from compatctl.data import load


@pytest.fixture
def build() -> ModuleType:
    """The script that draws the images, imported anew and not run."""
    return script("characters/build")


def test_every_typeface_has_one_use(build: ModuleType) -> None:
    """21 typefaces of 18 designs; no weight of a design is held out while another trains."""
    names = [font.name for package in build.PACKAGES for font in package.fonts]
    assert sorted(names) == sorted(build.ORDER)
    assert len(set(names)) == len(names) == 21
    assert len({build.WEIGHTS.get(name, name) for name in names}) == 18
    held_out = {build.WEIGHTS.get(name, name) for name in build.HELD_OUT}
    assert not held_out & {build.WEIGHTS.get(n, n) for n in (*build.GALLERY, *build.TRAINING)}


def test_the_characters_are_two_blocks_of_unicode(build: ModuleType) -> None:
    """20,902 unified ideographs and 6,582 of Extension A, 3 in 5 of them for training."""
    known = build.characters()
    assert len(known) == len(set(known)) == 20902 + 6582
    assert (known[0], known[20901], known[20902], known[-1]) == ("一", "龥", "㐀", "䶵")
    assert np.mean([build.split_of(name) == "train" for name in known]) == pytest.approx(
        0.6, abs=0.01
    )


def test_a_character_needs_twelve_designs_and_the_whole_gallery(build: ModuleType) -> None:
    """Weights of one design count once; of characters drawn alike the first stays."""
    held = {name: np.ones(6, dtype=bool) for name in build.ORDER}
    for name in (*build.HELD_OUT[:6],):
        held[name][1] = False  # 12 designs are left
    for name in (*build.HELD_OUT[:7],):
        held[name][2] = False  # 11 designs, 14 typefaces
    held[build.GALLERY[-1]][3] = False
    choice = build.choose(held, {(0, 2), (4, 5)}, list("一丁七万丈三"))
    assert choice.chosen.tolist() == [True, True, False, False, True, False]
    assert choice.alike == ("丈三",)


def test_held_out_typefaces_train_nothing(build: ModuleType) -> None:
    """Their training characters are test items; their validation characters are left out."""
    by_split = {build.split_of(character): character for character in build.characters()[:100]}
    for name in build.ORDER:
        splits = {split: build.split_in(name, character) for split, character in by_split.items()}
        if name in build.HELD_OUT:
            assert splits == {"train": "test", "validation": None, "test": "test"}
        else:
            assert splits == {split: split for split in by_split}


def _small(build: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """The builder on a package of two typefaces, one of them held out, and Latin letters."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ一"
    package = package_of(build, folder, "one", "two")
    monkeypatch.setattr(build, "PACKAGES", (package,))
    monkeypatch.setattr(build, "GALLERY", ("one",))
    monkeypatch.setattr(build, "HELD_OUT", ("two",))
    monkeypatch.setattr(build, "ORDER", ("one", "two"))
    monkeypatch.setattr(build, "DESIGNS", 2)
    monkeypatch.setattr(build, "characters", lambda: list(letters))
    return letters[:-1]


@needs_dpkg
def test_a_small_set_is_built_and_read(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The gallery comes first, every image has its slices, and a second run writes the same."""
    letters = _small(build, monkeypatch, tmp_path)
    outs = [tmp_path / name for name in ("first.npz", "second.npz")]
    for out in outs:
        words = ["build.py", "--packages", str(tmp_path), "--out", str(out)]
        monkeypatch.setattr("sys.argv", words)
        build.main()
    assert outs[0].read_bytes() == outs[1].read_bytes()
    data = load(outs[0])
    held_out = [letter for letter in letters if build.split_of(letter) != "validation"]
    assert list(data.ids) == [f"one/{x}" for x in letters] + [f"two/{x}" for x in held_out]
    for row, item in enumerate(data.items):
        is_held_out = item.slices["font"] == "two"
        assert item.role == ("query" if is_held_out else "gallery")
        assert item.slices["use"] == ("held-out" if is_held_out else "gallery")
        assert item.slices["classes"] == build.split_of(item.label)
        assert item.split == ("test" if is_held_out else build.split_of(item.label))
        same = data.ids.index(f"one/{item.label}")
        assert np.array_equal(data.read(row), data.read(same))
