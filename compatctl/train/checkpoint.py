"""The state after an epoch: a run that was killed and resumes gives the same result.

Random numbers are drawn from (seed, trial, epoch), and the schedule is a function of the step. So
the state is: weights, optimiser, losses, and the results of finished trials.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compatctl.errors import ConflictError, InputError
from compatctl.files import os_errors, write_atomic
from compatctl.train.weights import UNREADABLE, StateDict, check_file

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(kw_only=True)
class Checkpoint:
    """``epoch`` epochs of ``trial`` are done; ``trials`` are the records of finished trials."""

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
    """Replace the checkpoint in ``folder`` atomically."""
    buffer = io.BytesIO()
    torch.save({"key": key, **vars(checkpoint)}, buffer)
    write_atomic(folder / CHECKPOINT_FILE, buffer.getvalue())


def load(folder: Path, key: str) -> Checkpoint | None:
    """The checkpoint in ``folder``, or None.

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
        if value.pop("key") == key:
            return _check_types(Checkpoint(**value))
    except (OSError, *UNREADABLE) as error:
        raise InputError(
            f"{path}: is not a readable checkpoint: {error}",
            tip="start again: compatctl finetune without --resume",
        ) from error
    raise ConflictError(
        f"{path}: belongs to a run with another recipe, base, data or gallery",
        tip="start again (compatctl finetune without --resume), or restore the files that the "
        "run began with",
    )


def remove(folder: Path) -> None:
    """Delete the checkpoint, if there is one.

    Raises:
        InputError: no permission.
    """
    path = folder / CHECKPOINT_FILE
    with os_errors("deleting", path):
        path.unlink(missing_ok=True)


def _check_types(checkpoint: Checkpoint) -> Checkpoint:
    """Raise ``TypeError`` unless each entry has the type of its default."""
    for name, default in vars(Checkpoint()).items():
        entry = getattr(checkpoint, name)
        if type(entry) is not type(default):
            raise TypeError(f"{name} is {type(entry).__name__}, not {type(default).__name__}")
    return checkpoint
