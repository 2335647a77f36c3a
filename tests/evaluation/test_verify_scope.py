"""What verify leaves out, and what the report says of it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, carry, run

from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder

FEATURES = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"


def _verify(shop: Shop, *more: object) -> tuple[int, dict[str, object], str]:
    report = shop.path("report.json")
    old, new = shop.path("old.onnx"), shop.path("new.onnx")
    result = shop.run("verify", old, new, "--report", report, *more)
    return result.code, json.loads(report.read_bytes()) if report.exists() else {}, result.stderr


def test_without_a_self_test_the_criterion_is_the_same(shop: Shop) -> None:
    """--no-self-test drops the tests on new galleries and no other figure of the report."""
    _, whole, _ = _verify(shop)
    code, part, _ = _verify(shop, "--no-self-test")
    assert code == 0
    (before,), (after,) = whole["groups"], part["groups"]  # type: ignore[misc]
    assert set(before["hit_rate"]) - set(after["hit_rate"]) == {
        "new_new",
        "old_new",
        "old_mixed",
        "new_mixed",
    }
    assert after["hit_rate"]["new_old"] == before["hit_rate"]["new_old"]
    names = {check["name"] for check in part["verdict"]["checks"]}  # type: ignore[index]
    assert not names & {"self_test_gain", "mixed_gain"}
    assert any("--no-self-test" in entry for entry in part["not_checked"])  # type: ignore[union-attr]


def test_no_self_test_is_refused_if_the_policy_needs_it(shop: Shop) -> None:
    """--no-self-test under a policy that asks for the self-test is exit 2, and writes nothing."""
    code, report, said = _verify(shop, "--no-self-test", "--policy", "strict")
    assert (code, report) == (2, {})
    assert "min_self_test_gain" in said


def test_a_missing_output_folder_is_refused_first(shop: Shop) -> None:
    """If a form of the report cannot be written, the exit code is 5 before anything runs."""
    code, report, said = _verify(shop, "--junit", shop.path("nowhere/verify.xml"))
    assert (code, report) == (5, {})
    assert "nowhere" in said


@pytest.mark.parametrize("flag", [("--latency",), ("--training", "record.json")])
def test_feature_tables_refuse_options_of_models(tmp_path: Path, flag: tuple[str]) -> None:
    """Latency and training records are about models: with feature tables they end in exit 2."""
    with np.load(FEATURES) as archive:
        table = {"ids": archive["ids"], "labels": archive["labels"], "features": archive["lite0"]}
    np.savez(tmp_path / "old.npz", **table)
    result = run("verify", tmp_path / "old.npz", tmp_path / "old.npz", *flag)
    assert (result.code, flag[0] in result.stderr) == (2, True)


def test_judgments_without_effect_are_counted(shop: Shop) -> None:
    """Judgments that name no held-out query or gallery item are named in the report."""
    data = load(shop.data())
    query = next(x for x in data.items if (x.split, x.role) == ("test", "query"))
    right = [x.id for x in data.items if x.role == "gallery" and x.label == query.label]
    qrels = shop.path("judged.txt")
    lines = [f"{query.id} 0 {item} 1" for item in right]
    qrels.write_text("\n".join([*lines, f"{query.id} 0 typo 1", "nobody 0 nothing 1"]) + "\n")
    code, report, _ = _verify(shop, "--qrels", qrels)
    assert code == 4  # one query that was judged is not evidence
    said = [entry for entry in report["not_checked"] if "judgments" in entry]  # type: ignore[union-attr]
    assert f"2 of {len(right) + 2} judgments" in said[-1]


def test_pairs_of_trained_classes_do_not_decide(shop: Shop) -> None:
    """Fresh items of a class that the candidate was trained on are shown and do not decide."""
    data = load(shop.data())
    test = [x for x in data.items if x.split == "test"]
    labels = sorted({x.label for x in test})[:14]
    of = {label: [x.id for x in test if x.label == label] for label in labels}
    lines = [f"{ids[0]},{ids[1]},1" for ids in of.values()]
    lines += [f"{of[a][0]},{of[b][1]},0" for a, b in pairwise(labels)]
    pairs = shop.path("pairs.csv")
    pairs.write_text("id_a,id_b,same\n" + "\n".join(lines) + "\n")
    for classes, decides in (([], True), ([labels[0]], False)):
        carry(shop.path("new.onnx"), TrainingRecord().with_classes(classes))
        _, report, _ = _verify(shop, "--pairs", pairs)
        matches = [
            check["decides"]
            for check in report["verdict"]["checks"]  # type: ignore[index]
            if (check["name"], check["group"]) == ("different_class", "pairs")
        ]
        assert matches == [decides]


def test_a_column_of_too_many_values_is_refused(tmp_path: Path) -> None:
    """A column that differs for every item is no slice: exit 5, before the work."""
    with np.load(FEATURES) as archive:
        table = {"ids": archive["ids"], "labels": archive["labels"], "features": archive["lite0"]}
    np.savez(tmp_path / "old.npz", **table, serial=np.arange(len(table["ids"])))
    result = run("verify", tmp_path / "old.npz", tmp_path / "old.npz", "--slice", "serial")
    assert (result.code, "more than 500 values" in result.stderr) == (5, True)


def test_old_queries_on_a_re_embedded_gallery_equal_a_loop(shop: Shop) -> None:
    """What old clients still find once everything is re-embedded is measured as well."""
    _, report, _ = _verify(shop)
    data = load(shop.data())
    queries = [i for i, x in enumerate(data.items) if (x.split, x.role) == ("test", "query")]
    gallery = [i for i, x in enumerate(data.items) if x.role == "gallery"]
    old, new = (Encoder.load(shop.path(name)) for name in ("old.onnx", "new.onnx"))
    scores = old.embed(data.take(queries)).features @ new.embed(data.take(gallery)).features.T
    labels = np.array(data.labels)
    right = labels[gallery][scores.argmax(axis=1)] == labels[queries]
    result = report["groups"][0]["hit_rate"]["old_new"]["1"]  # type: ignore[index]
    assert result == pytest.approx(right.mean(), abs=3e-3)


@pytest.mark.parametrize("left", ["a store without its manifest", "an empty folder", "a file"])
def test_an_empty_folder_or_damaged_store_is_no_missing_store(shop: Shop, left: str) -> None:
    """A lost manifest or an empty mount ends in exit 5: searching no store would go unnoticed."""
    store = shop.path("store")
    if left == "a store without its manifest":
        (store / "manifest.json").unlink()
    else:
        shutil.rmtree(store)
        store.mkdir() if left == "an empty folder" else store.write_text("x")
    code, report, said = _verify(shop)
    assert (code, report) == (5, {}), said


def test_a_missing_store_is_warned_of(shop: Shop) -> None:
    """stderr says what was searched, the next step is no deploy, and deploy refuses it by name."""
    code, report, said = _verify(shop, "--store", shop.path("nothing"))
    assert code == 0
    assert "not a deployed one" in said
    assert "verify against it" in str(report["next_step"])
    result = shop.run("deploy", "--report", shop.path("report.json"))
    assert (result.code, "of no store" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (
            lambda row: row | {"label": row["label"].upper() + "?"},
            "by the same label to the letter",
        ),
        (lambda row: row | {"split": "train"}, "queries of classes that were not trained on"),
    ],
    ids=["labels that differ", "no query"],
)
def test_the_next_step_if_nothing_matches(
    shop: Shop, tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str]], step: str
) -> None:
    """More of the same queries would not help: the next step says what is missing."""
    source = shop.data()
    with source.open(newline="", encoding="utf-8") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    for row in rows:
        row["path"] = str(source.parent / row["path"])
    with (tmp_path / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    more = ("--data", tmp_path / "items.csv", "--data-root", source.parent)
    code, report, said = _verify(shop, *more)
    assert code == 4, said
    assert step in str(report["next_step"])
    assert "more classes" not in str(report["next_step"])
