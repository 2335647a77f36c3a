"""A wheel and a source distribution hold what they must, nothing else, and an index takes them."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

IN_SOURCE = (
    ".ci/constraints.txt",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "docs/index.md",
    "examples/emoji/items.csv",
    "pyproject.toml",
    "recipes/default.yaml",
    "tests/wheel/run.py",
)
"""Files without which the tests and the documents of the source distribution would not run."""

MADE = re.compile(r"\.venv|__pycache__|\.pyc$|_cache/|^(?:build|dist)/|\.git/")
"""Paths of what is made in a checkout, which no archive may hold."""


def main(folder: Path) -> None:
    """Check the one wheel and the one source distribution in ``folder``."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    twine = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    subprocess.run(twine, check=True)
    check_wheel(wheel)
    check_source(source)
    print(f"{wheel.name} {wheel.stat().st_size} bytes, {source.name} {source.stat().st_size} bytes")


def check_wheel(path: Path) -> None:
    """``compatctl`` alone at the top, typed, with its commands, and metadata that say so."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        assert {name.split("/")[0] for name in names} == {"compatctl", info}
        assert "compatctl/py.typed" in names
        assert not [name for name in names if MADE.search(name)]
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert "[console_scripts]\ncompatctl = compatctl.__main__:main" in entry_points, entry_points
    assert "[pytest11]\ncompatctl = compatctl.pytest_plugin" in entry_points, entry_points
    check_metadata(metadata)


def check_metadata(metadata: Message) -> None:
    """A licence, the versions of Python, and a description without a link that leads nowhere."""
    assert metadata["License-Expression"] == "Apache-2.0"
    classifiers = metadata.get_all("Classifier", [])
    minors = [int(minor) for minor in re.findall(r"Python :: 3\.(\d+)\b", "\n".join(classifiers))]
    assert f">=3.{min(minors)}" in metadata["Requires-Python"], metadata["Requires-Python"]
    description = metadata.get_payload()
    assert isinstance(description, str)
    assert "pip install compatctl" in description
    relative = re.findall(r"\]\((?!https?:|#)[^)]*\)", description)
    assert not relative, relative


def check_source(path: Path) -> None:
    """The tests, documents and data of the repository, and nothing that is made in it."""
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    missing = [name for name in IN_SOURCE if name not in names]
    assert not missing, missing
    assert not [name for name in names if MADE.search(name)]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
