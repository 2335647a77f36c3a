"""What other tools were seen to get wrong with files: it must not happen here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from shop_kit import Shop


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
def test_a_corrupt_manifest_is_not_answered_by_starting_again(shop: Shop, text: str) -> None:
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
    done = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", report)
    assert done.code == 0
    assert shop.run("deploy").code == 0
    assert shop.run("rollback").code == 0
    after = shop.manifest()
    told = {"generation", "parent", "operation", "created_at", "restores"}
    assert {key: value for key, value in after.items() if key not in told} == {
        key: value for key, value in before.items() if key not in told
    }
