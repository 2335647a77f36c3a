"""What other tools were seen to get wrong with files: it must not happen here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop

from compatctl.data import load
from compatctl.store import Store


def _tree(folder: Path) -> dict[str, str]:
    """Every file's digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tampered_weights_in_the_store_are_refused(shop: Shop, emoji: Path) -> None:
    """One changed bit of the query model's weights: search, add and check end in exit 5."""
    model = next(shop.path("store/models").glob("*.onnx"))
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(raw)
    image = next((emoji / "images" / "twemoji").iterdir())
    table = shop.path("more.csv")
    table.write_text(f"id,path,label\nfresh,{image},fresh\n")
    for arguments in (("search", image), ("add", "--data", table), ("check",)):
        assert shop.run(*arguments).code == 5, arguments


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "null"])
def test_no_command_reads_or_overwrites_a_corrupt_manifest(shop: Shop, text: str) -> None:
    """No command reads past it, and init writes nothing over it."""
    shop.path("store/manifest.json").write_text(text)
    before = _tree(shop.path("store"))
    old, new = shop.path("old.onnx"), shop.path("new.onnx")
    for arguments in (
        ("init", "--model", old),
        ("verify", old, new),
        ("deploy", "--model", new, "--force", "--reason", "drill"),
        ("rollback",),
        ("status",),
    ):
        assert shop.run(*arguments).code in {3, 5, 6}, arguments
    assert _tree(shop.path("store")) == before


def test_a_rollback_restores_every_entry_of_the_earlier_generation(shop: Shop) -> None:
    """After deploy and rollback the manifest differs from the first one in its history only."""
    before = shop.manifest()
    report = shop.path("report.json")
    result = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", report)
    assert result.code == 0
    assert shop.run("deploy").code == 0
    assert shop.run("rollback").code == 0
    after = shop.manifest()
    own_entries = {"generation", "parent", "operation", "created_at", "restores"}
    assert {key: value for key, value in after.items() if key not in own_entries} == {
        key: value for key, value in before.items() if key not in own_entries
    }


def test_a_manifest_holds_no_path_and_no_secret(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the environment or of this machine's folders gets into a generation."""
    monkeypatch.setenv("SOME_TOKEN", "hunter2-of-the-environment")
    result = shop.run("deploy", "--model", shop.path("new.onnx"), "--force", "--reason", "a drill")
    assert result.code == 0
    text = shop.path("store/manifest.json").read_text()
    for secret in ("hunter2", str(shop.folder), str(Path.home()), "/tmp", "host"):
        assert secret not in text, secret


def test_a_store_whose_index_knows_more_than_its_catalogue_is_damaged(shop: Shop) -> None:
    """A stranger's store, every digest right, its catalogue without the index's keys: exit 5."""
    store = Store.open(shop.path("store"))
    catalog = store.catalog()
    with store.transaction(store.manifest) as tx:
        other = replace(catalog, keys=catalog.keys + np.uint64(1000))
        tx.commit(
            operation="add",
            created_at="2026-01-31T12:00:00Z",
            catalog=tx.put("catalogs", other.write),
        )
    image = load(shop.data()).sources[0]
    refused = shop.run("search", image)
    assert (refused.code, "the catalogue has none" in refused.stderr) == (5, True)
    assert shop.run("check").code == 5
