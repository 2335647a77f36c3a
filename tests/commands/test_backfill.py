"""backfill: what is re-embedded, what it gains, when it is refused, and the way back."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Shop, filtered_table, run, slow_hit_rate, store_files, stored_rows

from compatctl.core.gallery_order import hubness, mean_distance, uncertainty
from compatctl.core.policy import Policy
from compatctl.data import Dataset, load
from compatctl.deployment import bulk_embedding
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.manifest import Catalog
from compatctl.store import Store

FORCE = ("--force", "--reason", "drill")


@pytest.fixture
def deployed(shop: Shop) -> Shop:
    """The better model over the gallery of the noisy one."""
    return _deploy(shop, "new.onnx")


def _deploy(shop: Shop, name: str) -> Shop:
    result = shop.run("deploy", "--model", shop.path(name), *FORCE)
    assert result.code == 0, result.stderr
    return shop


def _catalog(shop: Shop) -> Catalog:
    return Store.open(shop.path("store")).catalog()


def _by_hash(ids: tuple[str, ...]) -> list[str]:
    return sorted(ids, key=lambda item: hashlib.sha256(item.encode()).hexdigest())


def _of_query_model(shop: Shop) -> set[str]:
    """The ids of the rows that the catalogue says the query model embedded."""
    catalog, model = _catalog(shop), shop.manifest()["query_model"]
    rows = zip(catalog.ids, catalog.model_of, strict=True)
    return {item for item, at in rows if catalog.models[at] == model}


def _embedded(shop: Shop, name: str, ids: list[str], data: Dataset) -> NDArray[np.float32]:
    at = {item: row for row, item in enumerate(data.ids)}
    items = data.take([at[item] for item in ids])
    return Encoder.load(shop.path(name)).embed(items).features


def test_a_half_is_measured_and_written_as_by_an_explicit_loop(deployed: Shop) -> None:
    """Hit rate before and after, and every row of the new index, are those found one by one."""
    data, before, catalog = load(deployed.data()), deployed.manifest(), _catalog(deployed)
    ids = list(catalog.ids)
    old = stored_rows(deployed, ids)
    result = deployed.run("backfill", "--share", 0.5)
    assert result.code == 0, result.stderr
    half = _by_hash(catalog.ids)[: math.ceil(len(ids) / 2)]
    wanted = old.copy()
    wanted[[ids.index(item) for item in half]] = _embedded(deployed, "new.onnx", half, data)
    np.testing.assert_allclose(stored_rows(deployed, ids), wanted, atol=1e-5)
    unchanged = [item for item in ids if item not in half]
    rows = [ids.index(item) for item in unchanged]
    np.testing.assert_array_equal(stored_rows(deployed, unchanged), old[rows])
    assert _of_query_model(deployed) == set(half)

    trial, output = result.json["measured"], result.json
    new = [Encoder.load(deployed.path("new.onnx"))]
    slow = [slow_hit_rate(deployed, new, rows) for rows in (old, wanted)]
    assert [trial["curve"][0]["hit_rate"], trial["curve"][-1]["hit_rate"]] == pytest.approx(slow)
    assert trial["check"]["estimate"] == pytest.approx(slow[1] - slow[0])
    assert trial["check"]["low"] > -0.02
    shares = [point["share"] for point in trial["curve"]]
    assert shares == pytest.approx([0, 0.05, 0.1, 0.25, 0.5], abs=0.01)
    assert (output["embedded"], output["written"], output["outcome"]) == (len(half), True, "pass")
    now = deployed.manifest()
    assert (now["operation"], now["query_model"]) == ("backfill", before["query_model"])
    assert {**now["index"], "sha256": ""} == {**before["index"], "sha256": ""}
    assert deployed.run("check").code == 0


def test_features_that_wait_on_disk_are_those_of_memory(
    deployed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where features are more than may wait in memory, every key gets its own item's row."""
    monkeypatch.setattr(bulk_embedding, "IN_MEMORY", 1000)
    monkeypatch.setattr(bulk_embedding, "BATCH", 7)
    assert deployed.run("backfill", "--share", 0.4).code == 0
    ids = sorted(_of_query_model(deployed))
    wanted = _embedded(deployed, "new.onnx", ids, load(deployed.data()))
    np.testing.assert_allclose(stored_rows(deployed, ids), wanted, atol=1e-5)


def test_status_shows_the_share_of_each_model(deployed: Shop) -> None:
    """After a half, both models own about half of the rows; after all of it, one owns all."""
    assert deployed.run("backfill", "--share", 0.5).code == 0
    shares = deployed.run("status").json["shares"]
    assert sorted(shares.values()) == pytest.approx([0.5, 0.5], abs=0.01)
    assert deployed.run("backfill").code == 0
    query_model = deployed.manifest()["query_model"]
    assert deployed.run("status").json["shares"] == {query_model: 1.0}


def test_a_larger_share_continues_and_a_repeated_one_does_nothing(
    deployed: Shop, begun: Path, tmp_path: Path
) -> None:
    """A third, the same again, then all: the index is, byte for byte, that of all at once."""
    first = deployed.run("backfill", "--share", 0.3)
    assert first.code == 0, first.stderr
    third, files = _of_query_model(deployed), store_files(deployed)
    again = deployed.run("backfill", "--share", 0.3)
    assert (again.code, again.json["written"]) == (0, False)
    assert (again.json["outcome"], again.json["embedded"]) == ("nothing to do", 0)
    assert store_files(deployed) == files
    rest = deployed.run("backfill").json
    assert rest["share_before"] == pytest.approx(first.json["share"])
    assert rest["embedded"] == rest["rows"] - len(third)
    assert (deployed.manifest()["generation"], rest["share"]) == (4, 1.0)

    other = Shop(tmp_path / "at-once")
    other.folder.mkdir()
    (other.folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: {deployed.data()}\nmax_gallery_pass: 1.0\n"
    )
    assert other.run("init", "--model", begun / "old.onnx").code == 0
    assert other.run("deploy", "--model", begun / "new.onnx", *FORCE).code == 0
    assert other.run("backfill").json["index_sha256"] == rest["index_sha256"]


def test_listed_items_are_reembedded_first(deployed: Shop, tmp_path: Path) -> None:
    """Listed ids first, in their order, then the others by hash; an unknown id is refused."""
    ids = _catalog(deployed).ids
    listed = sorted(ids, reverse=True)[:20]
    order = tmp_path / "order.txt"
    order.write_text("\n".join(listed), encoding="utf-8-sig")  # as editors on Windows write it
    count = 15
    share = count / len(ids)
    result = deployed.run("backfill", "--share", share, "--order", order, *FORCE)
    assert result.code == 0, result.stderr
    assert _of_query_model(deployed) == set(listed[:count])
    result = deployed.run("backfill", "--share", 30 / len(ids), "--order", order, *FORCE)
    assert result.code == 0, result.stderr
    rest = [item for item in _by_hash(ids) if item not in listed]
    assert _of_query_model(deployed) == {*listed, *rest[:10]}
    files = store_files(deployed)
    twice = f"{listed[0]}\n" * 2
    for text, says in (("nobody\n", "nobody"), (twice, listed[0]), ("", "one id per line")):
        order.write_text(text)
        refused = deployed.run("backfill", "--order", order)
        assert refused.code == 5
        assert says in refused.stderr
    assert store_files(deployed) == files


@pytest.mark.parametrize("order", ["uncertainty", "mean-distance", "hubness"])
def test_an_order_by_the_stored_vectors_takes_the_largest_first(deployed: Shop, order: str) -> None:
    """Computed here from the same vectors; equals by hash; nothing else is re-embedded."""
    catalog, count = _catalog(deployed), 20
    vectors = stored_rows(deployed, list(catalog.ids))
    codes = np.unique(catalog.labels, return_inverse=True)[1]
    score = {
        "uncertainty": lambda: uncertainty(vectors, codes),
        "mean-distance": lambda: mean_distance(vectors, codes),
        "hubness": lambda: hubness(vectors, np.arange(len(vectors))),
    }[order]()
    rank = {item: row for row, item in enumerate(_by_hash(catalog.ids))}
    rows = sorted(range(len(vectors)), key=lambda row: (-score[row], rank[catalog.ids[row]]))
    arguments = ("--share", count / len(rows), "--order", order, *FORCE)
    result = deployed.run("backfill", *arguments)
    assert result.code == 0, result.stderr
    assert _of_query_model(deployed) == {catalog.ids[row] for row in rows[:count]}
    assert len(set(score)) > (0 if order == "mean-distance" else 5)  # one row a class


def test_traffic_orders_by_its_counts(deployed: Shop, tmp_path: Path) -> None:
    """The largest count first, the others by hash; ids that the store lacks are named and do not
    count, a file of such ids alone is refused, as is a bad line, a missing file and an unknown
    order."""
    ids = _catalog(deployed).ids
    wanted = sorted(ids, reverse=True)[:8]
    traffic = tmp_path / "traffic.csv"
    lines = [f"{item},{count}" for count, item in enumerate(wanted, 1)]
    traffic.write_text(f"id,count\ngone,99\n{ids[0].upper()},98\n" + "\n".join(lines) + "\n")
    named = ("--order", "traffic", "--traffic", traffic)
    result = deployed.run("backfill", "--share", 3 / len(ids), *named, *FORCE)
    assert result.code == 0
    told = {entry["kind"]: entry["names"] for entry in result.json["notices"]}
    assert told["unknown-items"] == ["gone", ids[0].upper()]
    assert told["near-equal-ids"] == [f"{ids[0].upper()!r} and {ids[0]!r}"]
    assert _of_query_model(deployed) == set(wanted[-3:])
    assert deployed.run("backfill", "--share", 12 / len(ids), *named, *FORCE).code == 0
    rest = [item for item in _by_hash(ids) if item not in wanted]
    assert _of_query_model(deployed) == {*wanted, *rest[:4]}
    for text, says in (
        ("id,count\ngone,1\n", "none of the 1 items"),
        ("id,count\na,-1\n", "at least 0"),
        ("id,count\na,1\na,2\n", "each id once"),
        ("id,count\na,1\n ,2\n", "line 3: id is empty: expected an item's id with the count '2'"),
        ("id,count\n", "no item"),
        ("id\na\n", "count"),
    ):
        traffic.write_text(text)
        refused = deployed.run("backfill", *named)
        assert (refused.code, says in refused.stderr) == (5, True), refused.stderr
    for arguments, says in (
        (("--order", "traffic"), "--traffic FILE"),
        (("--traffic", traffic), "--order traffic"),
        (("--order", "popularity"), "mean-distance"),
    ):
        refused = deployed.run("backfill", *arguments)
        assert (refused.code, says in refused.stderr) == (2, True), refused.stderr


def test_items_that_a_service_answers_most_come_first(deployed: Shop, tmp_path: Path) -> None:
    """The service's own log, whatever its name and either option; the CSV and the list of ids are
    known by their content too."""
    ids = sorted(_catalog(deployed).ids, reverse=True)
    log, share = tmp_path / "of-the-service", 2 / len(ids)
    answers = [["gone", ids[4], ids[9]], [ids[4]], [ids[9], ids[4], ids[7]], [ids[7], ids[9]]]
    hits = [[{"id": item, "score": 0.5} for item in answer] for answer in answers]
    log.write_text("".join(json.dumps({"query": "q", "hits": each}) + "\n" for each in hits))
    result = deployed.run("backfill", "--share", share, "--order", log, *FORCE)
    assert result.code == 0, result.stderr
    assert _of_query_model(deployed) == {ids[4], ids[9]}
    assert result.json["notices"][0]["kind"] == "unknown-hit"
    named = ("--order", "traffic", "--traffic", log)
    assert deployed.run("backfill", "--share", 3 / len(ids), *named, *FORCE).code == 0
    assert _of_query_model(deployed) == {ids[4], ids[9], ids[7]}
    table = tmp_path / "traffic.csv"
    table.write_text(f"id,count\n{ids[1]},2\n{ids[2]},7\n")
    assert deployed.run("backfill", "--share", 4 / len(ids), "--order", table, *FORCE).code == 0
    assert _of_query_model(deployed) == {ids[4], ids[9], ids[7], ids[2]}
    log.write_text(json.dumps({"query": "q", "hits": [{"id": "gone"}]}))
    refused = deployed.run("backfill", "--order", log)
    assert (refused.code, "no answer has an item" in refused.stderr) == (5, True)


def test_random_and_hubs_are_the_orders_hash_and_hubness(deployed: Shop) -> None:
    """The second names take the same rows."""
    catalog, count = _catalog(deployed), 6
    vectors = stored_rows(deployed, list(catalog.ids))
    share = count / len(catalog)
    assert deployed.run("backfill", "--share", share, "--order", "random", *FORCE).code == 0
    assert _of_query_model(deployed) == set(_by_hash(catalog.ids)[:count])
    assert deployed.run("rollback", "--to", deployed.manifest()["generation"] - 1).code == 0
    score = hubness(vectors, np.arange(len(vectors)))
    rank = {item: row for row, item in enumerate(_by_hash(catalog.ids))}
    rows = sorted(range(len(vectors)), key=lambda row: (-score[row], rank[catalog.ids[row]]))
    assert deployed.run("backfill", "--share", share, "--order", "hubs", *FORCE).code == 0
    assert _of_query_model(deployed) == {catalog.ids[row] for row in rows[:count]}


def test_items_without_an_image_are_listed_and_passed_over(deployed: Shop) -> None:
    """The next in order take their place; where all that can be done is done, it says so."""
    order = _by_hash(_catalog(deployed).ids)
    lost = set(order[:3])
    table = filtered_table(deployed, lambda row: row["id"] not in lost)
    share = 10 / len(order)
    result = deployed.run("backfill", "--share", share, "--data", table, *FORCE).json
    assert (result["missing"], result["embedded"]) == (order[:3], 10)
    assert _of_query_model(deployed) == set(order[3:13])
    whole = deployed.run("backfill", "--data", table).json
    assert (set(whole["missing"]), whole["written"]) == (lost, True)
    assert whole["share"] == pytest.approx(1 - 3 / len(order))
    again = deployed.run("backfill", "--data", table)
    assert (again.code, again.json["outcome"]) == (0, "nothing to do")
    assert set(again.json["missing"]) == lost
    assert "not in the data: " in run("backfill", *deployed.args, "--data", table).stdout


def test_data_without_any_of_the_items_is_an_error(deployed: Shop) -> None:
    """Exit 5: that is another gallery's data."""
    table = filtered_table(deployed, lambda row: row["role"] == "query")
    refused = deployed.run("backfill", "--data", table, *FORCE)
    assert refused.code == 5
    assert "none of the store's items" in refused.stderr


def test_an_image_that_does_not_decode_is_an_error_or_skipped(deployed: Shop) -> None:
    """Exit 5 with its name; with --skip-bad it is counted, and the same again does nothing."""
    ids = _catalog(deployed).ids
    first, count = _by_hash(ids)[0], 4
    share = count / len(ids)
    table = filtered_table(deployed, lambda row: True)
    bad = table.with_suffix(".png")
    bad.write_bytes(b"no image")
    lines = table.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"{first},"))
    path = dict(zip(lines[0].split(","), lines[at].split(","), strict=True))["path"]
    table.write_text("\n".join(lines).replace(path, bad.name) + "\n")
    files = store_files(deployed)
    refused = deployed.run("backfill", "--data", table, "--share", share, *FORCE)
    assert refused.code == 5
    assert first in refused.stderr
    assert store_files(deployed) == files
    arguments = ("backfill", "--data", table, "--share", share, "--skip-bad", *FORCE)
    result = deployed.run(*arguments)
    assert result.code == 0, result.stderr
    assert (result.json["skipped"], result.json["embedded"]) == ([first], count - 1)
    again = deployed.run(*arguments).json
    assert (again["outcome"], again["skipped"], again["written"]) == (
        "nothing to do",
        [first],
        False,
    )


def test_a_loss_is_refused_and_can_be_forced(shop: Shop) -> None:
    """A query model that reads the old gallery better than its own: exit 3, nothing written; with
    --force it is written, and the reason stands in the manifest and in the history."""
    _deploy(shop, "worse.onnx")
    files = store_files(shop)
    refused = shop.run("backfill")
    assert refused.code == 3, refused.stdout
    assert refused.json["outcome"] == "fail"
    assert refused.json["measured"]["check"]["high"] < 0
    assert refused.json["written"] is False
    assert store_files(shop) == files
    assert "another --share" in run("backfill", *shop.args).stdout
    forced = shop.run("backfill", "--force", "--reason", "a long drill of the pager")
    assert (forced.code, forced.json["outcome"], forced.json["written"]) == (0, "fail", True)
    assert shop.manifest()["forced_reason"] == "drill; backfill: a long drill of the pager"
    assert shop.run("history").json["generations"][-1]["note"].endswith("a long drill of the pager")
    table = run("history", *shop.args).stdout
    for line in shop.run("history").json["generations"]:
        at = line["created_at"][:16].replace("T", " ")
        assert f"{line['operation']}   {at}" in table
    assert shop.run("check").code == 0


def test_too_few_queries_are_inconclusive(deployed: Shop) -> None:
    """With 40 held-out queries the gain is shown, and the exit code is 4; nothing is written."""
    queries = [item.id for item in load(deployed.data()).filter(split="test", role="query").items]
    kept = set(queries[:40])
    table = filtered_table(deployed, lambda row: row["role"] == "gallery" or row["id"] in kept)
    files = store_files(deployed)
    result = deployed.run("backfill", "--data", table)
    assert result.code == 4
    assert (result.json["outcome"], result.json["written"]) == ("inconclusive", False)
    assert result.json["measured"]["n_queries"] <= 40
    assert store_files(deployed) == files


def test_without_held_out_queries_it_is_refused_before_anything_is_embedded(
    deployed: Shop,
) -> None:
    """Exit 4 with the advice; forced, it is written and told to be not measured."""
    table = filtered_table(deployed, lambda row: row["role"] == "gallery")
    files = store_files(deployed)
    refused = deployed.run("backfill", "--data", table)
    assert refused.code == 4
    assert "--force --reason" in refused.stderr
    assert store_files(deployed) == files
    forced = deployed.run("backfill", "--data", table, *FORCE).json
    assert (forced["outcome"], forced["measured"], forced["written"]) == (
        "not measured",
        None,
        True,
    )


@pytest.mark.parametrize(("least", "code", "outcome"), [(-1.0, 0, "pass"), (0.9, 3, "fail")])
def test_the_policys_own_limit_decides_where_it_has_one(
    deployed: Shop, tmp_path: Path, least: float, code: int, outcome: str
) -> None:
    """min_mixed_gain of the policy takes the place of the default."""
    policy = tmp_path / "mine.yaml"
    policy.write_text(f"format: {Policy().format}\nname: mine\nmin_mixed_gain: {least}\n")
    result = deployed.run("backfill", "--share", 0.5, "--policy", policy, "--dry-run")
    assert (result.code, result.json["outcome"]) == (code, outcome)
    check = result.json["measured"]["check"]
    assert check["threshold"] - (check["margin"] or 0) == least


def test_a_dry_run_measures_and_writes_nothing(deployed: Shop) -> None:
    """The same figures as the run that writes, and every file of the store as it was."""
    files = store_files(deployed)
    planned = deployed.run("backfill", "--share", 0.5, "--dry-run").json
    assert planned["written"] is False
    assert store_files(deployed) == files
    result = deployed.run("backfill", "--share", 0.5).json
    assert planned["measured"] == result["measured"]
    table = run("backfill", *deployed.args, "--dry-run").stdout
    assert "mixed_gain" in table
    assert "nothing was written" in table


@pytest.mark.parametrize(
    "arguments",
    [("--share", 0), ("--share", 1.5), ("--share", "nan"), ("--force",), ("--reason", "x")],
)
def test_a_call_that_cannot_work_is_a_usage_error(deployed: Shop, arguments: Any) -> None:
    """Exit 2: a share outside (0, 1], force without a reason, a reason without force."""
    assert deployed.run("backfill", *arguments).code == 2


def test_a_forecast_on_every_row_is_the_measurement(deployed: Shop, tmp_path: Path) -> None:
    """With as many passes as rows, the curve is that of a dry run; nothing is written. Gains are
    over the start, and each lies in its interval."""
    files = store_files(deployed)
    order = tmp_path / "order.txt"
    order.write_text("\n".join(sorted(_catalog(deployed).ids)))
    arguments = ("backfill", "--order", order)
    exact = deployed.run(*arguments, "--dry-run").json["measured"]
    result = deployed.run(*arguments, "--forecast", 10_000)
    assert result.code == 0, result.stderr
    forecast = result.json["forecast"]
    assert forecast["passes"] == result.json["rows"]
    for name in ("n_queries", "n_classes", "hit_at"):
        assert forecast[name] == exact[name]
    assert len(forecast["curve"]) == 7
    for point, wanted in zip(forecast["curve"], exact["curve"], strict=True):
        assert point["share"] == pytest.approx(wanted["share"], abs=0.5 / result.json["rows"])
        assert point["hit_rate"] == pytest.approx(wanted["hit_rate"], abs=0.01)
        assert point["gain"] == pytest.approx(point["hit_rate"] - forecast["curve"][0]["hit_rate"])
        assert point["low"] <= point["gain"] <= point["high"]
    assert forecast["curve"][-1]["hit_rate"] == pytest.approx(exact["curve"][-1]["hit_rate"])
    assert store_files(deployed) == files


def test_a_forecast_warns_of_the_shares_that_lose(shop: Shop) -> None:
    """A query model of another space: every share between loses, which a sample of a third shows,
    with as many passes and no more; all of it gains."""
    _deploy(shop, "turned.onnx")
    rows = len(_catalog(shop))
    result = shop.run("backfill", "--forecast", rows // 3)
    assert result.code == 0, result.stderr
    forecast = result.json["forecast"]
    assert 0.7 * (rows // 3) <= forecast["passes"] <= rows // 3
    assert forecast["curve"][-1]["low"] > 0
    table = run("backfill", *shop.args, "--forecast", rows // 3)
    assert "least share from which it gains" in table.stdout
    _deploy(shop, "worse.onnx")
    result = shop.run("backfill", "--forecast", rows // 3)
    assert "is forecast to fall below the start at" in result.stderr
    assert "100%" in result.stderr
    assert "no share is forecast to gain" in result.stderr
    for arguments, says in (
        (("--share", 0.5), "--share has no effect"),
        (FORCE, "--force has no effect"),
        (("--dry-run",), "--dry-run has no effect"),
    ):
        refused = shop.run("backfill", "--forecast", 100, *arguments)
        assert (refused.code, says in refused.stderr) == (2, True), refused.stderr
    assert shop.run("backfill", "--forecast", 1).code == 2


def test_a_forecast_keeps_the_budget_of_the_project(deployed: Shop) -> None:
    """A sample of a third of the rows is refused where a tenth may pass; one of a tenth is not."""
    rows, project = len(_catalog(deployed)), deployed.path("compatctl.yaml")
    lines = [line for line in project.read_text().splitlines() if "max_gallery_pass" not in line]
    project.write_text("\n".join([*lines, "max_gallery_pass: 0.1"]) + "\n")
    refused = deployed.run("backfill", "--forecast", rows // 3)
    assert (refused.code, "a smaller --forecast" in refused.stderr) == (2, True), refused.stderr
    result = deployed.run("backfill", "--forecast", rows // 10)
    assert result.code == 0, result.stderr


def test_a_forecast_needs_rows_and_queries(deployed: Shop) -> None:
    """Exit 4 without a held-out query; where all is re-embedded there is nothing to forecast."""
    table = filtered_table(deployed, lambda row: row["role"] == "gallery")
    refused = deployed.run("backfill", "--data", table, "--forecast", 50)
    assert (refused.code, "no held-out query" in refused.stderr) == (4, True)
    assert deployed.run("backfill").code == 0
    result = deployed.run("backfill", "--forecast", 50).json
    assert (result["forecast"], result["share_before"]) == (None, 1.0)
    assert "nothing to forecast" in run("backfill", *deployed.args, "--forecast", 50).stdout


def test_rollback_restores_index_catalogue_and_model_together(deployed: Shop) -> None:
    """With --to to before the backfill, by default to before the deploy, also after the former;
    nothing counts as added."""
    deploy = deployed.manifest()
    first = _catalog(deployed)
    assert deployed.run("backfill", "--share", 0.5).code == 0
    undone = deployed.run("rollback", "--to", deploy["generation"]).json
    assert (undone["added"], undone["re_embedded"], undone["dropped"]) == (0, 0, [])
    now = deployed.manifest()
    for name in ("query_model", "index", "catalog", "models", "forced_reason"):
        assert now[name] == deploy[name], name
    assert deployed.run("backfill").code == 0
    assert deployed.run("check", "--gc", "--keep", 1).code == 0
    back = deployed.run("rollback").json
    assert (back["restored"], back["added"]) == (1, 0)
    now = deployed.manifest()
    assert now["query_model"] == first.models[0]
    assert (now["index"], now["catalog"]) == (deploy["index"], deploy["catalog"])
    assert deployed.run("rollback").json["written"] is False
    assert deployed.run("check").code == 0


def test_rollback_counts_added_items_and_not_backfilled_ones(deployed: Shop) -> None:
    """Added before the deploy's undoing and re-embedded since: only the added one is brought along,
    by the restored model; the others have the vectors that they had."""
    ids = list(_catalog(deployed).ids)
    before = stored_rows(deployed, ids)
    images = sorted((deployed.data().parent / "images" / "twemoji").iterdir())
    table = deployed.data().parent / f"{deployed.folder.parent.name}-fresh.csv"
    table.write_text(f"id,path,label\nfresh,{images[0]},fresh\n")
    assert deployed.run("add", "--data", table).code == 0
    assert deployed.run("backfill", "--share", 0.5).code == 0
    back = deployed.run("rollback", "--data", table)
    assert back.code == 0, back.stderr
    assert (back.json["added"], back.json["re_embedded"]) == (1, 1)
    np.testing.assert_array_equal(stored_rows(deployed, ids), before)
    wanted = Encoder.load(deployed.path("old.onnx")).embed(load(table)).features
    np.testing.assert_allclose(stored_rows(deployed, ["fresh"]), wanted, atol=1e-5)
    assert deployed.run("check").code == 0


def test_a_rollback_that_keeps_the_gallery_keeps_what_was_backfilled(deployed: Shop) -> None:
    """rollback --added keep: the old query model, and every row stays where and whose it is."""
    assert deployed.run("backfill", "--share", 0.5).code == 0
    rows = _of_query_model(deployed)
    index = deployed.manifest()["index"]["sha256"]
    assert deployed.run("rollback", "--added", "keep").code == 0
    now = deployed.manifest()
    assert now["index"]["sha256"] == index
    assert sorted(model["rows"] for model in now["models"]) == sorted(
        [len(rows), now["index"]["count"] - len(rows)]
    )
    assert deployed.run("check").code == 0


def test_a_gallery_of_three_models_is_filled_by_the_newest(deployed: Shop) -> None:
    """Rows of both earlier models are candidates; those that are left keep their owner."""
    assert deployed.run("backfill", "--share", 0.5).code == 0
    _deploy(deployed, "turned.onnx")
    result = deployed.run("backfill", "--share", 0.5)
    assert result.code == 0, result.stderr
    catalog = _catalog(deployed)
    assert sum(catalog.counts().values()) == len(catalog)
    assert len(_of_query_model(deployed)) == math.ceil(len(catalog) / 2)
    gallery = DeployedGallery.open(Store.open(deployed.path("store")))
    held = {model.sha256: model.rows for model in gallery.manifest.models}
    assert held == {model: rows for model, rows in catalog.counts().items() if rows}
    assert deployed.run("check").code == 0


def test_ef_is_raised_to_what_the_new_index_needs(begun: Path, shop: Shop, tmp_path: Path) -> None:
    """A sparse graph: the ef that is written finds 95% of the nearest rows, the one before less."""
    other = Shop(tmp_path / "sparse")
    other.folder.mkdir()
    (other.folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: {shop.data()}\nmax_gallery_pass: 1.0\n"
    )
    sparse = ("--M", 3, "--ef-construction", 8, "--ef-search", 10)
    assert other.run("init", "--model", begun / "old.onnx", *sparse).code == 0
    assert other.run("deploy", "--model", begun / "new.onnx", *FORCE).code == 0
    result = other.run("backfill", "--share", 0.5)
    assert result.code == 0, result.stderr
    output, ann = result.json, result.json["ann"]
    assert other.manifest()["index"]["ef_search"] == output["ef_search"] == ann["ef_needed"] > 10
    gallery = DeployedGallery.open(Store.open(other.path("store")))
    vectors, keys = gallery.index.vectors(), gallery.index.keys()
    data = load(shop.data()).filter(split="test", role="query")
    queries = Encoder.load(begun / "new.onnx").embed(data).features
    for ef, hit_rate in ((10, ann["recall_current"]), (output["ef_search"], ann["recall_needed"])):
        shares = []
        for query in queries:
            ten = keys[np.argsort(-(vectors @ query), kind="stable")[:10]]
            nearest, _ = gallery.index.search(query[None], 10, ef, threads=1)
            shares.append(np.isin(nearest[0], ten).mean())
        assert np.mean(shares) == pytest.approx(hit_rate, abs=2e-3)
    assert ann["recall_current"] < 0.95 <= ann["recall_needed"]
    assert other.run("check").code == 0


def test_queries_that_do_not_decode_are_no_evidence(deployed: Shop) -> None:
    """All held-out queries skipped: exit 4 as without any, and nothing is written."""
    table = filtered_table(deployed, lambda row: True)
    bad = table.with_suffix(".png")
    bad.write_bytes(b"no image")
    lines = table.read_text().splitlines()
    names = lines[0].split(",")
    for at, line in enumerate(lines[1:], 1):
        row = dict(zip(names, line.split(","), strict=True))
        if row["role"] == "query":
            lines[at] = ",".join({**row, "path": bad.name}.values())
    table.write_text("\n".join(lines) + "\n")
    files = store_files(deployed)
    result = deployed.run("backfill", "--data", table, "--skip-bad")
    assert result.code == 4
    assert "no held-out query" in result.stderr
    assert store_files(deployed) == files
