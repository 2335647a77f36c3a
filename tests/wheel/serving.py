"""Serve the store that gate.py made, from an installed wheel with the extra serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen


def main() -> None:
    """The page is in the wheel, and the service answers and ends."""
    folder = Path(sys.argv[1])
    project = next(path.parent for path in folder.rglob("manifest.json")).parent
    script = Path(sys.executable).parent / "compatctl"
    service = subprocess.Popen(
        [script, "serve", "--port", "0"], cwd=project, stderr=subprocess.PIPE, text=True
    )
    assert service.stderr is not None
    line = service.stderr.readline()
    address = line.split()[-1]
    assert address.startswith("http://127.0.0.1:"), line
    assert b"<!doctype html>" in urlopen(address + "/").read()
    assert b'"ready":true' in urlopen(address + "/readyz").read()
    service.terminate()
    assert service.wait(timeout=60) == 0


if __name__ == "__main__":
    main()
