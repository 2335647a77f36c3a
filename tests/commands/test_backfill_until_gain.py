"""backfill --until-gain: it goes on as long as the rest is shown to gain, and draws its curve."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Shop, filtered_table, run, slow_hit_rate, store_files, stored_rows

from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.manifest import Catalog
from compatctl.store import Store

FORCE = ("--force", "--reason", "drill")


def _catalog(shop: Shop) -> Catalog:
    return Store.open(shop.path("store")).catalog()


def _wanted_first(shop: Shop, folder: Path) -> tuple[Path, int]:
    """A list of the gallery items that held-out queries look for, and how many these are."""
    queries = load(shop.data()).filter(split="test", role="query")
    catalog = _catalog(shop)
    labels = set(queries.labels)
    pairs = zip(catalog.ids, catalog.labels, strict=True)
    ids = [item for item, label in pairs if label in labels]
    path = folder / "wanted.txt"
    path.write_text("\n".join(ids))
    return path, len(ids)


def _run(shop: Shop, *arguments: object) -> dict[str, Any]:
    result = shop.run("backfill", "--until-gain", *arguments)
    assert result.code == 0, result.stderr
    value: dict[str, Any] = result.json
    return value


def test_it_ends_when_the_rest_gains_nothing(deployed: Shop, tmp_path: Path) -> None:
    """What queries look for comes first: once it is written, the rest are distractors, and the run
    ends before them. The looks, and the measured points, are those of an explicit loop."""
    order, count = _wanted_first(deployed, tmp_path)
    ids = list(_catalog(deployed).ids)
    model = Encoder.load(deployed.path("new.onnx"))
    data = load(deployed.data())
    old = stored_rows(deployed, ids)
    new = model.embed(data.take([data.row_of[item] for item in ids])).features
    result = _run(deployed, "--order", order, "--step", count, "--force", "--reason", "drill")
    assert (result["stopped"], result["embedded"]) == ("no gain", count)
    start, end = result["curve"]
    listed = set(order.read_text().splitlines())
    first = np.array([item in listed for item in ids])
    half = np.where(first[:, None], new, old)
    slow = [slow_hit_rate(deployed, [model], rows) for rows in (old, half, new)]
    assert [start["hit_rate"], end["hit_rate"]] == pytest.approx(slow[:2])
    assert end["gain"] == pytest.approx(slow[1] - slow[0])
    assert start["rest"]["gain"] == pytest.approx(slow[2] - slow[0])
    assert end["rest"]["gain"] == pytest.approx(slow[2] - slow[1])
    assert start["rest"]["low"] > 0 >= end["rest"]["low"]
    assert end["rest"]["share"] == end["share"] == pytest.approx(count / len(ids))
    shown = run("backfill", *deployed.args, "--until-gain", "--order", order).stdout
    assert "nothing was written: the rest" in shown


def test_a_model_that_would_lose_writes_nothing(shop: Shop) -> None:
    """The first look ends the run, with exit 0, and says what the rest would do."""
    assert shop.run("deploy", "--model", shop.path("worse.onnx"), *FORCE).code == 0
    before = shop.manifest()
    result = shop.run("backfill", "--until-gain", "--step", 40)
    assert result.code == 0, result.stderr
    assert (result.json["stopped"], result.json["written"]) == ("no gain", False)
    assert shop.manifest() == before
    (look,) = result.json["curve"]
    assert look["rest"]["gain"] < 0
    assert "is not shown to gain: -" in result.stderr
    assert (
        "nothing was written: the rest"
        in run("backfill", *shop.args, "--until-gain", "--step", 40).stdout
    )


def test_a_run_that_ends_before_its_first_step_passed_its_sample_alone(shop: Shop) -> None:
    """It says so of the gallery, and not what the steps would have passed."""
    assert shop.run("deploy", "--model", shop.path("worse.onnx"), *FORCE).code == 0
    result = shop.run("backfill", "--until-gain", "--sample", 40, "--step", 40).json
    assert (result["stopped"], result["steps"]) == ("no gain", [])
    passed = result["gallery_pass"]
    assert 0 < passed["passed"] == passed["by"]["pending"] == result["passed"] < passed["rows"]
    assert passed["share"] == passed["passed"] / passed["rows"]


def test_a_smaller_sample_passes_less(deployed: Shop) -> None:
    """At the first look at most the sample has passed, and what the estimate takes; within a
    budget, at most half of it."""
    rows = len(_catalog(deployed))
    result = _run(deployed, "--sample", 60, "--step", 50, *FORCE)
    first = result["curve"][0]
    assert 60 <= first["passed"] <= 60 + 48 < rows
    assert first["rest"]["n_queries"] < 360
    little = _run(deployed, "--budget", 20, *FORCE)
    assert little["passed"] <= 20


def test_it_goes_on_to_the_end_where_all_gains(deployed: Shop, tmp_path: Path) -> None:
    """What queries look for comes last: every look shows a gain, and all is written. The curve is
    in a file, and in a figure with a dot for each point."""
    order, _ = _wanted_first(deployed, tmp_path)
    wanted = order.read_text().splitlines()
    others = [item for item in _catalog(deployed).ids if item not in wanted]
    order.write_text("\n".join([*others, *wanted]))
    file = tmp_path / "curve.json"
    arguments = ("--order", order, "--step", len(others), "--curve", file, *FORCE)
    result = _run(deployed, *arguments)
    assert (result["stopped"], result["share"]) == ("done", 1.0)
    curve = json.loads(file.read_text())
    assert curve["points"] == result["curve"]
    assert [point["written"] for point in curve["points"]] == [True] * len(curve["points"])
    assert curve["hit_at"] == 1
    root = ET.fromstring(file.with_suffix(".svg").read_text())
    name = "{http://www.w3.org/2000/svg}"
    dots = [dot for dot in root.iter(f"{name}circle") if dot.get("class") == "dot"]
    assert len(dots) == len(curve["points"])
    across = [float(dot.get("cx", "")) for dot in dots]
    assert across == sorted(across)
    heights = [-float(dot.get("cy", "")) for dot in dots]
    hits = [point["hit_rate"] for point in curve["points"]]
    order_of = [np.argsort(values, kind="stable") for values in (heights, hits)]
    np.testing.assert_array_equal(*order_of)


def test_a_stopped_run_shows_the_forecast_in_its_figure(deployed: Shop, tmp_path: Path) -> None:
    """A dashed line to where the rest would lead, with its interval."""
    order, count = _wanted_first(deployed, tmp_path)
    file = tmp_path / "curve.json"
    _run(deployed, "--order", order, "--step", count, "--curve", file, *FORCE)
    assert file.with_suffix(".svg").read_text().count('class="hollow"') == 1


def test_what_cannot_be_told_is_refused(deployed: Shop, tmp_path: Path) -> None:
    """Exit 4 without a held-out query whose matches are in the sample; exit 2 for a sample without
    --until-gain, and for a curve that is a figure. Nothing is written."""
    files = store_files(deployed)
    table = filtered_table(deployed, lambda row: row["split"] != "test" or row["role"] != "query")
    refused = deployed.run("backfill", "--until-gain", "--data", table, *FORCE)
    assert refused.code == 4, refused.stderr
    assert "in the sample" in refused.stderr
    refused = deployed.run("backfill", "--sample", 60)
    assert (refused.code, "--until-gain" in refused.stderr) == (2, True)
    refused = deployed.run("backfill", "--curve", tmp_path / "curve.svg", "--step", 10)
    assert (refused.code, "--curve" in refused.stderr) == (2, True)
    now = {name: data for name, data in store_files(deployed).items() if "backfill/" not in name}
    assert now == files
    dry = deployed.run("backfill", "--until-gain", "--dry-run")
    assert (dry.code, dry.json["stopped"]) == (0, "dry run")


def test_a_dry_run_counts_the_sample_that_a_run_embeds_first(deployed: Shop) -> None:
    """The estimate says how many items that is, and of a budget they are left as in the run."""
    words = ("--until-gain", "--sample", 60, "--budget", 140)
    dry = deployed.run("backfill", *words, "--dry-run")
    planned = dry.json["estimate"]
    assert 2 < planned["sample"] <= 60
    assert f"{planned['sample']} first as the sample of --until-gain" in dry.stderr
    assert planned["embed_s"] * planned["items_per_s"] == pytest.approx(planned["items"])
    real = deployed.run("backfill", *words, *FORCE).json["estimate"]
    assert real["sample"] == 0
    assert real["items"] - real["kept"] <= 140 - planned["sample"]
    assert 140 - 2 * 60 < planned["items"] <= 140
