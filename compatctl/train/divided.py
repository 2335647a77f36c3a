"""Steps whose backbone pass is divided, among processes and in parts that fit into memory.

The loss sees the features of the whole batch. Parts run without gradient first, their features are
gathered, the loss gives its gradient on them, and each part runs again to pass its rows of that
gradient on (Gao et al., RepL4NLP 2021, arXiv 2101.06983). A process with one part keeps it instead
of running it again. The junction and the loss are computed by every process on the whole batch, so
that dropout in the junction is the same as in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.processes import Processes
from compatctl.recipe import Recipe
from compatctl.train.process_group import gather, sum_gradients


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class StepFeatures:
    """The features of a step.

    Attributes:
        values: (B, F), with gradient if the backbone trains.
        propagate: passes the gradient of ``values`` on to the backbone's weights; after the
            backward pass of the loss.
    """

    values: Tensor
    propagate: Callable[[], None] = _nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Rows of a step that pass through the backbone at once.

    Attributes:
        rows: their place in the step.
        batch: what the reader made of them.
        seed: of random layers in the backbone.
    """

    rows: slice
    batch: NDArray[Any]
    seed: int


def part_rows(processes: Processes, total: int, micro_batch: int | None) -> list[slice]:
    """The rows of each of this process's parts of a step of ``total`` items."""
    own = processes.share(total)
    size = micro_batch or max(1, own.stop - own.start)
    return [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]


def divided_features(
    parts: Sequence[Part],
    run: Callable[[NDArray[Any]], Tensor],
    processes: Processes,
    *,
    shape: tuple[int, int],
    weights: Sequence[nn.Parameter],
) -> StepFeatures:
    """The features of a whole step of ``shape`` (B, F) from this process's parts.

    Args:
        run: the features of what the reader made.
        weights: those of the backbone that train.
    """
    device = weights[0].device
    keeps = len(parts) == 1

    def forward(part: Part, *, with_graph: bool) -> Tensor:
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(with_graph):
            torch.manual_seed(part.seed)
            return run(part.batch)

    outputs = [forward(part, with_graph=keeps) for part in parts]
    own = torch.zeros(0, shape[1], device=device)
    own = torch.cat([own, *(output.detach().float() for output in outputs)])
    values = gather(processes, own, shape[0]).requires_grad_()

    def propagate() -> None:
        gradient = values.grad
        assert gradient is not None, "the loss has run backward"
        for part, output in zip(parts, outputs, strict=True):
            again = output if keeps else forward(part, with_graph=True)
            torch.autograd.backward(again, gradient[part.rows].to(again.dtype))
        sum_gradients(processes, weights)

    return StepFeatures(values=values, propagate=propagate)


def refuse_division(recipe: Recipe, backbone: nn.Module, processes: Processes) -> None:
    """Refuse what a divided batch cannot have.

    Raises:
        InputError: ``micro_batch`` where nothing of the backbone trains; or BatchNorm statistics of
            the batch, which no part has.
    """
    optimiser = recipe.optimiser
    if recipe.train == "head":
        if optimiser.micro_batch is not None:
            raise InputError(
                "optimiser.micro_batch divides the backbone's part of a step, and train: head has "
                "none",
                tip="write micro_batch: null; or train: full",
            )
        return
    divides = processes.size > 1 or optimiser.micro_batch is not None
    norms = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in backbone.modules())
    if divides and norms and not optimiser.frozen_norm:
        raise InputError(
            "frozen_norm: false takes BatchNorm statistics of the whole batch, which several "
            "processes or a micro_batch divide",
            tip="write frozen_norm: true; or train in one process with micro_batch: null",
        )
