"""The routes' engine on features that are made up, so that what must come out is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compatctl.commands import routes
from compatctl.commands.routes import Ground
from compatctl.data import Dataset, Item
from compatctl.recipe import Recipe
from compatctl.train import Features, Reference

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, fit: stretch}
objective: {frame: prototypes, lambda: 1.0, scale: 16.0, anchors: {rows: 64, batch: 32}}
optimiser: {epochs: 8, batch_size: 32, lr: 0.01}
"""
CLASSES, EACH, WIDTH, DIM = 40, 6, 48, 16


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Classes are directions; the old model sees them noisily, the new backbone well."""
    from tiny_backbone import build

    folder = tmp_path_factory.mktemp("routes")
    rng = np.random.default_rng(0)
    torch.save({"state_dict": build().state_dict()}, folder / "new.ckpt")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = Recipe.load(folder / "recipe.yaml")
    items, images = [], []
    for label in range(CLASSES):
        for at in range(EACH):
            split = "train" if label < 24 else "validation"
            role = "gallery" if at < 2 else "query"
            items.append(Item(id=f"{label}-{at}", label=str(label), split=split, role=role))
            images.append(np.full((2, 2, 3), len(images), np.uint8))
            images[-1][0, 0] = label
    data = Dataset(items=tuple(items), sources=tuple(images))
    truth = np.repeat(rng.standard_normal((CLASSES, 12)), EACH, axis=0)
    seen = truth + 0.45 * rng.standard_normal(truth.shape)
    old = _unit((truth + 1.1 * rng.standard_normal(truth.shape)) @ rng.standard_normal((12, DIM)))
    new = np.maximum(seen @ rng.standard_normal((12, WIDTH)), 0.0).astype(np.float32)
    base = Features.extract(recipe, folder / "new.ckpt", data, [0])
    known = replace(
        base,
        row_of={data.digest(row): row for row in range(len(data))},
        table=torch.from_numpy(_wide(new, base.table.shape[1])),
    )
    stored = [i for i, item in enumerate(items) if item.role == "gallery"]
    others = [i for i, item in enumerate(items) if item.role == "query"]
    reference = Reference(
        gallery_ids=tuple(data.ids[i] for i in stored),
        gallery_labels=tuple(data.labels[i] for i in stored),
        gallery_features=old[stored],
        encoded_ids=tuple(data.ids[i] for i in others),
        encoded_features=old[others],
    )
    asked = [i for i in others if items[i].split == "validation"]
    return Ground(
        data=data,
        reference=reference,
        recipe=recipe,
        base=folder / "new.ckpt",
        features=known,
        asked=np.array(asked, np.int64),
    )


def _wide(rows: np.ndarray, width: int) -> np.ndarray:
    wide = np.zeros((len(rows), width), np.float32)
    wide[:, : min(width, rows.shape[1])] = rows[:, :width]
    return wide


def _folds(ground: Ground) -> list[routes.Fold]:
    first = np.arange(len(ground.asked)) % 8 < 4
    return [(first, ~first), (~first, first)]


def _recall(ground: Ground, route: routes.Measured) -> float:
    """recall@1 by an explicit loop."""
    labels = [ground.data.labels[row] for row in ground.asked]
    right = 0
    for query, label in zip(route.queries, labels, strict=True):
        best = int(np.argmax(route.gallery @ query))
        right += ground.reference.gallery_labels[best] == label
    return right / len(labels)


def test_every_route_is_measured(ground: Ground) -> None:
    """The better backbone wins where all is re-embedded; unit rows; galleries as they should be."""
    found = {one.name: one for one in routes.measure(ground, _folds(ground), baselines=True)}
    assert list(found)[:2] == ["keep", "re-embed"]
    stored = ground.reference.gallery_features
    for one in found.values():
        assert np.allclose(np.linalg.norm(one.queries, axis=1), 1.0, atol=1e-4)
        assert (one.rewritten == 0.0) == np.array_equal(one.gallery, stored)
    assert _recall(ground, found["re-embed"]) > _recall(ground, found["keep"]) + 0.1
    assert _recall(ground, found["naive swap"]) < _recall(ground, found["bridge"])
    assert _recall(ground, found["fuse"]) > _recall(ground, found["keep"])
    assert found["fuse"].encoders == ("old", "new")
    quarter, whole = (found[f"backfill {share}"] for share in ("25%", "100%"))
    changed = (quarter.gallery != stored).any(axis=1)
    assert changed.sum() == round(0.25 * len(stored))
    assert np.array_equal(quarter.gallery[changed], whole.gallery[changed])


def test_what_is_judged_does_not_choose(ground: Ground) -> None:
    """Other labels for one half of the queries change what is chosen for the other half only."""
    first, second = _folds(ground)[0]
    old = ground.old(ground.asked)
    rng = np.random.default_rng(1)
    options = {"a": old, "b": _unit(old + rng.standard_normal(old.shape))}
    pick = routes.Chooser(where=ground.where, counted=ground.counted(), folds=((first, second),))
    plain = pick("x", options, ground.reference.gallery_features, ("new",))
    assert plain.setting == "a"
    assert np.array_equal(plain.queries[second], options["a"][second])
    labels = ground.where.query_labels.copy()
    labels[second] = rng.permutation(labels[second])
    other = replace(pick, where=replace(ground.where, query_labels=labels))
    again = other("x", options, ground.reference.gallery_features, ("new",))
    assert np.array_equal(again.queries[second], plain.queries[second])
    wrong = ground.where.query_labels.copy()
    nearest = np.argmax(options["b"] @ ground.reference.gallery_features.T, axis=1)
    wrong[first] = ground.where.gallery_labels[nearest[first]]
    turned = replace(pick, where=replace(ground.where, query_labels=wrong))
    assert turned("x", options, ground.reference.gallery_features, ("new",)).setting == "b"


def test_the_free_recipe_knows_no_gallery(ground: Ground) -> None:
    """It keeps backbone, head and epochs, and drops frame, anchors and old features."""
    free = routes.free_recipe(ground.recipe, DIM)
    assert free.objective.frame == ("free",)
    assert free.objective.anchors is None
    assert (free.optimiser, free.backbone) == (ground.recipe.optimiser, ground.recipe.backbone)
