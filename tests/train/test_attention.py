"""The encoder's attention to its anchors: the sum itself, its training, its file, its limits."""

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
    """A small run with the anchors' ``keys`` besides."""
    data = kit.dataset(folder)
    recipe = kit.recipe(
        folder,
        objective=LINE.format(keys),
        junction="junction: {kind: mlp, hidden: 32, dropout: 0.5}",
        optimiser="optimiser: {epochs: 25, batch_size: 16, lr: 0.01}",
    )
    reference = kit.gallery(data)
    return train(recipe=recipe, base=kit.base(folder), data=data, reference=reference, work=folder)


def by_a_loop(
    held: Attention, z: torch.Tensor, x: torch.Tensor, slots: list[int], own: list[int]
) -> np.ndarray:
    """(N, D), row by row and anchor by anchor, in float64."""
    key = held.key.weight.detach().double().numpy()
    seen, stored = held.features.double().numpy(), held.stored.double().numpy()
    scale, weight = held.log_scale.exp().item(), held.log_weight.exp().item()
    rows = []
    for i in range(len(x)):
        mine = key @ x[i].double().numpy()
        total, weights = np.zeros(stored.shape[1]), 0.0
        for at, slot in enumerate(slots):
            if own[i] == at:
                continue
            other = key @ seen[slot]
            near = np.exp(scale * mine @ other / np.linalg.norm(mine) / np.linalg.norm(other))
            total, weights = total + near * stored[slot], weights + near
        total /= weights
        answer = z[i].double().numpy()
        rows.append(answer / np.linalg.norm(answer) + weight * total / np.linalg.norm(total))
    return np.array(rows)


def test_it_is_the_sum_that_a_loop_computes() -> None:
    """Both forms agree with a loop: all anchors, and some of them without the row's own image."""
    torch.manual_seed(0)
    stored = torch.nn.functional.normalize(torch.randn(9, 5))
    held = Attention(torch.rand(9, 7), stored, key_dim=4)
    with torch.no_grad():
        held.log_weight.fill_(0.7)
    held.refresh()
    z, x = torch.randn(6, 5), torch.rand(6, 7)
    nowhere = [-1] * 6
    found = held(z, x).detach().numpy()
    assert np.abs(found - by_a_loop(held, z, x, list(range(9)), nowhere)).max() < 1e-5
    slots, own = [7, 2, 5, 0], [0, -1, 3, -1, 2, 1]
    found = held.forward_training(z, x, torch.tensor(slots), torch.tensor(own)).detach().numpy()
    assert np.abs(found - by_a_loop(held, z, x, slots, own)).max() < 1e-5
    assert np.abs(found - by_a_loop(held, z, x, slots, nowhere)).max() > 1e-3


def test_unseen_classes_come_nearer_to_their_stored_vectors(tmp_path: Path) -> None:
    """Queries of classes that never trained are nearer to their class in the gallery with it."""
    data = kit.dataset(tmp_path)
    reference = kit.gallery(data)
    unseen = [i for i, item in enumerate(data.items) if item.split != "train" and i % 2]
    near = []
    for keys in (", attention: null", ", attention: 8"):
        found = kit.features(trained(tmp_path, keys), data)
        near.append(
            np.mean(
                [
                    found[i] @ reference.gallery_features[at]
                    for i in unseen
                    for at, label in enumerate(reference.gallery_labels)
                    if label == data.labels[i]
                ]
            )
        )
    assert len(unseen) >= 8
    assert near[1] > near[0] + 0.02


def test_the_file_holds_the_first_anchors_and_answers_as_torch_does(tmp_path: Path) -> None:
    """As many anchors as there are slots go into the file; a base for later leaves them out."""
    made = trained(tmp_path, ", attention: 8, slots: 10")
    held = made.network.attention
    assert held is not None
    assert held.keys.shape == (10, 8)
    assert len(made.record["anchors"]) > 10
    assert held.features.untyped_storage().nbytes() == 0
    images = kit.pixels(kit.dataset(tmp_path))
    (tmp_path / "out").mkdir()
    export(made.network, tmp_path / "out" / "raw.onnx", 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "raw.onnx")
    (found,) = session.run(["embedding"], {"image": images})
    assert np.abs(found - embed(made.network, images)).max() < 1e-5
    save_weights(made.network, tmp_path / "base.safetensors")
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
def test_what_does_not_go_with_it_is_refused(
    tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    """A backbone that trains, raw products, and keys of no width are errors of the recipe."""
    with pytest.raises(InputError, match=says):
        kit.recipe(tmp_path, **changes)
