"""bridge on real images: an encoder that knows no gallery finds what the old one found."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from shop_kit import DIM, SIDE, Shop, run, store_files, stored_rows, turned

import compatctl
from compatctl.data import Dataset, load
from compatctl.encoder import Encoder, with_record

Row = dict[str, str]


def bridge(shop: Shop, new: Path, *more: object) -> Any:
    """The result of a run that must succeed, written to bridged.onnx."""
    result = shop.run("bridge", new, "-o", shop.path("bridged.onnx"), *more)
    assert result.code == 0, result.stderr
    return result.json


def record(shop: Shop) -> Any:
    """The bridged encoder's training record."""
    return json.loads(shop.path("bridged.training.json").read_bytes())


def hit_rate(shop: Shop, model: Path, split: str) -> float:
    """hit@1 of a split's queries on the stored gallery, by an explicit loop."""
    data = load(shop.data())
    gallery = data.filter(role="gallery")
    stored = stored_rows(shop, list(gallery.ids))
    queries = data.filter(split=split, role="query")  # type: ignore[arg-type]
    right = counted = 0
    for label, row in zip(queries.labels, Encoder.load(model).embed(queries).features, strict=True):
        counted += label in gallery.labels
        right += gallery.labels[int(np.argmax(stored @ row))] == label
    return right / counted


def changed(shop: Shop, change: Callable[[list[Row]], list[Row]]) -> tuple[object, ...]:
    """Flags that name a changed copy of the project's table; its images stay where they are."""
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    for row in rows:
        row["path"] = str(shop.data().parent / row["path"])
    with shop.path("changed.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(change(rows))
    return "--data", shop.path("changed.csv"), "--data-root", shop.data().parent


def held_out(data: Dataset) -> set[str]:
    """Ids of the validation and test queries."""
    return {
        item.id
        for item in data.items
        if item.split in {"validation", "test"} and item.role == "query"
    }


def test_a_rotated_copy_of_the_old_encoder_is_bridged_back(shop: Shop) -> None:
    """Alone it finds next to nothing; behind a rotation all that the old one finds, within 1%."""
    new = turned(shop, "rotated.onnx", of="old.onnx")
    bridged = bridge(shop, new, "--kind", "orthogonal")
    old = hit_rate(shop, shop.path("old.onnx"), "test")
    assert hit_rate(shop, new, "test") < 0.2 * old
    assert hit_rate(shop, shop.path("bridged.onnx"), "test") >= 0.99 * old
    assert bridged["parity"] < 1e-4


def test_every_kind_is_tried_and_validation_chooses(shop: Shop) -> None:
    """All kinds, strengths and ranks are trials; the best on validation queries is what is written,
    and for a rotated copy of the old encoder it finds there what that finds, within 1%."""
    bridged = bridge(shop, turned(shop, "rotated.onnx", of="old.onnx"))
    kinds = [trial["kind"] for trial in bridged["trials"]]
    assert [kinds.count(item) for item in ("orthogonal", "ridge", "low-rank", "mlp")] == [
        1,
        5,
        15,
        1,
    ]
    assert {trial["setting"].split("rank ")[-1] for trial in bridged["trials"][6:21]} == {
        "4",
        "8",
        "16",
    }
    assert bridged["hit_rate"] == max(trial["hit_rate"] for trial in bridged["trials"])
    assert bridged["old_hit_rate"] == pytest.approx(
        hit_rate(shop, shop.path("old.onnx"), "validation")
    )
    assert bridged["hit_rate"] == pytest.approx(
        hit_rate(shop, shop.path("bridged.onnx"), "validation")
    )
    assert bridged["hit_rate"] >= 0.99 * bridged["old_hit_rate"]
    best = next(trial for trial in bridged["trials"] if trial["hit_rate"] == bridged["hit_rate"])
    assert (bridged["kind"], bridged["setting"]) == (best["kind"], best["setting"])


def test_a_better_encoder_of_another_dimension_is_bridged_and_deployed(shop: Shop) -> None:
    """A better model of 48 numbers is bridged to the gallery's 32, passes the gate, is deployed;
    the index keeps its bytes."""
    before = shop.manifest()["index"]["sha256"]
    new = turned(shop, "wide.onnx", of="new.onnx", dim=48)
    bridged = bridge(shop, new, "--kind", "ridge")
    assert (bridged["new_dim"], bridged["dim"], bridged["kind"]) == (48, DIM, "ridge")
    assert Encoder.load(shop.path("bridged.onnx")).dim == DIM
    report = shop.path("report.json")
    verified = shop.run(
        "verify", shop.path("old.onnx"), shop.path("bridged.onnx"), "--report", report
    )
    assert verified.code == 0, verified.stdout + verified.stderr
    assert {group["name"] for group in verified.json["groups"]} <= {"unseen", "near copies"}
    result = shop.run("deploy", "--model", shop.path("bridged.onnx"))
    assert result.code == 0, result.stderr
    assert shop.manifest()["query_model"] == bridged["sha256"]
    assert shop.manifest()["index"]["sha256"] == before


def test_the_training_record_lists_what_was_seen(shop: Shop) -> None:
    """Training items with their classes, gallery items of other splits as unlabelled ones, by id
    and digest; no held-out query; and all that the new encoder's own record says."""
    new = turned(shop, "wide.onnx", of="new.onnx", dim=48, recorded=False)
    sha256 = hashlib.sha256(new.read_bytes()).hexdigest()
    seen = {"id": "elsewhere", "sha256": "0" * 64}
    own = {
        "models": [sha256],
        "items": [seen],
        "unlabelled": [],
        "classes": ["other"],
        "parity": 5e-4,
    }
    shop.path("wide.training.json").write_text(json.dumps({**own, "recipe": {"seed": 1}}))
    bridged, data = bridge(shop, new, "--kind", "orthogonal"), load(shop.data())
    training_record = record(shop)
    train = data.filter(split="train")
    assert {item["id"] for item in training_record["items"]} == {*train.ids, "elsewhere"}
    digests = {item["id"]: item["sha256"] for item in training_record["items"]}
    assert digests[train.ids[3]] == train.digest(3)
    assert digests["elsewhere"] == "0" * 64
    unlabelled = {
        item.id for item in data.items if item.role == "gallery" and item.split != "train"
    }
    assert {item["id"] for item in training_record["unlabelled"]} == unlabelled
    assert not unlabelled & held_out(data)
    assert training_record["classes"] == sorted({*train.labels, "other"})
    assert (training_record["models"], training_record["parity"]) == ([bridged["sha256"]], 5e-4)
    assert (training_record["new"]["sha256"], training_record["new"]["recipe"]) == (
        sha256,
        {"seed": 1},
    )
    assert bridged["unlabelled"] == len(unlabelled)
    stored = len(data.filter(role="gallery"))
    outside = len(train.filter(role="query"))
    assert bridged["pairs"] == {"gallery": stored, "encoder": outside}


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_share_is_of_the_gallery_by_the_hash_of_the_id(shop: Shop, share: float) -> None:
    """Of the gallery the first ids by sha256 are pairs, and every training item is."""
    bridge(shop, shop.path("turned.onnx"), "--kind", "orthogonal", "--share", share)
    data, training_record = load(shop.data()), record(shop)
    gallery = sorted(
        data.filter(role="gallery").ids,
        key=lambda item_id: hashlib.sha256(item_id.encode()).hexdigest(),
    )
    used = {item["id"] for item in (*training_record["items"], *training_record["unlabelled"])}
    training = set(data.filter(split="train").ids)
    chosen = set(gallery[: int(share * len(gallery))])
    assert used & set(gallery) == chosen | (training & set(gallery))
    assert used - set(gallery) == set(data.filter(split="train", role="query").ids)


def test_held_out_queries_have_no_part_in_the_fit(shop: Shop) -> None:
    """Without the test queries and most validation queries the map is the same, to the byte; what
    the file carries of its parity is of other images."""

    def fewer(rows: list[Row]) -> list[Row]:
        asking = [row for row in rows if row["role"] == "query" and row["split"] != "train"]
        kept = [row["id"] for row in asking if row["split"] == "validation"][:5]
        return [row for row in rows if row not in asking or row["id"] in kept]

    new, kind = shop.path("turned.onnx"), ("--kind", "orthogonal")
    graphs = []
    for more in ((), changed(shop, fewer)):
        bridge(shop, new, *kind, *more)
        path = shop.path("bridged.onnx")
        graphs.append(with_record(path.read_bytes(), path, ""))
    assert graphs[0] == graphs[1]


def test_an_image_identical_to_a_held_out_query_is_no_pair(shop: Shop) -> None:
    """An image that trains under one id and queries under another does not train, and verify
    finds no leak."""

    def twin(rows: list[Row]) -> list[Row]:
        one = next(row for row in rows if (row["split"], row["role"]) == ("test", "query"))
        return [*rows, {**one, "id": "twin", "split": "train"}]

    more = changed(shop, twin)
    bridge(shop, shop.path("turned.onnx"), "--kind", "orthogonal", *more)
    assert "twin" not in {item["id"] for item in record(shop)["items"]}
    result = shop.run("verify", shop.path("old.onnx"), shop.path("bridged.onnx"), *more)
    assert result.code in {0, 3, 4}, result.stderr


def test_without_roles_only_training_items_are_pairs(shop: Shop) -> None:
    """Where every item may query, no gallery item of another split takes part."""
    flat = changed(shop, lambda rows: [{**row, "role": ""} for row in rows])
    bridged = bridge(shop, shop.path("turned.onnx"), "--kind", "orthogonal", *flat)
    assert bridged["unlabelled"] == 0
    assert {item["id"] for item in record(shop)["items"]} == set(
        load(shop.data()).filter(split="train").ids
    )


def test_the_mlp_is_the_same_for_the_same_seed(shop: Shop) -> None:
    """Two runs with one seed give the same bytes, another seed others; it beats no map at all."""
    new = turned(shop, "rotated.onnx", of="old.onnx")
    bridged = [bridge(shop, new, "--kind", "mlp", "--seed", seed) for seed in (3, 3, 4)]
    assert bridged[0]["sha256"] == bridged[1]["sha256"] != bridged[2]["sha256"]
    assert [trial["kind"] for trial in bridged[0]["trials"]] == ["mlp"]
    old = hit_rate(shop, shop.path("old.onnx"), "test")
    assert hit_rate(shop, shop.path("bridged.onnx"), "test") > 0.5 * old


def test_a_foreign_file_is_bridged(shop: Shop) -> None:
    """A float NCHW encoder with its preprocessing file beside it becomes one sealed file."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3 * SIDE * SIDE, 24)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["feature"]),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), shop.path("foreign.onnx"))
    alone = shop.run("bridge", shop.path("foreign.onnx"), "-o", shop.path("bridged.onnx"))
    assert (alone.code, "preprocessing" in alone.stderr) == (5, True)
    side = {"format": 1, "height": SIDE, "width": SIDE, "mean": [200] * 3, "std": [100] * 3}
    shop.path("foreign.preprocessing.json").write_text(json.dumps(side))
    bridged = bridge(shop, shop.path("foreign.onnx"), "--kind", "ridge")
    assert (bridged["new_dim"], bridged["dim"]) == (24, DIM)
    shop.path("foreign.preprocessing.json").unlink()
    assert hit_rate(shop, shop.path("bridged.onnx"), "test") > hit_rate(
        shop, shop.path("turned.onnx"), "test"
    )


def test_images_that_do_not_decode_are_refused_or_skipped(shop: Shop, emoji: Path) -> None:
    """One is named in exit 5; with --skip-bad it is left out of the pairs and counted."""
    broken = shop.path("broken.png")
    broken.write_bytes(b"no image")

    def spoil(rows: list[Row]) -> list[Row]:
        one = next(row for row in rows if (row["split"], row["role"]) == ("train", "gallery"))
        return [{**row, "path": str(broken)} if row is one else row for row in rows]

    more = ("--kind", "orthogonal", *changed(shop, spoil), "--data-root", shop.folder)
    shutil.copytree(emoji / "images", shop.path("images"))
    text = shop.path("changed.csv").read_text().replace(str(emoji / "images"), "images")
    shop.path("changed.csv").write_text(text)
    new, out = shop.path("turned.onnx"), shop.path("bridged.onnx")
    refused = shop.run("bridge", new, "-o", out, *more)
    assert refused.code == 5
    result = bridge(shop, new, *more, "--skip-bad")
    assert len(result["skipped"]) == 1
    assert result["skipped"][0] in refused.stderr
    assert result["skipped"][0] not in {item["id"] for item in record(shop)["items"]}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("turned.onnx", "-o", "bridged.onnx", "--kind", "spline"), 2, "spline"),
        (("turned.onnx", "-o", "bridged.onnx", "--share", "1.5"), 2, "between 0 and 1"),
        (("turned.onnx", "-o", "bridged.onnx", "--share", "nan"), 2, "between 0 and 1"),
        (("turned.onnx", "-o", "turned.onnx"), 2, "another file"),
        (("turned.onnx", "-o", "turned.bin"), 2, "training record"),
        (("turned.onnx", "-o", "nowhere/bridged.onnx"), 5, "no folder"),
        (("text.onnx", "-o", "bridged.onnx"), 5, "not an ONNX"),
        (("turned.onnx", "-o", "bridged.onnx", "--store", "none"), 5, "none"),
        (("turned.onnx", "-o", "bridged.onnx", "--training", "other.json"), 5, "not the training"),
        (("turned.onnx", "-o", "bridged.onnx", "--data", "queries.csv"), 5, "no validation query"),
        (("turned.onnx", "-o", "bridged.onnx", "--data", "none.csv"), 5, "no item that both"),
    ],
)
def test_bad_input_writes_nothing(  # noqa: PLR0917
    shop: Shop,
    emoji: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    """Usage is exit 2, bad files and data are 5; the message says what is wrong."""
    monkeypatch.chdir(shop.folder)
    Path("text.onnx").write_text("hello")
    Path("other.json").write_text('{"models": [], "items": [], "unlabelled": [], "classes": []}')
    changed(shop, lambda rows: [row for row in rows if row["split"] != "validation"])
    Path("changed.csv").rename("queries.csv")
    changed(shop, lambda rows: [
        row for row in rows if row["split"] != "train" and row["role"] == "query"
    ])  # fmt: skip
    Path("changed.csv").rename("none.csv")
    before = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    result = run("bridge", *arguments, "--project", "compatctl.yaml", "--data-root", emoji)
    assert (result.code, words in result.stderr) == (code, True), result.stderr
    after = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    """It tells the digest that the real run writes, and leaves no file and the store as it was."""
    new, before = shop.path("turned.onnx"), store_files(shop)
    names = sorted(shop.folder.iterdir())
    planned = bridge(shop, new, "--kind", "orthogonal", "--dry-run")
    assert (sorted(shop.folder.iterdir()), store_files(shop)) == (names, before)
    bridged = bridge(shop, new, "--kind", "orthogonal")
    assert (planned["written"], bridged["written"], planned["sha256"]) == (
        False,
        True,
        bridged["sha256"],
    )
    assert store_files(shop) == before


def test_the_table_names_every_adapter(shop: Shop) -> None:
    """Without --json the maps stand in a table, and the chosen one below it."""
    out = shop.path("bridged.onnx")
    result = run("bridge", *shop.args, shop.path("turned.onnx"), "-o", out, "--kind", "low-rank")
    assert result.code == 0, result.stderr
    assert result.stdout.count("strength") == 16
    assert "old hit rate" in result.stdout


def test_without_torch_the_mlp_is_left_out(shop: Shop) -> None:
    """Where torch cannot be imported auto says that the mlp is left out, and --kind mlp what to
    install."""
    shop.path("hidden").mkdir()
    shop.path("hidden/torch.py").write_text("raise ImportError('no torch here')\n")
    package = Path(compatctl.__file__).parent.parent
    path = os.pathsep.join([str(shop.path("hidden")), str(package)])
    for kind, code in (("auto", 0), ("mlp", 5)):
        result = subprocess.run(
            [sys.executable, "-m", "compatctl", "bridge", *shop.args, "--json", "--kind", kind,
             shop.path("turned.onnx"), "-o", shop.path(f"{kind}.onnx")],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        assert shop.path(f"{kind}.onnx").exists() == (code == 0)
        if code:
            assert "compatctl[train]" in result.stderr
        else:
            bridged = json.loads(result.stdout)
            assert bridged["left_out"] == ["mlp: torch is not installed"]
            assert {trial["kind"] for trial in bridged["trials"]} == {
                "orthogonal",
                "ridge",
                "low-rank",
            }
