"""remove: what was erased is in no file of the store, and nothing brings it back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import (
    Shop,
    carry,
    run,
    store_files,
    stored_rows,
    turned,
)
from typer.testing import CliRunner

from compatctl.cli.app import app
from compatctl.data import load, memory_bytes, read_memory
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.manifest import Erasures
from compatctl.store import Store

AT = "2026-01-31T12:00:00Z"
Floats = NDArray[np.float32]


def store_of(shop: Shop) -> Store:
    return Store.open(shop.path("store"))


def ids_of(shop: Shop, n: int = 3) -> list[str]:
    """Some ids of the gallery, from its middle."""
    return list(store_of(shop).catalog().ids[20 : 20 + n])


def force(shop: Shop, name: str) -> None:
    result = shop.run("deploy", "--model", shop.path(name), "--force", "--reason", "drill")
    assert result.code == 0, result.stderr


def removed(shop: Shop, *arguments: object) -> dict[str, object]:
    result = shop.run("remove", *arguments)
    assert result.code == 0, result.stderr
    removal: dict[str, object] = result.json
    return removal


def assert_gone(shop: Shop, ids: list[str], vectors: Floats) -> None:
    """No file of the store has the bytes of an id or of a vector; check and search work."""
    for name, data in store_files(shop).items():
        if name.startswith("reports/"):
            continue
        for item, vector in zip(ids, vectors, strict=True):
            assert item.encode() not in data, f"{item} is in {name}"
            assert vector.tobytes() not in data, f"the vector of {item} is in {name}"
    assert shop.run("check").code == 0


def test_no_file_of_the_store_holds_a_removed_item(shop: Shop) -> None:
    """Rows, ids and every earlier copy go in one generation, however many held them; the other
    items are as they were."""
    ids = ids_of(shop)
    vectors = stored_rows(shop, ids)
    stay = [entry for entry in store_of(shop).catalog().ids if entry not in ids]
    before = stored_rows(shop, stay)
    force(shop, "new.onnx")
    first = shop.manifest()
    removal = removed(shop, *ids)
    now = shop.manifest()
    assert (removal["removed"], removal["rows"], removal["generation"]) == (3, len(stay), 3)
    assert (now["operation"], now["oldest_gallery"], now["index"]["count"]) == (
        "remove",
        3,
        len(stay),
    )
    assert removal["deleted"] == 2
    same = ("query_model", "report", "policy", "forced_reason")
    assert [now[name] for name in same] == [first[name] for name in same]
    assert_gone(shop, ids, vectors)
    assert np.array_equal(stored_rows(shop, stay), before)
    assert shop.run("check", "--gc", "--keep", "1").json["erasure"] == "done"


def test_a_repeated_removal_changes_nothing(shop: Shop) -> None:
    """No further generation, exit 0; an id that was never there is an error that names it, and
    nothing is removed unless that is asked for."""
    ids = ids_of(shop)
    removed(shop, *ids)
    before = store_files(shop)
    again = removed(shop, *ids)
    assert (again["already"], again["written"]) == (3, False)
    refused = shop.run("remove", ids[0], "nobody", *store_of(shop).catalog().ids[:1])
    assert refused.code == 5
    assert "1 of 3 ids are not in the store: nobody" in refused.stderr
    assert store_files(shop) == before
    removal = removed(shop, "nobody", *store_of(shop).catalog().ids[:1], "--missing-ok")
    assert (removal["removed"], removal["missing"]) == (1, ["nobody"])


def test_an_id_that_nearly_is_one_of_the_store_is_named(shop: Shop) -> None:
    """With --missing-ok it is no error, and the item that was meant would stay unseen."""
    (item,) = ids_of(shop, 1)
    for flags, code in (((), 5), (("--missing-ok",), 0)):
        result = shop.run("remove", item.upper(), *flags)
        assert result.code == code, result.stderr
        assert f"{item.upper()!r} and {item!r}" in result.stderr


def test_a_dry_run_gives_the_same_result_and_writes_nothing(shop: Shop) -> None:
    """Ids come from arguments and a file, or from stdin."""
    ids = ids_of(shop)
    shop.path("gone.txt").write_text("\n".join(["", *ids[1:], ""]))
    before = store_files(shop)
    planned = removed(shop, ids[0], "--ids", shop.path("gone.txt"), "--dry-run")
    assert (planned["removed"], planned["written"]) == (3, False)
    assert store_files(shop) == before
    piped = ["remove", *shop.args, "--json", "--ids", "-"]
    result = CliRunner().invoke(app, piped, input="\n".join(ids))
    assert json.loads(result.stdout)["removed"] == 3
    for flags in ((), ("--missing-ok",)):
        assert shop.run("remove", *flags).code == 2


def test_the_last_row_is_not_removed(shop: Shop) -> None:
    """A gallery needs a row: all ids at once are refused, and nothing happens."""
    shop.path("all.txt").write_text("\n".join(store_of(shop).catalog().ids))
    before = store_files(shop)
    result = shop.run("remove", "--ids", shop.path("all.txt"))
    assert result.code == 5
    assert "a gallery needs at least one" in result.stderr
    assert store_files(shop) == before


def test_rollback_restores_the_model_and_not_the_items(shop: Shop) -> None:
    """After a deploy and a removal a rollback gives the old model over the rows of today; a second
    one finds it done; dropping what was added has nothing to go back to."""
    ids = ids_of(shop)
    vectors, old = stored_rows(shop, ids), shop.manifest()["query_model"]
    force(shop, "new.onnx")
    removed(shop, *ids)
    assert shop.run("rollback", "--added", "drop").code == 2
    planned = shop.run("rollback", "--dry-run")
    assert (planned.code, planned.json["written"]) == (0, False)
    back = shop.run("rollback")
    assert back.code == 0, back.stderr
    now = shop.manifest()
    assert (now["query_model"], now["restores"], now["oldest_gallery"]) == (old, 1, 3)
    assert_gone(shop, ids, vectors)
    assert shop.run("rollback").json["written"] is False
    force(shop, "new.onnx")
    assert shop.run("rollback").json["query_model"] == old
    assert_gone(shop, ids, vectors)


def test_rollback_after_an_erasure_counts_rows_of_a_later_model(shop: Shop, emoji: Path) -> None:
    """Added by the new model, then an erasure: rollback names them (exit 6), --added keep works."""
    force(shop, "new.onnx")
    images = sorted((emoji / "images" / "twemoji").iterdir())
    table = emoji / f"{shop.folder.parent.name}-fresh.csv"
    table.write_text(f"id,path,label\nfresh,{images[3]},fresh\n")
    assert shop.run("add", "--data", table).code == 0
    removed(shop, *ids_of(shop))
    refused = shop.run("rollback")
    assert refused.code == 6
    assert "1 current rows are of models that it does not have" in refused.stderr
    assert shop.run("rollback", "--added", "keep").json["kept"] == 1
    assert shop.run("check").code == 0


def test_rollback_across_a_lift_is_refused_after_an_erasure(shop: Shop) -> None:
    """The gallery of before is gone, and its query model cannot search mapped rows: it is said, and
    the lifted store goes on."""
    ids = ids_of(shop, 1)
    turned(shop, "other.onnx", of="new.onnx")
    force(shop, "other.onnx")
    assert shop.run("backfill", "--share", ".2", "--force", "--reason", "drill").code == 0
    wide = turned(shop, "wide.onnx", of="new.onnx", dim=48)
    result = shop.run("lift", wide, "--kind", "ridge", "--force", "--reason", "drill")
    assert result.code == 0, result.stderr
    vectors = stored_rows(shop, ids)
    removed(shop, *ids)
    assert_gone(shop, ids, vectors)
    for keeping in ("auto", "keep"):
        refused = shop.run("rollback", "--added", keeping)
        assert refused.code == 2
        assert "lifted or promoted in between" in refused.stderr


def test_an_item_of_an_earlier_generation_alone_can_be_removed(shop: Shop, emoji: Path) -> None:
    """Dropped by a rollback, it could be brought back; removed, it cannot."""
    images = sorted((emoji / "images" / "twemoji").iterdir())
    table = emoji / f"{shop.folder.parent.name}-late.csv"
    table.write_text(f"id,path,label\nlate-one,{images[5]},late\n")
    assert shop.run("add", "--data", table).code == 0
    vectors = stored_rows(shop, ["late-one"])
    assert shop.run("rollback", "--to", "1", "--added", "drop").code == 0
    removal = removed(shop, "late-one")
    assert (removal["removed"], removal["written"]) == (0, True)
    assert shop.run("rollback", "--to", "2").json["written"]
    assert_gone(shop, ["late-one"], vectors)


def test_a_removed_id_can_be_added_again(shop: Shop) -> None:
    """add takes it in as a new item; check no longer looks for it, and still for the others."""
    ids = ids_of(shop)
    removed(shop, *ids)
    table = shop.data()
    lines = table.read_text().splitlines()
    kept = [line for line in lines if not any(f"{entry}," in line for entry in ids[1:])]
    again = table.with_name(f"{shop.folder.parent.name}-again.csv")
    again.write_text("\n".join([*kept, ""]))
    assert shop.run("add", "--data", again).json["added"] == 1
    erased = store_of(shop).erasures()
    assert erased is not None
    assert erased.matching(ids) == tuple(ids[1:])
    assert shop.run("check").code == 0
    assert removed(shop, ids[0])["removed"] == 1


def test_images_leave_the_memory_of_the_store_and_of_the_candidate(shop: Shop) -> None:
    """The rehearsal memory, the candidate's copy of it and its training record; a candidate that
    was trained before does not carry the images back in."""
    data = load(shop.data())
    rows = [row for row, item in enumerate(data.items) if item.split == "train"][:6]
    held = memory_bytes(data.take(rows))
    gone = [data.ids[rows[2]]]
    image = data.original(rows[2], 1 << 20)
    assert isinstance(image, bytes)
    store = store_of(shop)
    with store.transaction(store.manifest) as tx:
        memory = tx.put("memories", lambda path: path.write_bytes(held) and None)
        tx.commit(operation="deploy", created_at=AT, memory=memory)
    candidate = shop.path("build/candidate")
    candidate.mkdir(parents=True)
    (candidate / "memory.npz").write_bytes(held)
    record = {
        "items": [{"id": data.ids[row], "sha256": data.digest(row)} for row in rows],
        "unlabelled": [], "classes": [], "models": [], "memory_sha256": memory, "parity": 0.0,
    }  # fmt: skip
    (candidate / "training.json").write_text(json.dumps(record))
    removal = removed(shop, *gone)
    assert removal["from_memory"] == 1
    assert len(removal["side_files"]) == 2  # type: ignore[arg-type]
    kept = store_of(shop)
    path = kept.verified_path("memories", kept.manifest.memory or "")
    assert read_memory(path).ids == read_memory(candidate / "memory.npz").ids
    assert len(read_memory(path)) == 5
    assert all(image not in entry for entry in store_files(shop).values())
    now = json.loads((candidate / "training.json").read_text())
    assert gone[0] not in [item["id"] for item in now["items"]]
    assert now["memory_sha256"] == kept.manifest.memory

    carry(shop.path("new.onnx"), TrainingRecord.from_json(record))
    record["models"] = [Encoder.load(shop.path("new.onnx")).sha256]
    (candidate / "memory.npz").write_bytes(held)
    (candidate / "training.json").write_text(json.dumps(record))
    (candidate / "registry.json").write_text("{}")
    force(shop, "new.onnx")
    again = store_of(shop)
    assert len(read_memory(again.verified_path("memories", again.manifest.memory or ""))) == 5
    assert shop.run("check").code == 0


def test_check_finds_erased_items_in_kept_files(shop: Shop) -> None:
    """A list of erasures that names an item of the gallery is told; a generation that brings a row
    back is not committed."""
    ids = ids_of(shop, 2)
    store = store_of(shop)
    first, catalog = store.manifest, store.catalog()
    vectors = stored_rows(shop, ids)
    index = store.verified_path("indexes", first.index.sha256).read_bytes()
    removed(shop, *ids)
    store = store_of(shop)
    with store.transaction(store.manifest) as tx:
        again = tx.put("indexes", lambda path: path.write_bytes(index) and None)
        assert again == first.index.sha256
        with pytest.raises(InputError, match="2 rows that were erased"):
            tx.commit(
                operation="rollback",
                created_at=AT,
                index=first.index,
                catalog=tx.put("catalogs", catalog.write),
                models=first.models,
            )
    assert shop.run("check").json["erasure"] == "unfinished"
    assert shop.run("check").code == 5
    assert shop.run("check", "--gc").code == 0
    assert_gone(shop, ids, vectors)
    there = store.catalog().ids[3]
    erased = Erasures.empty().extended([there])
    with store.transaction(store.manifest) as tx:
        tx.commit(
            operation="remove",
            created_at=AT,
            oldest_gallery=store.manifest.generation + 1,
            erasures=tx.put("erasures", erased.write),
        )
    result = shop.run("check")
    assert result.code == 5
    assert "were erased" in " ".join(result.json["problems"])


def test_removal_lists_other_items_with_the_same_image(shop: Shop) -> None:
    """Who erases an item by its id is told which ids have its very image."""
    first, *_ = ids_of(shop, 1)
    data = load(shop.data())
    path = data.sources[data.ids.index(first)]
    table = shop.data().with_name(f"{shop.folder.parent.name}-twin.csv")
    table.write_text(f"id,path,label\ntwin,{path},other\n")
    assert shop.run("add", "--data", table).code == 0
    removal = removed(shop, first)
    assert removal["same_image"] == ["twin"]
    assert "twin" in str(removal["warnings"])
    assert shop.run("check").code == 0


def test_check_replays_a_removal(shop: Shop) -> None:
    """Generations that say that they removed and did something else are found."""
    from compatctl.store._transitions import transition_problems

    before = store_of(shop).manifest
    removed(shop, *ids_of(shop))
    now = store_of(shop).manifest
    assert transition_problems([before, now]) == []
    for wrong in (
        replace(now, index=replace(now.index, M=9)),
        replace(now, index=replace(now.index, count=before.index.count + 1)),
        replace(now, policy="e" * 64),
        replace(now, oldest_gallery=1, erasures=None),
        replace(now, query_model="e" * 64),
    ):
        assert "more than erase" in " ".join(transition_problems([before, wrong]))
    assert "erased by 'add'" in " ".join(
        transition_problems([before, replace(now, operation="add")])
    )
    changed = replace(now, generation=3, operation="gc", erasures="e" * 64)
    assert "list of what was erased" in " ".join(transition_problems([now, changed]))


def test_the_command_line_reports_the_removal(shop: Shop) -> None:
    """Without --json: the fields as lines, exit 0."""
    result = run("remove", *shop.args, *ids_of(shop, 1))
    assert result.code == 0
    assert "removed" in result.stdout
