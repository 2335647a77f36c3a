"""Print what each extra downloads: packages and megabytes, for this machine's Python and platform.

    python docs/extras_size.py > sizes.md

``pip`` resolves each extra as in an empty environment, without its settings of this machine, and
installs nothing; the size of a file is what its server says. Files that ``pip`` compiles (hnswlib)
count as their source.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
OURS = "compatctl"
LEFT_OUT = {"dev"}
"""Extras that no user installs."""


def main() -> None:
    """Print the table, a row for each extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [None, *extras["project"]["optional-dependencies"]]
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}\n")
    print("| extra | packages | MB |\n|---|---:|---:|", flush=True)
    for name in names:
        if name not in LEFT_OUT:
            urls = resolved(str(ROOT) if name is None else f"{ROOT}[{name}]")
            size = sum(map(size_of, urls))
            shown = "none" if name is None else f"`{name}`"
            print(f"| {shown} | {len(urls)} | {size / 1e6:.0f} |", flush=True)


def resolved(requirement: str) -> list[str]:
    """Where the packages of a requirement come from, compatctl itself left out.

    Raises:
        subprocess.CalledProcessError: pip cannot resolve it; what it says goes to stderr.
    """
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--dry-run", "--ignore-installed", "--report", "-", requirement],
        stdout=subprocess.PIPE,
        check=True,
    )
    entries = json.loads(done.stdout)["install"]
    return [entry["download_info"]["url"] for entry in entries if entry["metadata"]["name"] != OURS]


@cache
def size_of(url: str) -> int:
    """Bytes of a file, as its server says."""
    with urlopen(Request(url, method="HEAD")) as answer:
        return int(answer.headers["Content-Length"])


if __name__ == "__main__":
    main()
