"""Scores on the old model's scale: what verify judges, deploy stores and search prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Result, Shop, run, write_encoder

from compatctl.core.calibration import ScoreMap

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"
CLASSES = 150
Array = NDArray[Any]


def unit(rows: Array) -> Array:
    """Rows of length 1, float64."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a better model whose cosines to the old gallery are smaller: the ranks are not."""
    folder = tmp_path_factory.mktemp("tables")
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:CLASSES])
        ids, labels = archive["ids"][kept], archive["labels"][kept]
        old = unit(archive["lite0"][kept].astype(float))
    means = np.stack([old[labels == name].mean(axis=0) for name in labels])
    roles = np.where(np.char.startswith(ids, "noto/"), "gallery", "query")
    new = unit(old + 0.4 * means)
    away = np.where(roles == "query", 1.5, 0.0)[:, None]
    for name, rows in (
        ("old", np.hstack([old, 0 * away])),
        ("new", np.hstack([new, away])),
        ("few", np.hstack([new, away])[::60]),
    ):
        step = 60 if name == "few" else 1
        more = {"ids": ids[::step], "labels": labels[::step], "role": roles[::step]}
        np.savez(folder / f"{name}.npz", features=unit(rows).astype(np.float32), **more)
    return folder


def verify(folder: Path, *more: object) -> tuple[Result, dict[str, Any]]:
    """The command's result for the tables, and its report; {} if none was written."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    models = folder / "old.npz", folder / "new.npz"
    result = run("verify", *models, "--report", report, "--json", *more)
    return result, json.loads(report.read_bytes()) if report.exists() else {}


def checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The deciding group's checks."""
    return {
        check["name"]: check for check in report["verdict"]["checks"] if check["group"] == "unseen"
    }


@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_a_model_of_another_scale_passes_at_the_callers_threshold(
    tables: Path, threshold: float
) -> None:
    """Without the map nearly all are rejected; with it FAR stays, on classes outside the fit."""
    failed, _ = verify(tables, "--threshold", threshold)
    assert failed.code == 3
    result, report = verify(tables, "--threshold", threshold, "--calibrate")
    by_name = checks(report)
    assert result.code == 0, report["summary"]
    assert by_name["far_ratio"]["low"] <= 1.0 <= by_name["far_ratio"]["high"]
    assert by_name["frr_increase"]["outcome"] == "pass"
    rates = report["groups"][0]["error_rates"]
    assert rates["calibrated"]
    assert (rates["old_threshold"], rates["cosines"]["old"]) == (threshold, threshold)
    assert rates["cosines"]["new"] < threshold - 0.1
    models = tables / "old.npz", tables / "new.npz"
    more = ("--threshold", threshold, "--calibrate", "--dry-run")
    shown = run("verify", *models, *more).stdout
    assert f"cosines {threshold:.4f} of old and {rates['cosines']['new']:.4f} of new" in shown
    for far in report["calibration"]["far"].values():
        assert far["new"] == pytest.approx(far["old"], rel=0.3)


def test_every_query_is_judged_by_the_map_of_the_other_classes(tables: Path) -> None:
    """FAR and FRR are those of a loop over two halves, each at the other's quantile."""
    _, report = verify(tables, "--threshold", "0.5", "--calibrate")
    with np.load(tables / "old.npz") as archive:
        labels, roles = archive["labels"], archive["role"]
        old = unit(archive["features"].astype(float))
    with np.load(tables / "new.npz") as archive:
        new = unit(archive["features"].astype(float))
    querying, searched = roles == "query", roles == "gallery"
    before, after = (features[querying] @ old[searched].T for features in (old, new))
    same = labels[querying][:, None] == labels[searched][None]
    half = np.unique(labels[querying], return_inverse=True)[1] % 2
    accepted = np.zeros(same.shape, dtype=bool)
    for fold in (0, 1):
        other = half != fold
        share = (before[other][~same[other]] >= 0.5).mean()
        at = np.quantile(after[other][~same[other]], 1 - share)
        accepted[half == fold] = after[half == fold] >= at
    rates = report["groups"][0]["error_rates"]
    assert rates["far"]["new"] == pytest.approx(accepted[~same].mean(), rel=0.02)
    assert rates["frr"]["new"] == pytest.approx((~accepted[same]).mean(), abs=0.01)


def test_a_calibration_without_a_threshold_is_reported(tables: Path) -> None:
    """Moved scores are mapped without a warning; the report notes that no threshold is given."""
    _, report = verify(tables, "--calibrate")
    assert report["warnings"] == []
    assert any("--threshold" in line for line in report["not_checked"])
    knots = report["calibration"]["knots"]
    assert ScoreMap(knots=tuple(map(tuple, knots))).inverse(0.5) < 0.45
    assert verify(tables)[1]["calibration"] is None


def test_a_calibration_and_another_threshold_exclude_each_other(tables: Path) -> None:
    """--new-threshold with --calibrate is a usage error: calibration keeps the threshold."""
    result, report = verify(tables, "--threshold", "0.5", "--new-threshold", "0.3", "--calibrate")
    assert (result.code, report) == (2, {})
    assert "--new-threshold" in result.stderr


def test_a_calibration_needs_enough_pairs(tables: Path) -> None:
    """Fewer than 1,000 pairs of two classes in a half end in exit 5 with a tip."""
    few = tables / "few.npz"
    result = run("verify", few, few, "--calibrate", "--report", tables / "none.json")
    assert result.code == 5
    assert "hold out more classes" in result.stderr
    assert not (tables / "none.json").exists()


def answers(shop: Shop, *images: Path) -> dict[str, Any]:
    """The hits of search."""
    report: dict[str, Any] = shop.run("search", "-k", "8", *images).json
    return report


def test_search_prints_scores_on_the_scale_that_callers_know(shop: Shop, emoji: Path) -> None:
    """deploy takes the verified map into the store, search applies it, and ranks stay; a rollback
    takes it out, and the next model's map leads to the same scale."""
    image = next((emoji / "images").rglob("*.png"))
    before = answers(shop, image)
    assert not before["calibrated"]
    assert all(hit["score"] == hit["cosine"] for hit in before["queries"][0]["hits"])
    models = shop.path("old.onnx"), shop.path("new.onnx")
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "threshold: 0.5\ncalibrate: true\n")
    outcome = shop.run("verify", *models)
    assert outcome.code == 0, outcome.stderr
    report = json.loads(shop.path("report.json").read_bytes())
    first = ScoreMap(knots=tuple(map(tuple, report["calibration"]["knots"])))
    assert shop.run("deploy").code == 0
    assert shop.run("status").json["calibrated"]
    assert shop.manifest()["calibration"] == report["calibration"]["knots"]
    refused = shop.run("search", image, "--norms", shop.path("norms.npz"))
    assert (refused.code, "the store calibrates scores" in refused.stderr) == (2, True)
    result = answers(shop, image)
    hits = result["queries"][0]["hits"]
    assert result["calibrated"]
    assert [hit["score"] for hit in hits] == first([hit["cosine"] for hit in hits]).tolist()
    assert [hit["score"] for hit in hits] == sorted(
        (entry["score"] for entry in hits), reverse=True
    )
    assert "score" in run("search", image, *shop.args).stdout

    write_encoder(shop.path("third.onnx"), noise=0.0)
    assert shop.run("verify", shop.path("new.onnx"), shop.path("third.onnx")).code in {0, 4}
    rates = json.loads(shop.path("report.json").read_bytes())["groups"][0]["error_rates"]
    assert rates["cosines"]["old"] == pytest.approx(first.inverse(0.5))
    assert shop.run("check").code == 0
    assert shop.run("rollback").code == 0
    assert answers(shop, image) | {"generation": 1} == before
    assert shop.manifest()["calibration"] is None
    assert shop.run("check").code == 0


def test_dropping_the_score_map_is_warned_of(shop: Shop) -> None:
    """A next model that is verified without --calibrate drops the map, with a warning."""
    models = shop.path("old.onnx"), shop.path("new.onnx")
    project = shop.path("compatctl.yaml")
    plain = project.read_text()
    project.write_text(plain + "calibrate: true\n")
    assert shop.run("verify", *models).code == 0
    assert shop.run("deploy").code == 0
    project.write_text(plain)
    mixed = shop.run("backfill", "--share", "0.5", "--dry-run")
    assert "before these rows were re-embedded" in mixed.stderr
    assert mixed.json["warnings"]
    write_encoder(shop.path("third.onnx"), noise=0.0)
    result = shop.run("verify", shop.path("new.onnx"), shop.path("third.onnx"))
    assert "are mapped to an earlier model's scale" in result.stderr
