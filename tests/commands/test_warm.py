"""Free vectors that are kept: searches fill the side file, and warm fills it from a log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_kit import serve_rescored, with_free
from shop_kit import Shop, store_files, write_encoder

from compatctl.core.arrays import as_rows
from compatctl.data import Dataset, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.rescoring import rescorer_of
from compatctl.encoder import Encoder
from compatctl.recipe import Project
from compatctl.store import Store, side_bytes
from compatctl.store.side_file import SideFile

K = 6


@pytest.fixture(scope="module")
def begun(begun: Path) -> Path:
    """The project, deployed with re-scoring of six answers."""
    shop = Shop(begun)
    weak = write_encoder(begun / "weak.onnx", noise=0.5)
    with_free(begun / "both.onnx", weak, write_encoder(begun / "best.onnx", noise=0.02))
    serve_rescored(shop, K)
    return begun


@pytest.fixture
def data(shop: Shop) -> Dataset:
    """The project's data."""
    return load(shop.data())


def queries(data: Dataset) -> list[int]:
    """Rows of the test queries."""
    return [i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")]


def candidates(shop: Shop, data: Dataset, rows: list[int]) -> list[list[str]]:
    """The ids that each query touches, by a loop over the stored vectors."""
    gallery = [i for i, item in enumerate(data.items) if item.role == "gallery"]
    stored = Encoder.load(shop.path("old.onnx")).embed(data.take(gallery)).features
    new = Encoder.load(shop.path("both.onnx")).embed(data.take(rows)).features
    nearest = np.argsort(-(new @ stored.T), axis=1, kind="stable")[:, :K]
    return [[data.ids[gallery[row]] for row in found] for found in nearest]


def search(shop: Shop, data: Dataset, rows: list[int]) -> dict[str, Any]:
    """search's result for these queries."""
    result: dict[str, Any] = shop.run("search", *(data.sources[row] for row in rows)).json
    return result


def test_a_search_keeps_what_it_embeds(shop: Shop, data: Dataset) -> None:
    """The second search passes nothing and answers the same; status counts the vectors."""
    rows = queries(data)[:5]
    first, second = search(shop, data, rows), search(shop, data, rows)
    distinct = len({item for found in candidates(shop, data, rows) for item in found})
    assert first["rescoring"]["passed"] == second["rescoring"]["cached"] == distinct
    assert second["rescoring"]["passed"] == 0
    order = [
        [[hit["id"] for hit in q["hits"]] for q in part["queries"]] for part in (first, second)
    ]
    assert order[0] == order[1]
    assert shop.run("check").code == 0


def test_the_side_file_has_a_limit(shop: Shop) -> None:
    """Two vectors for each row of the gallery, and no more."""
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    cache = rescorer_of(Project(), gallery, None).cache
    assert isinstance(cache, SideFile)
    limit = side_bytes(2 * len(gallery.catalog), cache.dim)
    assert cache.max_bytes == limit
    assert cache.bytes < limit


def limited(shop: Shop, rows: int) -> float:
    """Let at most so many rows of the gallery pass; the share that the project allows."""
    share = rows / int(shop.manifest()["index"]["count"])
    project = shop.path("compatctl.yaml")
    text = project.read_text().replace("max_gallery_pass: 1.0", f"max_gallery_pass: {share!r}")
    project.write_text(text)
    return share


def test_a_search_passes_no_more_than_the_project_allows(shop: Shop, data: Dataset) -> None:
    """With room for 8 rows searches embed 8 in all, then none; the side file still answers."""
    limited(shop, 8)
    rows = queries(data)[:100:20]
    first = shop.run("search", *(data.sources[row] for row in rows))
    assert first.json["rescoring"]["passed"] == 8
    assert first.json["rescoring"]["at_limit"] > 0
    assert "max_gallery_pass lets no more of the gallery pass" in first.stderr
    second = search(shop, data, rows)["rescoring"]
    assert (second["passed"], second["cached"]) == (0, 8)
    assert second["at_limit"] == first.json["rescoring"]["at_limit"]
    assert shop.run("status").json["free_vectors"]["count"] == 8


def test_warm_passes_no_more_than_the_project_allows(
    shop: Shop, data: Dataset, tmp_path: Path
) -> None:
    """It embeds the most touched rows that fit, and names those that are left."""
    limited(shop, 5)
    gallery = [item.id for item in data.items if item.role == "gallery"][:9]
    log = tmp_path / "log.txt"
    log.write_text("\n".join(gallery))
    result = shop.run("warm", log)
    warmed = result.json
    assert (warmed["passed"], warmed["left"], warmed["at_limit"]) == (5, 4, 4)
    assert "4 touched items are left without a free vector" in result.stderr
    assert shop.run("warm", log).json["passed"] == 0


def test_two_at_once_keep_no_more_than_the_project_allows(shop: Shop, data: Dataset) -> None:
    """What another process kept since a run began is counted before the run keeps its own."""
    limited(shop, 8)
    project = Project(max_gallery_pass=8 / shop.manifest()["index"]["count"])
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    rescorers = [rescorer_of(project, gallery, data) for _ in range(2)]
    rooms = [rescorer.room() for rescorer in rescorers if rescorer.room is not None]
    assert rooms == [8, 8]
    kept = [
        rescorer.fill_all(as_rows(range(start, start + 8)))
        for rescorer, start in zip(rescorers, (0, 20), strict=True)
    ]
    assert kept[0] == 8
    assert shop.run("status").json["free_vectors"]["count"] == 8


def test_rescored_rows_count_as_passed(shop: Shop, data: Dataset) -> None:
    """Status, a later verification and a backfill of the model count the rows of its side file."""
    rows = queries(data)[:5]
    passed = search(shop, data, rows)["rescoring"]["passed"]
    status = shop.run("status").json["gallery_pass"]
    assert (status["by"], status["passed"], status["exact"]) == (
        {"re-scored": passed},
        passed,
        False,
    )
    planned = shop.run("backfill", "--share", 0.01, "--dry-run")
    counts = planned.json["gallery_pass"]
    assert counts["by"]["re-scored"] == passed
    assert counts["passed"] >= passed
    assert shop.run("rollback").code == 0
    report = ("--report", shop.path("again.json"))
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("both.onnx"), *report)
    assert verified.json["gallery_pass"]["by"] == {"re-scored": passed} | {
        key: count
        for key, count in verified.json["gallery_pass"]["by"].items()
        if key != "re-scored"
    }
    assert verified.json["gallery_pass"]["passed"] == passed


def test_a_removed_item_is_not_kept(shop: Shop, data: Dataset) -> None:
    """Its free vector goes with it, and the store is sound."""
    rows = queries(data)[:3]
    search(shop, data, rows)
    item = candidates(shop, data, rows)[0][0]
    assert shop.run("remove", item).code == 0
    assert all(hit["id"] != item for q in search(shop, data, rows)["queries"] for hit in q["hits"])
    assert shop.run("check").code == 0


@pytest.mark.parametrize("form", ["queries", "items"])
def test_after_a_log_its_queries_pass_nothing(
    shop: Shop, data: Dataset, tmp_path: Path, form: str
) -> None:
    """A log of queries and a log of the items that they touch embed the same rows."""
    rows = queries(data)[:20]
    found = candidates(shop, data, rows)
    touched = {item for items in found for item in items}
    log = tmp_path / "log.txt"
    ids = [data.ids[row] for row in rows] if form == "queries" else sorted(touched)
    log.write_text("\n".join(ids) + "\n")
    result = shop.run("warm", log)
    assert result.code == 0, result.stderr
    warmed = result.json
    assert warmed["passed"] == warmed["touched"] == len(touched)
    assert warmed["passed_share"] == pytest.approx(len(touched) / shop.manifest()["index"]["count"])
    assert (warmed["covered_share"], warmed["left"]) == (1.0, 0)
    assert search(shop, data, rows)["rescoring"]["passed"] == 0
    assert shop.run("warm", log).json["cached"] == len(touched)


def test_a_promotion_is_proposed_when_most_rows_are_warm(
    shop: Shop, data: Dataset, tmp_path: Path
) -> None:
    """Below 90% nothing is said; above, warm and status name the command and what is left."""
    gallery = [item.id for item in data.items if item.role == "gallery"]
    for left, advice in ((len(gallery) // 2, ""), (3, "compatctl promote embeds the other 3 and ")):
        log = tmp_path / f"{left}.txt"
        log.write_text("\n".join(gallery[left:]))
        warmed = shop.run("warm", log).json
        assert warmed[
            "advice"
        ] == advice + "makes the free vectors the index, if its test passes" * bool(advice)
        assert shop.run("status").json["free_vectors"]["advice"] == warmed["advice"]


def test_the_most_touched_come_first_and_a_run_continues(
    shop: Shop, data: Dataset, tmp_path: Path
) -> None:
    """With a limit of 3 the three largest counts are embedded; the next run embeds the others."""
    gallery = [item.id for item in data.items if item.role == "gallery"][:8]
    counts = [5, 1, 9, 2, 8, 3, 4, 0]
    log = tmp_path / "log.csv"
    lines = [f"{item},{count}" for item, count in zip(gallery, counts, strict=True)]
    log.write_text("\n".join(["id,count", *lines, "who,7"]))
    first = shop.run("warm", log, "--limit", 3)
    assert (first.json["passed"], first.json["left"], first.json["unknown"]) == (3, 5, 1)
    assert first.json["covered_share"] == pytest.approx((9 + 8 + 5) / sum(counts))
    assert "1 ids of the log are in neither" in first.stderr
    second = shop.run("warm", log).json
    assert (second["cached"], second["passed"], second["left"]) == (3, 5, 0)


def test_a_dry_run_writes_nothing(shop: Shop, data: Dataset, tmp_path: Path) -> None:
    """It says what is touched, and the store's files stay as they are."""
    log = tmp_path / "log.txt"
    log.write_text(data.ids[queries(data)[0]])
    before = store_files(shop)
    planned = shop.run("warm", log, "--dry-run").json
    assert (planned["touched"], planned["passed"], planned["left"]) == (K, 0, K)
    assert store_files(shop) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no id"), ("id,count\na,many\n", "line 2: a count"), ("id,count\na,-1\n", "a count")],
)
def test_a_bad_log_is_refused(shop: Shop, tmp_path: Path, text: str, message: str) -> None:
    """An empty log, and counts that are no numbers of at least 0."""
    log = tmp_path / "log.csv"
    log.write_text(text)
    result = shop.run("warm", log)
    assert result.code == 5
    assert message in result.stderr


def test_a_store_that_does_not_rescore_is_not_warmed(shop: Shop, tmp_path: Path) -> None:
    """After the rollback there is nothing to keep free vectors for."""
    assert shop.run("rollback").code == 0
    log = tmp_path / "log.txt"
    log.write_text("x\n")
    result = shop.run("warm", log)
    assert result.code == 2
    assert "are not re-scored" in result.stderr


def test_a_limit_that_was_lowered_after_the_deploy_is_said(
    shop: Shop, data: Dataset, tmp_path: Path
) -> None:
    """status says with what re-scoring was judged, what is allowed now and that it has ended; so do
    search and warm by what they leave."""
    rows = queries(data)[:5]
    passed = search(shop, data, rows)["rescoring"]["passed"]
    before = shop.run("status")
    assert before.json["rescoring_limit"] == {
        "share": 1.0,
        "judged_share": 1.0,
        "rows_allowed": shop.manifest()["index"]["count"],
        "rows_passed": passed,
        "exact": True,
        "in_bucket": False,
    }
    assert before.stderr == ""
    share = limited(shop, passed + 4)
    lowered = shop.run("status")
    limit = lowered.json["rescoring_limit"]
    assert (limit["share"], limit["judged_share"]) == (pytest.approx(share), 1.0)
    assert "ends earlier than it was judged" in lowered.stderr
    assert "the deployed report judged it with 1: set that again" in lowered.stderr
    assert "has ended" not in lowered.stderr
    search(shop, data, queries(data)[:100:20])
    ended = shop.run("status")
    assert f"{passed + 4} rows may pass, and {passed + 4} passed" in ended.stderr
    assert "re-scoring has ended" in ended.stderr
    project = shop.path("compatctl.yaml")
    project.write_text(re.sub("max_gallery_pass: .*", "max_gallery_pass: 0", project.read_text()))
    found = shop.run("search", *(data.sources[row] for row in queries(data)[5:30:5]))
    assert found.json["rescoring"]["passed"] == 0
    assert "max_gallery_pass lets no more of the gallery pass" in found.stderr
    assert "0 rows may pass" in shop.run("status").stderr
    log = tmp_path / "log.txt"
    log.write_text("\n".join(item.id for item in data.items if item.role == "gallery"))
    refused = shop.run("warm", log)
    assert (refused.code, "max_gallery_pass: 0" in refused.stderr) == (2, True)
