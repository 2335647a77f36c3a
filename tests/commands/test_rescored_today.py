"""A store that re-scores: a candidate is compared with the answers that are served today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from free_kit import order_by_loop, serve_rescored, with_free
from shop_kit import Result, Shop, run, store_files, write_encoder
from tiny_backbone import build

from compatctl.data import load
from compatctl.store import Store
from compatctl.store.side_file import SideFile

K, PASSES = 6, 2
RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
junction: {kind: mlp, hidden: 64, dropout: 0.0}
objective: {frame: prototypes, lambda: 1.0, scale: 16.0}
optimiser: {epochs: 3, batch_size: 64, lr: 0.003}
"""


@pytest.fixture(scope="module")
def begun(begun: Path) -> Path:
    """The project, deployed with re-scoring of six answers and two passes a query; some searches
    were made."""
    shop = Shop(begun)
    weak = write_encoder(begun / "weak.onnx", noise=0.4)
    best = write_encoder(begun / "best.onnx", noise=0.15)
    with_free(begun / "both.onnx", weak, best)
    serve_rescored(shop, K, "--passes", PASSES, force=True)
    data = load(shop.data())
    rows = [i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")]
    assert shop.run("search", *(data.sources[row] for row in rows[:200:3])).code == 0
    return begun


def verify(shop: Shop, new: str, *more: object) -> tuple[Result, dict[str, Any]]:
    """Verify a candidate against the store; the result and the report."""
    path = shop.path("next.json")
    models = shop.path("both.onnx"), shop.path(new)
    result = shop.run("verify", *models, "--report", path, *more)
    return result, json.loads(path.read_bytes())


def test_old_answers_are_those_of_a_loop_over_what_is_served(shop: Shop) -> None:
    """Each query knows what the side file has and its two nearest others, by a loop."""
    _, report = verify(shop, "new.onnx", "--no-self-test")
    store = Store.open(shop.path("store"))
    catalog, rule = store.catalog(), shop.manifest()["rescoring"]
    side = SideFile.existing(store.path, store.manifest.query_model)
    assert side is not None
    held = side.holds(catalog.ids)
    kept = {item for item, known in zip(catalog.ids, held, strict=True) if known}
    assert 0 < len(kept) < len(held)

    def served(items: list[str]) -> list[str]:
        others = [item for item in items if item not in kept]
        return [item for item in items if item in kept] + others[:PASSES]

    right = {}
    for name, known in {"today": served, "first": lambda items: []}.items():
        orders, gallery, queries = order_by_loop(shop, rule, K, known)
        found = [gallery[order[0]] == label for order, label in zip(orders, queries, strict=True)]
        right[name] = np.mean(found)
    today = report["rescored_today"]
    hit_rate = report["groups"][0]["hit_rate"]["old_old"]["1"]
    assert hit_rate == pytest.approx(right["today"], abs=4e-3)
    assert today["first_stage"]["1"] == pytest.approx(right["first"], abs=4e-3)
    assert hit_rate > today["first_stage"]["1"] + 0.02
    assert (today["candidates"], today["passes"]) == (K, PASSES)
    assert today["kept"] == len(kept)


def test_what_only_beats_the_first_stage_does_not_pass(shop: Shop) -> None:
    """A candidate better than the index alone and worse than what is served is no upgrade."""
    middle = write_encoder(shop.path("middle.onnx"), noise=0.3)
    result, report = verify(shop, middle.name)
    hit_rate = report["groups"][0]["hit_rate"]
    assert hit_rate["new_old"]["1"] > report["rescored_today"]["first_stage"]["1"]
    assert hit_rate["new_old"]["1"] < hit_rate["old_old"]["1"]
    assert result.code == 3, report["summary"]
    assert "old answers are re-scored" in table(shop)


def table(shop: Shop) -> str:
    """What verify prints for people."""
    models = shop.path("both.onnx"), shop.path("middle.onnx")
    flags = ("--report", shop.path("next.json"), "--no-self-test")
    return run("verify", *shop.args, *models, *flags).stdout


def test_a_report_of_another_service_is_refused(shop: Shop) -> None:
    """Re-scoring that began or ended after the verification makes its report one of the past."""
    best = write_encoder(shop.path("perfect.onnx"), noise=0.0)
    with_free(shop.path("next.onnx"), best, best)
    result, report = verify(shop, "next.onnx", "--rescore", 20)
    assert result.code == 0, report["summary"]
    plain = ("--force", "--reason", "no re-scoring", "--model", shop.path("both.onnx"))
    ended = shop.run("deploy", "--report", shop.path("none.json"), *plain)
    assert ended.code == 0, ended.stderr
    refused = shop.run("deploy", "--report", shop.path("next.json"), "--rescore", 20)
    assert refused.code == 3
    assert "as the store re-scores them today" in refused.stderr


def test_a_report_of_colder_answers_is_refused(shop: Shop) -> None:
    """Free vectors that were kept since make the old answers better than those that were judged;
    the next verification is another attempt."""
    best = write_encoder(shop.path("perfect.onnx"), noise=0.0)
    with_free(shop.path("next.onnx"), best, best)
    (kept,) = shop.path("store").glob("side/*.vectors")
    kept.unlink()
    result, cold = verify(shop, "next.onnx", "--rescore", 20)
    assert result.code == 0, cold["summary"]
    deploy = ("deploy", "--report", shop.path("next.json"), "--rescore", 20, "--dry-run")
    assert shop.run(*deploy).code == 0
    log = shop.path("log.txt")
    log.write_text("\n".join(item.id for item in load(shop.data()).items if item.role == "gallery"))
    assert shop.run("warm", log).code == 0
    refused = shop.run(*deploy)
    assert refused.code == 3
    assert "judged the old answers with 0 free vectors kept" in refused.stderr
    _, warm = verify(shop, "next.onnx", "--rescore", 20)
    hit_rates = [report["groups"][0]["hit_rate"]["old_old"]["1"] for report in (cold, warm)]
    assert hit_rates[0] < hit_rates[1]
    assert [report["attempt"]["number"] for report in (cold, warm)] == [1, 2]


def test_a_lift_of_such_a_store_cannot_tell(shop: Shop) -> None:
    """It compares with the index alone, so that only a reason makes it go on."""
    refused = shop.run("lift", shop.path("turned.onnx"), "--kind", "ridge")
    assert refused.code == 4
    assert "cannot tell what a lift gains" in refused.stderr


def test_a_plan_compares_with_the_answers_of_today(shop: Shop) -> None:
    """Hit rate today is that of a loop over what is served, every gain is over it, and the table
    and JSON say so; lift, which cannot judge there, is left out by name."""
    recipe = shop.path("recipe.yaml")
    recipe.write_text(RECIPE)
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    store = Store.open(shop.path("store"))
    side = SideFile.existing(store.path, store.manifest.query_model)
    assert side is not None
    ids = store.catalog().ids
    kept = {item for item, known in zip(ids, side.holds(ids), strict=True) if known}

    def served(items: list[str]) -> list[str]:
        others = [item for item in items if item not in kept]
        return [item for item in items if item in kept] + others[:PASSES]

    right = {}
    for name, known in {"today": served, "first": lambda items: []}.items():
        rule = shop.manifest()["rescoring"]
        orders, gallery, queries = order_by_loop(shop, rule, K, known, split="validation")
        found = [gallery[order[0]] == label for order, label in zip(orders, queries, strict=True)]
        right[name] = np.mean(found)
    before = store_files(shop)
    for limit in (10_000, 100):
        words = ("--base", shop.path("new.ckpt"), "--recipe", recipe, "--no-forecast")
        result = shop.run("plan", *words, "--limit", limit)
        assert result.code == 0, result.stderr
        routes = {route["name"]: route for route in result.json["routes"]}
        today, keep = result.json["rescored_today"], routes["keep"]
        assert keep["hit_rate"] == pytest.approx(right["today"], abs=4e-3)
        assert today["first_stage"]["1"] == pytest.approx(right["first"], abs=4e-3)
        assert right["today"] > right["first"]
        assert (today["candidates"], today["passes"], today["kept"]) == (K, PASSES, len(kept))
        for route in routes.values():
            if route["rows"] == keep["rows"]:
                assert route["gain"] == pytest.approx(route["hit_rate"] - keep["hit_rate"])
        assert routes["lazy"]["rows"] == keep["rows"] == len(ids)
        assert routes["lazy"]["share_rescored"] == pytest.approx(1.0)
        assert "lift" not in routes
        assert any("lift is left out" in warning for warning in result.json["warnings"])
    assert result.json["preflight"]["gallery_images"] < len(ids)
    shown = run("plan", *shop.args, *words)
    assert "gains are over the answers of today, which the store re-scores" in shown.stdout
    assert store_files(shop) == before
