"""ONNX Runtime: the one place where it is called, so that its errors become ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compatctl.encoder.contract import OUTPUT, EncoderInput
from compatctl.errors import InputError

FATAL_ONLY = 4


class Session:
    """A model that is ready to run on the CPU.

    Args:
        path: for messages.
        data: the model's bytes.
        threads: how many compute one batch; default: as many as there are processors.

    Raises:
        InputError: ONNX Runtime does not take the model.
    """

    def __init__(self, path: Path, data: bytes, threads: int | None = None) -> None:
        self._path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = FATAL_ONLY
        try:
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
        if out.ndim != 2 or len(out) != 2 or not out.shape[1] or out.dtype != np.float32:
            raise InputError(
                f"{self._path}: two images came out as {out.shape} {out.dtype}, "
                "expected (2, D) float32",
                tip="export it with a free batch axis, pooled to one vector an image",
            )
        return int(out.shape[1])
