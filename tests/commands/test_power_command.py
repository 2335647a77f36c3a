"""power: from data, tables and reports to what they can show, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shop_kit import run

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Real features of 80 classes of emoji, by the old model and nearer to their class means."""
    folder = tmp_path_factory.mktemp("tables")
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:80])
        ids, labels = archive["ids"][kept], archive["labels"][kept]
        old = archive["lite0"][kept].astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    means = {name: old[labels == name].mean(axis=0) for name in np.unique(labels)}
    new = old + 0.2 * np.stack([means[name] for name in labels])
    vendor = np.array([item_id.split("/")[0] for item_id in ids])
    for name, rows in (("old", old), ("new", new)):
        columns = {"vendor": vendor, "similarity": np.array("cosine")}
        np.savez(folder / f"{name}.npz", ids=ids, labels=labels, features=rows, **columns)
    return folder


def power(*arguments):
    """What the command printed as JSON."""
    result = run("power", *arguments, "--json")
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def test_one_table_says_what_could_be_shown(tables):
    """Ranges of what may change, with the old model's own hit rate; fewer flips show less."""
    result = power(tables / "old.npz")
    assert (result["measured"], result["unit"], result["n_classes"]) == (False, ["class"], 80)
    assert 0.3 < result["old_hit_rate"] < 1
    rows = {(row["changed"], row["icc"]["class"]): row for row in result["rows"]}
    assert len(rows) == 9
    assert rows[0.15, 0.0]["least_gain"] < rows[0.15, 0.3]["least_gain"]
    assert rows[0.05, 0.0]["least_gain"] < rows[0.3, 0.0]["least_gain"]
    gains = [entry["gain"] for entry in rows[0.15, 0.1]["needed"]]
    classes = [value["classes"] for value in rows[0.15, 0.1]["needed"]]
    assert gains == [0.01, 0.02, 0.05]
    assert classes[0] > 3 * classes[1] > 9 * classes[2]


def test_rows_of_different_lengths_need_a_similarity(tables, tmp_path):
    """As verify: without one they are refused, with one they give what a file that names it does;
    a word that is none, and one without tables, are usage errors."""
    paths = []
    for name in ("old", "new"):
        with np.load(tables / f"{name}.npz") as archive:
            columns = {key: archive[key] for key in archive.files if key != "similarity"}
        columns["features"] = columns["features"] * np.linspace(1, 2, len(columns["ids"]))[:, None]
        np.savez(tmp_path / f"{name}.npz", **columns)
        paths.append(tmp_path / f"{name}.npz")
    refused = run("power", *paths)
    assert refused.code == 5
    assert "--similarity" in refused.stderr
    named = power(tables / "old.npz", tables / "new.npz")
    assert power(*paths, "--similarity", "cosine")["rows"] == named["rows"]
    assert run("power", *paths, "--similarity", "manhattan").code == 2
    assert run("power", "--data", tmp_path, "--similarity", "dot").code == 2


def test_two_tables_and_their_report_say_the_same(tables, tmp_path):
    """The scatter that two tables have is the one in the report of their verification."""
    paths = tables / "old.npz", tables / "new.npz"
    measured = power(*paths)
    report = tmp_path / "report.json"
    run("verify", *paths, "--report", report)
    stated = json.loads(report.read_bytes())["groups"][0]
    (row,) = measured["rows"]
    assert measured["measured"]
    assert row["changed"] == pytest.approx(stated["negative_flips"] + stated["positive_flips"])
    assert measured["old_hit_rate"] == pytest.approx(stated["hit_rate"]["old_old"]["1"])
    for again in (power("--report", report), power(paths[0], "--report", report)):
        (other,) = again["rows"]
        assert other["changed"] == pytest.approx(row["changed"])
        assert other["icc"]["class"] == pytest.approx(row["icc"]["class"])
        assert other["least_gain"] == pytest.approx(row["least_gain"], rel=0.05)


def test_the_data_need_no_model(tmp_path):
    """Class folders: held-out queries that have another image of their class are counted."""
    for label in range(40):
        folder = tmp_path / "images" / f"c{label}"
        folder.mkdir(parents=True)
        for number in range(1 if label == 0 else 6):
            Image.new("RGB", (8, 8), (label, number, 0)).save(folder / f"{number}.png")
    (tmp_path / "compatctl.yaml").write_text("data: images\nsplit: {train: 0, validation: 0}\n")
    result = power("--project", tmp_path / "compatctl.yaml", "--gain", ".1")
    assert (result["n_queries"], result["n_classes"]) == (39 * 6, 39)
    assert [entry["gain"] for entry in result["rows"][0]["needed"]] == [0.1]
    outcome = run("power", "--project", tmp_path / "compatctl.yaml")
    assert "234 held-out queries" in outcome.stdout
    assert "assumed" in outcome.stdout
    strict = tmp_path / "strict.yaml"
    strict.write_text("name: many\nmin_classes: 50\n")
    short = power("--project", tmp_path / "compatctl.yaml", "--policy", strict)
    assert "39 classes or units" in short["too_few"]
    assert all(row["least_gain"] is None for row in short["rows"])
    assert all(value["classes"] >= 50 for row in short["rows"] for value in row["needed"][:1])


def test_a_cluster_is_one_more_unit(tables):
    """Five vendors are the scarcest unit, and too few to tell anything."""
    result = power(tables / "old.npz", "--cluster", "vendor")
    assert (result["unit"], result["n_classes"]) == (["class", "vendor"], 5)
    assert "asks for 20" in result["too_few"]


def test_what_cannot_be_asked(tables, tmp_path):
    """Errors of usage are exit 2; a table, column or report that is not there is exit 5 or 3."""
    old, new = tables / "old.npz", tables / "new.npz"
    assert run("power", old, new, old).code == 2
    assert run("power", old, "--gain", "0").code == 2
    assert run("power", old, new, "--report", tmp_path / "none.json").code == 2
    assert run("power", old, "--cluster", "nobody").code == 5
    assert run("power", tmp_path / "none.npz").code == 5
    assert run("power", old, "--report", tmp_path / "none.json").code == 3
