"""finetune with an encoder as its base: a head behind a model of texts, of vectors or of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_shop_kit import POLICY, TextShop

from compatctl.data import load
from compatctl.encoder import Encoder


@pytest.fixture
def shop(tmp_path: Path) -> TextShop:
    """A text project with a store of the old model, which trains on half of its classes."""
    shop = TextShop(tmp_path)
    shop.set(recipe="recipe.yaml", split={"train": 0.5, "validation": 0.2})
    _recipe(
        shop,
        junction={"kind": "linear"},
        objective={"lambda": 0.05, "mu": 8.0},
        optimiser={"epochs": 40, "batch_size": 64, "lr": 0.02},
    )
    (tmp_path / "policy.yaml").write_text(POLICY.replace("hit_gain: -0.15", "hit_gain: -0.2"))
    shop.done("init", "--model", shop.models["old"])
    return shop


@pytest.fixture
def tuned(shop: TextShop) -> Path:
    """Where the file of a run is written to."""
    return shop.folder / "tuned.onnx"


def _recipe(shop: TextShop, **settings: Any) -> None:
    (shop.folder / "recipe.yaml").write_text(json.dumps({"format": 1, **settings}))


def _trained(shop: TextShop, tuned: Path, *flags: object) -> Any:
    base = shop.models["turned"]
    return shop.done("finetune", "--base", base, "--output", tuned, *flags, "--json").json


def test_a_text_model_gets_a_head_and_goes_the_whole_way(shop: TextShop, tuned: Path) -> None:
    """A model of a turned space, which fails the gate, passes it behind a trained head; it is
    deployed, searched and rolled back, and no gallery item passed but labelled training items."""
    assert shop.run("verify", shop.models["turned"]).code == 3
    result = _trained(shop, tuned)
    assert result["gallery_pass"]["passed"] == 0
    assert result["gallery_pass"]["trained"] > 100
    assert result["weights"] is None
    assert shop.done("verify", tuned, "--json").json["verdict"]["outcome"] == "pass"
    shop.done("deploy")
    assert shop.done("status", "--json").json["query_model"] == result["sha256"]
    shop.done("search", "red car")
    shop.done("rollback")
    shop.done("check")


def test_the_file_keeps_the_models_own_embedding(shop: TextShop, tuned: Path) -> None:
    """Its output free is the embedding of the base, bit by bit, so that answers can be re-scored by
    it; its parity with the trained head is measured on real texts."""
    _recipe(shop, optimiser={"epochs": 3})
    assert 0.0 <= _trained(shop, tuned)["parity"] < 1e-4
    data = load(shop.data).filter(role="query")
    rows = Encoder.load(shop.models["turned"]).embed(data).features
    free = Encoder.load(tuned).embed(data, free=True)
    np.testing.assert_array_equal(free.free, rows)


def test_the_same_seed_gives_the_same_file(shop: TextShop, tuned: Path) -> None:
    """Two runs of one recipe write equal bytes; another seed writes others."""
    _recipe(shop, optimiser={"epochs": 2})
    first = _trained(shop, tuned)["sha256"]
    assert _trained(shop, tuned)["sha256"] == first
    assert _trained(shop, tuned, "--seed", 7)["sha256"] != first


def test_no_recipe_is_needed(shop: TextShop, tuned: Path) -> None:
    """Without one, the defaults train the head; --dry-run says on what, and writes nothing."""
    shop.set(split={"train": 0.5, "validation": 0.2})
    planned = shop.done("finetune", "--base", shop.models["turned"], "--dry-run", "--json").json
    assert planned["training_items"] > 300
    assert not tuned.exists()


def test_what_a_recipe_says_of_a_network_is_refused(shop: TextShop, tuned: Path) -> None:
    """Settings that an encoder as the base leaves without effect are errors, each with its key."""
    backbone = {"factory": "timm:resnet18", "input": {"height": 8, "width": 8}}
    for settings, named in (
        ({"backbone": backbone}, "the recipe's backbone has no effect"),
        ({"train": "full"}, "the recipe's train has no effect"),
        ({"augmentation": {"flip": True}}, "the recipe's augmentation has no effect"),
        ({"rehearsal": {"per_class": 2}}, "the recipe's rehearsal is of images"),
        ({"unlabelled": "more"}, "the recipe's unlabelled is of images"),
    ):
        _recipe(shop, **settings)
        result = shop.run("finetune", "--base", shop.models["turned"], "--output", tuned)
        assert (result.code, named in result.stderr) == (5, True), result.stderr


def test_the_base_is_never_replaced(shop: TextShop) -> None:
    """An output or a candidate at the base's own place is refused, and the file stays."""
    base = shop.models["turned"]
    content = base.read_bytes()
    result = shop.run("finetune", "--base", base, "--output", base)
    assert result.code == 2
    assert "would replace the base" in result.stderr
    assert base.read_bytes() == content


def test_a_checkpoint_is_no_base_for_texts(shop: TextShop) -> None:
    """It is refused before anything is embedded, and so is a plan with it; a plan of an encoder is
    one of a model that exists."""
    backbone = {"factory": "timm:resnet18", "input": {"height": 8, "width": 8}}
    _recipe(shop, backbone=backbone)
    (shop.folder / "base.pt").write_bytes(b"")
    for command in ("finetune", "plan"):
        result = shop.run(command, "--base", shop.folder / "base.pt")
        assert result.code == 5
        assert "trained on images, and the data has texts" in result.stderr
        assert "compatctl finetune --base names an encoder" in result.stderr
    result = shop.run("plan", "--base", shop.models["turned"])
    assert result.code == 2
    assert "plan --new" in result.stderr


def test_a_first_store_can_be_born_behind_a_text_model(shop: TextShop, tmp_path: Path) -> None:
    """begin trains the head on a simplex and embeds the gallery with it."""
    flags = ("--base", shop.models["old"], "--dim", 500, "--store", tmp_path / "born")
    made = shop.done("begin", *flags, "--output", tmp_path / "first.onnx", "--json").json
    assert (made["dim"], made["rows"]) == (500, 400)
    status = shop.done("status", "--store", tmp_path / "born", "--json").json
    assert status["rows"] == 400


@pytest.mark.slow
def test_a_plan_tries_a_head(shop: TextShop) -> None:
    """plan --new trains one on the model's embeddings where the data have labels, and recommends
    commands that make what it measured."""
    plan = shop.done("plan", "--new", shop.models["turned"], "--no-forecast", "--json").json
    routes = {route["name"]: route for route in plan["routes"]}
    assert {"finetune", "fuse", "lazy", "bridge"} <= set(routes)
    assert routes["finetune"]["gallery_passed"] == 0.0
    assert routes["finetune"]["gain"] > -0.25, "the model as it is loses all"
