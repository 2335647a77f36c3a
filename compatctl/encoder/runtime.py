"""Running an encoder: images are decoded by threads while ONNX Runtime computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Pixels, Vectors
from compatctl.data import Dataset, prepare
from compatctl.encoder import contract, onnx_safety
from compatctl.encoder.carrying import carried_record
from compatctl.encoder.contract import EncoderInput
from compatctl.encoder.import_onnx import read_model_bytes
from compatctl.encoder.session import Session
from compatctl.errors import InputError
from compatctl.files import sha256_bytes
from compatctl.progress import Progress, silent

UNIT_TOLERANCE = 1e-3
"""The largest distance from 1 of a row's norm."""

DIGEST_BYTES = 32
BATCH_SIZE = 64
AHEAD = 2
"""Batches that are decoded while one is computed."""

BATCH_BYTES = 1 << 28
"""The most bytes of one batch's pixels; larger inputs make smaller batches."""


@dataclass(frozen=True, kw_only=True)
class BadItem:
    """An item that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """``features`` (n, D) float32 unit rows of the data set's ``rows`` (n,) int64, ascending.

    ``digests`` (n, 32) uint8: the sha256 of the bytes that each was made of (``Dataset.digest``).
    """

    features: Vectors
    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    bad: tuple[BadItem, ...]


class Encoder:
    """A self-contained ONNX file: images in, unit rows (n, D) out.

    ``sha256`` (hex) is its identity, ``dim`` its D, ``inputs`` what the graph takes, ``name`` the
    file's name, for people, ``operators`` the kinds that are somewhere in the graph,
    ``record`` the training record that it carries, as text.
    """

    def __init__(
        self,
        *,
        session: Session,
        sha256: str,
        spec: contract.Contract,
        name: str,
        operators: frozenset[str],
        record: str | None,
    ) -> None:
        self._session = session
        self.sha256 = sha256
        self.dim = spec.dim
        self.inputs: tuple[EncoderInput, ...] = spec.inputs
        self.name = name
        self.operators = operators
        self.record = record

    @classmethod
    def load(
        cls, path: Path, preprocessing: Path | None = None, threads: int | None = None
    ) -> Encoder:
        """Open and check an encoder, and run it on one batch.

        A foreign file is wrapped by its preprocessing file: the one given, or
        NAME.preprocessing.json beside it. ``sha256`` is that of the sealed bytes, so the same two
        files have one identity. ``threads`` compute a batch; default: all processors.

        Raises:
            InputError: missing, not ONNX, not self-contained, or not what its metadata says.
        """
        return cls.from_bytes(read_model_bytes(path, preprocessing), path, threads)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, threads: int | None = None) -> Encoder:
        """The encoder in the sealed bytes of a model; ``path`` is where they were read.

        Raises:
            InputError: as ``load``.
        """
        model = contract.parse(path, data)
        spec = contract.read(path, model)
        contract.check_signature(path, model, spec)
        session = Session(path, data, threads, nodes=onnx_safety.node_count(path, model))
        found = session.dim(spec.inputs)
        if found != spec.dim:
            raise InputError(f"{path} gives {found} numbers; its metadata says {spec.dim}")
        return cls(
            session=session,
            sha256=sha256_bytes(data),
            spec=spec,
            name=path.name,
            operators=onnx_safety.operators(model),
            record=carried_record(path, model),
        )

    def run(self, images: Mapping[str, Pixels]) -> Vectors:
        """(n, D) float32 rows for prepared pixels (n, H, W, 3) uint8 of every input, unchecked.

        Raises:
            InputError: ONNX Runtime does not take the batch.
        """
        return self._session.run(images)

    def embed(
        self,
        dataset: Dataset,
        batch_size: int = BATCH_SIZE,
        skip_bad: bool = False,
        progress: Progress = silent,
    ) -> Embedded:
        """Features of every item; a few batches are decoded ahead, no more are held.

        Raises:
            InputError: an image does not decode (unless ``skip_bad``), or its row is not finite or
                not of unit norm; the message names the item.
        """
        features = np.zeros((len(dataset), self.dim), np.float32)
        digests = np.zeros((len(dataset), DIGEST_BYTES), np.uint8)
        rows: list[int] = []
        bad: list[BadItem] = []
        for batch in self._decoded(dataset, min(batch_size, self.largest_batch)):
            good = [one for one in batch if one.error is None]
            for one in batch:
                if one.error is not None and not skip_bad:
                    raise one.error
                if one.error is not None:
                    bad.append(BadItem(id=one.id, reason=one.error.message))
            if good:
                here = slice(len(rows), len(rows) + len(good))
                features[here] = self._unit_rows(good)
                digests[here] = [np.frombuffer(one.digest, np.uint8) for one in good]
                rows += [one.row for one in good]
            progress("images embedded", len(rows) + len(bad), len(dataset))
        return Embedded(
            features=features[: len(rows)],
            rows=np.array(rows, np.int64),
            digests=digests[: len(rows)],
            bad=tuple(bad),
        )

    @property
    def largest_batch(self) -> int:
        """The most images that are embedded at once, whatever is asked for."""
        sizes = [one.preprocessing for one in self.inputs]
        return max(1, BATCH_BYTES // sum(3 * one.height * one.width for one in sizes))

    def _decoded(self, dataset: Dataset, batch_size: int) -> Iterator[list[_Decoded]]:
        """Batches in order, the next ``AHEAD`` of them on their way in threads."""
        waiting: deque[list[Future[_Decoded]]] = deque()
        pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compatctl-decode")
        try:
            for first in range(0, len(dataset), batch_size):
                last = min(first + batch_size, len(dataset))
                waiting.append(
                    [pool.submit(self._decode, dataset, row) for row in range(first, last)]
                )
                if len(waiting) > AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, dataset: Dataset, row: int) -> _Decoded:
        item_id = dataset.items[row].id
        try:
            image, digest = dataset.read_hashed(row)
        except InputError as error:
            return _Decoded(row=row, id=item_id, pixels=(), digest=b"", error=error)
        pixels = tuple(prepare(image, one.preprocessing) for one in self.inputs)
        return _Decoded(row=row, id=item_id, pixels=pixels, digest=digest, error=None)

    def _unit_rows(self, batch: list[_Decoded]) -> Vectors:
        """The rows of a batch of images that decoded."""
        out = self.run(
            {
                one.name: np.stack([item.pixels[at] for item in batch])
                for at, one in enumerate(self.inputs)
            }
        )
        norms = np.linalg.norm(out, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"{self.name}: the embedding of item {batch[first].id!r} has the norm "
                f"{norms[first]:.4g}, expected 1",
                tip="an encoder must give finite unit rows; look at its weights and preprocessing",
            )
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    row: int
    id: str
    pixels: tuple[Pixels, ...]
    digest: bytes
    error: InputError | None
