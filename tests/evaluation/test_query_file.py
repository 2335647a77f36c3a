"""A line for each query: what old and new found, and the outcome, compared with a loop."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from shop_kit import Result, Shop, run

from compatctl.data import load
from compatctl.encoder import Encoder

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"
CLASSES = 60
HOSTILE = ['a "quoted" one', "two\nlines", "a,comma", "=1+1", "é👩‍🚀", " space "]


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of emoji, every item a query; one class has a single item, ids are hostile."""
    folder = tmp_path_factory.mktemp("tables")
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:CLASSES])
        labels = archive["labels"][kept].astype("U40")
        ids = archive["ids"][kept].astype("U40")
        old = archive["lite0"][kept].astype(float)
    means = np.stack([old[labels == name].mean(axis=0) for name in labels])
    other = np.roll(old, 7, axis=0) * (np.arange(len(old)) % 3 == 0)[:, None]
    sides = {"old": old, "new": old + 0.4 * means + 1.2 * other}
    labels[0] = "alone"
    ids[: len(HOSTILE)] = HOSTILE
    more = {"ids": ids, "labels": labels, "rank": np.char.partition(ids, "/")[:, 0]}
    more["similarity"] = np.array("cosine")
    for name, rows in sides.items():
        np.savez(folder / f"{name}.npz", features=rows.astype(np.float32), **more)
    return folder


def verify(folder: Path, out: Path, *more: object) -> Result:
    """Verify the two tables."""
    models = folder / "old.npz", folder / "new.npz"
    report = out.parent / "report.json"
    return run("verify", *models, "--report", report, "--json", "--queries", out, *more)


def by_loop(folder: Path) -> dict[str, dict[str, Any]]:
    """What every query finds, by the definition."""
    rows, ids, labels = {}, [], []
    for name in ("old", "new"):
        with np.load(folder / f"{name}.npz") as archive:
            features = archive["features"].astype(float)
            ids, labels = archive["ids"].tolist(), archive["labels"].tolist()
        rows[name] = features / np.linalg.norm(features, axis=1, keepdims=True)
    results = {}
    for q, name in enumerate(ids):
        line: dict[str, Any] = {"label": labels[q]}
        for side in ("old", "new"):
            scores = rows[side][q] @ rows["old"].T
            scores[q] = -9
            order = np.argsort(-scores, kind="stable")[: len(ids) - 1]
            ranks = [place for place, g in enumerate(order, 1) if labels[g] == labels[q]]
            line[f"{side}_first"] = (ids[order[0]], labels[order[0]], scores[order[0]])
            line[f"{side}_rank"] = ranks[0] if ranks else None
            gained = sum(1 / np.log2(rank + 1) for rank in ranks if rank <= 10)
            ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(len(ranks), 10) + 1))
            line[f"{side}_ndcg"] = gained / ideal if ranks else None
        before, after = line["old_rank"] == 1, line["new_rank"] == 1
        names = {(1, 0): "lost", (0, 0): "same_wrong", (0, 1): "won", (1, 1): "same_right"}
        line["outcome"] = names[before, after] if line["old_rank"] else "no_match"
        results[name] = line
    return results


def test_every_query_has_one_line(tables: Path, tmp_path: Path) -> None:
    """Ids, answers, cosines, ranks and outcomes are those of a loop, whatever is in the ids."""
    out = tmp_path / "out.csv"
    assert verify(tables, out).code in {0, 3, 4}
    lines, wanted = read(out), by_loop(tables)
    assert [line["id"] for line in lines] == sorted(wanted)
    for line in lines:
        loop = wanted[line["id"]]
        assert (line["group"], line["label"]) == ("unseen", loop["label"])
        assert line["outcome"] == loop["outcome"]
        for side in ("old", "new"):
            item, label, score = loop[f"{side}_first"]
            assert (line[f"{side}_first_id"], line[f"{side}_first_label"]) == (item, label)
            assert float(line[f"{side}_first_score"]) == pytest.approx(score, abs=1e-6)
            rank = loop[f"{side}_rank"]
            assert line[f"{side}_rank"] == ("" if rank is None or rank > 100 else str(rank))
            ndcg = line[f"{side}_ndcg"]
            assert (float(ndcg) if ndcg else None) == pytest.approx(loop[f"{side}_ndcg"])
    outcomes = {line["outcome"] for line in lines}
    assert outcomes == {"lost", "same_wrong", "won", "same_right", "no_match"}
    report = json.loads((tmp_path / "report.json").read_bytes())
    lost = sum(line["outcome"] == "lost" for line in lines)
    counted = sum(line["outcome"] != "no_match" for line in lines)
    assert report["groups"][0]["negative_flips"] == pytest.approx(lost / counted)


def test_lost_queries_come_first_in_the_order(tables: Path, tmp_path: Path) -> None:
    """Lost queries come first, those that fell furthest before others; places are 1 to Q."""
    out = tmp_path / "out.csv"
    verify(tables, out)
    lines = sorted(read(out), key=lambda line: int(line["order"]))
    assert [int(entry["order"]) for entry in lines] == list(range(1, len(lines) + 1))
    kinds = ["lost", "same_wrong", "won", "same_right", "no_match"]
    places = [kinds.index(line["outcome"]) for line in lines]
    assert places == sorted(places)
    ranks = [int(text["new_rank"] or 10**6) for text in lines if text["outcome"] == "lost"]
    assert ranks == sorted(ranks, reverse=True)


def test_columns_that_options_name_are_in_the_file(tables: Path, tmp_path: Path) -> None:
    """A slice is a column of its own name, and the lines of jsonl are those of the CSV."""
    out, other = tmp_path / "out.csv", tmp_path / "out.jsonl"
    assert verify(tables, out, "--slice", "rank").code in {0, 3, 4}
    assert verify(tables, other, "--slice", "rank").code in {0, 3, 4}
    lines = read(out)
    with np.load(tables / "old.npz") as archive:
        rank = dict(zip(archive["ids"].tolist(), archive["rank"].tolist(), strict=True))
    assert {text["id"]: text["rank"] for text in lines} == rank
    parsed = [json.loads(line) for line in other.read_text().splitlines()]
    texts = [{k: "" if v is None else str(v) for k, v in entry.items()} for entry in parsed]
    assert texts == lines


def test_stored_galleries_and_several_groups(begun: Path, tmp_path: Path) -> None:
    """With models every held-out query has one line, with its answers from the store's rows."""
    out = tmp_path / "out.csv"
    shop = Shop(begun)
    models = begun / "old.onnx", begun / "new.onnx"
    result = shop.run("verify", *models, "--report", tmp_path / "report.json", "--queries", out)
    assert result.code == 0, result.stderr
    data = load(shop.data())
    query_rows = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    ]
    stored = [i for i, entry in enumerate(data.items) if entry.role == "gallery"]
    lines = {value["id"]: value for value in read(out)}
    assert list(lines) == sorted(data.items[i].id for i in query_rows)
    gallery = Encoder.load(models[0]).embed(data.take(stored)).features
    for name, model in zip(("old", "new"), models, strict=True):
        queries = Encoder.load(model).embed(data.take(query_rows)).features
        for i, row in zip(query_rows, queries @ gallery.T, strict=True):
            first = data.items[stored[int(row.argmax())]]
            line = lines[data.items[i].id]
            assert (line[f"{name}_first_id"], line[f"{name}_first_label"]) == (
                first.id,
                first.label,
            )


def test_the_project_names_the_file_and_a_dry_run_writes_none(shop: Shop) -> None:
    """queries: in compatctl.yaml; the bytes are the same twice, and none with --dry-run."""
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "queries: flips.csv\n")
    models = shop.path("old.onnx"), shop.path("new.onnx")
    assert shop.run("verify", *models, "--dry-run").code == 0
    assert not shop.path("flips.csv").exists()
    assert shop.run("verify", *models).code == 0
    body = shop.path("flips.csv").read_bytes()
    assert shop.run("verify", *models).code == 0
    assert shop.path("flips.csv").read_bytes() == body
    assert shop.run("deploy").code == 0  # a file beside the report binds nothing


@pytest.mark.parametrize("name", ["out.xlsx", "out", "nowhere/out.csv"])
def test_a_file_that_cannot_be_written_is_refused_first(
    tables: Path, tmp_path: Path, name: str
) -> None:
    """Another suffix or a missing folder is an error before anything runs; there is no report."""
    result = verify(tables, tmp_path / name)
    assert result.code in {2, 5}
    assert not (tmp_path / "report.json").exists()
    assert name.rsplit("/", maxsplit=1)[0] in result.stderr


def test_parquet_without_pyarrow_says_what_to_do(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, and the two ways on, where Python cannot import pyarrow."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = verify(tables, tmp_path / "out.parquet")
    assert result.code == 2
    assert "pip install 'compatctl[parquet]', or name a .csv" in result.stderr


def test_parquet_holds_the_same_lines(tables: Path, tmp_path: Path) -> None:
    """The table has the columns and values of the .jsonl file."""
    verify(tables, tmp_path / "out.parquet")
    verify(tables, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == lines
