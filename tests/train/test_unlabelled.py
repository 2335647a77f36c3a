"""Items without labels: in which batches they are, what they teach, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_kit as kit

from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.train import Reference, items_to_encode, train
from compatctl.train.checkpoint import CHECKPOINT_FILE
from compatctl.train.grid_search import build_classifiers, make_context, make_trials
from compatctl.train.loop import _steps
from compatctl.train.setup import Setup, default_device, make_network
from compatctl.train.training_set import select_training_set

CONTRASTED = "objective: {frame: prototypes, lambda: 0.25, scale: 16.0}"
HIDDEN = 2
"""Training classes whose labels are hidden."""


def _halved(data: Dataset) -> tuple[Dataset, Dataset]:
    """The data without some training classes, and the items of these classes without labels."""
    labels = sorted(set(data.filter(split="train").labels))[:HIDDEN]
    hidden = [row for row, label in enumerate(data.labels) if label in labels]
    items = data.take(hidden)
    blank = tuple(replace(item, label="") for item in items.items)
    rest = data.without(set(items.ids).__contains__)
    return rest, replace(items, items=blank)


def _given(folder: Path, **changes: str) -> dict[str, Any]:
    data = kit.dataset(folder)
    rest, hidden = _halved(data)
    recipe = kit.recipe(folder, **{"objective": CONTRASTED, **changes})
    return {
        "recipe": recipe,
        "base": kit.base(folder),
        "data": rest,
        "reference": kit.gallery(data, dim=16),
        "unlabelled": hidden,
        "work": folder,
    }


def _setup(given: dict[str, Any], memory: Dataset | None = None) -> Setup:
    recipe, reference = given["recipe"], given["reference"]
    chosen = select_training_set(recipe, given["data"], reference, memory, given["unlabelled"])
    network, match = make_network(recipe, given["base"], reference.dim)
    return Setup(
        recipe=recipe,
        training_set=chosen,
        reference=reference,
        network=network,
        base_match=match,
        device=default_device(),
        dim=reference.dim,
    )


@pytest.mark.parametrize("rehearses", [False, True])
def test_each_batch_has_its_share_of_items_without_labels(tmp_path: Path, rehearses: bool) -> None:
    """Every new item comes once an epoch; items without labels are spread evenly; the memory has
    half of the others."""
    given = _given(
        tmp_path,
        rehearsal="rehearsal: {per_class: 4}" if rehearses else "",
        optimiser="optimiser: {epochs: 1, batch_size: 6}",
    )
    memory = None
    if rehearses:
        labels = sorted(set(given["data"].filter(split="train").labels))[:1]
        rows = [row for row, label in enumerate(given["data"].labels) if label in labels]
        memory = given["data"].take(rows)
        given["data"] = given["data"].without(set(memory.ids).__contains__)
    setup = _setup(given, memory)
    chosen = setup.training_set
    (trial,) = make_trials(setup.recipe)
    context = make_context(setup, None, build_classifiers(setup)["prototypes"])
    assert (context.class_rows[chosen.n_labelled :] == -1).all()
    own = context.classes[chosen.n_labelled :]
    assert len(set(own)) == len(own) == len(given["unlabelled"])
    assert not set(own) & set(context.classes[: chosen.n_labelled])
    steps = [step.items for step in _steps(context, trial, np.random.default_rng(0))]
    assert len(steps) > 2
    new = chosen.n_labelled - chosen.n_memory
    once = np.concatenate(steps)
    once = np.sort(once[(once < new) | (once >= chosen.n_labelled)])
    assert np.array_equal(once, [*range(new), *range(chosen.n_labelled, len(chosen.items))])
    without = [int((items >= chosen.n_labelled).sum()) for items in steps]
    assert max(without) - min(without) <= 1
    for items in steps:
        rehearsed = ((items >= new) & (items < chosen.n_labelled)).sum()
        assert rehearsed == ((items < new).sum() if rehearses else 0)


def test_they_pull_the_model_to_the_old_features_of_their_classes(tmp_path: Path) -> None:
    """Other images of the hidden classes come nearer to their old features than without them."""
    given = _given(tmp_path, optimiser="optimiser: {epochs: 30, batch_size: 16, lr: 0.02}")
    shown = given["unlabelled"].take(range(0, len(given["unlabelled"]), 2))
    others = given["unlabelled"].take(range(1, len(given["unlabelled"]), 2))
    old, _ = given["reference"].old_features(others.ids)

    def cosine(unlabelled: Dataset | None) -> float:
        trained = train(**given | {"unlabelled": unlabelled})
        return float((kit.features(trained, others) * old).sum(axis=1).mean())

    assert cosine(shown) > cosine(None) + 0.05


@pytest.mark.parametrize("mode", ["head", "full"])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, mode: str) -> None:
    """Stopped after an epoch and resumed, with other images refused; the record names each item."""
    given = _given(
        tmp_path,
        train=f"train: {mode}",
        augmentation="augmentation: {views: 2, crop: 0.7}",
        optimiser="optimiser: {epochs: 3, batch_size: 16, lr: 0.02}",
    )

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(**given, progress=stop)
    assert (tmp_path / CHECKPOINT_FILE).is_file()
    fewer = given["unlabelled"].take(range(3))
    with pytest.raises(Exception, match="another recipe, base, data"):
        train(**given | {"unlabelled": fewer}, resume=True)
    resumed, whole = train(**given, resume=True), train(**given)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key
    record = resumed.record
    assert [entry["id"] for entry in record["unlabelled"]] == list(given["unlabelled"].ids)
    assert record["unlabelled"][0]["sha256"] == given["unlabelled"].digest(0)
    assert record["unlabelled_items"] == len(given["unlabelled"])
    training = given["data"].filter(split="train")
    assert {entry["id"] for entry in record["items"]} == set(training.ids)
    assert record["classes"] == sorted(set(training.labels))
    assert sum(record["old_features"].values()) == len(training) + len(given["unlabelled"])


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_free_head_skips_them(tmp_path: Path, mode: str) -> None:
    """On the same features the free head has the same weights with and without them."""
    given = _given(
        tmp_path,
        train=f"train: {mode}",
        junction="junction: {kind: linear, standardise: false}",
        optimiser="optimiser: {epochs: 2, batch_size: 16, lr: 0.02, backbone_lr: 0.0, "
        "weight_decay: 0.0}",
    )
    first, second = train(**given), train(**given | {"unlabelled": None})
    assert first.network.free is not None
    assert second.network.free is not None
    for key, value in second.network.free.state_dict().items():
        assert torch.equal(first.network.free.state_dict()[key], value), key
    weights = [
        trained.network.junction.state_dict()["linear.weight"] for trained in (first, second)
    ]
    assert not torch.equal(*weights)


def test_only_the_contrast_uses_them(tmp_path: Path) -> None:
    """lambda 1 alone is refused; beside another lambda, its trial is as without them."""
    alone = "objective: {frame: prototypes, lambda: 1.0, scale: 16.0}"
    with pytest.raises(InputError, match="contrast alone"):
        train(**_given(tmp_path, objective=alone))
    both = "objective: {frame: prototypes, lambda: [1.0, 0.5], scale: 16.0}"
    given = _given(
        tmp_path, objective=both, junction="junction: {kind: linear, standardise: false}"
    )
    losses = [
        train(**given | {"unlabelled": unlabelled}).record["trials"][0]["losses"]
        for unlabelled in (given["unlabelled"], None)
    ]
    assert losses[0] == losses[1]


def test_their_old_features_are_asked_of_the_old_encoder(tmp_path: Path) -> None:
    """Those outside the gallery are items to encode; without a feature they are refused."""
    given = _given(tmp_path)
    reference: Reference = given["reference"]
    needed = items_to_encode(
        given["recipe"], given["data"], reference.gallery_ids, None, given["unlabelled"]
    )
    outside = {item for item in given["unlabelled"].ids if item not in reference.row_of}
    assert outside
    assert outside <= set(needed)
    fewer = replace(reference, encoded_ids=(), encoded_features=reference.encoded_features[:0])
    with pytest.raises(InputError, match="no old feature"):
        train(**given | {"reference": fewer})
