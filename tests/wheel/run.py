"""Build the wheel, install it in a new environment, and run the gate's commands.

Without extras there is neither torch nor hnswlib: tables are compared. With the extra hnswlib the
commands of a store run; verify, deploy and search need no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

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


def main() -> None:
    """Build the wheel, install it, and run the commands of tables, of a store, and its service."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist")
        (wheel,) = (folder / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            top = {name.split("/")[0] for name in archive.namelist()}
        assert {name for name in top if not name.endswith(".dist-info")} == {"compatctl"}, top
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        install(python, wheel)
        version = run(python, "-c", PROBE, cwd=folder).strip()
        script = folder / "env" / "bin" / "compatctl"
        assert run(script, "--version", cwd=folder).strip() == f"compatctl {version}"
        size = wheel.stat().st_size
        run(python, ROOT / "tests" / "wheel" / "tables.py", folder, cwd=folder)
        install(python, f"{wheel}[hnswlib]")
        run(python, ROOT / "tests" / "wheel" / "gate.py", folder, cwd=folder)
        run(python, ROOT / "tests" / "wheel" / "pipelines.py", folder, wheel, cwd=folder)
        install(python, f"{wheel}[report]")
        run(python, ROOT / "tests" / "wheel" / "pages.py", folder, cwd=folder)
        install(python, f"{wheel}[serve]")
        run(python, ROOT / "tests" / "wheel" / "serving.py", folder, cwd=folder)
        print(json.dumps({"wheel": wheel.name, "bytes": size}))
        print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
