"""Attention to anchors: the weighted sum, training, the exported file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import train_kit as kit

from compatctl.errors import InputError
from compatctl.train import TrainResult, embed, export, save_weights, train
from compatctl.train.attention import Attention

LINE = "objective: {{lambda: 1.0, scale: 16.0, anchors: {{batch: 12, transfer: 0.5{}}}}}"


def trained(folder: Path, keys: str) -> TrainResult:
    """A small run with more settings ``keys`` of the anchors."""
    data = kit.dataset(folder)
    recipe = kit.recipe(
        folder,
        objective=LINE.format(keys),
        junction="junction: {kind: mlp, hidden: 32, dropout: 0.5}",
        optimiser="optimiser: {epochs: 25, batch_size: 16, lr: 0.01}",
    )
    reference = kit.gallery(data)
    return train(recipe=recipe, base=kit.base(folder), data=data, reference=reference, work=folder)


def attend_in_a_loop(
    attention: Attention, z: torch.Tensor, x: torch.Tensor, slots: list[int], own: list[int]
) -> np.ndarray:
    """(N, D), row by row and anchor by anchor, in float64."""
    key = attention.key.weight.detach().double().numpy()
    features, stored = attention.features.double().numpy(), attention.stored.double().numpy()
    scale, weight = attention.log_scale.exp().item(), attention.log_weight.exp().item()
    rows = []
    for i in range(len(x)):
        query_key = key @ x[i].double().numpy()
        query_key /= np.linalg.norm(query_key)
        total, weights = np.zeros(stored.shape[1]), 0.0
        for position, slot in enumerate(slots):
            if own[i] == position:
                continue
            anchor_key = key @ features[slot]
            near = np.exp(scale * query_key @ anchor_key / np.linalg.norm(anchor_key))
            total, weights = total + near * stored[slot], weights + near
        total /= weights
        output = z[i].double().numpy()
        rows.append(output / np.linalg.norm(output) + weight * total / np.linalg.norm(total))
    return np.array(rows)


def test_attention_is_the_sum_that_a_loop_computes() -> None:
    """Over all anchors, and in training over some of them without the row's own image."""
    torch.manual_seed(0)
    stored = torch.nn.functional.normalize(torch.randn(9, 5))
    attention = Attention(torch.rand(9, 7), stored, key_dim=4)
    with torch.no_grad():
        attention.log_weight.fill_(0.7)
    attention.refresh()
    z, x = torch.randn(6, 5), torch.rand(6, 7)
    none = [-1] * 6
    out = attention(z, x).detach().numpy()
    assert np.abs(out - attend_in_a_loop(attention, z, x, list(range(9)), none)).max() < 1e-5
    slots, own = [7, 2, 5, 0], [0, -1, 3, -1, 2, 1]
    out = attention.forward_training(z, x, torch.tensor(slots), torch.tensor(own))
    out = out.detach().numpy()
    assert np.abs(out - attend_in_a_loop(attention, z, x, slots, own)).max() < 1e-5
    assert np.abs(out - attend_in_a_loop(attention, z, x, slots, none)).max() > 1e-3


def test_unseen_classes_come_nearer_to_their_stored_vectors(tmp_path: Path) -> None:
    """With attention, queries of classes outside training are nearer to their class."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data)
    unseen = [i for i, item in enumerate(data.items) if item.split != "train" and i % 2]
    cosines = []
    for keys in (", attention: null", ", attention: 8"):
        features = kit.features(trained(tmp_path, keys), data)
        cosines.append(
            np.mean(
                [
                    features[i] @ reference.gallery_features[row]
                    for i in unseen
                    for row, label in enumerate(reference.gallery_labels)
                    if label == data.labels[i]
                ]
            )
        )
    assert len(unseen) >= 8
    assert cosines[1] > cosines[0] + 0.02


def test_the_exported_file_has_the_first_anchors_and_computes_as_torch(tmp_path: Path) -> None:
    """It has as many anchors as there are slots; saved weights have none."""
    result = trained(tmp_path, ", attention: 8, slots: 10")
    attention = result.network.attention
    assert attention is not None
    assert attention.keys.shape == (10, 8)
    assert len(result.record["anchors"]) > 10
    assert attention.features.untyped_storage().nbytes() == 0
    images = kit.pixels(kit.dataset(tmp_path))
    (tmp_path / "out").mkdir()
    export(result.network, tmp_path / "out" / "raw.onnx", 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "raw.onnx")
    (embedding,) = session.run(["embedding"], {"image": images})
    assert np.abs(embedding - embed(result.network, images)).max() < 1e-5
    save_weights(result.network, tmp_path / "base.safetensors")
    again = train(
        recipe=kit.recipe(tmp_path, junction="junction: {kind: mlp, hidden: 32, dropout: 0.5}"),
        base=tmp_path / "base.safetensors",
        data=kit.dataset(tmp_path),
        reference=kit.gallery(kit.dataset(tmp_path)),
        work=tmp_path,
    )
    assert again.record["base"]["junction"]
    assert not any("attention" in name for name in again.record["base"]["unexpected"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": "train: full", "objective": LINE.format(", attention: 8").replace("0.5", "0")},
         "attention compares features of a frozen backbone"),
        ({"objective": LINE.format(", attention: 8").replace("16.0", "null")},
         "scale must not be null"),
        ({"objective": LINE.format(", attention: 0")}, "attention"),
    ],
)  # fmt: skip
def test_recipes_in_which_attention_cannot_work_are_refused(
    tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    """A backbone that is trained, a loss without scale, and a key width of 0 are errors."""
    with pytest.raises(InputError, match=says):
        kit.recipe(tmp_path, **changes)
