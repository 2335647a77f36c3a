"""Tests of the share passed that status and history show, against the catalogue and the report."""

from __future__ import annotations

import re
from pathlib import Path
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


def _backfill(shop: Shop, share: float, *more: object) -> dict[str, Any]:
    result = shop.run("backfill", "--share", share, *more)
    assert result.code == 0, result.stderr
    written: dict[str, Any] = result.json
    assert written["written"]
    return written


def _allow(shop: Shop, share: float) -> None:
    project = shop.path("compatctl.yaml")
    text = re.sub("max_gallery_pass: .*", f"max_gallery_pass: {share!r}", project.read_text())
    project.write_text(text)


def test_a_rolled_back_backfill_did_pass_its_rows(shop: Shop) -> None:
    """Status and history count them after the rollback."""
    _deploy(shop, pairs=0)
    embedded = _backfill(shop, 0.5)["embedded"]
    assert shop.run("rollback", "--to", 2).code == 0
    counts = _passed(shop)
    assert (counts["passed"], counts["exact"], counts["by"]) == (
        embedded,
        True,
        {"earlier": embedded},
    )
    assert f"{embedded} of them in an earlier generation" in run("status", *shop.args).stdout
    lines = [line["gallery_pass"]["passed"] for line in shop.run("history").json["generations"]]
    assert lines == [counts["rows"], 0, embedded, embedded]


def _collect(shop: Shop) -> None:
    """Deploy other models, then new.onnx again, and delete what no rollback needs."""
    for model in ("worse", "old", "new"):
        path, reason = shop.path(f"{model}.onnx"), ("--force", "--reason", "drill")
        assert shop.run("deploy", "--model", path, *reason).code == 0
    assert shop.run("check", "--gc", "--keep", 1).code == 0
    assert shop.run("status").json["oldest_restorable"] > 3


def test_the_budget_counts_what_was_rolled_back(shop: Shop, tmp_path: Path) -> None:
    """The same rows may be written again, others that exceed the limit with them may not; where gc
    deleted the first gallery nobody can tell them apart, and all count."""
    _deploy(shop, pairs=0)
    _allow(shop, 0.51)
    first = _backfill(shop, 0.5)
    written = Store.open(shop.path("store")).catalog()
    own = written.models.index(first["query_model"])
    others = [item for item, of in zip(written.ids, written.model_of, strict=True) if of != own]
    (order := tmp_path / "order.txt").write_text("\n".join(others))
    assert shop.run("rollback", "--to", 2).code == 0
    refused = shop.run("backfill", "--share", 0.25, "--order", order)
    assert (refused.code, "in an earlier generation" in refused.stderr) == (2, True)
    again = shop.run("backfill", "--dry-run", "--share", 0.5)
    assert again.json["gallery_pass"]["passed"] == first["embedded"]
    _collect(shop)
    counts = shop.run("status").json["gallery_pass"]
    assert counts["by"] == {"earlier": first["embedded"]}
    refused = shop.run("backfill", "--dry-run", "--share", 0.5)
    assert refused.code == 2
    _allow(shop, 1.0)
    counts = shop.run("backfill", "--dry-run", "--share", 0.5).json["gallery_pass"]
    assert counts["passed"] == min(counts["rows"], 2 * first["embedded"])


def test_a_later_candidate_has_what_it_passed_before(shop: Shop) -> None:
    """After the rollback of a deploy with its backfill, a verification of the model counts them."""
    _deploy(shop, pairs=0)
    embedded = _backfill(shop, 0.5)["embedded"]
    assert shop.run("rollback").code == 0
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"))
    counts = verified.json["gallery_pass"]
    assert (counts["passed"], counts["by"]["earlier"]) == (embedded, embedded)


def test_removed_rows_are_no_gallery_rows_that_passed(shop: Shop) -> None:
    """A removal of rows that the model wrote takes them from the count, exactly."""
    _deploy(shop, pairs=0)
    written = _backfill(shop, 0.5)
    catalog = Store.open(shop.path("store")).catalog()
    own = catalog.models.index(written["query_model"])
    of_model = [item for item, at in zip(catalog.ids, catalog.model_of, strict=True) if at == own]
    assert shop.run("remove", *of_model[:3]).code == 0
    counts = _passed(shop)
    assert (counts["passed"], counts["exact"]) == (written["embedded"] - 3, True)


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
