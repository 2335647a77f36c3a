"""verify searches every row of the store, and reports what it cannot know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import DIM, World, check, unit
from shop_kit import run

from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.store import Store

CLASSES, GALLERY, QUERIES = 60, 2, 5


def shop_of(folder: Path, *, old: float = 0.22, new: float = 0.12, seed: int = 0) -> World:
    """60 classes of two gallery items and five queries, the new model nearer to their means."""
    rng, world = np.random.default_rng(seed), World(folder)
    means = unit(rng.normal(size=(CLASSES, DIM)))
    of = {name: np.repeat(np.arange(CLASSES), n) for name, n in (("g", GALLERY), ("q", QUERIES))}

    def around(name: str, noise: float) -> Any:
        return unit(means[of[name]] + noise * rng.normal(size=(len(of[name]), DIM)))

    stored = around("g", 0.1)
    world.add("g", [f"c{c}" for c in of["g"]], "gallery", stored, stored)
    world.add("q", [f"c{c}" for c in of["q"]], "query", around("q", old), around("q", new))
    return world


def truth(world: World, data: Path, model: str) -> float:
    """hit@1 of a model's queries over every row of the store, by a whole matrix."""
    gallery = DeployedGallery.open(Store.open(world.folder / "store"))
    items = load(data)
    queries = [at for at, item in enumerate(items.items) if item.role == "query"]
    embedded = Encoder.load(world.folder / f"{model}.onnx").embed(items.take(queries)).features
    first = (embedded @ gallery.index.vectors(gallery.catalog.keys).T).argmax(axis=1)
    rows = np.array(gallery.catalog.labels)[first]
    return float((rows == np.array(items.labels)[queries]).mean())


def test_rows_outside_the_table_are_searched(tmp_path: Path) -> None:
    """A candidate that is drawn to stored rows outside the evaluation table fails."""
    world, rng = shop_of(tmp_path), np.random.default_rng(3)
    rest = unit(rng.normal(size=(600, DIM)))
    world.add("r", [f"other{at // 3}" for at in range(600)], "gallery", rest, rest)
    drawn = np.array(world.vectors[1])[120:420] * 0.68 + 0.8 * rest[rng.integers(600, size=300)]
    world.vectors[1][120:420] = list(unit(drawn))
    world.begin(world.save("all.npz"))
    table = world.save("table.npz", lambda item_id: not item_id.startswith("r"))
    code, report = world.verify(table)
    hit_rate = report["groups"][0]["hit_rate"]
    assert code == 3
    assert report["searched"]["rows"] == report["searched"]["stored"] == 720
    for pair, model in (("old_old", "old"), ("new_old", "new")):
        assert hit_rate[pair]["1"] == pytest.approx(truth(world, table, model), abs=1e-9)
    assert report["searched"]["self_test_rows"] == 120
    assert hit_rate["new_old_subset"]["1"] > hit_rate["new_old"]["1"] + 0.3
    assert any("120 of 720 gallery items" in line for line in report["warnings"])


def test_a_gallery_that_is_mostly_not_stored_is_inconclusive(tmp_path: Path) -> None:
    """With four stored rows and 116 embedded ones the exit code is 4, and these are named."""
    world = shop_of(tmp_path)
    few = {"g0", "g1", "g2", "g3"}
    world.begin(world.save("few.npz", few.__contains__))
    code, report = world.verify(world.save("all.npz"))
    share = check(report, "stored_share")
    assert (code, share["outcome"], share["decides"]) == (4, "inconclusive", True)
    assert share["estimate"] == pytest.approx(4 / 120)
    assert report["searched"]["embedded_ids"] == ["g4", "g5", "g6", "g7", "g8"]
    assert any("116 of the 120 rows" in line for line in report["warnings"])


def test_a_stored_query_does_not_find_itself(tmp_path: Path) -> None:
    """Queries that the store holds are answers to other queries, and not to themselves."""
    world = shop_of(tmp_path)
    world.roles = ["gallery"] * len(world.ids)
    world.begin(world.save("stored.npz"))
    world.roles = ["query" if item_id.startswith("q") else "gallery" for item_id in world.ids]
    code, report = world.verify(world.save("asking.npz"))
    assert code in {0, 3, 4}
    assert report["searched"]["stored"] == 420
    assert report["groups"][0]["n_same_image"] == 0
    assert report["groups"][0]["hit_rate"]["old_old"]["1"] < 1.0


def test_two_labels_of_one_item_leave_it_unjudged(tmp_path: Path) -> None:
    """Items that data and catalogue label differently are named, and may change the verdict."""
    world = shop_of(tmp_path)
    world.begin(world.save("all.npz"))
    assert world.verify(world.save("same.npz"))[0] == 0
    other = {f"g{at}": "mistaken" for at in range(0, 120, 2)}
    code, report = world.verify(world.save("other.npz", labels=other))
    assert report["searched"]["conflicts"] == report["searched"]["unlabelled"] == 60
    assert report["searched"]["conflict_ids"][:2] == ["g0", "g2"]
    group, bound = report["groups"][0], check(report, "unjudged_gain")
    assert 0.2 < group["unjudged"]["old"]["1"] < 0.8
    assert bound["estimate"] < check(report, "hit_gain")["estimate"]
    assert (code, bound["outcome"]) == (4, "inconclusive")
    assert any("60 items have another label" in line for line in report["warnings"])


def touched(folder: Path, left_out: int) -> World:
    """A model that finds what passed through it, and not the last classes, of which nothing did."""
    world = shop_of(folder, old=0.3, new=0.05)
    rng, new = np.random.default_rng(8), np.array(world.vectors[1])
    for at, label in enumerate(world.labels):
        if world.roles[at] == "query" and int(label[1:]) >= CLASSES - left_out:
            new[at] = unit(rng.normal(size=DIM))
    world.vectors[1][:] = list(new)
    world.begin(world.save("all.npz"))
    world.record(unlabelled=[f"g{at}" for at in range(GALLERY * (CLASSES - left_out))])
    return world


def test_queries_of_untouched_rows_are_judged_separately(tmp_path: Path) -> None:
    """Four fifths of the gallery passed, whole classes left out: the rest decides, and loses."""
    policy = tmp_path / "small.yaml"
    policy.write_text("format: 4\nname: small\nslice_min_queries: 30\nmin_queries: 100\n")
    world = touched(tmp_path, 12)
    _, report = world.verify(tmp_path / "all.npz", "--policy", policy)
    rows, result = report["groups"][0]["training_overlap"], check(report, "untouched_gain")
    assert check(report, "hit_gain")["estimate"] > 0
    assert rows["untouched_queries"] == result["n"] == 60
    assert rows["of_gallery"] == pytest.approx(0.8)
    assert result["estimate"] < -0.4
    assert (report["verdict"]["outcome"], result["outcome"]) == ("fail", "fail")


def test_without_queries_of_untouched_rows_the_gate_is_inconclusive(tmp_path: Path) -> None:
    """With queries of passed classes only, and other rows in the store, the exit code is 4."""
    world = touched(tmp_path, 6)
    asked = {
        item_id
        for item_id, label in zip(world.ids, world.labels, strict=True)
        if int(label[1:]) < 54
    }
    table = world.save("passed.npz", lambda array: array.startswith("g") or array in asked)
    project = tmp_path / "budget.yaml"
    project.write_text("max_gallery_pass: 1.0\n")
    code, report = world.verify(table, "--project", project)
    result = check(report, "untouched_gain")
    assert (code, result["outcome"], result["n"]) == (4, "inconclusive", 0)
    assert "no query has matches among them alone" in result["detail"]


def test_gains_are_weighted_to_the_stores_shares(tmp_path: Path) -> None:
    """Half the untouched classes' queries left out of the table: the gain is that of the store."""
    world = touched(tmp_path, 20)
    code, whole = world.verify(tmp_path / "all.npz")
    fewer = {
        item_id for item_id in world.ids if item_id.startswith("g") or int(item_id[1:]) % 5 != 4
    }
    dropped = {f"q{at}" for at in range(200, 300) if at % 5 != 0}
    table = world.save("fewer.npz", lambda array: array in fewer and array not in dropped)
    _, report = world.verify(table)
    rows = report["groups"][0]["training_overlap"]
    hit_rate = report["groups"][0]["hit_rate"]
    plain = hit_rate["new_old"]["1"] - hit_rate["old_old"]["1"]
    weighted = check(report, "hit_gain")["estimate"]
    assert rows["of_queries"] > rows["of_gallery"] == pytest.approx(40 / 60)
    parts = rows["parts"]["hit_gain"]
    assert weighted == pytest.approx(parts[0] * 2 / 3 + parts[1] / 3)
    assert weighted < plain
    assert abs(weighted - check(whole, "hit_gain")["estimate"]) < 0.1
    assert code in {3, 4}


def test_an_old_model_that_finds_nothing_is_inconclusive(tmp_path: Path) -> None:
    """A gallery in which the old model finds next to nothing is no evidence: exit 4."""
    world = shop_of(tmp_path)
    rng = np.random.default_rng(5)
    world.vectors[0][120:] = list(unit(rng.normal(size=(300, DIM))))
    world.begin(world.save("all.npz"))
    code, report = world.verify(tmp_path / "all.npz")
    floor = check(report, "old_hit_rate")
    assert floor["estimate"] < 0.05 < check(report, "hit_gain")["low"]
    assert (code, floor["outcome"]) == (4, "inconclusive")


def test_many_queries_without_a_match_are_inconclusive(tmp_path: Path) -> None:
    """Where more than half of the queries have nothing to find the gate cannot tell."""
    world = shop_of(tmp_path)
    extra = unit(np.random.default_rng(6).normal(size=(400, DIM)))
    world.add("lost", [f"gone{at}" for at in range(400)], "query", extra, extra)
    world.begin(world.save("all.npz"))
    code, report = world.verify(tmp_path / "all.npz")
    result = check(report, "matched_share")
    assert report["groups"][0]["n_without_match"] == 400
    assert result["estimate"] == pytest.approx(300 / 700)
    assert (code, result["outcome"]) == (4, "inconclusive")
    assert any("400 of 700 queries" in line for line in report["warnings"])


@pytest.mark.parametrize("at_hand", [True, False])
def test_queries_that_lie_in_the_gallery_are_left_out(tmp_path: Path, at_hand: bool) -> None:
    """The query's own image under another id: found by its bytes, or by its stored vector."""
    world = shop_of(tmp_path)
    table = np.load(world.save("plain.npz"))
    arrays = {name: table[name] for name in table.files}
    copies = arrays["role"] == "query"
    arrays = {
        name: np.concatenate([column, [f"copy-{entry}" for entry in column[copies]]])
        if name == "ids"
        else np.concatenate([column, column[copies]])
        for name, column in arrays.items()
    }
    arrays["role"][-copies.sum() :] = "gallery"
    np.savez(tmp_path / "all.npz", **arrays)
    world.begin(tmp_path / "all.npz")
    data = tmp_path / ("all.npz" if at_hand else "plain.npz")
    code, report = world.verify(data)
    assert (code, report["groups"][0]["n_same_image"]) == (4, 300)
    assert report["groups"][0]["n_queries"] == 0
    assert any("same bytes" in line for line in report["warnings"])


def test_the_terminal_shows_what_was_searched(tmp_path: Path) -> None:
    """The terminal shows stored and embedded rows above the figures."""
    world = shop_of(tmp_path)
    world.begin(world.save("most.npz", lambda array: array not in {"g7"}))
    table = world.save("all.npz")
    models = tmp_path / "old.onnx", tmp_path / "new.onnx"
    report = ("--report", tmp_path / "r.json")
    result = run("verify", *models, "--store", tmp_path / "store", "--data", table, *report)
    assert "searched: 120 rows, 119 of the store and 1 embedded for this test" in result.stdout
    assert "g7" in result.stderr


def test_the_matrix_names_its_rows_and_searches_the_store(tmp_path: Path) -> None:
    """Cells are of the items whose images are at hand; beside them every row of the store."""
    world, rng = shop_of(tmp_path), np.random.default_rng(4)
    rest = unit(rng.normal(size=(400, DIM)))
    world.add("r", [f"other{at}" for at in range(400)], "gallery", rest, rest)
    world.begin(world.save("all.npz"))
    table = world.save("table.npz", lambda item_id: not item_id.startswith("r"))
    models = tmp_path / "old.onnx", tmp_path / "new.onnx"
    report = world.run("matrix", *models, "--data", table).json
    assert (report["gallery_rows"], report["stored_rows"]) == (120, 520)
    for at, model in enumerate(("old", "new")):
        assert report["on_store"][at] == pytest.approx(truth(world, table, model), abs=1e-9)
    assert report["on_store"][0] < report["values"][0][0]


@pytest.mark.parametrize("policy", ["default", "strict"])
def test_data_with_queries_only_are_searched_in_the_store(tmp_path: Path, policy: str) -> None:
    """No image of a gallery item is at hand: the store decides, and a self-test that the policy
    asks for is not passed."""
    world = shop_of(tmp_path)
    world.begin(world.save("all.npz"))
    code, report = world.verify(world.save("asking.npz", lambda array: array.startswith("q")),
                                "--policy", policy)  # fmt: skip
    test = check(report, "self_test_gain")
    assert (report["searched"]["stored"], report["searched"]["self_test_rows"]) == (120, 0)
    assert (test["n"], test["outcome"]) == (0, "inconclusive")
    assert (code, test["decides"]) == ((0, False) if policy == "default" else (4, True))
    assert report["groups"][0]["hit_rate"]["new_new"]["1"] is None
