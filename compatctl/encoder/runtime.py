"""Running an encoder: images are decoded by threads while ONNX Runtime computes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compatctl.data import Dataset, prepare
from compatctl.encoder import contract
from compatctl.encoder.contract import EncoderInput
from compatctl.encoder.graph import admit
from compatctl.errors import InputError
from compatctl.progress import Progress, silent

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
UNIT_TOLERANCE = 1e-3
AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class BadItem:
    """An item that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """``features`` (n, D) float32 unit rows of the data set's ``rows`` (n,) int64, ascending."""

    features: Floats
    rows: NDArray[np.int64]
    bad: tuple[BadItem, ...]


class Encoder:
    """A self-contained ONNX file: images in, unit rows out."""

    def __init__(
        self, *, session: Any, sha256: str, dim: int, inputs: tuple[EncoderInput, ...], name: str
    ) -> None:
        self._session = session
        self.sha256 = sha256
        self.dim = dim
        self.inputs = inputs
        self.name = name

    @classmethod
    def load(
        cls, path: Path, preprocessing: Path | None = None, threads: int | None = None
    ) -> Encoder:
        """Open and check an encoder.

        A foreign file is wrapped by its preprocessing file: the one given, or
        NAME.preprocessing.json beside it. ``sha256`` is that of the sealed bytes, so the same two
        files have one identity.

        Raises:
            InputError: missing, not ONNX, not self-contained, or not what its metadata says.
        """
        data = sealed_bytes(path, preprocessing)
        model = contract.parse(path, data)
        told = contract.read(path, model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise InputError(f"{path}: ONNX Runtime refuses it: {error}") from None
        contract.check_signature(path, told, session.get_inputs(), session.get_outputs())
        sha256 = hashlib.sha256(data).hexdigest()
        made = cls(session=session, sha256=sha256, dim=told.dim, inputs=told.inputs, name=path.name)
        made._probe(path)
        return made

    def run(self, images: Mapping[str, Pixels]) -> Floats:
        """(n, D) rows for prepared pixels (n, H, W, 3) of every input, unchecked."""
        out: Floats = self._session.run([contract.OUTPUT], dict(images))[0]
        return out

    def embed(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        skip_bad: bool = False,
        progress: Progress = silent,
    ) -> Embedded:
        """Features of every item; a few batches are decoded ahead, no more are held.

        Raises:
            InputError: an image does not decode (unless ``skip_bad``), or its row is not finite or
                not of unit norm; the message names the item.
        """
        features = np.zeros((len(dataset), self.dim), np.float32)
        rows: list[int] = []
        bad: list[BadItem] = []
        starts = deque(range(0, len(dataset), batch_size))
        waiting: deque[list[Future[_Decoded]]] = deque()
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            while starts or waiting:
                while starts and len(waiting) <= AHEAD:
                    first = starts.popleft()
                    last = min(first + batch_size, len(dataset))
                    waiting.append(
                        [pool.submit(self._decode, dataset, row) for row in range(first, last)]
                    )
                batch = [future.result() for future in waiting.popleft()]
                bad += _refused(batch, skip_bad=skip_bad, pool=pool)
                good = [one for one in batch if one.error is None]
                if good:
                    self._checked(good, dataset, features, len(rows))
                    rows += [one.row for one in good]
                progress("images embedded", len(rows) + len(bad), len(dataset))
        return Embedded(
            features=features[: len(rows)], rows=np.array(rows, np.int64), bad=tuple(bad)
        )

    def _decode(self, dataset: Dataset, row: int) -> _Decoded:
        try:
            image = dataset.read(row)
            pixels = tuple(prepare(image, one.preprocessing) for one in self.inputs)
        except InputError as error:
            return _Decoded(row=row, id=dataset.items[row].id, pixels=(), error=error)
        return _Decoded(row=row, id=dataset.items[row].id, pixels=pixels, error=None)

    def _checked(self, batch: list[_Decoded], dataset: Dataset, into: Floats, first: int) -> None:
        """Run a batch into ``into`` from row ``first`` on."""
        out = self.run(
            {
                one.name: np.stack([item.pixels[at] for item in batch])
                for at, one in enumerate(self.inputs)
            }
        )
        norms = np.linalg.norm(out, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))
        if len(wrong):
            item = dataset.items[batch[int(wrong[0])].row]
            raise InputError(
                f"{self.name}: the embedding of item {item.id!r} has the norm "
                f"{norms[wrong[0]]:.4g}, expected 1",
                tip="a model must give finite unit rows; look at its weights and its preprocessing",
            )
        into[first : first + len(batch)] = out

    def _probe(self, path: Path) -> None:
        """Two grey images must come out as (2, D): the shape is tested, not believed."""
        grey = {
            one.name: np.full(
                (2, one.preprocessing.height, one.preprocessing.width, 3), 128, np.uint8
            )
            for one in self.inputs
        }
        try:
            shape = self.run(grey).shape
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise InputError(f"{path}: it does not run on a batch of images: {error}") from None
        if shape != (2, self.dim):
            raise InputError(f"{path}: two images came out as {shape}, expected (2, {self.dim})")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    row: int
    id: str
    pixels: tuple[Pixels, ...]
    error: InputError | None


def _refused(batch: list[_Decoded], *, skip_bad: bool, pool: ThreadPoolExecutor) -> list[BadItem]:
    found = []
    for one in batch:
        if one.error is not None:
            if not skip_bad:
                pool.shutdown(wait=False, cancel_futures=True)
                raise one.error
            found.append(BadItem(id=one.id, reason=one.error.message))
    return found


def sealed_bytes(path: Path, preprocessing: Path | None = None) -> bytes:
    """The bytes that are the model: the file's own, or those of the wrapped foreign file.

    Raises:
        InputError: the file is missing, or it is foreign and its preprocessing file is not usable.
    """
    if not path.is_file():
        raise InputError(f"no model at {path}")
    side = preprocessing or path.with_suffix(".preprocessing.json")
    if preprocessing is None and not side.is_file():
        return path.read_bytes()
    try:
        json.loads(side.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{side} is not a preprocessing file: {error}") from None
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "sealed.onnx"
        admit(path, side, made)
        return made.read_bytes()
