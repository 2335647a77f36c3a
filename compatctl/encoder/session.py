"""ONNX Runtime: the one place where it is called, so that its errors become ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compatctl.encoder.contract import MAX_DIM, OUTPUT, EncoderInput
from compatctl.errors import InputError

FATAL_ONLY = 4
MEMORY_SHARE = 0.5
"""The share of the machine's memory that all encoders of the process may compute in together."""

FOLDED_BYTES = 4 << 30
"""What ONNX Runtime may compute once, outside that memory, when it opens an encoder."""


def machine_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def _bounded_memory() -> None:
    """Once for the process: the arena that every session allocates in, and its limit."""
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    limit = ort.OrtArenaCfg({"max_mem": int(machine_bytes() * MEMORY_SHARE)})
    ort.create_and_register_allocator(where, limit)


class Session:
    """A model that is ready to run on the CPU.

    Args:
        path: for messages.
        data: the model's bytes.
        threads: how many compute one batch; default: as many as there are processors.
        nodes: operators of the graph, which share ``FOLDED_BYTES``.

    Raises:
        InputError: ONNX Runtime does not take the model.
    """

    def __init__(self, path: Path, data: bytes, threads: int | None = None, *, nodes: int) -> None:
        self._path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes",
            str(FOLDED_BYTES // max(1, nodes)),
        )
        try:
            _bounded_memory()
            self._session = ort.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which would print to stdout and try the same again
            )
        except Exception as error:  # its errors share no base class
            raise InputError(f"{path}: ONNX Runtime refuses it: {error}") from error

    def run(self, images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The output ``embedding`` for a batch of every input, (n, H, W, 3) uint8.

        Raises:
            InputError: ONNX Runtime fails on it.
        """
        try:
            out: NDArray[np.float32] = self._session.run([OUTPUT], dict(images))[0]
        except Exception as error:  # its errors share no base class
            raise InputError(f"{self._path}: ONNX Runtime fails on a batch: {error}") from error
        return out

    def dim(self, inputs: tuple[EncoderInput, ...]) -> int:
        """D, from running two grey images: the shape is tested, not believed.

        Raises:
            InputError: the output is not (2, D) float32.
        """
        grey = {
            one.name: np.full(
                (2, one.preprocessing.height, one.preprocessing.width, 3), 128, np.uint8
            )
            for one in inputs
        }
        out = self.run(grey)
        right = isinstance(out, np.ndarray) and out.ndim == 2 and out.dtype == np.float32
        if not right or len(out) != 2 or not 1 <= out.shape[1] <= MAX_DIM:
            raise InputError(
                f"{self._path}: two images came out as {_form(out)}, expected (2, D) float32 with "
                f"D at most {MAX_DIM}",
                tip="export it with a free batch axis, pooled to one vector an image",
            )
        return int(out.shape[1])


def _form(value: object) -> str:
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else "no array"
