"""lift: what the gallery becomes, whose it is then, when it is refused, and the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_kit import build_index
from shop_kit import DIM, Shop, filtered_table, run, slow_hit_rate, store_files, stored_rows, turned

from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.index import HnswParams
from compatctl.manifest import Catalog
from compatctl.store import Store

F = 48
FORCE = ("--force", "--reason", "drill")
RIDGE = ("--kind", "ridge")


@pytest.fixture(scope="module")
def raised(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project lifted by a ridge map to an encoder of 48 numbers that knows no gallery."""
    folder = tmp_path_factory.mktemp("raised") / "shop"
    shutil.copytree(begun, folder)
    shop = Shop(folder)
    result = shop.run("lift", turned(shop, "wide.onnx", of="new.onnx", dim=F), *RIDGE)
    assert result.code == 0, result.stderr
    shop.path("lifted.json").write_text(result.stdout)
    return folder


@pytest.fixture
def lifted(raised: Path, tmp_path: Path) -> Shop:
    """A copy of it, for one test to change."""
    shutil.copytree(raised, tmp_path / "lifted")
    return Shop(tmp_path / "lifted")


@pytest.fixture
def wide(shop: Shop) -> Path:
    """An encoder of 48 numbers that knows no gallery, beside a project that is not lifted."""
    return turned(shop, "wide.onnx", of="new.onnx", dim=F)


def _lift_result(shop: Shop) -> Any:
    """What the lift of the fixture said."""
    return json.loads(shop.path("lifted.json").read_text())


def _catalog(shop: Shop) -> Catalog:
    return Store.open(shop.path("store")).catalog()


def _model(shop: Shop, sha256: str) -> Encoder:
    return Encoder.load(Store.open(shop.path("store")).blob_path("models", sha256))


def _images(shop: Shop, ids: list[str]) -> Any:
    data = load(shop.data())
    at = {item: row for row, item in enumerate(data.ids)}
    return data.take([at[item] for item in ids])


def _fresh(shop: Shop, names: str) -> Path:
    """A table of items that no store holds, one a letter."""
    images = sorted((shop.data().parent / "images" / "twemoji").iterdir())
    lines = [f"fresh-{name},{images[ord(name) - 97]},fresh" for name in names]
    path = shop.data().parent / f"{shop.folder.parent.name}-{names}.csv"
    path.write_text("\n".join(["id,path,label", *lines, ""]))
    return path


def test_every_row_is_what_its_own_file_returns(lifted: Shop, begun: Path) -> None:
    """Each stored row is the lifted file's output for the item's image; the file is the old model
    behind a map, all rows are its own, and the new encoder as it is is the query model."""
    lift_result, now = _lift_result(lifted), lifted.manifest()
    catalog = _catalog(lifted)
    (model,) = lift_result["models"]
    before = Shop(begun).manifest()
    assert catalog.counts() == {model["sha256"]: len(catalog)}
    assert (model["source_sha256"], model["rows"]) == (before["query_model"], len(catalog))
    assert (model["stored"], model["images"]) == (True, 64)
    assert model["difference"] <= 1e-3
    ids = list(catalog.ids)
    given = _model(lifted, model["sha256"]).embed(_images(lifted, ids)).features
    rows = stored_rows(lifted, ids)
    assert rows.shape == (len(ids), F)
    assert np.linalg.norm(rows - given, axis=1).max() <= 1e-3
    assert now["query_model"] == Encoder.load(lifted.path("wide.onnx")).sha256
    assert (now["operation"], now["index"]["dim"], now["registry"]) == ("lift", F, None)
    same = {"dim": 0, "sha256": "", "ef_search": 0}
    assert {**now["index"], **same} == {**before["index"], **same}
    np.testing.assert_array_equal(catalog.keys, _catalog(Shop(begun)).keys)
    assert lifted.run("check").code == 0


def test_the_measured_hit_rates_are_those_of_an_explicit_loop(lifted: Shop, begun: Path) -> None:
    """Both hit rates, that of both models fused, and the gain that the policy judges, on the stored
    and on the lifted rows."""
    measured = _lift_result(lifted)["measured"]
    ids = list(_catalog(lifted).ids)
    both = [_model(lifted, _lift_result(lifted)["models"][0]["sha256"])]
    both.append(Encoder.load(lifted.path("wide.onnx")))
    rows = stored_rows(lifted, ids)
    old = slow_hit_rate(Shop(begun), [Encoder.load(lifted.path("old.onnx"))],
                       stored_rows(Shop(begun), ids))  # fmt: skip
    new, fused = slow_hit_rate(lifted, both[1:], rows), slow_hit_rate(lifted, both, rows)
    assert measured["fused_hit_rate"] == pytest.approx(fused, abs=2e-3)
    assert (measured["old_hit_rate"], measured["new_hit_rate"]) == pytest.approx(
        (old, new), abs=2e-3
    )
    gain = next(check for check in measured["verdict"]["checks"] if check["name"] == "hit_gain")
    assert gain["estimate"] == pytest.approx(new - old, abs=4e-3)
    assert gain["low"] > 0
    assert gain["decides"]


def test_a_lifted_store_takes_every_other_command(lifted: Shop) -> None:
    """search, add, status, fuse, verify, deploy, bridge, matrix and backfill work on the lifted
    rows; an encoder of the old length is refused, and the same lift again does nothing."""
    new = lifted.path("wide.onnx")
    image = load(lifted.data()).filter(split="test", role="query").sources[0]
    assert lifted.run("search", image).json["queries"][0]["hits"]
    table = _fresh(lifted, "a")
    assert lifted.run("add", "--data", table).json["added"] == 1
    hits = lifted.run("search", load(table).sources[0]).json["queries"][0]["hits"]
    assert hits[0]["score"] > 0.999
    files = store_files(lifted)
    again = lifted.run("lift", new, *RIDGE)
    assert (again.code, again.json["outcome"], again.json["written"]) == (0, "nothing to do", False)
    assert "already" in run("lift", *lifted.args, new).stdout
    assert store_files(lifted) == files
    refused = lifted.run("deploy", "--model", lifted.path("new.onnx"), *FORCE)
    assert (refused.code, f"the gallery has {F}" in refused.stderr) == (5, True)
    of_rows = lifted.path(f"store/models/{_lift_result(lifted)['models'][0]['sha256']}.onnx")
    better = lifted.path("both.onnx")
    fused = lifted.run("fuse", of_rows, new, "-o", better, "--weight", 0.5)
    assert fused.code == 0, fused.stderr
    assert lifted.run("verify", new, better).code in {0, 3, 4}
    assert lifted.run("deploy", "--model", better, *FORCE).code == 0
    bridged = lifted.run("bridge", lifted.path("new.onnx"), "-o", lifted.path("bridged.onnx"),
                         "--kind", "orthogonal")  # fmt: skip
    assert (bridged.code, bridged.json["dim"]) == (0, F)
    output = lifted.run("matrix").json
    assert output["sha256"] == [Encoder.load(entry).sha256 for entry in (new, better)]
    assert lifted.run("backfill", "--share", 0.5, *FORCE).json["written"] is True
    shares = lifted.run("status").json["shares"]
    assert sum(shares.values()) == pytest.approx(1.0)
    operations = [
        generation["operation"] for generation in lifted.run("history").json["generations"]
    ]
    assert operations == ["init", "lift", "add", "deploy", "backfill"]
    assert lifted.run("check").code == 0


def test_rollback_restores_index_catalogue_and_model_together(lifted: Shop, begun: Path) -> None:
    """To the byte what it was before; only a reason lifts once more, to the same index."""
    first, then = Shop(begun).manifest(), lifted.manifest()
    back = lifted.run("rollback").json
    assert (back["restored"], back["added"], back["written"]) == (1, 0, True)
    now = lifted.manifest()
    for name in ("query_model", "index", "catalog", "models", "forced_reason"):
        assert now[name] == first[name], name
    assert lifted.run("rollback").json["written"] is False
    refused = lifted.run("lift", lifted.path("wide.onnx"), *RIDGE)
    assert (refused.code, "rolled the model" in refused.stderr) == (3, True)
    again = lifted.run("lift", lifted.path("wide.onnx"), *RIDGE, *FORCE)
    assert again.json["written"] is True
    now = lifted.manifest()
    assert (now["index"], now["models"]) == (then["index"], then["models"])
    assert lifted.run("check", "--gc", "--keep", 1).code == 0
    assert lifted.run("rollback").json["restored"] == 1


def test_items_added_since_are_reembedded_listed_or_dropped(lifted: Shop) -> None:
    """Their rows have the new length and cannot stay: without images nothing happens (exit 6),
    kept they cannot be (2), with images they are of the old length; dropped, they are named."""
    table = _fresh(lifted, "ab")
    assert lifted.run("add", "--data", table).code == 0
    files = store_files(lifted)
    refused = lifted.run("rollback")
    assert (refused.code, "fresh-a" in refused.stderr) == (6, True)
    kept = lifted.run("rollback", "--added", "keep")
    assert (kept.code, "lifted" in kept.stderr) == (2, True)
    assert store_files(lifted) == files
    dropped = lifted.run("rollback", "--added", "drop", "--dry-run").json
    assert dropped["dropped"] == ["fresh-a", "fresh-b"]
    back = lifted.run("rollback", "--data", table)
    assert back.code == 0, back.stderr
    assert (back.json["kept"], back.json["re_embedded"]) == (0, 2)
    wanted = Encoder.load(lifted.path("old.onnx")).embed(load(table)).features
    np.testing.assert_allclose(stored_rows(lifted, ["fresh-a", "fresh-b"]), wanted, atol=1e-5)
    assert lifted.run("check").code == 0
    forth = lifted.run("rollback", "--to", 2, "--data", table).json
    assert (forth["kept"], forth["re_embedded"]) == (0, 2)
    assert stored_rows(lifted, ["fresh-a"]).shape == (1, F)
    assert lifted.run("check").code == 0


def test_each_model_of_a_mixed_gallery_gets_a_file_of_its_own(shop: Shop, wide: Path) -> None:
    """Half backfilled, then lifted: two files, and every row is what that of its model gives."""
    assert shop.run("deploy", "--model", shop.path("new.onnx"), *FORCE).code == 0
    assert shop.run("backfill", "--share", 0.5, *FORCE).code == 0
    had = {entry["sha256"]: entry["rows"] for entry in shop.manifest()["models"]}
    result = shop.run("lift", wide, *RIDGE, *FORCE)
    assert result.code == 0, result.stderr
    assert {entry["source_sha256"]: entry["rows"] for entry in result.json["models"]} == had
    catalog = _catalog(shop)
    for model in result.json["models"]:
        code = catalog.models.index(model["sha256"])
        ids = [catalog.ids[row] for row in np.flatnonzero(catalog.model_of == code)]
        assert len(ids) == model["rows"]
        given = _model(shop, model["sha256"]).embed(_images(shop, ids)).features
        assert np.linalg.norm(stored_rows(shop, ids) - given, axis=1).max() <= 1e-3
    assert shop.run("check").code == 0


def test_vectors_that_their_model_does_not_return_are_not_lifted(shop: Shop, wide: Path) -> None:
    """An adopted index a little off its model's features: no file could stand for the mapped rows,
    exit 5 with the difference, and nothing is written."""
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    catalog, rows = gallery.catalog, gallery.index.vectors(gallery.catalog.keys)
    rows = rows + 0.015 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    build_index(rows, catalog.keys, HnswParams(dim=DIM)).save(shop.path("off.bin"))
    lines = [
        f"{key},{item},{label}"
        for key, item, label in zip(catalog.keys, catalog.ids, catalog.labels, strict=True)
    ]
    shop.path("keys.csv").write_text("\n".join(["key,id,label", *lines, ""]))
    shutil.rmtree(shop.path("store"))
    adopted = shop.run(
        "import", shop.path("off.bin"), "--model", shop.path("old.onnx"),
        "--items", shop.path("keys.csv"),
    )  # fmt: skip
    assert adopted.code == 0, adopted.stderr
    files = store_files(shop)
    refused = shop.run("lift", wide, *RIDGE, *FORCE)
    assert (refused.code, "the limit is 0.001" in refused.stderr) == (5, True)
    assert store_files(shop) == files


def test_a_loss_is_refused_and_can_be_forced(shop: Shop) -> None:
    """A new encoder that finds less: exit 3 and nothing written; forced, the reason is recorded."""
    worse = turned(shop, "wide.onnx", of="worse.onnx", dim=F)
    files = store_files(shop)
    refused = shop.run("lift", worse, *RIDGE)
    assert (refused.code, refused.json["outcome"], refused.json["written"]) == (3, "fail", False)
    assert store_files(shop) == files
    forced = shop.run("lift", worse, *RIDGE, *FORCE).json
    assert (forced["outcome"], forced["written"]) == ("fail", True)
    assert shop.manifest()["forced_reason"] == "drill"
    assert shop.run("history").json["generations"][-1]["note"] == "forced: drill"


def test_too_little_evidence_is_inconclusive(shop: Shop, wide: Path, raised: Path) -> None:
    """40 held-out queries, and none at all: exit 4, nothing written; a dry run measures as the run
    that writes does, and tells the table."""
    queries = [item.id for item in load(shop.data()).filter(split="test", role="query").items]
    files = store_files(shop)
    for kept in (set(queries[:40]), set()):
        asks = set(queries) - kept
        table = filtered_table(shop, lambda row, asks=asks: row["id"] not in asks)
        result = shop.run("lift", wide, *RIDGE, "--data", table)
        assert result.code == 4, result.stderr
        assert store_files(shop) == files
    planned = shop.run("lift", wide, *RIDGE, "--dry-run").json
    assert (planned["outcome"], planned["written"]) == ("pass", False)
    assert store_files(shop) == files
    shown = run("lift", *shop.args, wide, *RIDGE, "--dry-run").stdout
    assert "would be mapped to 48" in shown
    assert "hit_gain" in shown
    result = _lift_result(Shop(raised))
    assert (result["measured"], result["map"]) == (planned["measured"], planned["map"])


def test_every_kind_is_tried_and_validation_chooses(shop: Shop, wide: Path) -> None:
    """All four kinds are trials, and the best on validation queries is the map that is kept."""
    output = shop.run("lift", wide, "--dry-run").json["map"]
    assert {trial["kind"] for trial in output["trials"]} == {
        "orthogonal",
        "ridge",
        "low-rank",
        "mlp",
    }
    assert output["hit_rate"] == max(trial["hit_rate"] for trial in output["trials"])
    assert output["old_hit_rate"] < output["hit_rate"]


@pytest.mark.parametrize(
    ("model", "arguments", "code", "words"),
    [
        ("wide.onnx", ("--kind", "spline"), 2, "spline"),
        ("wide.onnx", ("--share", "nan"), 2, "between 0 and 1"),
        ("wide.onnx", ("--force",), 2, "--reason"),
        ("old.onnx", RIDGE, 2, "needs no map"),
        ("none.onnx", RIDGE, 5, "none.onnx"),
    ],
)
def test_bad_input_writes_nothing(  # noqa: PLR0917
    shop: Shop, wide: Path, model: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """Usage is exit 2 (the deployed model itself among it), a missing file 5."""
    files = store_files(shop)
    result = shop.run("lift", wide.with_name(model), *arguments)
    assert (result.code, words in result.stderr) == (code, True), result.stderr
    assert store_files(shop) == files
