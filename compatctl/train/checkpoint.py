"""The state after an epoch, so that a run that was killed goes on as if it had not been.

All that is random is drawn from (seed, trial, epoch); the schedule is a function of the step. So
the state is: weights, optimiser, losses, and what the finished trials gave.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compatctl.errors import ConflictError, InputError
from compatctl.files import write_atomic
from compatctl.train.weights import UNREADABLE, check_file

CHECKPOINT_FILE = "checkpoint.pt"
StateDict = dict[str, torch.Tensor]


@dataclass(kw_only=True)
class Checkpoint:
    """``trial`` runs and has done ``epoch`` epochs; ``trials`` are the finished ones' records."""

    trial: int = 0
    epoch: int = 0
    model: StateDict = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    best: StateDict = field(default_factory=dict)
    best_trial: int = -1
    seconds: float = 0.0


def save(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in ``folder``: a kill leaves the one before, or this one, whole."""
    buffer = io.BytesIO()
    torch.save({"key": key, **vars(checkpoint)}, buffer)
    write_atomic(folder / CHECKPOINT_FILE, buffer.getvalue())


def load(folder: Path, key: str) -> Checkpoint | None:
    """The checkpoint in ``folder``, or null where there is none.

    Raises:
        ConflictError: it belongs to another recipe, base, data, gallery, version or device.
        InputError: it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        check_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
        found = value.pop("key")
        if found == key:
            return _typed(Checkpoint(**value))
    except (OSError, *UNREADABLE) as error:
        raise InputError(
            f"{path}: is not a checkpoint that can be read: {error}",
            tip="start again without --resume",
        ) from error
    raise ConflictError(
        f"{path}: is of a run with another recipe, base, data or gallery",
        tip="start again without --resume, or restore what the run began with",
    )


def remove(folder: Path) -> None:
    """Forget the checkpoint: a new run begins, or this one has ended."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _typed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, once each entry is of the type of its default."""
    for name, default in vars(Checkpoint()).items():
        found = getattr(checkpoint, name)
        if type(found) is not type(default):
            raise TypeError(f"{name} is {type(found).__name__}, not {type(default).__name__}")
    return checkpoint
