"""Re-scoring from verify to rollback: judged as it is served, deployed only as it was judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_kit import order_by_loop, with_free
from shop_kit import Result, Shop, run, write_encoder

from compatctl.core.hash_order import hash_fraction
from compatctl.data import load


@pytest.fixture(scope="module")
def begun(begun: Path) -> Path:
    """The project, with an encoder whose first stage hardly gains and whose free vectors do."""
    weak = write_encoder(begun / "weak.onnx", noise=0.5)
    with_free(begun / "both.onnx", weak, write_encoder(begun / "best.onnx", noise=0.02))
    return begun


def verify(shop: Shop, *more: object, new: str = "both.onnx") -> tuple[Result, dict[str, Any]]:
    """verify's result, and its report."""
    path = shop.path("report.json")
    path.unlink(missing_ok=True)
    result = shop.run("verify", shop.path("old.onnx"), shop.path(new), "--report", path, *more)
    return result, json.loads(path.read_bytes()) if path.exists() else {}


def deploy(shop: Shop, *more: object) -> Result:
    """deploy's result with that report."""
    return shop.run("deploy", "--report", shop.path("report.json"), *more)


@pytest.mark.parametrize("passes", [10, 3])
def test_each_state_is_what_a_loop_finds(shop: Shop, passes: int) -> None:
    """Cold embeds the nearest ``passes`` of each query; warm knows all."""
    _, report = verify(shop, "--rescore", 10, "--passes", passes)
    entry = report["rescoring"]
    states = {state["name"]: state for state in entry["states"]}
    knowledge = {
        "cold": lambda items: items[:passes],
        "warm": lambda items: items,
        "first": lambda items: [],
    }
    for name, known in knowledge.items():
        orders, gallery, queries = order_by_loop(shop, entry, 10, known)
        right = [gallery[order[0]] == label for order, label in zip(orders, queries, strict=True)]
        hit_rate = entry["first_stage"] if name == "first" else states[name]["hit_rate"]
        assert hit_rate["1"] == pytest.approx(np.mean(right), abs=2e-3)
    group = report["groups"][0]
    assert group["hit_rate"]["new_old"] == states["cold"]["hit_rate"]
    assert states["cold"]["passed"] <= states["half-warm"]["passed"] <= states["warm"]["passed"]
    assert states["warm"]["passed_share"] == states["warm"]["passed"] / report["searched"]["rows"]
    assert entry["validation_queries"] > 0


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_limit_is_judged_as_it_lasts(shop: Shop, share: float) -> None:
    """Where only a share may pass, what decides is that share of the rows known, and no pass."""
    project = shop.path("compatctl.yaml")
    text = project.read_text().replace("max_gallery_pass: 1.0", f"max_gallery_pass: {share}")
    project.write_text(text)
    _, report = verify(shop, "--rescore", 10, "--passes", 4)
    entry = report["rescoring"]
    assert [state["name"] for state in entry["states"]] == ["at-limit", "half-warm", "warm"]
    known = {
        "at-limit": lambda items: [item for item in items if hash_fraction(item) < share],
        "warm": lambda items: items,
    }
    for state in entry["states"]:
        if state["name"] not in known:
            continue
        orders, gallery, queries = order_by_loop(shop, entry, 10, known[state["name"]])
        right = [gallery[order[0]] == label for order, label in zip(orders, queries, strict=True)]
        assert state["hit_rate"]["1"] == pytest.approx(np.mean(right), abs=2e-3)
    assert entry["states"][0]["hit_rate"] == report["groups"][0]["hit_rate"]["new_old"]
    assert entry["states"][0]["passed_share"] < share + 0.1


def test_a_model_that_gains_by_rescoring_alone_passes_and_serves(shop: Shop) -> None:
    """Without re-scoring the gate does not pass; with it, what search answers is the re-scored
    order, until a rollback; each command says so."""
    assert verify(shop)[0].code == 4
    result, report = verify(shop, "--rescore", 10)
    assert result.code == 0, report["summary"]
    assert report["next_step"] == "compatctl deploy --rescore 10 --passes 10"
    deployed = deploy(shop, "--rescore", 10)
    assert deployed.code == 0, deployed.stderr
    manifest = shop.manifest()
    entry = report["rescoring"]
    assert manifest["rescoring"] == {
        "max_ms": None,
        **{name: entry[name] for name in ("candidates", "passes", "weight", "slope", "intercept")},
    }
    assert shop.run("status").json["rescoring"] == manifest["rescoring"]
    assert deploy(shop, "--rescore", 10).json["written"] is False
    data = load(shop.data())
    queries = [item for item in data.items if (item.split, item.role) == ("test", "query")]
    rows = [data.row_of[item.id] for item in queries[:12]]
    orders, _, _ = order_by_loop(shop, manifest["rescoring"], 10, lambda items: items)
    gallery = [item.id for item in data.items if item.role == "gallery"]
    found = shop.run("search", "-k", 4, *(data.sources[row] for row in rows)).json
    for query, order in zip(found["queries"], orders, strict=False):
        assert [hit["id"] for hit in query["hits"]] == [gallery[row] for row in order[:4]]
        assert all(hit["rescored"] for hit in query["hits"])
    assert found["rescoring"]["passed"] > 0
    table = run("search", *shop.args, data.sources[rows[0]])
    assert "re-scored" in table.stdout
    assert shop.run("check").code == 0
    assert shop.run("rollback").code == 0
    assert "rescoring" not in shop.manifest()
    assert shop.run("search", data.sources[rows[0]]).json["rescoring"] is None
    assert shop.run("check").code == 0


def test_only_what_was_judged_is_deployed(shop: Shop) -> None:
    """Other candidates or passes, none at all, and a report without re-scoring are refused."""
    verify(shop, "--rescore", 10, "--passes", 4)
    for flags in ((), ("--rescore", 10), ("--rescore", 5, "--passes", 4)):
        refused = deploy(shop, *flags)
        assert refused.code == 3, flags
        assert "re-scored" in refused.stderr
    forced = ("--force", "--reason", "why", "--rescore", 7)
    assert "no report judges" in deploy(shop, *forced).stderr
    assert deploy(shop, "--rescore", 10, "--passes", 4, "--dry-run").code == 0
    assert deploy(shop, "--max-ms", 5).code == 2
    verify(shop, new="new.onnx")
    assert deploy(shop, "--rescore", 10).code == 5


def test_the_project_may_say_it(shop: Shop) -> None:
    """rescore, passes and max_ms of compatctl.yaml are those of verify and of deploy."""
    file = shop.path("compatctl.yaml")
    file.write_text(file.read_text() + "rescore: 8\npasses: 6\nmax_ms: 1000\n")
    assert verify(shop)[0].code == 0
    assert deploy(shop).code == 0
    settings = shop.manifest()["rescoring"]
    assert (settings["candidates"], settings["passes"], settings["max_ms"]) == (8, 6, 1000.0)


def test_without_the_images_the_first_stage_answers(shop: Shop) -> None:
    """Candidates that the data do not hold are not re-scored, and search says how many."""
    verify(shop, "--rescore", 10)
    assert deploy(shop, "--rescore", 10).code == 0
    data = load(shop.data())
    row = next(i for i, item in enumerate(data.items) if item.role == "query")
    table = shop.path("none.csv")
    table.write_text(f"id,path,label\nother,{data.sources[row]},x\n")
    found = shop.run(
        "search", data.sources[row], "--data", table, "--data-root", data.sources[row].parents[3]
    )
    assert found.code == 0, found.stderr
    assert found.json["rescoring"]["missing"] == 10
    assert not any(hit["rescored"] for hit in found.json["queries"][0]["hits"])
    assert "10 candidates were not re-scored" in found.stderr


@pytest.mark.parametrize(
    ("flags", "new", "message"),
    [
        (("--rescore", 10), "new.onnx", "has no second output, free"),
        (("--passes", 3), "both.onnx", "--passes goes with --rescore"),
        (("--rescore", 0), "both.onnx", "--rescore takes 1 to 100 answers"),
        (("--rescore", 5, "--passes", 101), "both.onnx", "--passes takes 0 to 100 items"),
    ],
)
def test_what_cannot_be_rescored_is_refused(
    shop: Shop, flags: tuple[object, ...], new: str, message: str
) -> None:
    """An encoder with one output, passes without re-scoring, and numbers out of range."""
    result, _ = verify(shop, *flags, new=new)
    assert result.code in {2, 5}
    assert message in result.stderr


def test_an_edited_rule_or_state_is_found(shop: Shop) -> None:
    """deploy derives the entry again from the group, the options and the searched rows."""
    from compatctl.files import canonical_json, sha256_bytes

    _, report = verify(shop, "--rescore", 10, "--passes", 3)
    path = shop.path("report.json")
    edits: list[tuple[str, Any]] = [
        ("weight", -1.0),
        ("passes", 4),
        ("first_stage", {**report["rescoring"]["first_stage"], "1": 0.0}),
        ("states", report["rescoring"]["states"][:2]),
        ("states", [{**state, "passed": 1} for state in report["rescoring"]["states"]]),
    ]
    for name, value in edits:
        edited = {**report, "rescoring": {**report["rescoring"], name: value}}
        del edited["checksum"]
        stated = sha256_bytes(
            canonical_json(
                {k: v for k, v in edited.items() if k != "signature"} | {"signature": None}
            )
        )
        path.write_bytes(canonical_json({**edited, "checksum": stated}))
        refused = deploy(shop, "--rescore", 10, "--passes", 3)
        assert refused.code == 5, name
        assert "contradicts itself" in refused.stderr, name


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "old.onnx", "both.onnx", "--rescore", "10"),
        ("deploy", "--model", "both.onnx", "--rescore", "10", "--force", "--reason", "a test"),
        ("warm", "log.csv"),
    ],
)
def test_rescoring_needs_a_project_that_lets_the_gallery_pass(
    shop: Shop, words: tuple[str, ...]
) -> None:
    """With a limit of 0 each command is a usage error that names the key; nothing changes."""
    project = shop.path("compatctl.yaml")
    text = project.read_text().replace("max_gallery_pass: 1.0", "max_gallery_pass: 0.0")
    project.write_text(text)
    shop.path("log.csv").write_text("id,count\n")
    before = shop.manifest()
    files = ("old.onnx", "both.onnx", "log.csv")
    result = shop.run(*(shop.path(word) if word in files else word for word in words))
    assert result.code == 2, result.stderr
    assert "max_gallery_pass: 1.0" in result.stderr
    assert shop.manifest() == before
