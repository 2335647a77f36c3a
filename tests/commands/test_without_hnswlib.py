"""Without hnswlib: what touches no index runs, and what needs one refuses before it works."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, run, store_files

EXTRA = "compatctl[hnswlib]"


@pytest.fixture
def bare(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The project, in a process that cannot import hnswlib."""
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    return shop


@pytest.mark.parametrize(
    "words",
    [
        ("init", "--model", "old.onnx", "--store", "other"),
        ("import", "missing.bin", "--model", "old.onnx"),
        ("search", "image.png"),
        ("verify", "old.onnx", "new.onnx"),
        ("add",),
        ("remove", "an id"),
        ("backfill", "--share", "0.5"),
        ("lift", "turned.onnx"),
        ("bridge", "turned.onnx", "-o", "bridged.onnx"),
        ("promote",),
        ("warm", "log.csv"),
        ("demo",),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_needs_an_index_names_the_extra_and_changes_nothing(
    bare: Shop, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Exit 5 with the extra to install, before any file is read that the call names."""
    monkeypatch.chdir(bare.folder)
    before = store_files(bare)
    result = run(*words, "--json")
    assert result.code == 5
    assert "hnswlib" in result.json["error"]["message"]
    assert EXTRA in result.json["error"]["tip"]
    assert store_files(bare) == before
    assert not bare.path("other").exists()


def test_feature_tables_are_compared(bare: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify and power of two tables work."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 4).astype(str)
    centres = rng.standard_normal((60, 16))[np.repeat(np.arange(60), 4)]
    for name, noise in (("old", 1.2), ("new", 0.3)):
        features = centres + noise * rng.standard_normal(centres.shape)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        ids = np.arange(len(labels)).astype(str)
        np.savez(bare.path(f"{name}.npz"), ids=ids, labels=labels, features=features)
    monkeypatch.chdir(bare.folder)
    assert run("verify", "old.npz", "new.npz", "--report", "tables.json").code == 0
    assert run("power", "--report", "tables.json").code == 0


def test_models_are_compared_without_a_store(bare: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify and matrix of encoders run where there is no store."""
    monkeypatch.chdir(bare.folder)
    data = ("--data", bare.data(), "--store", "none")
    assert run("verify", "old.onnx", "new.onnx", *data).code == 0
    assert run("matrix", "old.onnx", "new.onnx", *data).code == 0


def test_a_store_is_read_checked_and_rolled_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """status, history, check, deploy and a rollback to the same gallery need no index engine, and
    check still finds a changed byte of the index."""
    assert shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx")).code == 0
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    monkeypatch.setenv("COMPATCTL_CACHE", str(shop.path("cache")))
    report = ("--report", Path("report.json"))
    monkeypatch.chdir(shop.folder)
    assert shop.run("deploy", *report).code == 0
    for command in ("status", "history", "check"):
        assert shop.run(command).code == 0, command
    assert shop.run("rollback").code == 0
    (index,) = shop.path("store/indexes").iterdir()
    raw = bytearray(index.read_bytes())
    raw[len(raw) // 2] ^= 1
    index.chmod(0o600)
    index.write_bytes(raw)
    assert shop.run("check").code == 5
