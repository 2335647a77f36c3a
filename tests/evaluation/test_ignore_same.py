"""Items with the query's camera do not count: figures are compared with loops over pairs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Result, Shop, run, write_encoder

from compatctl.data import from_files, load
from compatctl.encoder import Encoder
from compatctl.recipe import Project

Array = NDArray[Any]
PERSONS, CAMERAS, DIM = 300, 3, 32


@dataclass(frozen=True)
class Street:
    """Features of persons before cameras: the new model knows the wall better than the person."""

    ids: list[str]
    persons: Array
    cameras: Array
    old: Array
    new: Array

    def write(self, folder: Path, **columns: Any) -> tuple[Path, Path]:
        """Both tables as files."""
        more = {"camera": [f"c{value}" for value in self.cameras], **columns}
        labels = [f"p{entry:03d}" for entry in self.persons]
        for name, rows in (("old", self.old), ("new", self.new)):
            np.savez(folder / f"{name}.npz", ids=self.ids, labels=labels, features=rows, **more)
        return folder / "old.npz", folder / "new.npz"

    def hit_rate(self, queries: Array, ignored: Array, relevant: Array) -> float:
        """hit@1 on the old gallery by the definition, pairs (N, N) that are ignored left out."""
        scores = queries.astype(float) @ self.old.T.astype(float)
        left_out = ignored | np.eye(len(scores), dtype=bool)
        scores[left_out] = -9
        query_rows = (relevant & ~left_out).any(axis=1)
        first = scores.argmax(axis=1)
        return float(relevant[np.arange(len(first)), first][query_rows].mean())

    @property
    def same_person(self) -> Array:
        """(N, N)"""
        return self.persons[:, None] == self.persons[None]

    @property
    def same_camera(self) -> Array:
        """(N, N)"""
        return self.cameras[:, None] == self.cameras[None]


@pytest.fixture(scope="module")
def street() -> Street:
    """Two images of each person by each camera."""
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(PERSONS), 2 * CAMERAS)
    cameras = np.tile(np.repeat(np.arange(CAMERAS), 2), PERSONS)
    person = rng.standard_normal((PERSONS, DIM))
    wall = rng.standard_normal((PERSONS, CAMERAS, DIM))

    def features(a: float, b: float, noise: float) -> Array:
        rows = a * person[persons] + b * wall[persons, cameras]
        rows += noise * rng.standard_normal(rows.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    ids = [
        f"p{entry:03d}_c{c}_{at}"
        for at, (entry, c) in enumerate(zip(persons, cameras, strict=True))
    ]
    old, new = features(0.6, 0.7, 0.8), features(0.2, 1.1, 0.1)
    return Street(ids=ids, persons=persons, cameras=cameras, old=old, new=new)


def verify(folder: Path, tables: tuple[Path, Path], *more: object) -> tuple[Result, dict[str, Any]]:
    """The command's result and its report; {} if none was written."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    result = run("verify", *tables, "--report", report, "--json", *more)
    return result, json.loads(report.read_bytes()) if report.exists() else {}


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The deciding group's check of that name."""
    checks = report["verdict"]["checks"]
    match: dict[str, Any] = next(
        entry for entry in checks if (entry["name"], entry["group"]) == (name, "unseen")
    )
    return match


def test_a_gain_within_one_camera_hides_a_fall_across_cameras(
    tmp_path: Path, street: Street
) -> None:
    """By classes alone the model passes; with the camera's rule it fails."""
    tables = street.write(tmp_path)
    assert verify(tmp_path, tables)[0].code == 0
    result, report = verify(tmp_path, tables, "--ignore-same", "camera")
    ignored = street.same_person & street.same_camera
    hit_rate = report["groups"][0]["hit_rate"]
    for pair, queries in (("old_old", street.old), ("new_old", street.new)):
        wanted = street.hit_rate(queries, ignored, street.same_person)
        assert hit_rate[pair]["1"] == pytest.approx(wanted, abs=1e-9)
    assert hit_rate["old_old"]["1"] > 5 * hit_rate["new_old"]["1"]
    assert (result.code, check(report, "hit_gain")["outcome"]) == (3, "fail")
    assert report["groups"][0]["n_without_match"] == 0


def test_inequalities_and_error_rates_are_of_the_pairs_that_count(
    tmp_path: Path, street: Street
) -> None:
    """Means, accepted shares and numbers of pairs leave the same person on one camera out."""
    tables = street.write(tmp_path)
    _, report = verify(tmp_path, tables, "--ignore-same", "camera", "--threshold", "0.4")
    ignored = (street.same_person & street.same_camera) | np.eye(len(street.ids), dtype=bool)
    same, diff = street.same_person & ~ignored, ~street.same_person & ~ignored
    group = report["groups"][0]
    for name, queries in (("old", street.old), ("new", street.new)):
        scores = queries @ street.old.T
        assert group["cos_same"][f"{name}_old"] == pytest.approx(scores[same].mean(), abs=1e-5)
        assert group["cos_diff"][f"{name}_old"] == pytest.approx(scores[diff].mean(), abs=1e-5)
        rates = group["error_rates"]
        frr = (scores[same] < 0.4).mean()
        assert rates["frr"][name] == pytest.approx(frr, abs=2 / same.sum())
        far = (scores[diff] >= 0.4).mean()
        assert rates["far"][name] == pytest.approx(far, abs=2 / diff.sum())
    assert check(report, "same_class")["n"] == same.sum()
    assert check(report, "different_class")["n"] == diff.sum()


def test_with_judgments_every_item_with_the_value_is_ignored(
    tmp_path: Path, street: Street
) -> None:
    """Labels say nothing then: no item of the query's camera is an answer, right or wrong."""
    tables = street.write(tmp_path)
    relevant = street.same_person & ~np.eye(len(street.ids), dtype=bool)
    qrels = tmp_path / "all.qrels"
    qrels.write_text(
        "".join(f"{street.ids[q]} 0 {street.ids[g]} 1\n" for q, g in np.argwhere(relevant))
    )
    more = ("--ignore-same", "camera", "--qrels", qrels)
    _, report = verify(tmp_path, tables, *more)
    hit_rate = report["groups"][0]["hit_rate"]
    for pair, queries in (("old_old", street.old), ("new_old", street.new)):
        wanted = street.hit_rate(queries, street.same_camera, relevant)
        assert hit_rate[pair]["1"] == pytest.approx(wanted, abs=1e-9)


def test_several_columns_are_ignored_each_for_itself(tmp_path: Path, street: Street) -> None:
    """An item that shares the camera or the hour is left out."""
    hours = np.random.default_rng(3).integers(0, 4, len(street.ids))
    tables = street.write(tmp_path, hour=[f"h{entry}" if entry else "" for entry in hours])
    more = ("--ignore-same", "camera", "--ignore-same", "hour")
    _, report = verify(tmp_path, tables, *more)
    hour = (hours[:, None] == hours[None]) & (hours[:, None] > 0)  # without a value it counts
    ignored = street.same_person & (street.same_camera | hour)
    hit_rate = report["groups"][0]["hit_rate"]["new_old"]["1"]
    assert hit_rate == pytest.approx(
        street.hit_rate(street.new, ignored, street.same_person), abs=1e-9
    )
    left = street.same_person & ~ignored & ~np.eye(len(ignored), dtype=bool)
    assert report["groups"][0]["n_without_match"] == (~left.any(axis=1)).sum() > 0
    stderr = next(line for line in report["not_checked"] if line.startswith("same hour"))
    assert f"{(hours == 0).sum()} of {len(hours)} gallery items" in stderr


def test_the_project_file_names_the_columns_too(tmp_path: Path, street: Street) -> None:
    """ignore_same in compatctl.yaml gives the report of the flag, byte by byte."""
    tables = street.write(tmp_path)
    project = tmp_path / "compatctl.yaml"
    project.write_text("format: 1\n")
    more = ("--project", project)
    _, flagged = verify(tmp_path, tables, *more, "--ignore-same", "camera")
    project.write_text("format: 1\nignore_same: [camera]\n")
    result, written = verify(tmp_path, tables, *more)
    assert result.code == 3
    assert written == flagged


@pytest.mark.parametrize(
    ("column", "word"), [("lens", "no column lens"), ("empty", "has a value of the column empty")]
)
def test_a_column_without_values_is_refused(
    tmp_path: Path, street: Street, column: str, word: str
) -> None:
    """An unknown column, or one that is empty in the gallery, ends in exit 5 without a report."""
    tables = street.write(tmp_path, empty=[""] * len(street.ids))
    result, report = verify(tmp_path, tables, "--ignore-same", column)
    assert (result.code, report) == (5, {})
    assert word in result.stderr


CAMERAS_OF = {"noto": "a", "noto-v1": "b", "twemoji": "a", "fluent-emoji-flat": "b", "emojione": ""}
STORED = ("noto", "noto-v1", "twemoji")


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Shop:
    """A store of three vendors' emoji by two cameras; of two more vendors one has no camera."""
    folder = tmp_path_factory.mktemp("cameras")
    with (emoji / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "camera"])
        writer.writeheader()
        for row in rows:
            role = "gallery" if row["vendor"] in STORED else "query"
            more = {"role": role, "camera": CAMERAS_OF[row["vendor"]]}
            writer.writerow(row | more | {"path": str(emoji / row["path"])})
    project = f"format: 1\ndata: items.csv\ndata_root: {emoji}\nignore_same: [camera]\n"
    (folder / "compatctl.yaml").write_text(f"{project}max_gallery_pass: 1.0\n")
    write_encoder(folder / "old.onnx", noise=0.6)
    write_encoder(folder / "new.onnx", noise=0.05)
    result = Shop(folder).run("init", "--model", folder / "old.onnx")
    assert result.code == 0, result.stderr
    return Shop(folder)


def hit_rate_by_loop(shop: Shop, queries: str, gallery: str) -> float:
    """hit@1 of a model's held-out queries on another's gallery, by the camera's rule."""
    data = load(
        shop.path("items.csv"), data_root=Project.load(shop.path("compatctl.yaml")).data_root
    )
    query_rows = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    ]
    stored = [i for i, entry in enumerate(data.items) if entry.role == "gallery"]
    old = Encoder.load(shop.path(gallery)).embed(data.take(stored)).features.astype(float)
    new = Encoder.load(shop.path(queries)).embed(data.take(query_rows)).features.astype(float)
    right = []
    for row, i in zip(new, query_rows, strict=True):
        value = data.items[i]
        camera = value.slices.get("camera")
        here = []
        for vector, j in zip(old, stored, strict=True):
            other = data.items[j]
            shares = camera and camera == other.slices.get("camera")
            if not (shares and other.label == value.label):
                here.append((float(row @ vector), other.label))
        if any(label == value.label for _, label in here):
            right.append(max(here)[1] == value.label)
    return float(np.mean(right))


def test_the_stored_gallery_is_searched_by_the_same_rule(cameras: Shop) -> None:
    """verify and matrix take the columns from the project, and agree with a loop."""
    outcome = cameras.run("verify", cameras.path("old.onnx"), cameras.path("new.onnx"))
    assert outcome.code in {0, 4}, outcome.stderr
    report = json.loads(cameras.path("report.json").read_bytes())
    hit_rate = report["groups"][0]["hit_rate"]
    wanted = hit_rate_by_loop(cameras, "old.onnx", "old.onnx")
    assert hit_rate["old_old"]["1"] == pytest.approx(wanted, abs=1e-9)
    crossed = hit_rate_by_loop(cameras, "new.onnx", "old.onnx")
    assert hit_rate["new_old"]["1"] == pytest.approx(crossed, abs=1e-9)
    stderr = next(line for line in report["not_checked"] if line.startswith("same camera"))
    assert "0 of" in stderr
    result = cameras.run("matrix", cameras.path("old.onnx"), cameras.path("new.onnx"))
    values = result.json["values"]
    assert values[0][0] == pytest.approx(wanted, abs=1e-9)
    assert values[1][0] == pytest.approx(crossed, abs=1e-9)


def test_a_backfill_is_judged_by_the_same_rule(cameras: Shop, tmp_path: Path) -> None:
    """The hit rate before any row is written agrees with a loop."""
    shop = Shop(tmp_path / "shop")
    shutil.copytree(cameras.folder, shop.folder)
    reason = ("--force", "--reason", "a test", "--model", shop.path("new.onnx"))
    assert shop.run("deploy", *reason).code == 0
    result = shop.run("backfill", "--dry-run")
    curve = result.json["measured"]["curve"]
    wanted = hit_rate_by_loop(shop, "new.onnx", "old.onnx")
    assert curve[0]["share"] == 0.0
    assert curve[0]["hit_rate"] == pytest.approx(wanted, abs=1e-9)


def test_a_column_that_no_item_has_is_refused_before_anything_runs(cameras: Shop) -> None:
    """On the command line it ends in exit 5, and the known columns are listed."""
    models = cameras.path("old.onnx"), cameras.path("new.onnx")
    result = cameras.run("verify", *models, "--ignore-same", "lens")
    assert result.code == 5
    assert "camera, vendor" in result.stderr


def test_search_leaves_out_items_with_the_given_value(cameras: Shop, emoji: Path) -> None:
    """The k nearest items of other cameras are found, whatever lies nearer."""
    images = sorted((emoji / "images" / "emojione").glob("*.png"))[:3]
    project = Project.load(cameras.path("compatctl.yaml"))
    data = load(cameras.path("items.csv"), data_root=project.data_root)
    stored = [i for i, item in enumerate(data.items) if item.role == "gallery"]
    encoder = Encoder.load(cameras.path("old.onnx"))
    gallery = encoder.embed(data.take(stored)).features.astype(float)
    for value in ("a", "b"):
        result = cameras.run("search", "-k", "30", "--ignore-same", f"camera={value}", *images)
        here = [at for at, i in enumerate(stored) if data.items[i].slices["camera"] != value]
        assert result.json["left_out"] == len(stored) - len(here)
        for query, row in zip(
            result.json["queries"], encoder.embed(from_files(images)).features, strict=True
        ):
            near = sorted(here, key=lambda at, row=row: -float(gallery[at] @ row))[:30]
            wanted = [data.items[stored[at]].id for at in near]
            rows = [hit["id"] for hit in query["hits"]]
            assert len(set(rows) & set(wanted)) >= 29  # the index is approximate
    every = cameras.run("search", "-k", "9999", "--ignore-same", "camera=a", images[0])
    assert len(every.json["queries"][0]["hits"]) == len(stored) - every.json["left_out"]


@pytest.mark.parametrize(
    ("given", "code", "word"), [("camera", 2, "COLUMN=VALUE"), ("lens=3", 5, "column lens")]
)
def test_search_refuses_a_column_without_a_value_and_an_unknown_column(
    cameras: Shop, emoji: Path, given: str, code: int, word: str
) -> None:
    """A usage error, and an error that names the columns."""
    image = next((emoji / "images" / "emojione").glob("*.png"))
    result = cameras.run("search", "--ignore-same", given, image)
    assert (result.code, word in result.stderr) == (code, True)


def test_values_that_look_alike_or_missing_are_named(tmp_path: Path, street: Street) -> None:
    """Queries of C1 and items of c1 would share no camera, and all of nan one: both are notices."""
    cameras = np.array([f"c{value}" for value in street.cameras], dtype="U3")
    cameras[::2] = np.char.upper(cameras[::2])
    cameras[:4] = "nan"
    result, _ = verify(tmp_path, street.write(tmp_path, camera=cameras), "--ignore-same", "camera")
    told = {entry["kind"]: entry for entry in result.json["notices"]}
    assert told["near-equal-values"]["names"] == ["'C0' and 'c0'", "'C1' and 'c1'", "'C2' and 'c2'"]
    assert told["no-value"]["names"] == ["'nan'"]
    result, _ = verify(tmp_path, street.write(tmp_path, camera=cameras), "--slice", "camera")
    assert {entry["kind"] for entry in result.json["notices"]} == {"near-equal-values"}


def test_values_of_the_data_that_look_alike_are_named(cameras: Shop) -> None:
    """As in tables; the project's own column counts, too."""
    with cameras.path("items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::2]:
        row["camera"] = row["camera"].upper()
    alike = cameras.path("alike.csv")
    with alike.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    models = cameras.path("old.onnx"), cameras.path("new.onnx")
    kinds = []
    for data in (cameras.path("items.csv"), alike):
        result = cameras.run("verify", *models, "--data", data)
        assert result.code in {0, 4}, result.stderr
        kinds.append({entry["kind"] for entry in result.json.get("notices", ())})
    assert kinds[1] - kinds[0] == {"near-equal-values"}
