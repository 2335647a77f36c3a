"""One pass of the backbone serves every head that is trained on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_kit as kit

from compatctl.errors import InputError
from compatctl.train import Features, train

TWO_LAYERS = "junction: {kind: mlp, hidden: 16, dropout: 0.5}"
CONTRASTED = "objective: {frame: prototypes, lambda: 0.5, scale: 16.0}"


@pytest.mark.parametrize("views", [1, 2])
def test_a_head_trained_on_extracted_features_is_the_same(tmp_path: Path, views: int) -> None:
    """With and without extracted features: the same weights and validation hit rate."""
    data, base = kit.dataset(tmp_path), kit.base(tmp_path)
    reference = kit.gallery(data)
    recipe = kit.recipe(
        tmp_path,
        junction=TWO_LAYERS,
        objective=CONTRASTED,
        augmentation=f"augmentation: {{views: {views}, flip: true}}",
    )
    known = Features.extract(recipe, base, data, range(len(data)))
    runs = [
        train(recipe=recipe, base=base, data=data, reference=reference, work=tmp_path, features=f)
        for f in (None, known)
    ]
    without, with_features = (run.network.junction.state_dict() for run in runs)
    assert all(torch.allclose(without[key], with_features[key], atol=1e-4) for key in without)
    assert runs[0].validation_hit_rate == runs[1].validation_hit_rate


def test_the_variants_of_an_image_pass_the_backbone_once_for_all_heads(tmp_path: Path) -> None:
    """A second head, and one on other items, run the backbone over no variant again."""
    data, base = kit.dataset(tmp_path), kit.base(tmp_path)
    reference = kit.gallery(data)
    recipe = kit.recipe(
        tmp_path, objective=CONTRASTED, augmentation="augmentation: {views: 3, rotate: 20}"
    )
    training = [row for row, item in enumerate(data.items) if item.split == "train"]
    known = Features.extract(recipe, base, data, range(len(data)), training=training)
    assert len(known.variants) == 2 * len(training)
    fewer = data.take(row for row in range(len(data)) if row not in training[::2])
    sharper = replace(recipe, objective=replace(recipe.objective, scale=8.0))
    for part, other in ((data, recipe), (data, sharper), (fewer, recipe)):
        heads = [
            train(
                recipe=other,
                base=base,
                data=part,
                reference=reference,
                work=tmp_path,
                features=features,
            ).network.junction.state_dict()
            for features in (known, None)
        ]
        assert all(torch.allclose(heads[0][key], heads[1][key], atol=1e-4) for key in heads[0])
        assert len(known.variants) == 2 * len(training)


def test_features_and_junction_give_what_the_network_gives(tmp_path: Path) -> None:
    """``embed`` gives the whole network's embeddings, for rows in any order."""
    data, base = kit.dataset(tmp_path), kit.base(tmp_path)
    recipe = kit.recipe(tmp_path)
    known = Features.extract(recipe, base, data, range(len(data)))
    trained = train(recipe=recipe, base=base, data=data, reference=kit.gallery(data), work=tmp_path)
    rows = [5, 0, 17]
    embedded = known.embed(trained.network, data, rows)
    assert np.allclose(embedded, kit.features(trained, data)[rows], atol=1e-5)
    assert len(known.table) == len(data) == len(known.row_of)


def test_features_that_do_not_fit_the_run_are_refused(tmp_path: Path) -> None:
    """Features of other weights, missing images, and ``train: full`` are errors."""
    data = kit.dataset(tmp_path)
    recipe = kit.recipe(tmp_path)
    known = Features.extract(recipe, kit.base(tmp_path, seed=2), data, range(len(data)))
    given = {"data": data, "reference": kit.gallery(data), "work": tmp_path}
    with pytest.raises(InputError, match="other weights"):
        train(recipe=recipe, base=kit.base(tmp_path), features=known, **given)
    few = Features.extract(recipe, kit.base(tmp_path), data, range(3))
    with pytest.raises(InputError, match="have no features"):
        train(recipe=recipe, base=kit.base(tmp_path), features=few, **given)
    with pytest.raises(InputError, match="train: full"):
        train(
            recipe=replace(recipe, train="full"),
            base=kit.base(tmp_path, seed=2),
            features=known,
            **given,
        )
