"""Rollback where items were added since: none of them is lost without being named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, store_files, stored_rows

from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.store import Store


def _deploy(shop: Shop, name: str = "new.onnx") -> None:
    result = shop.run("deploy", "--model", shop.path(name), "--force", "--reason", "drill")
    assert result.code == 0, result.stderr


def _table(shop: Shop, emoji: Path, names: str) -> Path:
    """A table of items, one a letter, each with another image."""
    images = sorted((emoji / "images" / "twemoji").iterdir())
    lines = [f"fresh-{name},{images[ord(name) - 97]},fresh" for name in names]
    path = emoji / f"{shop.folder.parent.name}-{names}.csv"
    path.write_text("id,path,label\n" + "\n".join(lines) + "\n")
    return path


def _add(shop: Shop, table: Path) -> None:
    result = shop.run("add", "--data", table)
    assert result.code == 0, result.stderr


def test_a_dry_rollback_says_what_the_rollback_then_writes(shop: Shop, emoji: Path) -> None:
    """The generation, the model and the index that will be restored, not those of today."""
    first = shop.manifest()
    _deploy(shop)
    _add(shop, _table(shop, emoji, "abc"))
    words = ("rollback", "--added", "drop")
    planned, written = shop.run(*words, "--dry-run").json, shop.run(*words).json
    assert {**planned, "written": True} == written
    assert (written["generation"], written["index_sha256"]) == (4, first["index"]["sha256"])
    again = shop.run("rollback", "--dry-run").json
    assert (again["generation"], again["index_sha256"]) == (4, first["index"]["sha256"])


def test_rollback_re_embeds_items_of_the_new_model_with_the_old_one(
    shop: Shop, emoji: Path
) -> None:
    """Their vectors become the old model's; everything else is as in the old generation."""
    first = shop.manifest()
    _deploy(shop)
    table = _table(shop, emoji, "abc")
    _add(shop, table)
    planned = shop.run("rollback", "--data", table, "--dry-run").json
    assert (planned["added"], planned["re_embedded"], planned["written"]) == (3, 3, False)
    assert shop.manifest()["generation"] == 3
    result = shop.run("rollback", "--data", table).json
    assert (result["kept"], result["re_embedded"], result["dropped"]) == (0, 3, [])
    now = shop.manifest()
    assert (now["query_model"], now["restores"]) == (first["query_model"], 1)
    assert [model["rows"] for model in now["models"]] == [first["index"]["count"] + 3]
    wanted = Encoder.load(shop.path("old.onnx")).embed(load(table)).features
    vectors = stored_rows(shop, ["fresh-a", "fresh-b", "fresh-c"])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert shop.run("check").code == 0
    assert shop.run("search", load(table).sources[0]).json["queries"][0]["hits"][0]["score"] > 0.999


def test_rollback_keeps_the_vectors_of_a_shared_model(shop: Shop, emoji: Path) -> None:
    """Added by the old model before the deploy, by the new one after: one is kept, one embedded."""
    _add(shop, _table(shop, emoji, "a"))
    before = stored_rows(shop, ["fresh-a"])
    _deploy(shop)
    table = _table(shop, emoji, "b")
    _add(shop, table)
    result = shop.run("rollback", "--to", 1, "--data", table)
    assert result.code == 0, result.stderr
    assert (result.json["kept"], result.json["re_embedded"]) == (1, 1)
    np.testing.assert_array_equal(stored_rows(shop, ["fresh-a"]), before)
    assert shop.run("check").code == 0
    repeated = shop.run("rollback", "--to", 1)
    assert (repeated.code, repeated.json["written"]) == (0, False)


def test_rollback_without_images_lists_the_items_and_changes_nothing(
    shop: Shop, emoji: Path
) -> None:
    """Exit 6 with the ids and what can be done; the store is as it was."""
    _deploy(shop)
    _add(shop, _table(shop, emoji, "abcdefgh"))
    before = store_files(shop)
    refused = shop.run("rollback")
    assert refused.code == 6
    for part in ("fresh-a", "and 3 more", "--added keep", "--added drop"):
        assert part in refused.stderr, refused.stderr
    assert store_files(shop) == before


def test_keep_restores_the_query_model_and_moves_no_row(shop: Shop, emoji: Path) -> None:
    """The way out for a pager: nothing is embedded, the index is the same file, no item is gone."""
    _deploy(shop)
    _add(shop, _table(shop, emoji, "ab"))
    before = shop.manifest()
    result = shop.run("rollback", "--added", "keep")
    assert result.code == 0, result.stderr
    assert (result.json["kept"], result.json["re_embedded"]) == (2, 0)
    now = shop.manifest()
    assert now["query_model"] == before["models"][0]["sha256"] != before["query_model"]
    assert now["index"]["sha256"] == before["index"]["sha256"]
    assert sorted(model["rows"] for model in now["models"]) == sorted(
        model["rows"] for model in before["models"]
    )
    assert shop.run("check").code == 0
    _deploy(shop, "worse.onnx")
    again = shop.run("rollback").json
    assert (again["restored"], again["added"]) == (4, 0)
    assert stored_rows(shop, ["fresh-a", "fresh-b"]).shape[0] == 2


def test_drop_lists_the_dropped_ids_and_can_be_undone(shop: Shop, emoji: Path) -> None:
    """Every dropped id is in the answer, and a rollback to the generation before brings it back."""
    first = shop.manifest()
    _deploy(shop)
    _add(shop, _table(shop, emoji, "abc"))
    rows = stored_rows(shop, ["fresh-a", "fresh-b", "fresh-c"])
    result = shop.run("rollback", "--added", "drop").json
    assert result["dropped"] == ["fresh-a", "fresh-b", "fresh-c"]
    assert shop.manifest()["index"] == first["index"]
    back = shop.run("rollback", "--to", result["before"])
    assert back.code == 0, back.stderr
    np.testing.assert_array_equal(stored_rows(shop, ["fresh-a", "fresh-b", "fresh-c"]), rows)


def test_gc_keeps_what_a_rollback_needs(shop: Shop, emoji: Path) -> None:
    """check --gc --keep 1 after a deploy and two adds: a dry run says it, and rollback works."""
    _add(shop, _table(shop, emoji, "a"))
    _deploy(shop)
    for names in "bc":
        _add(shop, _table(shop, emoji, names))
    head = shop.run("status").json["head"]
    planned = shop.run("check", "--gc", "--keep", 1, "--dry-run").json
    result = shop.run("check", "--gc", "--keep", 1).json
    assert planned["unreferenced"] == result["deleted"]
    assert len(result["deleted"]) == 2
    assert Store.open(shop.path("store")).manifest.oldest_restorable == 2
    assert shop.run("check", "--head", head).code == 0
    assert shop.run("check", "--head", "0" * 64).code == 5
    assert shop.run("check", "--keep", 1).code == 2
    assert shop.run("rollback", "--to", 1).code == 2
    assert shop.run("rollback", "--added", "drop").json["restored"] == 2


@pytest.mark.parametrize("command", [("search",), ("add", "--data"), ("check",)])
def test_a_runtime_that_fails_the_canary_is_refused(
    shop: Shop, emoji: Path, command: tuple[str, ...]
) -> None:
    """A canary that comes out otherwise: exit 5 with the measured difference, before any answer.

    The store's canary is exchanged for one of another model, as if this runtime had changed.
    """
    other = Shop(shop.folder.parent / "other")
    other.folder.mkdir()
    (other.folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: {emoji / 'items.csv'}\n"
    )
    assert other.run("init", "--model", shop.path("turned.onnx")).code == 0
    canary = other.path(f"store/canaries/{other.manifest()['models'][0]['canary']}.npz")
    path = shop.path("store/canaries") / canary.name
    path.write_bytes(canary.read_bytes())
    now = shop.manifest()
    now["models"][0]["canary"] = path.stem
    text = json.dumps(now, sort_keys=True, indent=2) + "\n"
    for name in ("manifest.json", "history/000001.json"):
        place = shop.path(f"store/{name}")
        place.chmod(0o644)
        place.write_text(text)
    image = next((emoji / "images" / "twemoji").iterdir())
    arguments = {"search": [image], "add": [_table(shop, emoji, "a")], "check": []}[command[0]]
    result = shop.run(*command, *arguments)
    assert result.code == 5
    said = result.stderr if command[0] != "check" else " ".join(result.json["problems"])
    assert "its canary differs by 1." in said or "its canary differs by 0." in said
    assert shop.manifest()["generation"] == 1
