"""A small network from one model's features to another's: one hidden layer, fitted without labels.

Source: the MLP adapter of Vejendla (EMNLP 2025, arXiv 2509.23471). Here it is not residual, as F
and D may differ, and it learns to tell items apart and not the squared error, which finds more:
every item is a class of its own, whose frozen row is the item's deployed feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compatctl.core.adapters import Perceptron
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.train.losses import anchor_loss

HIDDEN = 1024
EPOCHS = 30
BATCH = 256
LEAST_STEPS = 16
"""Of an epoch: with few pairs batches are smaller."""
ROWS = 4096
"""Deployed features that a batch is told apart from."""
SCALE = 16.0
"""Of the softmax over cosines."""
RATE = 0.002
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPerceptron:
    """The map of the best epoch, its number from 1, and what it was judged to be."""

    adapter: Perceptron
    epoch: int
    recall: float


def fit_perceptron(
    source: NDArray[np.floating[Any]],
    target: NDArray[np.floating[Any]],
    *,
    judge: Callable[[Perceptron], float],
    hidden: int = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> FittedPerceptron:
    """The map of ``perceptrons`` that ``judge`` finds best, of equals the first.

    Args:
        source: (N, F) features of the new model.
        target: (N, D) features of the deployed one, the same items.
        judge: recall of a map, higher is better; asked after each epoch.
        hidden: H, numbers of the hidden layer.
        epochs: passes over the pairs, at least 1.
        seed: of the first weights and of the order of the pairs.
        progress: told of each epoch.

    Raises:
        InputError: no pair, other lengths, or values that are not finite.
    """
    best: FittedPerceptron | None = None
    fitted = iter_perceptrons(
        source, target, hidden=hidden, epochs=epochs, seed=seed, progress=progress
    )
    for epoch, adapter in enumerate(fitted, start=1):
        recall = judge(adapter)
        if best is None or recall > best.recall:
            best = FittedPerceptron(adapter=adapter, epoch=epoch, recall=recall)
    assert best is not None
    return best


def iter_perceptrons(
    source: NDArray[np.floating[Any]],
    target: NDArray[np.floating[Any]],
    *,
    hidden: int = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[Perceptron]:
    """Fit ``unit(relu(x @ hidden + b) @ matrix + c)`` to the target by ``anchor_loss``, on the CPU.

    The map after each epoch, each a copy of its own; arguments as in ``fit_perceptron``. The same
    seed and number of threads give the same maps; torch's global generator is left as it was.

    Raises:
        InputError: when the first is asked for: no pair, other lengths, or values that are not
            finite.
    """
    x, y = _pairs(source, target)
    rng = torch.Generator().manual_seed(seed)
    centre = x.mean(dim=0)
    spread = float((x - centre).square().mean().sqrt().clamp_min(1e-6))
    x = (x - centre) / spread
    weights = _first_weights(x.shape[1], hidden, y.shape[1], rng)
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=WEIGHT_DECAY)
    size = min(BATCH, max(1, len(x) // LEAST_STEPS))
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=rng)
        for start in range(0, len(x), size):
            done = (epoch + start / len(x)) / epochs
            optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1.0 + math.cos(math.pi * done))
            table = torch.roll(order, -start)[:ROWS]  # the batch comes first
            _step(optimiser, weights, x[table[: min(size, len(x) - start)]], y[table])
        progress("fitting the mlp", epoch + 1, epochs)
        yield _perceptron(weights, centre, spread)


def _pairs(
    source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]
) -> tuple[Tensor, Tensor]:
    x, y = _tensor(source), _tensor(target)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.numel():
        raise InputError(f"a map needs pairs of rows, got {tuple(x.shape)}, {tuple(y.shape)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("a map needs features that are finite")
    return x, y


def _step(optimiser: torch.optim.Optimizer, weights: list[Tensor], x: Tensor, y: Tensor) -> None:
    """One step on sources (B, F); the first B rows of ``y`` (R, D) are their targets."""
    hidden, hidden_bias, matrix, bias = weights
    out = functional.normalize(torch.relu(x @ hidden + hidden_bias) @ matrix + bias)
    loss = anchor_loss(out, y, torch.arange(len(x)), SCALE)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def _first_weights(F: int, H: int, D: int, rng: torch.Generator) -> list[Tensor]:
    """(F, H), (H,), (H, D), (D,): uniform within one over the root of what goes in."""
    found: list[Tensor] = []
    for takes, shape in ((F, (F, H)), (F, (H,)), (H, (H, D)), (H, (D,))):
        one = (2.0 * torch.rand(shape, generator=rng) - 1.0) / math.sqrt(takes)
        found.append(nn.Parameter(one))
    return found


def _perceptron(weights: list[Tensor], centre: Tensor, spread: float) -> Perceptron:
    """The network with the centring and the scaling put into its first layer."""
    with torch.no_grad():
        hidden = weights[0] / spread
        parts = [hidden, weights[1] - centre @ hidden, weights[2], weights[3]]
        first, first_bias, second, bias = (one.detach().clone().numpy() for one in parts)
    return Perceptron(hidden=first, hidden_bias=first_bias, matrix=second, bias=bias)


def _tensor(rows: NDArray[np.floating[Any]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
