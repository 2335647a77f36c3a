"""--cluster: units other than classes, from the flag to the report; judgments keep classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Result, run

CLASSES, USERS = 30, 24
Rows = dict[str, Any]


def table(new: bool, **more: Any) -> Rows:
    """600 queries, 20 a class and 25 a user, and a gallery; users move together with the new model.

    A query that finds nothing lies on a gallery item of no class among them.
    """
    rng = np.random.default_rng(3)
    label, user = np.arange(600) % CLASSES, np.arange(600) // 25
    moved = np.random.default_rng(4).random(USERS)[user]
    hit = rng.random(600) < (moved if new else 0.5)
    gallery = np.eye(CLASSES + 1, dtype=np.float32)
    ids = [*(f"q{i}" for i in range(600)), *(f"g{i}" for i in range(CLASSES + 1))]
    names = [f"u{entry}" for entry in user] + [""] * (CLASSES + 1)
    return {
        "ids": np.array(ids),
        "labels": np.array([f"c{name}" for name in (*label, *range(CLASSES + 1))]),
        "role": np.array(["query"] * 600 + ["gallery"] * (CLASSES + 1)),
        "features": np.concatenate([near(gallery[np.where(hit, label, CLASSES)]), gallery]),
        "user": np.array(names),
        "batch": np.array([f"b{int(value[1:]) // 3}" if value else "" for value in names]),
        **more,
    }


def near(rows: np.ndarray) -> np.ndarray:
    """Unit rows whose nearest neighbours are these, and which are no copies of them."""
    moved = rows + 0.02 * np.random.default_rng(6).standard_normal(rows.shape)
    unit: np.ndarray = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return unit.astype(np.float32)


def verify(folder: Path, *more: object, **columns: Any) -> tuple[Result, Rows]:
    """The command's result and its report."""
    for name in ("old", "new"):
        np.savez(folder / f"{name}.npz", **table(name == "new", **columns))
    report = folder / "report.json"
    paths = (folder / "old.npz", folder / "new.npz")
    result = run("verify", *paths, "--report", report, "--no-self-test", *more)
    return result, json.loads(report.read_bytes()) if report.exists() else {}


def gain(report: Rows) -> Rows:
    """The deciding check."""
    return next(check for check in report["verdict"]["checks"] if check["name"] == "hit_gain")


def length(report: Rows) -> float:
    """The bounds of the gain's interval."""
    return float(gain(report)["high"] - gain(report)["low"])


def test_a_cluster_crosses_the_classes(tmp_path: Path) -> None:
    """Intervals allow for users and classes; the scarcer unit is counted and named."""
    _, plain = verify(tmp_path)
    _, by_user = verify(tmp_path, "--cluster", "user")
    assert (gain(plain)["unit"], gain(plain)["n_classes"]) == (["class"], CLASSES)
    assert (gain(by_user)["unit"], gain(by_user)["n_classes"]) == (["class", "user"], USERS)
    assert gain(plain)["estimate"] == gain(by_user)["estimate"]
    assert length(by_user) > 1.5 * length(plain)
    group = by_user["groups"][0]
    assert (group["unit"], group["n_classes"]) == (["class", "user"], USERS)


def test_two_columns_cross_and_a_finer_one_is_left_out(tmp_path: Path) -> None:
    """Users lie within batches: both together resample the batches, of which there are too few."""
    _, both = verify(tmp_path, "--cluster", "user", "--cluster", "batch")
    result, batches = verify(tmp_path, "--cluster", "batch")
    assert gain(both) == gain(batches)
    assert (gain(both)["unit"], gain(both)["n_classes"]) == (["class", "batch"], 8)
    assert result.code == 4
    assert (
        "8 or more each of classes and values of batch, and 20 are required" in gain(both)["detail"]
    )


def test_queries_without_a_value_are_units_of_their_own(tmp_path: Path) -> None:
    """An empty column adds nothing to the classes; each empty value is one more unit."""
    _, plain = verify(tmp_path)
    _, empty = verify(tmp_path, "--cluster", "user", user=np.array([""] * 631))
    assert gain(empty) == gain(plain)
    user = table(False)["user"]
    user[:2] = ""
    _, two = verify(tmp_path, "--cluster", "user", user=user)
    assert gain(two)["n_classes"] == USERS + 2


def test_an_unknown_column_lists_the_known_ones(tmp_path: Path) -> None:
    """Exit 5 and no report."""
    result, report = verify(tmp_path, "--cluster", "person")
    assert (result.code, report) == (5, {})
    assert "no column person" in result.stderr
    assert "columns: user, batch" in result.stderr


def test_slices_are_resampled_by_the_same_units(tmp_path: Path) -> None:
    """A slice's interval allows for users as well."""
    half = np.array(["a", "b"])[np.random.default_rng(5).integers(0, 2, 631)]
    results = []
    for more in ((), ("--cluster", "user")):
        _, report = verify(tmp_path, "--slice", "half", *more, half=half)
        (check,) = [x for x in report["verdict"]["checks"] if x["group"] == "unseen, half=a"]
        results.append(check)
    assert results[1]["unit"] == ["class", "user"]
    assert results[1]["high"] - results[1]["low"] > 1.3 * (results[0]["high"] - results[0]["low"])


def test_pairs_are_resampled_by_the_same_units(tmp_path: Path) -> None:
    """The user's pairs state the unit, and their intervals are wider with it."""
    pairs = [(f"q{i}", f"g{i % CLASSES}", 1) for i in range(300)]
    pairs += [(f"q{i}", f"g{(i + 1) % CLASSES}", 0) for i in range(300)]
    (tmp_path / "pairs.csv").write_text(
        "id_a,id_b,same\n" + "".join(f"{a},{b},{same}\n" for a, b, same in pairs)
    )
    results = []
    for more in ((), ("--cluster", "user")):
        _, report = verify(tmp_path, "--pairs", tmp_path / "pairs.csv", *more)
        (check,) = [x for x in report["verdict"]["checks"] if x["name"] == "same_class"
                  and x["group"] == "pairs"]  # fmt: skip
        results.append(check)
    assert [check["unit"] for check in results] == [["class"], ["class", "user"]]
    assert results[1]["high"] - results[1]["low"] > 1.2 * (results[0]["high"] - results[0]["low"])


@pytest.mark.parametrize("labelled", [True, False])
def test_judgments_keep_classes_where_labels_are(tmp_path: Path, labelled: bool) -> None:
    """Judgments decide relevance, and classes are resampled; without labels, each query is."""
    judged = "".join(f"q{i} 0 g{i % CLASSES} 1\n" for i in range(600))
    (tmp_path / "judged.txt").write_text(judged)
    _, plain = verify(tmp_path)
    columns = {} if labelled else {"labels": np.array(["all"] * 631)}
    _, report = verify(tmp_path, "--qrels", tmp_path / "judged.txt", **columns)
    assert gain(report)["estimate"] == gain(plain)["estimate"]
    assert (gain(report)["unit"], gain(report)["n_classes"]) == (
        (["class"], CLASSES) if labelled else (["query"], 600)
    )
    for name in ("same_class", "different_class"):
        (check,) = [x for x in report["verdict"]["checks"] if x["name"] == name]
        assert check["n_classes"] == (CLASSES if labelled else 600)


def test_a_column_that_carries_dependence_holds_up_the_verdict(tmp_path: Path) -> None:
    """Dependence on users is warned of in the report and on stderr until they are resampled."""
    better = np.random.default_rng(4).random(USERS) < 0.75
    rows = table(True)
    label, user = np.arange(600) % CLASSES, np.arange(600) // 25
    hit = np.where(np.arange(600) % 2 == 0, better[user], True)
    old = np.random.default_rng(5).random(600) < 0.5
    gallery = rows["features"][600:]
    for name, hits in (("old", old), ("new", hit)):
        features = np.concatenate([near(gallery[np.where(hits, label, CLASSES)]), gallery])
        np.savez(tmp_path / f"{name}.npz", **rows | {"features": features})
    paths = (tmp_path / "old.npz", tmp_path / "new.npz")
    for flags, code in (((), 4), (("--cluster", "user"), 0)):
        report = tmp_path / "report.json"
        result = run("verify", *paths, "--report", report, "--no-self-test", *flags)
        written = json.loads(report.read_bytes())
        by = {group["column"]: group for group in written["groups"][0]["dependence"]}
        (check,) = [x for x in written["verdict"]["checks"] if x["name"] == "design_effect"]
        assert result.code == code
        assert (by["user"]["n_units"], by["user"]["used"]) == (USERS, bool(flags))
        if flags:
            assert check["estimate"] == 1.0
            assert "dependence" not in result.stderr
        else:
            assert gain(written)["outcome"] == "pass"
            assert check["outcome"] == "inconclusive"
            assert check["estimate"] == by["user"]["design_effect"] > 1.5
            assert written["next_step"] == "verify again with --cluster user"
            assert "column user carries dependence" in result.stderr
            assert "verify --cluster user" in result.stderr
            assert any("column user carries" in line for line in written["warnings"])
