"""Processes that train one network together, by torch.distributed.

Backbones run on parts of a batch. Features are gathered, so that every process sees the loss of the
whole batch; gradients of the backbone's weights are added up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from compatctl.errors import InputError, PeerError, UsageError
from compatctl.processes import ALONE, Launch, Processes

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others within a step."""
WAIT_TIMEOUT = timedelta(hours=24)
"""How long it waits where one of them works alone, as on the old features."""
BUCKET = 1 << 24
"""Gradients that are added up at once: 64 MiB of float32."""


@contextlib.contextmanager
def join() -> Iterator[Processes]:
    """The processes that ``torchrun`` started; ``ALONE`` without it.

    Raises:
        UsageError: the environment lacks what ``torchrun`` sets.
        PeerError: the others cannot be reached, or one of them ended during the block.
    """
    launch = Launch.current()
    if launch is None:
        yield ALONE
        return
    _choose_device(launch)
    with _peer_errors():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(backend, timeout=STEP_TIMEOUT)
        except ValueError as error:  # what torchrun sets is not all there
            raise UsageError(
                f"the processes cannot meet: {error}", tip="start compatctl finetune by torchrun"
            ) from error
        patient = distributed.new_group(timeout=WAIT_TIMEOUT, backend="gloo")

    def exchange(value: Any) -> list[Any]:
        values: list[Any] = [None] * launch.size
        with _peer_errors():
            distributed.all_gather_object(values, value, group=patient)
        return values

    def broadcast(value: Any) -> Any:
        values = [value]
        with _peer_errors():
            distributed.broadcast_object_list(values, src=0, group=patient)
        return values[0]

    try:
        yield Processes(rank=launch.rank, size=launch.size, exchange=exchange, broadcast=broadcast)
    finally:
        distributed.destroy_process_group()


def gather(processes: Processes, rows: Tensor, total: int) -> Tensor:
    """(total, F): the rows of all processes in order, each with its ``share`` of ``total``."""
    if processes.size == 1:
        return rows
    longest = processes.share(total, 0)
    padded = rows.new_zeros(longest.stop, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(processes.size)]
    with _peer_errors():
        distributed.all_gather(parts, padded)
    shares = [processes.share(total, rank) for rank in range(processes.size)]
    return torch.cat(
        [part[: own.stop - own.start] for part, own in zip(parts, shares, strict=True)]
    )


def fill(processes: Processes, table: Tensor, parts: Sequence[slice]) -> None:
    """Fill a table in place: ``parts[rank]`` are the rows that process ``rank`` has."""
    if processes.size == 1:
        return
    with _peer_errors():
        for rank, part in enumerate(parts):
            if part.stop > part.start:
                distributed.broadcast(table[part], src=rank)


def same_tensors(processes: Processes, tensors: Iterable[Tensor]) -> None:
    """Give all processes the leader's values, in place."""
    if processes.size == 1:
        return
    with _peer_errors(), torch.no_grad():
        for tensor in tensors:
            distributed.broadcast(tensor.data, src=0)


def sum_gradients(processes: Processes, weights: Sequence[nn.Parameter]) -> None:
    """Give each weight the sum of its gradients; one that has none anywhere keeps none."""
    if processes.size == 1 or not weights:
        return
    known = torch.tensor([float(weight.grad is not None) for weight in weights])
    known = known.to(weights[0].device)
    with _peer_errors(), torch.no_grad():
        distributed.all_reduce(known, distributed.ReduceOp.MAX)
        used = [weight for weight, has in zip(weights, known.tolist(), strict=True) if has]
        for bucket in _buckets(used):
            gradients = [
                torch.zeros_like(weight) if weight.grad is None else weight.grad
                for weight in bucket
            ]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [weight.numel() for weight in bucket])
            for weight, part in zip(bucket, parts, strict=True):
                weight.grad = part.view_as(weight).clone()


def require_same(processes: Processes, key: str) -> None:
    """Refuse processes that do not train on the same.

    Raises:
        InputError: a key differs from the leader's.
    """
    keys = processes.exchange(key)
    others = [rank for rank, other in enumerate(keys) if other != keys[0]]

    def refuse() -> None:
        if others:
            raise InputError(
                f"process {others[0]} has another recipe, base, data, gallery, version or kind of "
                "device than process 0",
                tip="give every machine the same files, or one folder that all of them see",
            )

    processes.agree(refuse)


def _buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for weight in weights:
        if bucket and sum(one.numel() for one in bucket) + weight.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket


def _choose_device(launch: Launch) -> None:
    """Let the process use the GPU of its number.

    Raises:
        InputError: its machine has GPUs, but fewer than processes.
    """
    if not torch.cuda.is_available():
        return
    if launch.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {launch.rank} is number {launch.local_rank} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs",
            tip="start as many processes on it as it has GPUs",
        )
    torch.cuda.set_device(launch.local_rank)


@contextlib.contextmanager
def _peer_errors() -> Iterator[None]:
    """Turn what torch raises when another process is gone into a ``PeerError``."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PeerError(
            f"process {os.environ.get('RANK', '?')}: another process of this run ended, or did "
            f"not answer: {first}",
            tip="see the error of that process; compatctl finetune --resume continues from the "
            "last epoch",
        ) from error
