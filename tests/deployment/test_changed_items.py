"""Images and labels that change under an id: the store knows which bytes a vector was made of."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Shop, store_files, stored_rows

from compatctl.data import Dataset, load
from compatctl.encoder import Encoder
from compatctl.store import Store


@pytest.fixture
def own(shop: Shop, emoji: Path) -> Shop:
    """The shop with a copy of its images, that a test may change."""
    table = shutil.copytree(emoji, shop.path("own")) / "items.csv"
    text = shop.path("compatctl.yaml").read_text()
    shop.path("compatctl.yaml").write_text(text.replace(str(emoji / "items.csv"), str(table)))
    return shop


def _table(shop: Shop) -> list[dict[str, str]]:
    with shop.data().open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(shop: Shop, rows: list[dict[str, str]]) -> None:
    with shop.data().open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _gallery(shop: Shop) -> list[dict[str, str]]:
    return [row for row in _table(shop) if row["role"] == "gallery"]


def _exchange(shop: Shop, entry: dict[str, str], other: dict[str, str]) -> None:
    """The image of ``other`` is now under the id of ``one``."""
    folder = shop.data().parent
    shutil.copyfile(folder / other["path"], folder / entry["path"])


def _digests(shop: Shop) -> dict[str, str]:
    """Item id -> the digest that the catalogue has of its image; empty where it has none."""
    catalog = Store.open(shop.path("store")).catalog()
    return {
        item: digest.tobytes().hex() if known else ""
        for item, digest, known in zip(
            catalog.ids, catalog.digests, catalog.digest_known, strict=True
        )
    }


def _right(shop: Shop, model: Path, ids: list[str]) -> bool:
    """Whether the items' stored vectors are what the model makes of their images now, and the
    catalogue has the images' digests."""
    data: Dataset = load(shop.data())
    row_of = {item: row for row, item in enumerate(data.ids)}
    some = data.take([row_of[item] for item in ids])
    new = Encoder.load(model).embed(some)
    same = np.abs(new.features - stored_rows(shop, ids)).max() < 1e-5
    digests = _digests(shop)
    return bool(same) and [digests[item] for item in ids] == [
        entry.tobytes().hex() for entry in new.digests
    ]


def _label_of(shop: Shop, item: str) -> str:
    catalog = Store.open(shop.path("store")).catalog()
    return catalog.labels[catalog.ids.index(item)]


def test_init_stores_the_digest_of_every_image(own: Shop) -> None:
    """Each row of a new store has the sha256 of the file that it was made of."""
    data = load(own.data())
    row_of = {item: row for row, item in enumerate(data.ids)}
    digests = _digests(own)
    assert len(digests) > 100
    for item, digest in digests.items():
        assert digest == data.digest(row_of[item])


def test_a_changed_image_or_label_is_refused_by_id(own: Shop) -> None:
    """Exit 5, the ids on stderr and in the JSON, nothing written; by add, and by init again."""
    rows = _table(own)
    gallery = [row for row in rows if row["role"] == "gallery"]
    _exchange(own, gallery[0], gallery[-1])
    gallery[3]["label"] = "another"
    _write(own, rows)
    before = store_files(own)
    for words in (("add",), ("add", "--dry-run"), ("init", "--model", own.path("old.onnx"))):
        result = own.run(*words)
        assert result.code == 5
        assert gallery[0]["id"] in result.stderr
        assert gallery[3]["id"] in result.stderr
        details: dict[str, Any] = result.json["error"]["details"]
        assert details["changed_images"] == [gallery[0]["id"]]
        assert details["changed_labels"] == [gallery[3]["id"]]
        assert "add --changed" in result.json["error"]["tip"]
    assert store_files(own) == before


def test_changed_items_are_updated_in_one_generation(own: Shop) -> None:
    """``--changed`` embeds changed images again, takes new labels and new items, and nothing else
    moves; the same command again does nothing; the generation before has the old vectors."""
    rows = _table(own)
    gallery = [row for row in rows if row["role"] == "gallery"]
    stay = [row["id"] for row in gallery[4:-1]]
    kept, first = stored_rows(own, stay), stored_rows(own, [gallery[0]["id"]])
    before = Store.open(own.path("store")).manifest
    _exchange(own, gallery[0], gallery[-1])
    _exchange(own, gallery[1], gallery[-2])
    gallery[1]["label"] = "renamed"
    new = {**gallery[5], "id": "a new one"}
    _write(own, [*rows, new])
    result = own.run("add", "--changed")
    assert result.code == 0, result.stderr
    assert result.json["changed"] == [gallery[0]["id"], gallery[1]["id"]]
    assert result.json["relabelled"] == [gallery[1]["id"]]
    assert (result.json["added"], result.json["uncompared"]) == (1, 0)
    assert result.json["generation"] == before.generation + 1
    old = own.path("old.onnx")
    assert _right(own, old, [gallery[0]["id"], gallery[1]["id"], "a new one"])
    np.testing.assert_array_equal(stored_rows(own, stay), kept)
    assert _label_of(own, gallery[1]["id"]) == "renamed"
    hit = own.run("search", own.data().parent / gallery[0]["path"], "-k", 2).json["queries"][0]
    assert gallery[0]["id"] in [entry["id"] for entry in hit["hits"]]
    assert own.run("check").code == 0
    files = store_files(own)
    assert own.run("add", "--changed").json["written"] is False
    assert own.run("add").code == 0
    assert store_files(own) == files
    back = own.run("rollback", "--to", 1, "--added", "drop")
    assert back.code == 0, back.stderr
    assert back.json["reverted"] == [gallery[0]["id"], gallery[1]["id"]]
    np.testing.assert_array_equal(stored_rows(own, [gallery[0]["id"]]), first)
    assert own.run("add").code == 5


def test_a_changed_label_leaves_the_index_unchanged(own: Shop) -> None:
    """Nothing is embedded and the index stays byte for byte; only the catalogue is another."""
    rows = _table(own)
    gallery = [row for row in rows if row["role"] == "gallery"]
    gallery[2]["label"] = "renamed"
    _write(own, rows)
    index = own.manifest()["index"]
    result = own.run("add", "--changed")
    assert (result.code, result.json["written"], result.json["changed"]) == (0, True, [])
    assert own.manifest()["index"] == index
    assert _label_of(own, gallery[2]["id"]) == "renamed"


def test_a_changed_item_is_embedded_by_the_query_model(own: Shop) -> None:
    """After a deploy its row goes to the new model, and the manifest's counts follow."""
    deployed = own.run("deploy", "--model", own.path("new.onnx"), "--force", "--reason", "drill")
    assert deployed.code == 0, deployed.stderr
    gallery = _gallery(own)
    _exchange(own, gallery[0], gallery[-1])
    result = own.run("add", "--changed")
    assert result.code == 0, result.stderr
    assert _right(own, own.path("new.onnx"), [gallery[0]["id"]])
    rows = {entry["name"]: entry["rows"] for entry in own.manifest()["models"]}
    assert rows == {"old.onnx": len(gallery) - 1, "new.onnx": 1}
    assert own.run("check").code == 0


def test_a_backfill_embeds_the_current_image(own: Shop) -> None:
    """A re-embedded row has the digest of the image that it was re-embedded from."""
    own.run("deploy", "--model", own.path("new.onnx"), "--force", "--reason", "drill")
    gallery = _gallery(own)
    _exchange(own, gallery[0], gallery[-1])
    result = own.run("backfill", "--force", "--reason", "drill")
    assert result.code == 0, result.stderr
    assert _right(own, own.path("new.onnx"), [row["id"] for row in gallery])
    assert own.run("add").code == 0


def test_items_without_an_image_are_counted_and_stay(own: Shop) -> None:
    """An image that cannot be read any more is no change: the item was not compared."""
    gallery = _gallery(own)
    (own.data().parent / gallery[0]["path"]).unlink()
    before = store_files(own)
    result = own.run("add")
    assert result.code == 0, result.stderr
    assert result.json["uncompared"] == 1
    assert store_files(own) == before
