"""backfill in a store that re-scores: judged by what is served before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from free_kit import order_by_loop, serve_rescored, with_free
from shop_kit import Shop, run, store_files, write_encoder

from compatctl.commands.backfill import backfill
from compatctl.core.arrays import as_rows
from compatctl.core.hash_order import hash_key
from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.rescoring import rescorer_of
from compatctl.errors import UsageError
from compatctl.migration.backfill_result import BackfillOptions
from compatctl.recipe import Project
from compatctl.store import Store
from compatctl.store.side_file import SideFile

K, PASSES, SHARE = 6, 2, 0.3


@pytest.fixture(scope="module")
def begun(begun: Path) -> Path:
    """The project, deployed with re-scoring of six answers and two passes a query; some searches
    were made."""
    shop = Shop(begun)
    weak = write_encoder(begun / "weak.onnx", noise=0.5)
    with_free(begun / "both.onnx", weak, write_encoder(begun / "best.onnx", noise=0.02))
    serve_rescored(shop, K, "--passes", PASSES, force=True)
    data = load(shop.data())
    rows = [i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")]
    assert shop.run("search", *(data.sources[row] for row in rows[:200:5])).code == 0
    return begun


def kept_items(shop: Shop) -> set[str]:
    """The items with a free vector in the side file."""
    store = Store.open(shop.path("store"))
    side, ids = SideFile.existing(store.path, store.manifest.query_model), store.catalog().ids
    assert side is not None
    return {item for item, held in zip(ids, side.holds(ids), strict=True) if held}


def served(shop: Shop, passes: int) -> Callable[[list[str]], list[str]]:
    """Of a query's candidates those with a free vector, and the nearest others that it embeds."""
    kept = kept_items(shop)

    def known(items: list[str]) -> list[str]:
        others = [item for item in items if item not in kept]
        return [item for item in items if item in kept] + others[:passes]

    return known


def hit_rate_by_loop(shop: Shop, passes: int, backfilled: list[str]) -> float:
    """hit@1 of the held-out queries as the store answers them."""
    return hit_rate_where(shop, served(shop, passes), backfilled)


def hit_rate_where(
    shop: Shop, known: Callable[[list[str]], Collection[str]], backfilled: list[str]
) -> float:
    """hit@1 where ``known`` says which candidates of a query have a free vector."""
    rule = shop.manifest()["rescoring"]
    orders, gallery, queries = order_by_loop(shop, rule, K, known, backfilled)
    right = [gallery[order[0]] == label for order, label in zip(orders, queries, strict=True)]
    return float(np.mean(right))


def first_by_hash(shop: Shop, share: float) -> list[str]:
    """The items that a backfill by hash writes first."""
    ids = Store.open(shop.path("store")).catalog().ids
    return sorted(ids, key=hash_key)[: math.ceil(share * len(ids))]


def allow(shop: Shop, rows: int) -> None:
    """Let at most so many gallery rows pass."""
    project, share = shop.path("compatctl.yaml"), rows / shop.manifest()["index"]["count"]
    project.write_text(
        project.read_text().replace("max_gallery_pass: 1.0", f"max_gallery_pass: {share!r}")
    )


def test_both_galleries_are_judged_as_they_are_served(shop: Shop) -> None:
    """Hit rate before and after is that of a loop over the first stage, the side file and the
    images that a query embeds; nothing that was embedded to measure is kept."""
    before = store_files(shop)
    result = shop.run("backfill", "--share", SHARE, "--dry-run")
    assert result.code in {0, 3, 4}, result.stderr
    trial, rows = result.json["measured"], first_by_hash(shop, SHARE)
    loops = [hit_rate_by_loop(shop, PASSES, items) for items in ([], rows)]
    assert [trial["curve"][0]["hit_rate"], trial["curve"][-1]["hit_rate"]] == pytest.approx(
        loops, abs=4e-3
    )
    assert trial["check"]["estimate"] == pytest.approx(loops[1] - loops[0], abs=6e-3)
    assert trial["rescored"] == {
        "candidates": K,
        "kept": len(kept_items(shop)),
        "passes": PASSES,
        "room": None,
        "room_after": None,
        "first_stage": pytest.approx(hit_rate_where(shop, lambda items: [], []), abs=4e-3),
    }
    assert trial["rescored"]["first_stage"] < trial["curve"][0]["hit_rate"] - 0.02
    assert result.json["gallery_pass"]["measured"] > 0
    assert store_files(shop) == before
    assert (
        "answers are re-scored as served"
        in run("backfill", *shop.args, "--share", SHARE, "--dry-run").stdout
    )


@pytest.mark.parametrize("more", [0, 20])
def test_a_limited_store_is_judged_as_it_lasts(shop: Shop, more: int) -> None:
    """Each backfilled row takes the room of one that re-scoring could embed: both galleries are
    judged with the side file filled up to the limit, in the order of the hash."""
    rows, kept = first_by_hash(shop, SHARE), kept_items(shop)
    allowed = len({*rows, *kept}) + more
    allow(shop, allowed)
    before, every = shop.manifest(), first_by_hash(shop, 1.0)
    result = shop.run("backfill", "--share", SHARE, "--dry-run")
    trial = result.json["measured"]
    room = allowed - len(kept)
    assert (trial["rescored"]["room"], trial["rescored"]["room_after"]) == (room, more)
    assert trial["rescored"]["passes"] == 0
    points = (0, [], room), (-1, rows, more)
    for point, written, left in points:
        others = [item for item in every if item not in {*kept, *written}]
        known = {*kept, *others[:left]}
        slow = hit_rate_where(shop, known.intersection, written)
        assert trial["curve"][point]["hit_rate"] == pytest.approx(slow, abs=4e-3)
    assert f"re-scoring could embed {room} rows more, and then {more}" in result.stderr
    assert shop.manifest() == before


def test_a_loss_of_what_is_served_is_refused(shop: Shop) -> None:
    """A backfill that leaves re-scoring no room loses where the index alone gains; the next step
    does not name the forecast, which is refused here."""
    rows = first_by_hash(shop, 0.9)
    allow(shop, len({*rows, *kept_items(shop)}))
    before = shop.manifest()
    refused = shop.run("backfill", "--share", 0.9)
    assert refused.code == 3, refused.stdout
    trial = refused.json["measured"]
    assert trial["curve"][-1]["hit_rate"] > trial["rescored"]["first_stage"]
    assert "--forecast" not in run("backfill", *shop.args, "--share", 0.9).stdout
    assert shop.manifest() == before


def test_what_was_written_serves_as_it_was_judged(shop: Shop) -> None:
    """The store goes on re-scoring, searches answer in the order of the loop, and it is whole."""
    rows = first_by_hash(shop, SHARE)
    written = shop.run("backfill", "--share", SHARE, "--force", "--reason", "a test")
    assert (written.code, written.json["written"]) == (0, True), written.stderr
    rule, known = shop.manifest()["rescoring"], served(shop, PASSES)
    orders, _, _ = order_by_loop(shop, rule, K, known, rows)
    data = load(shop.data())
    gallery = [item.id for item in data.items if item.role == "gallery"]
    query = next(
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    )
    found = shop.run("search", "-k", K, data.sources[query]).json["queries"][0]["hits"]
    assert [hit["id"] for hit in found] == [gallery[row] for row in orders[0][:K]]
    assert shop.run("check").code == 0


def test_rows_of_a_rolled_back_backfill_leave_no_room(shop: Shop) -> None:
    """They passed: a limit that is three rows above them and the side file lets three more pass."""
    rows, kept = first_by_hash(shop, SHARE), kept_items(shop)
    written = shop.run("backfill", "--share", SHARE, "--force", "--reason", "a test")
    assert written.json["embedded"] == len(rows)
    assert shop.run("rollback", "--to", 2).code == 0
    allow(shop, len({*rows, *kept}) + 3)
    data = load(shop.data())
    queries = [
        source
        for item, source in zip(data.items, data.sources, strict=True)
        if item.role == "query"
    ]
    found = shop.run("search", *queries).json["rescoring"]
    assert found["passed"] == 3
    assert found["at_limit"] > 0
    assert len(kept_items(shop)) == len(kept) + 3


def test_what_is_warmed_during_a_backfill_counts_for_its_limit(shop: Shop, tmp_path: Path) -> None:
    """The limit allows the backfill as it begins; warm uses up the room meanwhile, so that nothing
    is written."""
    rows, kept = first_by_hash(shop, SHARE), kept_items(shop)
    allow(shop, len({*rows, *kept}) + 3)
    log = tmp_path / "log.txt"
    ids = Store.open(shop.path("store")).catalog().ids
    log.write_text("\n".join(item for item in ids if item not in {*rows, *kept}))
    warmed: list[int] = []

    def warm_meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "items embedded" and not warmed:
            warmed.append(shop.run("warm", log).json["passed"])

    before = shop.manifest()
    options = BackfillOptions(share=SHARE, forced_reason="a test")
    with pytest.raises(UsageError, match="beside what re-scoring embedded meanwhile"):
        backfill(
            Project.load(shop.path("compatctl.yaml")), options=options, progress=warm_meanwhile
        )
    assert warmed[0] > 3
    assert shop.manifest() == before
    assert shop.run("check").code == 0
    assert shop.run("backfill", "--share", SHARE).code == 2


def test_a_search_that_began_before_a_backfill_knows_its_rows(shop: Shop) -> None:
    """A process that serves since before keeps no more than the limit leaves beside the rows that
    were written meanwhile."""
    rows, kept = first_by_hash(shop, SHARE), kept_items(shop)
    allow(shop, len({*rows, *kept}) + 3)
    project = Project.load(shop.path("compatctl.yaml"))
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    rescorer = rescorer_of(project, gallery, load(shop.data()))
    others = [row for row, item in enumerate(gallery.catalog.ids) if item not in {*rows, *kept}]
    assert rescorer.fill_all(as_rows(others[:1])) == 1
    assert rescorer.room is not None
    assert rescorer.room() == len(rows) - len({*rows} & kept) + 2
    written = shop.run("backfill", "--share", SHARE, "--force", "--reason", "a test")
    assert written.code == 0, written.stderr
    rescorer.fill_all(as_rows(others[1:]))
    assert len(kept_items(shop)) == len(kept) + 3
    status = shop.run("status").json["gallery_pass"]
    assert status["by"] == {"stored": len(rows), "re-scored": len(kept) + 3}


def test_a_forecast_of_such_a_store_cannot_tell(shop: Shop) -> None:
    """It is of the index alone: nothing is embedded, and the message names what measures it."""
    refused = shop.run("backfill", "--forecast", 50)
    assert refused.code == 4
    assert "a forecast is of the index alone" in refused.stderr
    assert "--dry-run" in refused.stderr
