"""What the builders of character sets share: packages that are checked, glyphs that are there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from examples_kit import needs_dpkg, package_of, program, script


@pytest.fixture(scope="module")
def typefaces() -> ModuleType:
    """The module that both builders import."""
    return script("typefaces")


@pytest.mark.parametrize(
    ("name", "packages", "fonts", "megabytes"),
    [("kanji", 9, 10, 113), ("characters", 17, 21, 472)],
)
def test_packages_are_pinned_licensed_and_announced(
    name: str, packages: int, fonts: int, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a size, a SHA-256 and a licence, and is named before anything is downloaded."""
    build = script(f"{name}/build")
    names = [font.name for package in build.PACKAGES for font in package.fonts]
    assert len(build.PACKAGES) == packages
    assert len(set(names)) == len(names) == fonts
    build.announce(build.PACKAGES)
    output = capsys.readouterr().out
    assert f"{megabytes} MB in all" in output
    for package in build.PACKAGES:
        assert package.bytes > 0
        assert len(package.sha256) == 64
        assert package.licence
        assert package.name in output
        assert package.licence in output


def test_another_version_of_a_package_is_refused(typefaces: ModuleType, tmp_path: Path) -> None:
    """A .deb with another digest ends the script with both digests in the message."""
    package = typefaces.RAMPART
    (tmp_path / f"{package.name}_9_all.deb").write_bytes(b"another version")
    with pytest.raises(SystemExit, match=package.sha256):
        typefaces.fetch(package, tmp_path)


def test_characters_without_a_glyph_are_left_out(typefaces: ModuleType, tmp_path: Path) -> None:
    """Neither a blank nor the sign for a missing character is an image; the others are centred."""
    file = tmp_path / "latin.ttf"
    file.write_bytes(program())
    face = typefaces.Typeface(name="latin", file=file.name)
    images = dict(typefaces.drawn(face, file, ["A", " ", "一", "B", "丁"]))
    assert sorted(images) == [0, 3]
    for image in images.values():
        assert image.shape == (32, 32)
        assert image.dtype == np.uint8
        inked = np.argwhere(image < 128)
        assert np.abs(inked.min(axis=0) + inked.max(axis=0) - 31).max() <= 2
    again = dict(typefaces.drawn(face, file, ["A"]))
    assert np.array_equal(again[0], images[0])


@needs_dpkg
def test_a_package_is_removed_once_its_fonts_are_drawn(
    typefaces: ModuleType, tmp_path: Path
) -> None:
    """While the caller draws there is one font program; then none, and no downloaded package."""
    package = package_of(typefaces, tmp_path, "one", "two")
    names = []
    for face, file in typefaces.unpacked([package], tmp_path, None):
        assert file.is_file()
        names.append(face.name)
    assert names == ["one", "two"]
    assert list(tmp_path.iterdir()) == []


@needs_dpkg
def test_packages_in_a_folder_of_the_user_stay(typefaces: ModuleType, tmp_path: Path) -> None:
    """With a folder of packages, the package stays there and nothing else is left."""
    kept, folder = tmp_path / "kept", tmp_path / "work"
    kept.mkdir()
    folder.mkdir()
    package = package_of(typefaces, kept, "one")
    assert [face.name for face, _ in typefaces.unpacked([package], folder, kept)] == ["one"]
    assert len(list(kept.iterdir())) == 1
    assert list(folder.iterdir()) == []
