from __future__ import annotations

from pathlib import Path

import pytest
import store_kit

from compatctl.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 20 rows at generation 1."""
    return store_kit.begin(tmp_path / "store")
