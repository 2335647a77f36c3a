"""Every later version opens the committed stores under tests/fixtures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shop_kit import run

from compatctl.store import Store, check

FIXTURES = Path(__file__).parent.parent / "fixtures"
STORES = sorted(path.name for path in FIXTURES.glob("store-v*"))
ITEM = "noto/0023-20e3"
"""The item whose image is query.png."""
OPERATIONS = ["init", "add", "deploy", "rollback"]


@pytest.fixture(params=STORES)
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a committed folder: a store, and the image of one of its items."""
    shutil.copytree(FIXTURES / request.param, tmp_path / "fixture")
    return tmp_path / "fixture"


def test_an_earlier_store_passes_the_check(fixture: Path) -> None:
    """The history, the files and the attempts pass a deep check."""
    files = check(fixture / "store", deep=True)
    assert (files.problems, files.unreferenced) == ((), ())
    result = run("check", "--store", fixture / "store", "--json")
    assert (result.code, result.json["problems"]) == (0, []), result.stderr
    assert (result.json["ok"], result.json["generations"]) == (True, len(OPERATIONS))


def test_an_earlier_store_can_be_searched(fixture: Path) -> None:
    """The stored query model finds the item of the query image in the stored index."""
    result = run("search", fixture / "query.png", "--store", fixture / "store", "--json")
    assert result.code == 0, result.stderr
    best = result.json["queries"][0]["hits"][0]
    assert best["id"] == ITEM
    assert best["score"] == pytest.approx(1.0, abs=1e-3)


def test_the_history_of_an_earlier_store_can_be_read(fixture: Path) -> None:
    """There are four generations, one of which restores another, and one file of attempts."""
    store = Store.open(fixture / "store")
    history = store.history()
    assert [state.operation for state in history] == OPERATIONS
    assert [state.restores for state in history] == [None, None, None, 2]
    assert len(list((store.path / "attempts").glob("*.json"))) == 1
    shown = run("history", "--store", store.path, "--json").json["generations"]
    assert [entry["operation"] for entry in shown] == OPERATIONS


def test_an_earlier_store_can_be_written_to(fixture: Path) -> None:
    """A rollback to the deployed model commits a generation that passes the check."""
    result = run("rollback", "--to", "3", "--store", fixture / "store", "--json")
    assert result.code == 0, result.stderr
    store = Store.open(fixture / "store")
    assert store.manifest.query_model == store.generation(3).query_model
    assert check(store.path).ok
