"""The matrix command, on real encoders of known quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, run, turned

from compatctl.data import load
from compatctl.encoder import Encoder


def test_values_equal_explicit_searches_and_intervals_hold_them(shop: Shop) -> None:
    """Every cell is the share of right first answers, inside its interval; so are the summaries."""
    names = ("old.onnx", "new.onnx", "worse.onnx")
    report = shop.run("matrix", *(shop.path(name) for name in names)).json
    data = load(shop.data())
    queries = [i for i, x in enumerate(data.items) if (x.split, x.role) == ("test", "query")]
    gallery = [i for i, x in enumerate(data.items) if x.role == "gallery"]
    encoders = [Encoder.load(shop.path(name)) for name in names]
    query_features = [entry.embed(data.take(queries)).features for entry in encoders]
    searched = [value.embed(data.take(gallery)).features for value in encoders]
    labels = np.array(data.labels)
    for i in range(3):
        assert len(report["values"][i]) == i + 1
        for j in range(i + 1):
            nearest = (query_features[i] @ searched[j].T).argmax(axis=1)
            right = (labels[gallery][nearest] == labels[queries]).mean()
            assert report["values"][i][j] == pytest.approx(right, abs=3e-3)
            low, high = report["intervals"][i][j]
            assert low <= report["values"][i][j] <= high
            assert high - low < 0.25
    for name in ("ac", "aa", "aca"):
        low, high = report[f"{name}_interval"]
        assert low <= report[name] <= high
    better, worse = report["gain_intervals"][1][0], report["gain_intervals"][2][0]
    assert better[0] > 0
    assert worse[1] < 0


def test_the_stores_versions_are_the_default(shop: Shop) -> None:
    """Without files the matrix is of every query model that the store has had, in order."""
    report = shop.path("report.json")
    outcome = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", report)
    assert outcome.code == 0
    assert shop.run("deploy").code == 0
    result = shop.run("matrix").json
    sha256 = [Encoder.load(shop.path(name)).sha256 for name in ("old.onnx", "new.onnx")]
    assert result["sha256"] == sha256
    assert result["ac"] == 1.0


def test_a_single_version_has_no_compatibility(shop: Shop) -> None:
    """One model gives its self-test; AC and ACA are not defined, in JSON and in the table."""
    result = shop.run("matrix", shop.path("old.onnx"))
    assert (result.json["ac"], result.json["aca"]) == (None, None)
    table = run("matrix", *shop.args, shop.path("old.onnx")).stdout
    assert "AC   -" in table


def test_queries_that_can_find_nothing_are_refused(shop: Shop, emoji: Path) -> None:
    """Held-out queries without any gallery item of their class are no evidence: exit 5."""
    lines = shop.data().read_text(encoding="utf-8").splitlines()
    table = emoji / "nothing.csv"
    kept = [line for line in lines if ",test,gallery," not in line]
    assert len(kept) < len(lines)
    table.write_text("\n".join(kept) + "\n", encoding="utf-8")
    result = shop.run("matrix", shop.path("old.onnx"), "--data", table)
    assert (result.code, "to find" in result.stderr) == (5, True)
    table.unlink()


def test_versions_whose_files_were_deleted_are_named(shop: Shop) -> None:
    """A query model of a generation that gc dropped is listed and not compared."""
    turned(shop, "other.onnx", of="new.onnx")
    for name in ("new.onnx", "worse.onnx", "other.onnx"):
        result = shop.run("deploy", "--model", shop.path(name), "--force", "--reason", "drill")
        assert result.code == 0, result.stderr
    assert shop.run("check", "--gc", "--keep", "1").code == 0
    result = shop.run("matrix")
    dropped, *kept = (Encoder.load(shop.path(f"{name}.onnx")).sha256
                      for name in ("new", "old", "worse", "other"))  # fmt: skip
    assert result.json["not_kept"] == [dropped]
    assert result.json["sha256"] == kept
    assert dropped[:12] in result.stderr
