"""ONNX Runtime, called only here; its errors become InputError."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compatctl.core.arrays import Vectors
from compatctl.encoder.inputs import EncoderInput, InputArray
from compatctl.encoder.metadata import MAX_DIM
from compatctl.errors import InputError
from compatctl.machine import computing_threads, usable_memory
from compatctl.progress import stage

FATAL_ONLY = 4
MEMORY_SHARE = 0.5
"""The share of ``usable_memory`` that all encoders of the process compute in together."""

FOLDED_BYTES = 4 << 30
"""The most bytes of constants that ONNX Runtime folds, outside that memory, on loading."""

_FIXED = (1, 4, 8, 16, 32)
"""Sizes of a fixed batch that are tried where two items fail."""

_NEWER = re.compile("IR version|opset version", re.IGNORECASE)
_NEWER_TIP = (
    "it is newer than the installed ONNX Runtime: pip install -U onnxruntime, or export it "
    "with an older operator set"
)
_FREE_BATCH = (
    "export it with a free batch axis (torch.onnx.export: dynamic_axes or dynamic_shapes), and "
    "without a number of items in a Reshape"
)


@dataclass
class _Default:
    """Threads that compute a batch in this process; None: ``computing_threads``."""

    threads: int | None = None


_default = _Default()


def use_threads(count: int) -> None:
    """Let ``count`` threads compute a batch of each model that this process loads from now on
    without a number of its own."""
    _default.threads = count


@functools.cache
def _limit_memory() -> None:
    """Register the arena that every session of the process allocates in, with its limit."""
    cpu = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    limit = ort.OrtArenaCfg({"max_mem": int(usable_memory() * MEMORY_SHARE)})
    ort.create_and_register_allocator(cpu, limit)


class Session:
    """A model on the CPU.

    ``path`` is for messages, ``data`` the model's bytes; ``threads`` compute a batch (default:
    those of ``use_threads``, or ``computing_threads``); ``nodes``, the number of operators, share
    ``FOLDED_BYTES``.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """

    def __init__(self, path: Path, data: bytes, threads: int | None = None, *, nodes: int) -> None:
        self._path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or _default.threads or computing_threads()
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.use_env_allocators", "1")
        # threads that spin while they wait take the processors from those that decode and answer
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes",
            str(FOLDED_BYTES // max(1, nodes)),
        )
        try:
            _limit_memory()
            with stage(f"loading {path.name}"):
                self._session = ort.InferenceSession(
                    data,
                    options,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,  # it would print to stdout and retry
                )
        except Exception as error:  # its errors share no base class
            tip = _NEWER_TIP if _NEWER.search(str(error)) else ""
            raise InputError(f"{path}: ONNX Runtime refuses it: {error}", tip=tip) from error

    def run(self, outputs: Sequence[str], batch: Mapping[str, InputArray]) -> list[Vectors]:
        """The rows (n, D) of each of these outputs, from one pass of a batch (n, ...) of every
        input.

        Raises:
            InputError: ONNX Runtime fails on it.
        """
        try:
            out: list[Vectors] = self._session.run(list(outputs), dict(batch))
        except Exception as error:  # its errors share no base class
            raise InputError(f"{self._path}: ONNX Runtime fails on a batch: {error}") from error
        return out

    def dims(self, outputs: Sequence[str], inputs: Sequence[EncoderInput]) -> tuple[int, ...]:
        """D of each of these outputs, from running two samples: the declared shape may be
        wrong.

        Raises:
            InputError: an output is not (2, D) float32, or the model takes batches of one size.
        """
        try:
            rows = self.run(outputs, {source.name: source.samples(2) for source in inputs})
        except InputError as error:
            self._refuse_fixed_batch(outputs, inputs, error)
            raise
        return tuple(map(self._dim_of, rows))

    def _refuse_fixed_batch(
        self, outputs: Sequence[str], inputs: Sequence[EncoderInput], cause: InputError
    ) -> None:
        """Raise an InputError that says so, if batches of some other size than two do run."""
        for size in _FIXED:
            try:
                self.run(outputs, {source.name: source.samples(size) for source in inputs})
            except InputError:
                continue
            taken = "one item at a time" if size == 1 else f"{size} items at a time"
            raise InputError(
                f"{self._path}: it takes {taken}, a fixed batch of {size}, and two items fail: "
                f"{cause.message}",
                tip=_FREE_BATCH,
            ) from cause

    def _dim_of(self, out: Vectors) -> int:
        valid = isinstance(out, np.ndarray) and out.ndim == 2 and out.dtype == np.float32
        if not valid or len(out) != 2 or not 1 <= out.shape[1] <= MAX_DIM:
            got = f"{out.shape} {out.dtype}" if isinstance(out, np.ndarray) else "no array"
            raise InputError(
                f"{self._path}: two items came out as {got}, expected (2, D) float32 with D at "
                f"most {MAX_DIM}",
                tip=f"{_FREE_BATCH}, pooled to one vector an item",
            )
        return int(out.shape[1])
