"""The demo as a stranger runs it: real backbones, real images, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _compatctl(*arguments: str | Path, cwd: Path) -> tuple[int, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "compatctl", *map(str, arguments), "--json"],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # two demos at once, a core each
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout)


def test_the_demo_gains_deploys_and_rolls_back(tmp_path: Path) -> None:
    """new_old > old_old on unseen classes, one index throughout, and its project works on."""
    code, demo = _compatctl("demo", "--keep", tmp_path / "kept", cwd=tmp_path)
    assert (code, demo["verdict"], demo["rolled_back"]) == (0, "pass", True)
    assert demo["new_old"] > demo["old_old"]
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
    assert demo["served"]["after"] > demo["served"]["before"] == demo["served"]["rolled_back"]
    code, status = _compatctl("status", cwd=tmp_path / "kept")
    assert (code, status["operation"]) == (0, "rollback")
    assert _compatctl("deploy", cwd=tmp_path / "kept")[0] == 3  # it was rolled back
    again = ("--again", "--reason", "the demo is over")
    assert _compatctl("deploy", *again, cwd=tmp_path / "kept")[0] == 0


def test_the_sabotaged_demo_is_refused(tmp_path: Path) -> None:
    """A candidate that learnt a shuffled class-to-vertex map ends in exit 3, undeployed."""
    code, demo = _compatctl("demo", "--sabotage", cwd=tmp_path)
    assert (code, demo["verdict"], demo["deployed_route"]) == (3, "fail", None)
    assert demo["new_old"] < demo["old_old"]
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
