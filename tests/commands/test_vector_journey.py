"""Models behind an API: vectors of two dimensions, from the first store to the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import run

from compatctl.deployment.searcher import Searcher
from compatctl.errors import InputError

DOCS, QUERIES, LATENT = 900, 1200, 40
OLD_DIM, NEW_DIM = 64, 48


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Documents, and queries each near one, which the new model sees with less noise."""
    rng = np.random.default_rng(0)
    docs = rng.standard_normal((DOCS, LATENT))
    answer = rng.integers(0, DOCS, QUERIES)
    content = np.concatenate([docs, docs[answer] + 0.5 * rng.standard_normal((QUERIES, LATENT))])
    rows = {}
    for name, dim, noise in (("ada", OLD_DIM, (3.0, 8.0)), ("e3", NEW_DIM, (1.0, 1.0))):
        strength = np.repeat(noise, (DOCS, QUERIES))[:, None]
        seen = content @ rng.standard_normal((LATENT, dim))
        rows[name] = _unit(seen + strength * rng.standard_normal((len(content), dim)))
    labels = [f"c{doc}" for doc in (*range(DOCS), *answer)]
    ids = [f"d{doc}" for doc in range(DOCS)] + [f"q{query}" for query in range(QUERIES)]
    roles = ["gallery"] * DOCS + ["query"] * QUERIES
    return {"rows": rows, "ids": ids, "labels": labels, "roles": roles}


@pytest.fixture
def shop(tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of each model, and a store of the old one's."""
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, models)
    made = run("init", "--vectors", "ada=ada.npz", "--json")
    assert made.code == 0, made.stderr
    assert made.json["rows"] == DOCS
    assert made.json["dim"] == OLD_DIM
    return tmp_path


def _write(folder: Path, models: dict[str, Any], **without: NDArray[np.bool_]) -> None:
    """A table of each model, of the rows that are not left out."""
    for name, rows in models["rows"].items():
        kept = ~without.get(name, np.zeros(len(rows), bool))
        columns = {"ids": "ids", "labels": "labels", "role": "roles"}
        arrays = {key: np.array(models[column])[kept] for key, column in columns.items()}
        np.savez(folder / f"{name}.npz", vectors=rows[kept], **arrays)


BRIDGE = ("bridge", "e3", "-o", "bridged.onnx", "--kind", "ridge")
BOTH = ("--vectors", "ada=ada.npz", "--vectors", "e3=e3.npz")


def test_a_model_behind_an_api_is_bridged_verified_deployed_and_rolled_back(shop: Path) -> None:
    """The query model is an ONNX file from the new dimension to the old; no gallery row passes."""
    bridged = run(*BRIDGE, *BOTH, "--json")
    assert bridged.code == 0, bridged.stderr
    assert (bridged.json["new_dim"], bridged.json["dim"]) == (NEW_DIM, OLD_DIM)
    assert bridged.json["gallery_pass"]["passed"] == 0
    judged = run("verify", "bridged.onnx", *BOTH, "--json")
    assert judged.code == 0, judged.stderr
    report = judged.json
    assert report["verdict"]["outcome"] == "pass"
    assert report["store"]["stored_vectors"] == DOCS
    assert run("deploy", *BOTH).code == 0
    status = run("status", "--json").json
    assert status["query_model"] == bridged.json["sha256"]
    index = status["index_sha256"]
    assert run("rollback").code == 0
    assert run("status", "--json").json["index_sha256"] == index
    assert run("check").code == 0


def test_the_store_knows_a_model_by_its_space_and_dimension(shop: Path) -> None:
    """Another space's vectors are refused by name, and so is a table of another dimension."""
    assert run(*BRIDGE, *BOTH).code == 0
    other = run("verify", "bridged.onnx", "--vectors", "e3=e3.npz")
    assert other.code == 5
    assert "there are no vectors of 'ada'" in other.stderr
    (shop / "e3.npz").replace("ada.npz")
    wrong = run("verify", "bridged.onnx", "--vectors", "ada=ada.npz", "--vectors", "e3=ada.npz")
    assert wrong.code == 5
    assert f"its vector of 'ada' has {NEW_DIM} dimensions, expected {OLD_DIM}" in wrong.stderr


def test_a_changed_vector_makes_the_report_one_of_other_data(
    shop: Path, models: dict[str, Any]
) -> None:
    """deploy refuses a report whose held-out vectors are not those of today."""
    assert run(*BRIDGE, *BOTH).code == 0
    assert run("verify", "bridged.onnx", *BOTH).code == 0
    rows = models["rows"]
    turned = {**models, "rows": {**rows, "e3": rows["e3"][:, ::-1]}}
    _write(shop, turned)
    refused = run("deploy", *BOTH)
    assert refused.code == 3
    assert "data" in refused.stderr


def test_where_the_old_model_is_gone_only_logged_answers_are_compared(
    shop: Path, models: dict[str, Any]
) -> None:
    """Queries without an old vector are counted and left out; with none at all the gate cannot
    tell, and the bridge is fitted all the same, on gallery rows that the project lets pass."""
    labels = np.array(models["labels"])
    query = np.array(models["roles"]) == "query"
    unlogged = query & (np.arange(len(labels)) % 4 == 0)
    _write(shop, models, ada=unlogged)
    gone = (*BOTH, "--old-model-gone")
    assert run(*BRIDGE, *BOTH).code == 5
    bridged = run(*BRIDGE, *gone, "--json")
    assert bridged.code == 0, bridged.stderr
    assert bridged.json["old_hit_rate"] is None
    judged = run("verify", "bridged.onnx", *gone, "--json")
    assert judged.code == 0, judged.stderr
    kinds = {entry["kind"]: entry["count"] for entry in judged.json["notices"]}
    held_out = judged.json["groups"][0]["n_queries"]
    assert 0 < kinds["no-old-answer"] < held_out
    _write(shop, models, ada=query)
    (shop / "compatctl.yaml").write_text(
        "vectors: {ada: ada.npz, e3: e3.npz}\nold_model_gone: true\nmax_gallery_pass: .5\n"
    )
    bridged = run(*BRIDGE, "--json")
    assert bridged.code == 0, bridged.stderr
    assert bridged.json["pairs"]["encoder"] == 0
    judged = run("verify", "bridged.onnx")
    assert judged.code == 4
    assert "has a vector of the old model, which is gone" in judged.stderr


def test_a_failure_without_the_old_model_names_what_is_left(
    shop: Path, models: dict[str, Any]
) -> None:
    """A map that finds nothing is refused; neither the plan nor the gate says to keep or fuse a
    model that no query can run."""
    rows = models["rows"]
    mixed = np.random.default_rng(1).permutation(rows["e3"])
    _write(shop, {**models, "rows": {**rows, "e3": mixed}})
    gone = (*BOTH, "--old-model-gone")
    assert run(*BRIDGE, *gone).code == 0
    judged = run("verify", "bridged.onnx", *gone, "--json")
    assert judged.code == 3
    assert "compatctl verify --rescore" in judged.json["next_step"]
    assert "keep the old model" not in judged.json["next_step"]
    (shop / "compatctl.yaml").write_text("split: {train: 0.2, validation: 0.7}\n")
    planned = run("plan", "--new", "e3", "--kind", "ridge", *gone, "--json")
    assert planned.code == 0, planned.stderr
    assert planned.json["recommended"] == "keep"
    assert "new queries cannot run the old model" in planned.json["reason"]


def test_new_vectors_of_a_part_of_the_gallery_are_enough(
    shop: Path, models: dict[str, Any]
) -> None:
    """Where the new model embedded the queries and 2% of the gallery, the bridge and the gate work
    with those."""
    gallery = np.array(models["roles"]) == "gallery"
    _write(shop, models, e3=gallery & (np.arange(len(gallery)) % 50 != 0))
    bridged = run(*BRIDGE, *BOTH, "--json")
    assert bridged.code == 0, bridged.stderr
    assert 0 < bridged.json["pairs"]["gallery"] <= DOCS / 50
    judged = run("verify", "bridged.onnx", *BOTH, "--json")
    assert judged.code == 0, judged.stderr
    assert judged.json["groups"][0]["n_queries"] > 100


def test_a_plan_tries_the_routes_of_a_model_that_exists(shop: Path) -> None:
    """No recipe is needed for the head that is tried; the recommended commands name the space."""
    (shop / "compatctl.yaml").write_text(
        "vectors: {ada: ada.npz, e3: e3.npz}\nsplit: {train: 0.2, validation: 0.7}\n"
        "old_model_gone: true\n"
    )
    planned = run("plan", "--new", "e3", "--json")
    assert planned.code == 0, planned.stderr
    routes = {route["name"]: route for route in planned.json["routes"]}
    tried = {"keep", "re-embed", "bridge", "lift", "finetune", "lazy"}
    assert set(routes) == tried, "fusing runs the old model"
    assert routes["bridge"]["gallery_passed"] == 0.0
    assert routes["re-embed"]["gain"] > routes["keep"]["gain"] == 0.0
    assert planned.json["recommended"] in {"bridge", "finetune"}
    first = planned.json["commands"][0]
    assert first.startswith(("compatctl bridge e3 -o", "compatctl finetune --base e3 --output"))
    assert run("plan").code == 2
    assert run("plan", "--new", "e3", "--seed", "1").code == 2


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from compatctl.cli import main
main()
"""


def test_a_plan_of_a_model_that_exists_needs_no_torch(shop: Path) -> None:
    """In a process that cannot import torch every adapter but the mlp is tried, and a warning says
    so; the kind mlp is refused with the extra to install."""
    (shop / "compatctl.yaml").write_text(
        "vectors: {ada: ada.npz, e3: e3.npz}\nsplit: {train: 0.2, validation: 0.7}\n"
    )

    def plan(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, "plan", "--new", "e3", *more, "--json"],
            cwd=shop,
            capture_output=True,
            text=True,
            check=False,
        )

    planned = plan()
    assert planned.returncode == 0, planned.stderr
    assert "torch is not installed" in planned.stderr
    assert not any("mlp" in route["setting"] for route in json.loads(planned.stdout)["routes"])
    refused = plan("--kind", "mlp")
    assert refused.returncode == 5
    assert "pip install 'compatctl[train]'" in refused.stderr


def test_a_plan_tries_one_kind_of_adapter_and_recommends_it(shop: Path) -> None:
    """The routes' settings are of that kind, and the commands name it."""
    (shop / "compatctl.yaml").write_text(
        "vectors: {ada: ada.npz, e3: e3.npz}\nsplit: {train: 0.2, validation: 0.7}\n"
        "old_model_gone: true\n"
    )
    planned = run("plan", "--new", "e3", "--kind", "ridge", "--json")
    assert planned.code == 0, planned.stderr
    settings = {route["name"]: route["setting"] for route in planned.json["routes"]}
    assert settings["bridge"].startswith("ridge")
    assert settings["lift"].startswith("ridge")
    assert planned.json["commands"][0] == "compatctl bridge e3 -o bridged.onnx --kind ridge"
    assert run("plan", "--new", "e3", "--kind", "round").code == 2
    assert run("plan", "--base", "e3.ckpt", "--kind", "ridge").code == 2


def test_a_head_is_trained_behind_a_model_behind_an_api(shop: Path, models: dict[str, Any]) -> None:
    """finetune --base SPACE needs no old answer of an item that is stored; training items without
    a new vector are left out, and counted."""
    gallery = np.array(models["roles"]) == "gallery"
    _write(shop, models, e3=gallery & (np.arange(len(gallery)) % 3 == 0))
    Path("recipe.yaml").write_text('{"format": 1, "optimiser": {"epochs": 5}}')
    flags = ("--recipe", "recipe.yaml", "--output", "tuned.onnx", *BOTH)
    tuned = run("finetune", "--base", "e3", *flags, "--json")
    assert tuned.code == 0, tuned.stderr
    assert tuned.json["dim"] == OLD_DIM
    left_out = [entry for entry in tuned.json["notices"] if entry["kind"] == "no-vector"]
    assert left_out[0]["count"] > 100
    judged = run("verify", "tuned.onnx", *BOTH, "--json")
    assert judged.code in {0, 3, 4}, judged.stderr
    rates = judged.json["groups"][0]["hit_rate"]
    assert rates["new_old"]["1"] > 0.1


def test_search_takes_tables_of_the_query_models_space(shop: Path, models: dict[str, Any]) -> None:
    """Each row of a table is a query; a fused model takes a table of each space."""
    assert run(*BRIDGE, *BOTH).code == 0
    assert run("verify", "bridged.onnx", *BOTH).code == 0
    assert run("deploy", *BOTH).code == 0
    rows, first = models["rows"], slice(DOCS, DOCS + 20)
    for name in rows:
        np.savez(shop / f"q-{name}.npz", ids=models["ids"][first], vectors=rows[name][first])
    found = run("search", "q-e3.npz", "-k", "1", "--json")
    assert found.code == 0, found.stderr
    labels = [query["hits"][0]["label"] for query in found.json["queries"]]
    hits = sum(a == b for a, b in zip(labels, models["labels"][first], strict=True))
    assert hits > 15
    refused = run("search", "ada=q-ada.npz")
    assert refused.code == 2
    assert "takes vectors of e3; the queries have those of ada" in refused.stderr


def test_a_query_without_a_direction_is_refused_and_its_length_does_not_matter(
    shop: Path, models: dict[str, Any]
) -> None:
    """Zero, and so small or large that float32 loses it, are the caller's error and none of the
    model; three times a vector has its answers."""
    row = models["rows"]["ada"][DOCS]
    with Searcher.open(shop / "store") as searcher:
        for bad in (0 * row, np.float32(1e-25) * row, np.full(OLD_DIM, 1e38, np.float32)):
            for query in (bad, {"ada": bad}):
                with pytest.raises(InputError, match="no direction"):
                    searcher.search([query], 5)
        one, three = searcher.search([row, 3 * row], 5).ids
    assert one == three


def test_a_fused_model_takes_a_vector_of_each_space(shop: Path, models: dict[str, Any]) -> None:
    """It is one file with two inputs, which verify judges and search serves."""
    assert run(*BRIDGE, *BOTH).code == 0
    old = next((shop / "store" / "models").iterdir())
    fused = run("fuse", old, "bridged.onnx", "-o", "fused.onnx", "--weight", ".7", *BOTH)
    assert fused.code == 0, fused.stderr
    assert run("verify", "fused.onnx", *BOTH).code == 0
    assert run("deploy", *BOTH).code == 0
    for name, rows in models["rows"].items():
        np.savez(shop / f"q-{name}.npz", ids=["q0"], vectors=rows[DOCS : DOCS + 1])
    found = run("search", "ada=q-ada.npz", "e3=q-e3.npz", "-k", "1", "--json")
    assert found.code == 0, found.stderr
    assert found.json["queries"][0]["hits"][0]["label"] == models["labels"][DOCS]
    refused = run("search", "q-e3.npz")
    assert refused.code == 2
    assert "takes vectors of ada, e3; q-e3.npz names no space" in refused.stderr


def test_init_needs_one_model(shop: Path) -> None:
    """Two tables do not say which model is deployed, and the tip says how to."""
    refused = run("init", "--store", "other", *BOTH)
    assert refused.code == 2
    assert "--model with one of its spaces (ada, e3)" in refused.stderr
    named = run("init", "--store", "other", "--model", "e3", *BOTH, "--json")
    assert named.code == 0, named.stderr
    assert named.json["dim"] == NEW_DIM


def test_init_writes_the_tables_into_the_project(shop: Path) -> None:
    """The next command finds the vectors without a flag."""
    assert json.dumps({"ada": "ada.npz"}) in (shop / "compatctl.yaml").read_text()
    assert run("add", "--json").json["written"] is False


def test_lift_turns_the_gallery_into_the_new_space(shop: Path) -> None:
    """Stored vectors become rows of the new dimension, which the new model's queries search."""
    lifted = run("lift", "e3", "--kind", "ridge", *BOTH, "--json")
    assert lifted.code in {0, 3, 4}, lifted.stderr
    if lifted.code == 0:
        assert run("status", "--json").json["dim"] == NEW_DIM


def test_two_tables_and_qrels_go_from_the_plan_to_the_way_back(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """384 and 256 dimensions without labels: before the judgments are named, plan and bridge say
    where to name them; after it every command runs, and search answers each row of a table."""
    rng = np.random.default_rng(2)
    wide = {"ada": (OLD_DIM, 384), "e3": (NEW_DIM, 256)}
    rows = {
        name: _unit(models["rows"][name] @ np.linalg.qr(rng.standard_normal(shape[::-1]))[0].T)
        for name, shape in wide.items()
    }
    ids, is_query = np.array(models["ids"]), np.array(models["roles"]) == "query"
    for name, vectors in rows.items():
        role = np.array(models["roles"])
        np.savez(tmp_path / f"{name}.npz", ids=ids, vectors=vectors, role=role)
    answers = [f"d{label.removeprefix('c')}" for label in np.array(models["labels"])[is_query]]
    pairs = zip(ids[is_query], answers, strict=True)
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{answer}\t1" for query, answer in pairs)]
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "compatctl.yaml"
    project.write_text("vectors: {ada: ada.npz, e3: e3.npz}\nsplit: {train: .4, validation: .4}\n")
    assert run("init", "--vectors", "ada=ada.npz").code == 0
    plan = ("plan", "--new", "e3", "--kind", "ridge", "--json")
    for command in (plan, BRIDGE):
        refused = run(*command)
        assert refused.code == 5
        assert "gate: {qrels: FILE}" in refused.stderr
    project.write_text(project.read_text() + "gate: {qrels: test.tsv}\n")
    planned = run(*plan)
    assert planned.code == 0, planned.stderr
    assert planned.json["recommended"].startswith("bridge")
    bridged = run(*BRIDGE, "--json")
    assert (bridged.json["new_dim"], bridged.json["dim"]) == (256, 384)
    assert run("verify", "bridged.onnx").code == 0
    assert run("deploy").code == 0
    np.savez("asked.npz", ids=ids[is_query][:20], vectors=rows["e3"][is_query][:20])
    found = run("search", "asked.npz", "-k", "1", "--json")
    assert found.code == 0, found.stderr
    hits = [query["hits"][0]["id"] for query in found.json["queries"]]
    assert sum(a == b for a, b in zip(hits, answers, strict=False)) > 15
    assert run("rollback").code == 0


def test_judgments_stand_in_for_labels(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of ids and vectors alone, and BEIR's qrels: the map is chosen, judged and deployed as
    with the labels that the judgments repeat."""
    monkeypatch.chdir(tmp_path)
    outcomes = []
    for form in ("labels", "qrels"):
        folder = tmp_path / form
        folder.mkdir()
        _write(folder, models)
        project = "vectors: {ada: ada.npz, e3: e3.npz}\nsplit: {train: .5, validation: .2}\n"
        if form == "qrels":
            lines = ["query-id\tcorpus-id\tscore"]
            for item, label in zip(models["ids"], models["labels"], strict=True):
                if item.startswith("q"):
                    lines.append(f"{item}\td{label.removeprefix('c')}\t2")
            (folder / "test.tsv").write_text("\n".join(lines) + "\n")
            for name in models["rows"]:
                with np.load(folder / f"{name}.npz") as archive:
                    arrays = dict(archive)
                del arrays["labels"]
                np.savez(folder / f"{name}.npz", **arrays)
            project += "gate: {qrels: test.tsv}\n"
        (folder / "compatctl.yaml").write_text(project)
        monkeypatch.chdir(folder)
        assert run("init", "--vectors", "ada=ada.npz", "--json").code == 0
        bridged = run(*BRIDGE, "--json")
        assert bridged.code == 0, bridged.stderr
        judged = run("verify", "bridged.onnx", "--json")
        assert judged.code == 0, judged.stderr
        assert run("deploy").code == 0
        outcomes.append((bridged.json, judged.json["groups"][0]))
    for bridged, group in outcomes:
        assert bridged["hit_rate"] > 0.5
        assert group["recall"]["new_old"]["10"] > group["recall"]["old_old"]["10"]
        # One relevant item a query: recall is the hit rate, and the best order has nDCG 1.
        assert group["recall"]["new_old"] == pytest.approx(group["hit_rate"]["new_old"])
        assert group["mrr"]["new_old"]["1"] == pytest.approx(group["ndcg"]["new_old"]["1"])
    assert outcomes[1][1]["unit"] == ["query"]
