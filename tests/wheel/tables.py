"""What runs on an installed wheel without hnswlib: tables, the help, and a refusal by name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(sys.executable).parent / "compatctl"


def call(folder: Path, expected: int, *arguments: str) -> str:
    """Standard error of the installed command; fails unless it exits with ``expected``."""
    process = subprocess.run(
        [SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if process.returncode != expected:
        raise SystemExit(
            f"{arguments}: exit {process.returncode}, not {expected}\n{process.stderr}"
        )
    return process.stderr


def main(folder: Path) -> None:
    """Compare two tables, and see that init says what it needs."""
    folder.mkdir()
    assert importlib.util.find_spec("hnswlib") is None, "hnswlib is installed: this tests nothing"
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 4)
    centres = rng.standard_normal((60, 16))[labels]
    for name, noise in (("old", 1.2), ("new", 0.3)):
        features = centres + noise * rng.standard_normal(centres.shape)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        np.savez(folder / f"{name}.npz", ids=np.arange(240), labels=labels, features=features)
    call(folder, 0, "verify", "old.npz", "new.npz")
    call(folder, 3, "verify", "new.npz", "old.npz", "--report", "worse.json")
    call(folder, 0, "power", "--report", "report.json")
    assert importlib.util.find_spec("jinja2") is None, "jinja2 is installed: this tests nothing"
    said = call(folder, 2, "verify", "old.npz", "new.npz", "--html", "page.html")
    assert "compatctl[report]" in said, said
    assert not (folder / "page.html").exists()
    assert "compatctl[hnswlib]" in call(folder, 5, "init", "--model", "old.onnx")
    print("the installed wheel compares tables without a compiler and without hnswlib")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() / "tables")
