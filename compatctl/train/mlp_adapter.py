"""The mlp adapter: one hidden layer from one model's features to another's, fitted without labels.

Source: the MLP adapter of Vejendla (EMNLP 2025, arXiv 2509.23471). This one is not residual, as F
and D may differ, and minimises ``pair_loss`` instead of the squared error, which gives a higher
hit rate: each item is a class of its own, with the deployed feature as its frozen row.
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
from compatctl.train.losses import pair_loss

HIDDEN = 1024
EPOCHS = 30
BATCH = 256
MIN_STEPS = 16
"""Steps of an epoch: with few pairs, batches are smaller"""
ROWS = 4096
"""Deployed features that a batch is contrasted with"""
SCALE = 16.0
"""Scale of the softmax over cosines"""
RATE = 0.002
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPerceptron:
    """The adapter of the best epoch, counted from 1, and its hit rate."""

    adapter: Perceptron
    epoch: int
    hit_rate: float


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
    """The adapter of ``iter_perceptrons`` with the highest hit rate, the first of equals.

    Args:
        source: (N, F) features of the new model.
        target: (N, D) features of the deployed model, of the same items.
        judge: hit rate of an adapter; called after each epoch.
        hidden: H, width of the hidden layer.
        epochs: passes over the pairs, at least 1.
        seed: for the initial weights and the order of the pairs.
        progress: called after each epoch.

    Raises:
        InputError: no pairs, different lengths, or values that are not finite.
    """
    adapters = iter_perceptrons(
        source, target, hidden=hidden, epochs=epochs, seed=seed, progress=progress
    )
    fitted = (
        FittedPerceptron(adapter=adapter, epoch=epoch, hit_rate=judge(adapter))
        for epoch, adapter in enumerate(adapters, start=1)
    )
    return max(fitted, key=lambda candidate: candidate.hit_rate)


def iter_perceptrons(
    source: NDArray[np.floating[Any]],
    target: NDArray[np.floating[Any]],
    *,
    hidden: int = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[Perceptron]:
    """Fit ``unit(relu(x @ hidden + b) @ matrix + c)`` to the target by ``pair_loss``, on the CPU.

    Yields a copy of the adapter after each epoch; arguments and errors as ``fit_perceptron``. The
    same seed and number of threads give the same adapters; torch's global generator is not used.
    """
    x, y = _pairs(source, target)
    rng = torch.Generator().manual_seed(seed)
    centre = x.mean(dim=0)
    spread = float((x - centre).square().mean().sqrt().clamp_min(1e-6))
    x = (x - centre) / spread
    weights = _initial_weights(x.shape[1], hidden, y.shape[1], rng)
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=WEIGHT_DECAY)
    size = min(BATCH, max(1, len(x) // MIN_STEPS))
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=rng)
        for start in range(0, len(x), size):
            fraction = (epoch + start / len(x)) / epochs
            optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1.0 + math.cos(math.pi * fraction))
            contrasted = torch.roll(order, -start)[:ROWS]  # begins with the batch
            _step(optimiser, weights, x[contrasted[: min(size, len(x) - start)]], y[contrasted])
        progress("fitting the mlp", epoch + 1, epochs)
        yield _to_perceptron(weights, centre, spread)


def _pairs(
    source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]
) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (source, target))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.numel():
        raise InputError(f"an adapter needs pairs of rows, got {tuple(x.shape)}, {tuple(y.shape)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("an adapter needs finite features")
    return x, y


def _step(optimiser: torch.optim.Optimizer, weights: list[Tensor], x: Tensor, y: Tensor) -> None:
    """One step on sources (B, F), whose targets are the first B rows of ``y`` (R, D)."""
    hidden, hidden_bias, matrix, bias = weights
    out = functional.normalize(torch.relu(x @ hidden + hidden_bias) @ matrix + bias)
    loss = pair_loss(out, y, SCALE)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def _initial_weights(F: int, H: int, D: int, rng: torch.Generator) -> list[Tensor]:
    """(F, H), (H,), (H, D), (D,): uniform within 1 / sqrt(fan-in)."""
    return [
        nn.Parameter((2.0 * torch.rand(shape, generator=rng) - 1.0) / math.sqrt(fan_in))
        for fan_in, shape in ((F, (F, H)), (F, (H,)), (H, (H, D)), (H, (D,)))
    ]


def _to_perceptron(weights: list[Tensor], centre: Tensor, spread: float) -> Perceptron:
    """The adapter, with centring and scaling folded into the first layer."""
    with torch.no_grad():
        hidden = weights[0] / spread
        layers = [hidden, weights[1] - centre @ hidden, weights[2], weights[3]]
        first, first_bias, second, bias = (layer.detach().clone().numpy() for layer in layers)
    return Perceptron(hidden=first, hidden_bias=first_bias, matrix=second, bias=bias)
