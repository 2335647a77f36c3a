"""Write docs/report.schema.json, the JSON schema of report.json.

    python docs/report_schema.py [--out FOLDER]

``make docs`` runs it for the checkout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compatctl.files import canonical_json
from compatctl.report import report_schema

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    folder: Path = parser.parse_args().out
    (folder / "report.schema.json").write_bytes(canonical_json(report_schema()))


if __name__ == "__main__":
    main()
