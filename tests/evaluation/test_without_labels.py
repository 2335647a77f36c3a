"""Data without labels: judgments of all pairs of one class give what the labels give."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from shop_kit import Shop, run

from compatctl.data import load, load_features
from compatctl.errors import InputError
from compatctl.notices import DataWarning


def judge(shop: Shop, splits: tuple[str, ...]) -> Path:
    """BEIR's qrels of every query of the splits and every other gallery item of its class."""
    data = load(shop.data())
    gallery = [item for item in data.items if item.role != "query"]
    path = shop.path("qrels.tsv")
    lines = [
        f"{query.id}\t{item.id}\t1\n"
        for query in data.items
        if query.split in splits and query.role != "gallery"
        for item in gallery
        if item.label == query.label and item.id != query.id
    ]
    path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return path


def bare_table(shop: Shop) -> Path:
    """The project's table without the column label, and with the splits that its classes give."""
    data = load(shop.data())
    with shop.data().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path = shop.data().parent / f"bare-{shop.folder.parent.name}.csv"
    kept = [name for name in rows[0] if name not in {"label", "split"}]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*kept, "split"])
        writer.writeheader()
        for row, item in zip(rows, data.items, strict=True):
            writer.writerow({**{name: row[name] for name in kept}, "split": item.split})
    return path


def change_project(shop: Shop, **entries: Any) -> None:
    path = shop.path("compatctl.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **entries}))


@pytest.fixture
def bare(shop: Shop, tmp_path: Path) -> Shop:
    """A copy of the shop whose data have no labels, and judgments in their place."""
    folder = tmp_path / "bare"
    shutil.copytree(shop.folder, folder)
    bare = Shop(folder)
    table, qrels = bare_table(bare), judge(bare, ("validation", "test"))
    change_project(bare, data=str(table), gate={"qrels": str(qrels)})
    return bare


def both(shop: Shop, bare: Shop, *command: str) -> tuple[Any, Any]:
    """The JSON of a command in both projects; a file of the project is named with a dot."""
    results = []
    for project in (shop, bare):
        arguments = [project.path(word) if word.endswith(".onnx") else word for word in command[1:]]
        result = project.run(command[0], *arguments)
        assert result.code in {0, 4}, result.stderr
        results.append(result.json)
    return results[0], results[1]


def test_verify_gives_the_same_measures(shop: Shop, bare: Shop) -> None:
    """Hits, nDCG, MRR, recall and mAP of every gallery; single queries are resampled."""
    both(shop, bare, "verify", "old.onnx", "new.onnx")
    groups = [
        json.loads(project.path("report.json").read_bytes())["groups"][0]
        for project in (shop, bare)
    ]
    for name in ("map_at_k", "n_queries", "negative_flips"):
        assert groups[0][name] == pytest.approx(groups[1][name], abs=1e-12), name
    for name in ("hit_rate", "recall", "ndcg", "mrr"):
        assert groups[0][name].keys() == groups[1][name].keys()
        for pair, values in groups[0][name].items():
            assert values == pytest.approx(groups[1][name][pair], abs=1e-12), (name, pair)
    assert (groups[0]["unit"], groups[1]["unit"]) == (["class"], ["query"])
    assert groups[1]["n_classes"] == groups[1]["n_queries"]


def test_matrix_power_fuse_bridge_and_lift_judge_by_the_judgments(shop: Shop, bare: Shop) -> None:
    """Each measures the same hit rates by judgments as by the labels that they repeat."""
    values = both(shop, bare, "matrix", "old.onnx", "new.onnx")
    assert values[0]["values"] == values[1]["values"]
    assert values[0]["on_store"] == values[1]["on_store"]
    power = both(shop, bare, "power")
    assert power[0]["n_queries"] == power[1]["n_queries"]
    fused = both(shop, bare, "fuse", "old.onnx", "new.onnx", "--output", "both.onnx", "--dry-run")
    trials = [[trial["hit_rate"] for trial in part["search"]["trials"]] for part in fused]
    assert trials[0] == pytest.approx(trials[1])
    bridged = both(
        shop, bare, "bridge", "turned.onnx", "--output", "b.onnx", "--kind", "ridge", "--dry-run"
    )
    for name in ("hit_rate", "old_hit_rate", "trials"):
        assert bridged[0][name] == bridged[1][name]
    lifted = both(shop, bare, "lift", "turned.onnx", "--kind", "ridge", "--dry-run")
    for name in ("old_hit_rate", "new_hit_rate", "fused_hit_rate"):
        assert lifted[0]["measured"][name] == lifted[1]["measured"][name]


def test_backfill_judges_by_the_judgments(shop: Shop, bare: Shop) -> None:
    """The curve is that of the labels; a forecast, which samples classes, is refused."""
    for project in (shop, bare):
        forced = ("--force", "--reason", "test", "--report", project.path("none.json"))
        result = project.run("deploy", "--model", project.path("new.onnx"), *forced)
        assert result.code == 0, result.stderr
    curves = both(shop, bare, "backfill", "--share", "0.4", "--dry-run")
    assert curves[0]["measured"]["curve"] == curves[1]["measured"]["curve"]
    refused = bare.run("backfill", "--forecast", "40")
    assert refused.code == 2
    assert "gate.qrels" in refused.stderr


def test_what_learns_classes_is_refused(bare: Shop) -> None:
    """finetune and plan need labels, and say so before anything is trained."""
    pytest.importorskip("torch")
    recipe = bare.path("recipe.yaml")
    recipe.write_text(
        "format: 1\nbackbone: {factory: 'tiny_backbone:build', input: {height: 32, width: 32}}\n"
    )
    bare.path("base.ckpt").write_bytes(b"")
    for command in (("finetune", "--base"), ("plan", "--base")):
        result = bare.run(*command, bare.path("base.ckpt"), "--recipe", recipe)
        assert result.code == 5
        assert "training learns classes" in result.stderr, result.stderr


def test_queries_without_judgments_are_judged_by_label_or_refused(shop: Shop, bare: Shop) -> None:
    """Judgments of test queries alone choose no map: with labels a notice says so, else exit 5."""
    for project in (shop, bare):
        qrels = judge(shop, ("test",))
        change_project(project, gate={"qrels": str(qrels)})
    command = ("bridge", "turned.onnx", "--output", "b.onnx", "--kind", "ridge", "--dry-run")
    labelled = shop.run(command[0], shop.path(command[1]), *command[2:])
    assert labelled.code == 0, labelled.stderr
    assert {entry["kind"] for entry in labelled.json["notices"]} >= {"judged-by-label"}
    refused = bare.run(command[0], bare.path(command[1]), *command[2:])
    assert refused.code == 5
    assert "queries of the split validation" in refused.stderr


def test_a_flag_of_verify_needs_no_labels_either(shop: Shop, bare: Shop, tmp_path: Path) -> None:
    """--qrels loads a table without labels; without it a label is missing."""
    models = bare.path("old.onnx"), bare.path("new.onnx")
    qrels = bare.path("qrels.tsv")
    table = bare.data()
    change_project(shop, data=str(table))
    report = tmp_path / "flag.json"
    assert shop.run("verify", *models, "--qrels", qrels, "--report", report).code in {0, 4}
    assert json.loads(report.read_bytes())["groups"][0]["unit"] == ["query"]
    refused = shop.run("verify", *models, "--report", report)
    assert refused.code == 5
    assert "label" in refused.stderr


def test_feature_tables_need_no_labels_with_judgments(tmp_path: Path) -> None:
    """Without labels, or with empty ones, an item is its own class; without judgments exit 5."""
    rng = np.random.default_rng(0)
    n, queries = 260, 220
    ids = np.array([f"i{i}" for i in range(n)])
    role = np.array(["query"] * queries + ["gallery"] * (n - queries))
    answer = rng.integers(queries, n, queries)
    gallery = rng.normal(size=(n, 16))
    for name, noise in (("old", 1.2), ("new", 0.3)):
        features = gallery.copy()
        features[:queries] = gallery[answer] + noise * rng.normal(size=(queries, 16))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        np.savez(tmp_path / f"{name}.npz", ids=ids, role=role, features=features.astype("f4"))
    qrels = tmp_path / "q.txt"
    qrels.write_text("".join(f"i{q} 0 i{a} 1\n" for q, a in enumerate(answer)))
    tables = tmp_path / "old.npz", tmp_path / "new.npz"
    report = "--report", tmp_path / "r.json"
    result = run("verify", *tables, "--qrels", qrels, *report, "--json")
    assert result.code == 0, result.stderr
    assert json.loads((tmp_path / "r.json").read_bytes())["groups"][0]["unit"] == ["query"]
    project = tmp_path / "compatctl.yaml"
    project.write_text("gate: {qrels: q.txt}\n")
    sized = run("power", "--project", project, *tables, "--json")
    assert (sized.code, sized.json["n_queries"]) == (0, queries), sized.stderr
    refused = run("verify", *tables, *report)
    assert refused.code == 5
    assert "labels" in refused.stderr
    with pytest.raises(InputError, match="no array labels"):
        load_features(tables[0])
    with np.load(tables[0]) as archive:
        labels = np.array(["", "x"] + [" "] * (n - 2))
        np.savez(tmp_path / "some.npz", labels=labels, **archive)
    table = load_features(tmp_path / "some.npz", labelled=False)
    assert table.labels[:3] == ("i0", "x", "i2")


@pytest.mark.parametrize("form", ["csv", "jsonl", "npz"])
def test_tables_of_images_need_no_labels_if_none_are_demanded(tmp_path: Path, form: str) -> None:
    """A missing or empty label is the id; a label that is there stays."""
    path = tmp_path / f"items.{form}"
    if form == "npz":
        images = np.zeros((2, 8, 8, 3), np.uint8)
        np.savez(path, images=images, ids=np.array(["a", "b"]), labels=np.array(["", "x"]))
    else:
        for name in ("a", "b"):
            (tmp_path / f"{name}.png").write_bytes(b"")
        path.write_text(
            "id,path,label\na,a.png,\nb,b.png,x\n"
            if form == "csv"
            else '{"id": "a", "path": "a.png"}\n{"id": "b", "path": "b.png", "label": "x"}\n'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        data = load(path, labelled=False)
    assert data.labels == ("a", "x")
    with pytest.raises(InputError, match="label"):
        load(path)
