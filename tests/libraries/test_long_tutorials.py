"""The tutorials whose models come with packages, run block by block in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks_kit import run_page
from pipeline_kit import ROOT

pytest.importorskip("sentence_transformers", reason="make libraries-test runs these")


@pytest.mark.parametrize("name", ["images", "texts"])
def test_a_tutorial_with_models_of_packages_runs(name: str, tmp_path: Path) -> None:
    """Every block runs in its order, and what it shows is printed."""
    run_page(ROOT / "docs" / "tutorials" / f"{name}.md", tmp_path, {})
