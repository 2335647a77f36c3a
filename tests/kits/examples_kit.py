"""Scripts of the examples, imported and not run, and a font package for them to draw from."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import ImageFont

EXAMPLES = Path(__file__).parents[2] / "examples"

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg here")


def script(name: str) -> ModuleType:
    """The module ``examples/<name>.py``."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def program() -> bytes:
    """A real font program: the Latin one that Pillow carries."""
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_bytes


def package_of(typefaces: ModuleType, folder: Path, *names: str) -> object:
    """A real Debian package in ``folder``: one font program, once for each name."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: fonts-ours\nVersion: 1\nArchitecture: all\nMaintainer: us\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "ours.ttf").write_bytes(program())
    file = folder / "fonts-ours_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(file)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return typefaces.Package(
        name="fonts-ours",
        licence="OFL-1.1",
        bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        fonts=tuple(typefaces.Typeface(name=name, file="ours.ttf") for name in names),
    )
