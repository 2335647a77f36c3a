"""A small real backbone, a small real data set, and a deployed gallery to train against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compatctl.data import Dataset, load
from compatctl.recipe import Recipe
from compatctl.train import Reference, embed

torch.set_num_threads(1)
SIZE = 16
CLASSES = 12
RECIPE = """\
format: 1
seed: 3
backbone:
  factory: "train_kit:Small"
  args: {width: 12}
  method: extract
  taps: null
  input: {height: 16, width: 16, fit: stretch, mean: [127, 127, 127], std: [64, 64, 64]}
junction: {kind: linear}
objective: {frame: prototypes, lambda: 1.0, scale: 16.0}
optimiser: {epochs: 6, batch_size: 16, lr: 0.02}
"""


PLAIN = "contrast: hoc, mu: 10.0, scale: null"
"""The papers' loss."""


class Small(nn.Module):
    """Two convolutions with BatchNorm; ``extract`` gives (N, F, 4, 4)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.unused = nn.Linear(2 * width, 5)

    def extract(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) -> (N, F, 4, 4)."""
        return torch.relu(self.two(torch.relu(self.norm(self.one(x)))))


def base(folder: Path, seed: int = 1, width: int = 12) -> Path:
    """A torch file with the weights of a ``Small``."""
    torch.manual_seed(seed)
    path = folder / f"base{seed}-{width}.pt"
    torch.save({"state_dict": Small(width).state_dict()}, path)
    return path


def recipe(folder: Path, text: str = RECIPE, **changes: str) -> Recipe:
    """``RECIPE`` with whole lines replaced: ``objective="objective: {...}"``."""
    lines = text.splitlines()
    for key, line in changes.items():
        lines = [kept for kept in lines if not kept.startswith(f"{key}:")] + [line]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Recipe.load(path, factories=("train_kit", "torch.nn"))


def dataset(folder: Path, per_class: int = 8) -> Dataset:
    """Images of stripes: a class is an orientation and two colours, an item a phase and noise."""
    rng = np.random.default_rng(5)
    images, labels = [], []
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    for label in range(CLASSES):
        angle = np.pi * label / CLASSES
        colours = rng.uniform(0, 255, (2, 3))
        for _ in range(per_class):
            phase = rng.uniform(0, 2 * np.pi)
            wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * 1.2 + phase)
            mixed = 0.5 + 0.5 * wave[..., None]
            image = (
                colours[0] * mixed + colours[1] * (1 - mixed) + rng.normal(0, 12, (SIZE, SIZE, 3))
            )
            images.append(np.clip(image, 0, 255).astype(np.uint8))
            labels.append(f"kind-{label}")
    path = folder / "data.npz"
    ids = np.array([f"item-{i:03d}" for i in range(len(labels))])
    np.savez(path, images=np.stack(images), labels=np.array(labels), ids=ids)
    return load(path)


def pixels(data: Dataset) -> np.ndarray:
    """(N, H, W, 3) uint8 images of a data set."""
    return np.stack([np.asarray(data.read(i)) for i in range(len(data))])


def features(trained: object, data: Dataset) -> np.ndarray:
    """(N, D) embeddings of a data set by a trained network."""
    return embed(trained.network, pixels(data))


def gallery(data: Dataset, dim: int = 8, every: int = 2) -> Reference:
    """A gallery of every second item; its unit rows are a random function of the colours."""
    rng = np.random.default_rng(9)
    flat = pixels(data).reshape(len(data), -1, 3).astype(np.float64) / 64.0
    described = np.concatenate([flat.mean(1), flat.std(1)], axis=1)
    vectors = np.sin(described @ rng.standard_normal((6, dim)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Reference.from_arrays(data, vectors.astype(np.float32), range(0, len(data), every))
