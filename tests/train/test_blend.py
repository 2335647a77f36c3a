"""Weights between a base that is a whole model and the fine-tuned ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_kit as kit

from compatctl.recipe import Recipe
from compatctl.train import TrainResult, save_weights, train
from compatctl.train.blend import SHARES

SETTINGS = "objective: {frame: prototypes, lambda: 0.25, scale: 16.0}"


def _trained(folder: Path, recipe: Recipe, base: Path) -> TrainResult:
    data = kit.dataset(folder)
    return train(recipe=recipe, base=base, data=data, reference=kit.gallery(data), work=folder)


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """The weights of a model that was trained before, with its junction."""
    recipe = kit.recipe(tmp_path, objective=SETTINGS)
    path = tmp_path / "deployed.safetensors"
    save_weights(_trained(tmp_path, recipe, kit.base(tmp_path)).network, path)
    return path


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_best_share_on_validation_classes_is_kept(
    tmp_path: Path, deployed: Path, mode: str
) -> None:
    """Weights and hit rate are those of an explicit mean, of all shares the best."""
    recipe = kit.recipe(
        tmp_path, objective=SETTINGS, train=f"train: {mode}", free_head="free_head: false"
    )
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=0.2))
    result = _trained(tmp_path, recipe, deployed)
    full = _trained(tmp_path, replace(recipe, blend="off"), deployed)
    still = replace(recipe.optimiser, lr=0.0, backbone_lr=0.0, epochs=1)
    first = _trained(tmp_path, replace(recipe, blend="off", optimiser=still), deployed)
    assert (full.record["blend"], first.record["blend"]) == (1.0, 1.0)
    before = {key: value.clone() for key, value in first.network.state_dict().items()}
    after = full.network.state_dict()
    hit_rates = {}
    for share in SHARES:
        mean = {
            key: before[key] + share * (value - before[key]) if value.is_floating_point() else value
            for key, value in after.items()
        }
        first.network.load_state_dict(mean)
        hit_rates[share] = _hit_rate(tmp_path, first)
    best = max(hit_rates.values())
    assert result.record["blend"] == next(s for s in SHARES if hit_rates[s] == best)
    assert result.validation_hit_rate == pytest.approx(best)
    share = result.record["blend"]
    for key, value in result.network.state_dict().items():
        if value.is_floating_point():
            expected = before[key] + share * (after[key] - before[key])
            assert torch.allclose(value, expected, atol=1e-6), key


def test_a_base_without_its_junction_is_not_mixed_in(tmp_path: Path) -> None:
    """Nor is anything where no validation query can choose."""
    recipe = kit.recipe(tmp_path, objective=SETTINGS)
    assert _trained(tmp_path, recipe, kit.base(tmp_path)).record["blend"] == 1.0


def _hit_rate(folder: Path, result: TrainResult) -> float:
    """hit@1 of validation queries on the gallery without their own row."""
    data = kit.dataset(folder)
    reference = kit.gallery(data)
    features = kit.features(result, data)
    rows = [row for row, item in enumerate(data.items) if item.split == "validation"]
    hits = []
    for row in rows:
        scores = reference.gallery_features @ features[row]
        own = [other == data.ids[row] for other in reference.gallery_ids]
        same = [label == data.labels[row] for label in reference.gallery_labels]
        if any(good and not self for good, self in zip(same, own, strict=True)):
            scores[own] = -2.0
            hits.append(same[int(scores.argmax())])
    return sum(hits) / len(hits)
