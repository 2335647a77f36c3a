"""Training on real modules and small images: what is learned, recorded and refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_kit as kit

from compatctl.core.simplex import Registry
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.train import Reference, items_to_encode, save_weights, train


def _same_weights(first: object, second: object) -> bool:
    left, right = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


def _cosine_to_own_class(features: np.ndarray, data: Dataset, reference: Reference) -> float:
    """Mean cosine of items to the stored vectors of their class."""
    stored = np.array(reference.gallery_labels)
    means = [
        float((row @ reference.gallery_features[stored == label].T).mean())
        for row, label in zip(features, data.labels, strict=True)
    ]
    return float(np.mean(means))


@pytest.mark.parametrize("frame", ["prototypes", "anchored"])
def test_training_pulls_features_towards_the_deployed_gallery(tmp_path: Path, frame: str) -> None:
    """After training, training items lie nearer to their class in the gallery than before."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data, dim=16)
    line = f"objective: {{frame: {frame}, lambda: 1.0, scale: 16.0}}"
    short = kit.recipe(
        tmp_path, objective=line, optimiser="optimiser: {epochs: 1, batch_size: 16, lr: 0.0}"
    )
    long = kit.recipe(
        tmp_path, objective=line, optimiser="optimiser: {epochs: 40, batch_size: 16, lr: 0.02}"
    )
    base, items = kit.base(tmp_path), data.filter(split="train")
    cosines = [
        _cosine_to_own_class(
            kit.features(
                train(recipe=recipe, base=base, data=data, reference=reference, work=tmp_path),
                items,
            ),
            items,
            reference,
        )
        for recipe in (short, long)
    ]
    assert cosines[1] > cosines[0] + 0.15


@pytest.mark.parametrize("junction", ["linear", "residual"])
def test_no_weight_is_a_stored_vector(tmp_path: Path, junction: str) -> None:
    """An item that is erased from the store is in no encoder: no row or column of a weight points
    where a vector of the gallery does."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data, dim=16, every=2)
    recipe = kit.recipe(tmp_path, junction=f"junction: {{kind: {junction}}}")
    trained = train(
        recipe=recipe, base=kit.base(tmp_path), data=data, reference=reference, work=tmp_path
    )
    weights = {n: w.numpy() for n, w in trained.network.state_dict().items() if w.ndim == 2}
    for name, weight in weights.items():
        for rows in (weight, weight.T):
            if rows.shape[1] == reference.dim:
                unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
                assert (unit @ reference.gallery_features.T).max() < 0.999, name


def test_a_wrong_class_map_loses_hit_rate(tmp_path: Path) -> None:
    """If each class trains towards the rows of another one, hit rate on the gallery falls."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data, dim=16, every=2)
    names = sorted(set(reference.gallery_labels))
    moved = dict(zip(names, names[1:] + names[:1], strict=True))
    wrong = replace(
        reference, gallery_labels=tuple(moved[label] for label in reference.gallery_labels)
    )
    recipe = kit.recipe(tmp_path, optimiser="optimiser: {epochs: 40, batch_size: 16, lr: 0.02}")
    items = data.filter(split="train")
    stored = np.array(reference.gallery_labels)
    hit_rate = []
    for target in (reference, wrong):
        trained = train(
            recipe=recipe, base=kit.base(tmp_path), data=data, reference=target, work=tmp_path
        )
        nearest = stored[(kit.features(trained, items) @ reference.gallery_features.T).argmax(1)]
        hit_rate.append(float((nearest == np.array(items.labels)).mean()))
    assert hit_rate[0] > hit_rate[1] + 0.3


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, mode: str) -> None:
    """Two runs agree to the bit, augmentation and dropout included; another seed differs."""
    data = kit.dataset(tmp_path, per_class=4)
    reference = kit.gallery(data)
    changes = {
        "train": f"train: {mode}",
        "junction": "junction: {kind: mlp, hidden: 16, dropout: 0.5}",
        "augmentation": "augmentation: {views: 2, flip: true, crop: 0.7, rotate: 20, shift: 0.1,"
        " colour: 0.3}",
        "optimiser": "optimiser: {epochs: 2, batch_size: 16, lr: 0.02, backbone_lr: 0.01}",
    }
    recipe = kit.recipe(tmp_path, **changes)
    runs = [
        train(recipe=spec, base=kit.base(tmp_path), data=data, reference=reference, work=tmp_path)
        for spec in (recipe, recipe, replace(recipe, seed=4))
    ]
    assert _same_weights(runs[0], runs[1])
    assert not _same_weights(runs[0], runs[2])


def test_only_full_changes_the_backbone(tmp_path: Path) -> None:
    """``head`` keeps the backbone's weights; frozen_norm keeps the statistics in both modes."""
    data = kit.dataset(tmp_path, per_class=4)
    base = kit.base(tmp_path)
    before = torch.load(base, weights_only=True)["state_dict"]
    for mode in ("head", "full"):
        recipe = kit.recipe(tmp_path, train=f"train: {mode}")
        trained = train(
            recipe=recipe, base=base, data=data, reference=kit.gallery(data), work=tmp_path
        )
        after = trained.network.backbone.state_dict()
        assert torch.equal(after["one.weight"], before["one.weight"]) == (mode == "head")
        assert torch.equal(after["norm.running_mean"], before["norm.running_mean"])


def test_the_grid_is_searched_on_validation_classes(tmp_path: Path) -> None:
    """Each trial is recorded with its hit rate; the network has the weights of the best."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data, dim=16)
    line = (
        "objective: {frame: [prototypes, anchored], lambda: [0.1, 1.0], mu: [5.0, 10.0],"
        " scale: 16.0}"
    )
    recipe = kit.recipe(tmp_path, objective=line)
    trained = train(
        recipe=recipe, base=kit.base(tmp_path), data=data, reference=reference, work=tmp_path
    )
    trials = trained.record["trials"]
    grid = [(trial["frame"], trial["lambda"], trial["mu"]) for trial in trials]
    assert grid == [
        (frame, weight, mu)
        for frame in ("prototypes", "anchored")
        for weight, mu in ((0.1, 5.0), (0.1, 10.0), (1.0, 5.0))
    ]
    hit_rates = [trial["validation_hit_at_1"] for trial in trials]
    assert trained.record["choice"] == int(np.argmax(hit_rates))
    queries = data.filter(split="validation")
    scores = kit.features(trained, queries) @ reference.gallery_features.T
    for i, item_id in enumerate(queries.ids):
        if item_id in reference.row_of:
            scores[i, reference.row_of[item_id]] = -2.0
    hits = np.array(reference.gallery_labels)[scores.argmax(1)] == np.array(queries.labels)
    assert trained.validation_hit_rate == pytest.approx(float(hits.mean())) == max(hit_rates)


def test_the_record_names_every_item_and_class(tmp_path: Path) -> None:
    """Ids, digests, classes, sources and base are in the record, which is JSON-serializable."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data)
    recipe = kit.recipe(tmp_path, objective=f"objective: {{lambda: 0.1, {kit.PLAIN}}}")
    base = kit.base(tmp_path)
    record = train(recipe=recipe, base=base, data=data, reference=reference, work=tmp_path).record
    items = data.filter(split="train")
    assert json.loads(json.dumps(record)) == record
    assert [item["id"] for item in record["items"]] == list(items.ids)
    assert [item["sha256"] for item in record["items"]] == [
        items.digest(i) for i in range(len(items))
    ]
    assert record["classes"] == sorted(set(items.labels))
    n_stored = sum(item_id in reference.row_of for item_id in items.ids)
    assert record["old_features"] == {"gallery": n_stored, "encoder": len(items) - n_stored}
    assert record["base"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert record["base"]["missing"] == record["base"]["unexpected"] == []
    assert (record["recipe"], record["recipe_sha256"]) == (recipe.to_json(), recipe.digest)
    assert record["seed"] == 3
    assert len(record["trials"][0]["losses"]) == 6


def test_only_items_without_a_stored_vector_need_the_old_encoder(tmp_path: Path) -> None:
    """With the contrastive loss these are the training items outside the gallery; without it those
    of classes that are not in the gallery."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data)
    stored = reference.gallery_ids, reference.gallery_labels
    items = set(data.filter(split="train").ids)
    contrast = kit.recipe(tmp_path, objective=f"objective: {{lambda: [0.1, 1.0], {kit.PLAIN}}}")
    assert set(items_to_encode(contrast, data, *stored)) == items - set(reference.gallery_ids)
    plain = kit.recipe(tmp_path)
    assert items_to_encode(plain, data, *stored) == ()
    left = reference.gallery_labels[0]
    kept = [i for i, label in enumerate(reference.gallery_labels) if label != left]
    fewer = tuple(tuple(names[i] for i in kept) for names in stored)
    assert set(items_to_encode(plain, data, *fewer)) == {
        item.id for item in data.items if item.split == "train" and item.label == left
    }
    bare = replace(
        reference, encoded_ids=(), encoded_features=np.zeros((0, reference.dim), np.float32)
    )
    with pytest.raises(InputError, match="have no old feature"):
        train(recipe=contrast, base=kit.base(tmp_path), data=data, reference=bare, work=tmp_path)


def test_classes_outside_the_gallery_are_dropped_and_counted(tmp_path: Path) -> None:
    """With prototypes, a class of which the old model embedded no item does not train."""
    data = kit.dataset(tmp_path)
    full = kit.gallery(data)
    absent = data.filter(split="train").labels[0]
    keep = [i for i, label in enumerate(full.gallery_labels) if label != absent]
    reference = replace(
        full,
        gallery_ids=tuple(full.gallery_ids[i] for i in keep),
        gallery_labels=tuple(full.gallery_labels[i] for i in keep),
        gallery_features=full.gallery_features[keep],
        encoded_ids=(),
        encoded_features=np.zeros((0, full.dim), np.float32),
    )
    record = train(
        recipe=kit.recipe(tmp_path),
        base=kit.base(tmp_path),
        data=data,
        reference=reference,
        work=tmp_path,
    ).record
    assert record["dropped_classes"] == [absent]
    assert absent not in record["classes"]
    ids = {item["id"] for item in record["items"]}
    assert not ids & {item.id for item in data.items if item.label == absent}


def test_classes_keep_their_vertices(tmp_path: Path) -> None:
    """New classes take the vertices after those of the deployed registry, which do not move."""
    data = kit.dataset(tmp_path)
    classes = sorted(set(data.filter(split="train").labels))
    deployed = Registry(()).extend(["elsewhere", classes[2]], 17)
    reference = replace(kit.gallery(data, dim=16), registry=deployed, K=17)
    line = f"objective: {{frame: simplex, lambda: 1.0, {kit.PLAIN}}}"
    trained = train(
        recipe=kit.recipe(tmp_path, objective=line),
        base=kit.base(tmp_path),
        data=data,
        reference=reference,
        work=tmp_path,
    )
    assert trained.registry is not None
    new = [label for label in classes if label != classes[2]]
    assert list(trained.registry.vertices) == ["elsewhere", classes[2], *new]
    assert trained.record["registry_sha256"] == trained.registry.digest
    assert trained.record["classifier"]["rows"] == 17


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            f"objective: {{frame: simplex, lambda: 1.0, K: 4, {kit.PLAIN}}}",
            "classes and only 4 vertices",
        ),
        (f"objective: {{frame: simplex, lambda: 1.0, K: 99, {kit.PLAIN}}}", "needs 98 dimensions"),
        ("objective: {frame: prototypes, lambda: 1.0, dim: 7, scale: null}", "has 16 dimensions"),
    ],
)
def test_impossible_frames_are_refused(tmp_path: Path, line: str, says: str) -> None:
    """Too many classes, too many vertices and another dimension are errors with a tip."""
    data = kit.dataset(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        train(
            recipe=kit.recipe(tmp_path, objective=line),
            base=kit.base(tmp_path),
            data=data,
            reference=kit.gallery(data, dim=16),
            work=tmp_path,
        )
    assert caught.value.tip


def test_a_deployed_simplex_of_another_size_is_refused(tmp_path: Path) -> None:
    """The recipe's K must be that of the deployed model."""
    data = kit.dataset(tmp_path)
    reference = replace(kit.gallery(data, dim=16), K=15)
    with pytest.raises(InputError, match="15 vertices, the recipe says 17"):
        train(
            recipe=kit.recipe(
                tmp_path,
                objective=f"objective: {{frame: simplex, lambda: 1.0, K: 17, {kit.PLAIN}}}",
            ),
            base=kit.base(tmp_path),
            data=data,
            reference=reference,
            work=tmp_path,
        )


def test_a_free_model_needs_no_gallery_and_can_be_a_base(tmp_path: Path) -> None:
    """``free`` trains its rows; the saved weights, junction included, start the next run."""
    data = kit.dataset(tmp_path)
    free = kit.recipe(
        tmp_path,
        objective="objective: {frame: free, lambda: 1.0, scale: 16.0, dim: 8}",
        optimiser="optimiser: {epochs: 20, batch_size: 16, lr: 0.02}",
    )
    first = train(recipe=free, base=kit.base(tmp_path), data=data, reference=None, work=tmp_path)
    losses = first.record["trials"][0]["losses"]
    assert losses[-1] < 0.7 * losses[0]
    assert (first.dim, first.validation_hit_rate, first.registry) == (8, None, None)
    save_weights(first.network, tmp_path / "first.safetensors")
    frozen = replace(free, optimiser=replace(free.optimiser, lr=0.0, weight_decay=0.0, epochs=1))
    second = train(
        recipe=frozen, base=tmp_path / "first.safetensors", data=data, reference=None, work=tmp_path
    )
    assert second.record["base"]["junction"]
    assert second.record["base"]["prefix"] == "backbone."
    assert _same_weights(first, second)
    with pytest.raises(InputError, match=r"no objective\.dim"):
        train(
            recipe=kit.recipe(
                tmp_path, objective="objective: {frame: free, lambda: 1.0, scale: null}"
            ),
            base=None,
            data=data,
            reference=None,
            work=tmp_path,
        )


def test_rehearsal_keeps_some_images_of_earlier_classes(tmp_path: Path) -> None:
    """Two of eight images of each earlier class train, too, and the record counts them."""
    data = kit.dataset(tmp_path)
    classes = sorted(set(data.filter(split="train").labels))
    early, late = classes[: len(classes) // 2], classes[len(classes) // 2 :]
    new = data.take([i for i, label in enumerate(data.labels) if label not in early])
    memory = data.take([i for i, label in enumerate(data.labels) if label in early])
    recipe = kit.recipe(
        tmp_path,
        rehearsal="rehearsal: {per_class: 2}",
        objective=f"objective: {{lambda: 0.1, {kit.PLAIN}}}",
    )
    reference = kit.gallery(data)
    trained = train(
        recipe=recipe,
        base=kit.base(tmp_path),
        data=new,
        reference=reference,
        work=tmp_path,
        memory=memory,
    )
    assert trained.record["memory_items"] == 2 * len(early)
    assert trained.record["classes"] == sorted(early + late)
    with pytest.raises(InputError, match="no rehearsal in the recipe"):
        train(
            recipe=kit.recipe(tmp_path),
            base=None,
            data=new,
            reference=reference,
            work=tmp_path,
            memory=memory,
        )


def test_a_choice_without_validation_is_refused(tmp_path: Path) -> None:
    """Several trials and no validation query are an error; the first trial is not taken."""
    data = kit.dataset(tmp_path).filter(split="train")
    with pytest.raises(InputError, match="2 trials to choose from"):
        train(
            recipe=kit.recipe(
                tmp_path, objective=f"objective: {{lambda: [0.1, 1.0], {kit.PLAIN}}}"
            ),
            base=kit.base(tmp_path),
            data=data,
            reference=kit.gallery(data),
            work=tmp_path,
        )
