"""Tests of the share passed that status and history show, against the catalogue and the report."""

from __future__ import annotations

from typing import Any

from shop_kit import Shop, carry, run

from compatctl.deployment.training_record import RecordedItem, TrainingRecord
from compatctl.store import Store

N_TRAINED, N_PAIRS = 6, 10


def _record(shop: Shop, *, pairs: int) -> None:
    """Say in new.onnx that it was trained on some gallery items and paired with others."""
    catalog = Store.open(shop.path("store")).catalog()
    items = [
        RecordedItem(id=item, sha256=digest.tobytes().hex())
        for item, digest in zip(catalog.ids, catalog.digests, strict=True)
    ]
    trained, paired = items[:N_TRAINED], items[N_TRAINED : N_TRAINED + pairs]
    carry(shop.path("new.onnx"), TrainingRecord.of(items=trained, unlabelled=paired))


def _deploy(shop: Shop, *, pairs: int) -> None:
    _record(shop, pairs=pairs)
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"))
    assert verified.json["gallery_pass"]["passed"] == pairs
    result = shop.run("deploy", "--model", shop.path("new.onnx"))
    assert result.code == 0, result.stderr


def _passed(shop: Shop) -> dict[str, Any]:
    counts: dict[str, Any] = shop.run("status").json["gallery_pass"]
    return counts


def test_the_first_model_embedded_its_own_gallery(shop: Shop) -> None:
    """After init all rows passed, and status says it in its first line."""
    counts = _passed(shop)
    assert (counts["share"], counts["passed"]) == (1.0, counts["rows"])
    first = run("status", *shop.args).stdout.splitlines()[0]
    assert first == "gallery passed: 100.00%, the query model's own gallery"


def test_a_deployed_model_has_the_counts_of_its_report(shop: Shop) -> None:
    """Nothing passed is 0 with a report; a backfill adds the rows that it writes, exactly."""
    _deploy(shop, pairs=0)
    counts = _passed(shop)
    assert (counts["passed"], counts["trained"], counts["exact"]) == (0, N_TRAINED, True)
    written = shop.run("backfill", "--share", "0.5").json
    counts = _passed(shop)
    assert written["written"]
    assert (counts["passed"], counts["exact"]) == (written["embedded"], True)
    assert counts["passed"] == written["gallery_pass"]["passed"]
    shares = [line["gallery_pass"]["share"] for line in shop.run("history").json["generations"]]
    assert shares == [1.0, 0.0, counts["share"]]
    table = run("history", *shop.args).stdout
    assert table.split()[0] == "passed"
    assert "0.00%" in table


def test_pairs_that_were_rewritten_since_make_an_upper_bound(shop: Shop) -> None:
    """Rows that may be pairs as well are counted twice at most, and the line says at most."""
    _deploy(shop, pairs=N_PAIRS)
    counts = _passed(shop)
    assert (counts["passed"], counts["exact"], counts["by"]) == (N_PAIRS, True, {"pairs": N_PAIRS})
    written = shop.run("backfill", "--share", "0.5").json
    counts, exact = _passed(shop), written["gallery_pass"]["passed"]
    assert exact <= counts["passed"] == written["embedded"] + N_PAIRS
    assert not counts["exact"]
    assert "gallery passed: at most" in run("status", *shop.args).stdout


def test_a_model_without_a_report_is_unknown_and_not_zero(shop: Shop) -> None:
    """After a forced deploy nobody can tell; the rollback knows again."""
    model = shop.path("new.onnx")
    assert shop.run("deploy", "--model", model, "--force", "--reason", "drill").code == 0
    counts = _passed(shop)
    assert (counts["passed"], counts["share"], counts["trained"]) == (None, None, None)
    assert run("status", *shop.args).stdout.startswith("gallery passed: unknown")
    assert "unknown" in run("history", *shop.args).stdout
    assert shop.run("rollback").code == 0
    assert _passed(shop)["share"] == 1.0


def test_history_reads_on_where_gc_dropped_a_report(shop: Shop) -> None:
    """The generation is unknown; the others have their shares."""
    _deploy(shop, pairs=0)
    assert shop.run("rollback").code == 0
    for report in shop.path("store/reports").iterdir():
        report.unlink()
    shares = [line["gallery_pass"]["share"] for line in shop.run("history").json["generations"]]
    assert shares == [1.0, None, 1.0]
