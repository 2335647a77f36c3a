"""Items that the candidate was trained on: found by id and by bytes, never in the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Shop, write_encoder

from compatctl.data import Dataset, load
from compatctl.encoder import Encoder

BARE = "bare.onnx"
"""The good candidate, without a record in its file."""


@dataclass(frozen=True)
class Stock:
    """The shop's data, the rows of its held-out queries, and the candidate's digest."""

    folder: Path
    data: Dataset
    queries: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Ids of rows."""
        return [self.data.items[row].id for row in rows]


@pytest.fixture(scope="module")
def stock(begun: Path) -> Stock:
    """The untouched project."""
    data = load(Shop(begun).data())
    queries = tuple(
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    )
    return Stock(
        folder=begun,
        data=data,
        queries=queries,
        labels=tuple(dict.fromkeys(data.items[row].label for row in queries)),
        sha256=Encoder.load(write_encoder(begun / BARE, noise=0.05, recorded=False)).sha256,
    )


def record(folder: Path, sha256: str, **more: Any) -> Path:
    """A training record of one model."""
    path = folder / "record.json"
    entries = {"models": [sha256], "items": [], "unlabelled": [], "classes": [], "parity": 1e-6}
    path.write_text(json.dumps({**entries, **more}))
    return path


def trained(ids: Sequence[str]) -> list[dict[str, str]]:
    """Entries of a record by id; no image has such bytes."""
    return [{"id": item_id, "sha256": f"{at:064x}"} for at, item_id in enumerate(ids)]


@dataclass(frozen=True)
class Done:
    """One verification."""

    code: int
    stderr: str
    report: dict[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Group -> queries."""
        return {group["name"]: group["n_queries"] for group in self.report["groups"]}


def verify(stock: Stock, folder: Path, training: Path, *more: object) -> Done:
    """Verify the good candidate with that training record."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    models = stock.folder / "old.onnx", stock.folder / BARE
    outcome = Shop(stock.folder).run(
        "verify", *models, "--training", training, "--report", report, *more
    )
    result = json.loads(report.read_bytes()) if report.exists() else {}
    return Done(code=outcome.code, stderr=outcome.stderr, report=result)


def test_an_item_trained_by_its_id_is_found(stock: Stock, tmp_path: Path) -> None:
    """One held-out query in the record ends in exit 5, is named, and no report is written."""
    name = stock.ids(stock.queries)[17]
    result = verify(stock, tmp_path, record(tmp_path, stock.sha256, items=trained([name])))
    assert (result.code, result.report) == (5, {})
    assert f"1 of {len(stock.queries)}" in result.stderr
    assert name in result.stderr


def test_trained_ids_and_classes_that_nearly_are_those_of_the_data_are_named(
    stock: Stock, tmp_path: Path
) -> None:
    """A record that people write may have another case: such an item is not found as trained."""
    name, label = stock.ids(stock.queries)[17], stock.labels[0]
    near = {"items": trained([name.upper(), "elsewhere"]), "classes": [f"{label} "]}
    result = verify(stock, tmp_path, record(tmp_path, stock.sha256, **near))
    assert result.code == 0, result.stderr
    for kind, pair in (("ids", (name.upper(), name)), ("labels", (f"{label} ", label))):
        assert f"trained {kind} that differ only in" in result.stderr
        assert f"1 ({pair[0]!r} and {pair[1]!r})" in result.stderr


@pytest.mark.parametrize("part", ["items", "unlabelled"])
def test_the_same_bytes_under_another_id_are_found(stock: Stock, tmp_path: Path, part: str) -> None:
    """An image that passed, with or without its label, under another name ends in exit 5."""
    row = stock.queries[5]
    entry = [{"id": "renamed", "sha256": stock.data.digest(row)}]
    result = verify(stock, tmp_path, record(tmp_path, stock.sha256, **{part: entry}))
    assert (result.code, result.report) == (5, {})
    assert stock.data.items[row].id in result.stderr


def test_training_items_as_held_out_set_are_refused(stock: Stock, tmp_path: Path) -> None:
    """Where every held-out query was trained on nothing is left to judge: exit 5, and exit 4 with
    --allow-seen, also under a policy that asks for one query."""
    path = record(tmp_path, stock.sha256, items=trained(stock.ids(stock.queries)))
    refused = verify(stock, tmp_path, path)
    assert (refused.code, refused.report) == (5, {})
    policy = tmp_path / "least.yaml"
    policy.write_text("format: 4\nname: least\nmin_queries: 1\nmin_classes: 1\n")
    result = verify(stock, tmp_path, path, "--allow-seen", "--policy", policy)
    assert (result.code, result.report["verdict"]["outcome"]) == (4, "inconclusive")
    assert result.sizes == {"unseen": 0, "trained": len(stock.queries)}


def test_trained_items_are_a_group_that_does_not_decide(stock: Stock, tmp_path: Path) -> None:
    """With --allow-seen they are the group ``trained``; the verdict is that of the others alone."""
    leaked = stock.queries[::6]
    path = record(tmp_path, stock.sha256, items=trained(stock.ids(leaked)))
    result = verify(stock, tmp_path, path, "--allow-seen")
    assert result.code == 0
    assert result.sizes == {
        "unseen": len(stock.queries) - len(leaked),
        "trained": len(leaked),
    }
    assert not [
        entry
        for entry in result.report["verdict"]["checks"]
        if entry["group"].startswith("trained") and entry["decides"]
    ]
    left = [row for row in stock.queries if row not in set(leaked)]
    gallery = [i for i, item in enumerate(stock.data.items) if item.role == "gallery"]
    old, new = (Encoder.load(stock.folder / name) for name in ("old.onnx", BARE))
    stored = old.embed(stock.data.take(gallery)).features
    for name, rows in (("unseen", left), ("trained", leaked)):
        right = 0
        for row, entry in zip(rows, new.embed(stock.data.take(rows)).features, strict=True):
            nearest = gallery[int(np.argmax(stored @ entry))]
            right += stock.data.labels[nearest] == stock.data.labels[row]
        group = next(entry for entry in result.report["groups"] if entry["name"] == name)
        assert group["hit_rate"]["new_old"]["1"] == pytest.approx(right / len(rows), abs=1e-9)


def test_trained_items_alone_cannot_decide(stock: Stock, tmp_path: Path) -> None:
    """Few fresh queries stay too few however many trained ones there are: exit 4."""
    fresh = stock.queries[:40]
    leaked = [row for row in stock.queries if row not in set(fresh)]
    path = record(tmp_path, stock.sha256, items=trained(stock.ids(leaked)))
    result = verify(stock, tmp_path, path, "--allow-seen")
    assert result.code == 4
    assert result.sizes == {"unseen": 40, "trained": len(leaked)}


def test_seen_classes_with_fresh_items_are_a_group_of_their_own(
    stock: Stock, tmp_path: Path
) -> None:
    """Other images of trained classes are no leak, and no evidence either: group ``seen``."""
    classes = stock.labels[:20]
    result = verify(stock, tmp_path, record(tmp_path, stock.sha256, classes=list(classes)))
    assert result.code == 0
    seen = sum(stock.data.items[row].label in classes for row in stock.queries)
    assert result.sizes == {"unseen": len(stock.queries) - seen, "seen": seen}
    assert {check["group"] for check in result.report["verdict"]["checks"] if check["decides"]} == {
        "unseen",
        "export",
        "training",
    }


def test_touched_rows_are_told_apart(stock: Stock, tmp_path: Path) -> None:
    """The gains of queries of touched rows and of the others add up to the whole gain."""
    touched = set(stock.labels[:30])
    unlabelled = [
        item.id for item in stock.data.items if item.role == "gallery" and item.label in touched
    ]
    result = verify(stock, tmp_path, record(tmp_path, stock.sha256, unlabelled=trained(unlabelled)))
    assert result.code == 0
    n = sum(stock.data.items[row].label in touched for row in stock.queries)
    every = len(stock.queries)
    assert result.sizes == {"unseen": every}
    (group,) = result.report["groups"]
    touched, hit_rate = group["training_overlap"], group["hit_rate"]
    assert touched["untouched_queries"] == every - n
    assert touched["of_queries"] == pytest.approx(n / every)
    whole = hit_rate["new_old"]["1"] - hit_rate["old_old"]["1"]
    first, second = touched["parts"]["hit_gain"]
    assert whole == pytest.approx((n * first + (every - n) * second) / every, abs=1e-12)
    checks = {check["name"]: check for check in result.report["verdict"]["checks"]}
    share = len(unlabelled) / sum(entry.role == "gallery" for entry in stock.data.items)
    assert touched["of_gallery"] == pytest.approx(share)
    weighted = share * first + (1 - share) * second
    assert checks["hit_gain"]["estimate"] == pytest.approx(weighted, abs=1e-12)
    assert checks["untouched_gain"]["decides"]
    assert checks["untouched_gain"]["estimate"] == pytest.approx(second, abs=1e-12)


def test_without_roles_a_passed_item_does_not_query(
    stock: Stock, tmp_path: Path, emoji: Path
) -> None:
    """In data without roles unlabelled items are searched, and do not query themselves."""
    rows = [item for item in stock.data.items if item.split == "test"]
    table = tmp_path / "flat.csv"
    lines = [f"{row.id},{emoji}/images/{row.id}.png,{row.label},test" for row in rows]
    table.write_text("id,path,label,split\n" + "\n".join(lines) + "\n")
    unlabelled = [entry.id for entry in rows if entry.role == "gallery"]
    path = record(tmp_path, stock.sha256, unlabelled=trained(unlabelled))
    more = ("--data", table, "--data-root", emoji, "--store", tmp_path / "none")
    result = verify(stock, tmp_path, path, *more)
    assert result.code in {0, 4}, result.stderr
    assert result.sizes["unseen"] == len(rows) - len(unlabelled) == len(stock.queries)


def write_pairs(stock: Stock, path: Path) -> list[str]:
    """Pairs of queries with gallery items of their class and of others; the ids of the queries."""
    gallery = [entry for entry in stock.data.items if entry.role == "gallery"]
    lines, names = [], []
    for at, row in enumerate(stock.queries[:60]):
        item = stock.data.items[row]
        same = next(value for value in gallery if value.label == item.label)
        diff = next(result for result in gallery[at:] if result.label != item.label)
        lines += [f"{item.id},{same.id},1", f"{item.id},{diff.id},0"]
        names.append(item.id)
    path.write_text("id_a,id_b,same\n" + "\n".join(lines) + "\n")
    return names


def test_pairs_with_a_trained_item_are_refused(stock: Stock, tmp_path: Path) -> None:
    """A trained gallery item is no leak among the queries, but it is one in a pair."""
    pairs = tmp_path / "pairs.csv"
    write_pairs(stock, pairs)
    names = [line.split(",")[1] for line in pairs.read_text().splitlines()[1:]]
    path = record(tmp_path, stock.sha256, items=trained(names[:1]))
    assert verify(stock, tmp_path, path).code == 0
    result = verify(stock, tmp_path, path, "--pairs", pairs)
    assert (result.code, result.report) == (5, {})
    assert "items of pairs" in result.stderr
    assert names[0] in result.stderr


def test_pairs_of_trained_items_do_not_decide(stock: Stock, tmp_path: Path) -> None:
    """With --allow-seen pairs that were trained on are measured and do not decide."""
    pairs = tmp_path / "pairs.csv"
    names = write_pairs(stock, pairs)
    path = record(tmp_path, stock.sha256, items=trained(names))
    result = verify(stock, tmp_path, path, "--pairs", pairs, "--allow-seen")
    assert result.sizes["trained"] == len(names)
    checks = result.report["verdict"]["checks"]
    assert not [check["name"] for check in checks if check["group"] == "pairs" and check["decides"]]


def test_the_record_of_another_model_is_refused(stock: Stock, tmp_path: Path, shop: Shop) -> None:
    """Named, it ends in exit 5; found beside the model, it is not this model's record, and the
    report says that leaks were not checked: the gate is inconclusive."""
    path = record(tmp_path, "0" * 64, items=trained(stock.ids(stock.queries)))
    outcome = verify(stock, tmp_path, path)
    assert (outcome.code, outcome.report, "is not the training record of" in outcome.stderr) == (
        5,
        {},
        True,
    )
    shop.path("bare.training.json").write_bytes(path.read_bytes())
    result = shop.run("verify", shop.path("old.onnx"), shop.path(BARE))
    assert result.code == 4
    assert any(line.startswith("leaks") for line in result.json["not_checked"])
    assert result.json["training_record_sha256"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"items": None},
        {"items": ["noto/0023"]},
        {"items": [{"id": "a"}]},
        {"unlabelled": 3},
        {"classes": None},
        {"parity": "small"},
    ],
)
def test_a_record_with_bad_entries_is_refused(
    stock: Stock, tmp_path: Path, change: dict[str, Any]
) -> None:
    """A record that does not say what was trained on ends in exit 5 and is named."""
    path = record(tmp_path, stock.sha256, **change)
    result = verify(stock, tmp_path, path)
    assert (result.code, result.report, str(path) in result.stderr) == (5, {}, True)


@pytest.mark.parametrize("models", [None, 7])
def test_a_record_that_names_no_models_is_refused(
    stock: Stock, tmp_path: Path, models: Any
) -> None:
    """``models`` that is no list ends in exit 5, as any other bad entry."""
    path = record(tmp_path, stock.sha256, models=models)
    result = verify(stock, tmp_path, path)
    assert (result.code, result.report, str(path) in result.stderr) == (5, {}, True)


def test_a_record_beside_the_model_is_found(stock: Stock, tmp_path: Path, shop: Shop) -> None:
    """By the model's name, by its folder's, and in the candidate's folder: each finds the leak."""
    name = stock.ids(stock.queries)[0]
    body = record(tmp_path, stock.sha256, items=trained([name])).read_bytes()
    for place in ("bare.training.json", "training.json", "build/candidate/training.json"):
        path = shop.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        result = shop.run("verify", shop.path("old.onnx"), shop.path(BARE))
        assert (result.code, name in result.stderr) == (5, True), place
        path.unlink()
