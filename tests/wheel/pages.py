"""What the extra report adds on an installed wheel: a page, and the schema beside the module."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "compatctl"


def main(folder: Path) -> None:
    """Write the page of the report that tables.py left."""
    subprocess.run([SCRIPT, "report", "worse.json"], cwd=folder, check=True)
    page = (folder / "worse.html").read_text(encoding="utf-8")
    report = json.loads((folder / "worse.json").read_bytes())
    assert report["summary"] in page
    schema = json.loads((files("compatctl.report") / "report.schema.json").read_bytes())
    assert set(report) <= set(schema["$defs"]["Report"]["properties"])
    print("the page and the schema are in the wheel")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() / "tables")
