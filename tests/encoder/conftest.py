"""Encoders exported by torch in two processes of two folders, and real images."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import draw

from compatctl.data import Dataset, load

SCRIPT = Path(__file__).parent / "torch_exports.py"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders with small0.onnx, exported by one script; the first has the others too."""
    folders = [tmp_path_factory.mktemp(name) for name in ("here", "elsewhere")]
    running = []
    for folder in folders:
        script = folder / f"{folder.name}_source.py"
        shutil.copy(SCRIPT, script)
        running.append(subprocess.Popen([sys.executable, script.name, folder.name], cwd=folder))
    assert [process.wait() for process in running] == [0, 0]
    return folders[0], folders[1]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 3 classes with 5 real images each, PNG and JPEG."""
    root = tmp_path / "images"
    for seed in range(15):
        folder = root / f"class{seed % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        kind = "png" if seed % 2 else "jpg"
        draw(seed, 30 + seed).save(folder / f"{seed:02d}.{kind}")
    return root


@pytest.fixture
def dataset(images: Path) -> Dataset:
    """The data set of those 15 images."""
    return load(images)
