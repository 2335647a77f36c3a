"""The gate's commands on an installed wheel: init, verify, deploy and rollback, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kits"))

from shop_kit import write_encoder

from compatctl.samples import emoji_source, unpack_emoji

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).parent / "compatctl"


def call(folder: Path, expected: int, *arguments: str) -> Any:
    """The JSON that the installed command prints; fails unless it exits with ``expected``."""
    process = subprocess.run(
        [SCRIPT, *arguments, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    if process.returncode != expected:
        raise SystemExit(
            f"{arguments}: exit {process.returncode}, not {expected}\n{process.stderr}"
        )
    return json.loads(process.stdout)


def main(folder: Path) -> None:
    """Create a store, deploy a verified model, search, and roll back."""
    folder.mkdir()
    table = unpack_emoji(emoji_source(), folder / "data")
    for name, noise in (("old", 0.6), ("new", 0.05), ("worse", 1.5)):
        write_encoder(folder / f"{name}.onnx", noise=noise)
    created = call(folder, 0, "init", "--model", "old.onnx", "--data", str(table))
    assert (folder / "compatctl.yaml").is_file()
    call(folder, 3, "verify", "old.onnx", "worse.onnx")
    call(folder, 3, "deploy")
    call(folder, 0, "verify", "old.onnx", "new.onnx")
    deployed = call(folder, 0, "deploy")
    assert deployed["index_sha256"] == created["index_sha256"]
    image = next((folder / "data" / "images" / "twemoji").iterdir())
    assert call(folder, 0, "search", str(image))["query_model"] == deployed["query_model"]
    assert call(folder, 0, "rollback")["query_model"] == created["query_model"]
    assert call(folder, 0, "check")["ok"]
    call(folder, 5, "finetune", "--base", "new.onnx")
    recipe = [SCRIPT, "finetune", "--print-recipe"]
    printed = subprocess.run(recipe, capture_output=True, check=True).stdout
    assert printed == (ROOT / "recipes" / "default.yaml").read_bytes()
    print(
        "the installed wheel: init, verify, deploy, search, rollback and check work without torch"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() / "gate")
