"""Build wheel and source distribution, install them in a new environment, run the gate's commands.

The interpreter is the first argument, such as ``python3.13``; by default the one that runs this.
Without extras there is neither torch nor hnswlib: tables are compared. With the extra hnswlib the
commands of a store run; verify, deploy and search need no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import archives

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
PROBE = """
import importlib.util, pathlib, sys, compatctl, compatctl.samples
assert importlib.util.find_spec("torch") is None, "torch is installed: this tests nothing"
assert pathlib.Path(compatctl.__file__).is_relative_to(sys.prefix), compatctl.__file__
assert "demo_data" in str(compatctl.samples.emoji_source())
from compatctl import Encoder, Store, verify, deploy, compatibility_matrix
print(compatctl.__version__)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of a command, which must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return process.stdout


def install(python: Path, target: str | Path) -> None:
    """Install a wheel, maybe with extras, into the environment of ``python``."""
    run(python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, target)


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution, from which the same wheel comes as from the tree."""
    run(sys.executable, "-m", "build", "--outdir", folder / "dist")  # a wheel of the source's
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "tree")
    archives.main(folder / "dist")
    (wheel,), (source,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    assert wheel.read_bytes() == (folder / "tree" / wheel.name).read_bytes()
    return wheel, source


def main(interpreter: str) -> None:
    """Build, install, and run the commands of tables, of a store, and its service."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel, source = build(folder)
        run(interpreter, "-m", "venv", folder / "env")
        python = folder / "env" / "bin" / "python"
        install(python, source)
        version = run(python, "-c", PROBE, cwd=folder).strip()
        script = folder / "env" / "bin" / "compatctl"
        assert run(script, "--version", cwd=folder).strip() == f"compatctl {version}"
        run(python, ROOT / "tests" / "wheel" / "tables.py", folder, cwd=folder)
        install(python, f"{wheel}[hnswlib]")
        run(python, ROOT / "tests" / "wheel" / "gate.py", folder, cwd=folder)
        run(python, ROOT / "tests" / "wheel" / "pipelines.py", folder, wheel, cwd=folder)
        install(python, f"{wheel}[report]")
        run(python, ROOT / "tests" / "wheel" / "pages.py", folder, cwd=folder)
        install(python, f"{wheel}[serve]")
        run(python, ROOT / "tests" / "wheel" / "serving.py", folder, cwd=folder)
        print(run(python, "--version").strip())
        print("1 passed, 0 failed")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
