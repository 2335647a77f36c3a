"""Running an encoder: threads decode and prepare items while ONNX Runtime computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import NORM_TOLERANCE, Bools, Rows, Vectors
from compatctl.data import Content, Dataset, ItemVectors, Modality, Role, warn_of_equal_rows
from compatctl.encoder.composition import is_fused
from compatctl.encoder.graphs import parse_encoder
from compatctl.encoder.import_onnx import read_model_bytes
from compatctl.encoder.inputs import InputArray
from compatctl.encoder.metadata import FREE, OUTPUT, Contract, record_in
from compatctl.encoder.onnx_safety import node_count, operators
from compatctl.encoder.session import Session
from compatctl.encoder.texts import TextInput
from compatctl.encoder.vectors import VectorInput
from compatctl.errors import InputError
from compatctl.files import DIGEST_BYTES, sha256_bytes
from compatctl.machine import processors
from compatctl.notices import notice
from compatctl.pauses import pause
from compatctl.progress import Progress, silent

BATCH_SIZE = 64
AHEAD = 2
"""Batches decoded while one is computed."""

WINDOW = 16
"""Batches of texts that are sorted by length together, so that little of a batch is padding."""

BATCH_BYTES = 1 << 28
"""The most bytes of the input of a batch; larger inputs make smaller batches."""


@dataclass(frozen=True, kw_only=True)
class BadItem:
    """An item that was skipped, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """``features`` (n, D) float32, unit rows, of the data set's ``rows`` (n,), ascending.

    ``digests`` (n, 32) uint8: the sha256 of each item's bytes (``Dataset.digest``). ``free``
    (n, D_free) float32, unit rows: the encoder's second output, if it was requested.
    """

    features: Vectors
    rows: Rows
    digests: NDArray[np.uint8]
    bad: tuple[BadItem, ...]
    free: Vectors | None = None


class Encoder:
    """A self-contained ONNX file: items in, unit rows (n, D) out, and maybe free ones (n, D_free).

    Items are of one ``modality``: images, texts or vectors.

    ``sha256`` (hex) of the file is its identity, ``dim`` its D, ``free_dim`` its D_free, or None if
    it has one output; ``dims`` has both by the output's name. ``inputs`` are those of the graph,
    ``name`` is the file's name, ``operators`` the kinds in the graph, ``record`` the text of the
    training record in the file. ``is_fused``: it is the mean of two encoders, or made of one.
    """

    def __init__(
        self,
        *,
        session: Session,
        sha256: str,
        contract: Contract,
        name: str,
        operators: frozenset[str],
        record: str | None,
        is_fused: bool,
    ) -> None:
        self._session = session
        self.dims = contract.outputs
        self.sha256 = sha256
        self.dim = contract.dim
        self.free_dim = contract.free_dim
        self.inputs = contract.inputs
        self.name = name
        self.operators = operators
        self.record = record
        self.is_fused = is_fused

    @classmethod
    def load(
        cls, path: Path, preprocessing: Path | None = None, threads: int | None = None
    ) -> Encoder:
        """Open and check an encoder, and run it on one batch.

        A file that is not sealed is wrapped by its preprocessing file: the one given, or
        NAME.preprocessing.json beside it. ``sha256`` is that of the sealed bytes, so the same two
        files have one identity. ``threads`` compute a batch; default: ``computing_threads``.

        Raises:
            InputError: missing, not ONNX, not self-contained, or not what its metadata says.
        """
        return cls.from_bytes(read_model_bytes(path, preprocessing), path, threads)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, threads: int | None = None) -> Encoder:
        """The encoder in the sealed bytes of a model; ``path`` is for messages.

        Raises:
            InputError: as ``load``.
        """
        model, contract = parse_encoder(path, data)
        pause()
        session = Session(path, data, threads, nodes=node_count(path, model))
        pause()
        dims = session.dims(tuple(contract.outputs), contract.inputs)
        for dim, stated in zip(dims, contract.outputs.values(), strict=True):
            if dim != stated:
                raise InputError(f"{path} gives {dim} dimensions; its metadata says {stated}")
        return cls(
            session=session,
            sha256=sha256_bytes(data),
            contract=contract,
            name=path.name,
            operators=operators(model),
            record=record_in(path, model),
            is_fused=is_fused(model),
        )

    @property
    def modality(self) -> Modality:
        """What it takes: image, text or vector."""
        return self.inputs[0].MODALITY

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces whose vectors it takes."""
        return tuple(part.space for part in self.inputs if isinstance(part, VectorInput))

    @property
    def embeds_by_role(self) -> bool:
        """Whether it embeds a query and a gallery item of the same text differently."""
        return any(isinstance(part, TextInput) and part.by_role for part in self.inputs)

    def can_embed(self, data: Dataset, rows: Rows) -> Bools:
        """(n,) whether each of the rows (n,) of the data has the vectors that the encoder takes.

        Any image or text may have what it takes: only reading it shows that.
        """
        items = (data.sources[row] for row in rows.tolist())
        known = (not isinstance(item, ItemVectors) or item.has(self.spaces) for item in items)
        return np.fromiter(known, bool, len(rows))

    def prepare(self, content: Content, role: Role | None) -> tuple[tuple[InputArray, ...], bool]:
        """An item's array for each input, and whether something of its content was cut off.

        Raises:
            InputError: the content is of another modality, or has not what an input takes.
        """
        parts = [source.prepare(content, role) for source in self.inputs]
        return tuple(array for array, _ in parts), any(cut for _, cut in parts)

    def batch(self, prepared: Sequence[tuple[InputArray, ...]]) -> dict[str, InputArray]:
        """The batch (n, ...) of every input, of what ``prepare`` made of n items."""
        columns = zip(self.inputs, zip(*prepared, strict=True), strict=True)
        return {source.name: source.stack(arrays) for source, arrays in columns}

    def run(self, batch: Mapping[str, InputArray]) -> Vectors:
        """Unchecked rows (n, D) float32 of a batch (n, ...) of every input.

        Raises:
            InputError: ONNX Runtime fails on the batch.
        """
        (rows,) = self._session.run([OUTPUT], batch)
        return rows

    @property
    def has_free(self) -> bool:
        """Whether it has the second output, ``free``."""
        return self.free_dim is not None

    def outputs(self, batch: Mapping[str, InputArray]) -> tuple[Vectors, ...]:
        """Unchecked rows of every output, (n, D) maybe (n, D_free), from one pass."""
        return tuple(self._session.run(tuple(self.dims), batch))

    def embed(
        self,
        dataset: Dataset,
        batch_size: int = BATCH_SIZE,
        skip_bad: bool = False,
        progress: Progress = silent,
        looks: bool = False,
        *,
        free: bool = False,
        skip_empty: bool = False,
    ) -> Embedded:
        """Embed every item; only a few batches are decoded ahead.

        The data set remembers the digests, and with ``looks`` the looks, from the same reading.
        ``free``: the same pass gives the free vectors too. ``skip_empty``: an item whose row is
        zero or not finite is bad, as one that does not decode. No evaluation does that: a model
        would be judged without the images that it cannot embed.

        Raises:
            InputError: an item cannot be read or prepared (unless ``skip_bad``), or its row is not
                finite or not of unit norm; the message names the item. Or the data are of another
                modality; or ``free``, and there is one output.
        """
        if free and not self.has_free:
            raise InputError(
                f"{self.name} has no output 'free'",
                tip="re-scoring needs an encoder with two outputs",
            )
        rows = np.arange(len(dataset))
        run = _Run(self, rows, batch_size, progress, free=free, skip_empty=skip_empty)
        run.report()
        _embed(dataset, [run], skip_bad=skip_bad, looks=looks)
        return run.embedded(dataset)

    @property
    def largest_batch(self) -> int:
        """The most items that are embedded at once, whatever the batch size."""
        return max(1, BATCH_BYTES // sum(source.item_bytes for source in self.inputs))

    def unchecked_rows(
        self, outputs: Sequence[str], prepared: Sequence[tuple[InputArray, ...]]
    ) -> list[Vectors]:
        """The rows (n, D) of each of these outputs, whatever their norms are, from one pass.

        ``prepared``: for each item one array an input.
        """
        return self._session.run(outputs, self.batch(prepared))

    def check_unit(
        self, outputs: Sequence[str], outs: Sequence[Vectors], ids: Sequence[str]
    ) -> None:
        """Refuse rows (n, D) of items with these ids that are not finite or not of unit norm.

        Raises:
            InputError: the message names the first such item.
        """
        for output, rows in zip(outputs, outs, strict=True):
            self._check("free vector" if output == FREE else output, rows, ids)

    def _check(self, what: str, rows: Vectors, ids: Sequence[str]) -> None:
        """Refuse rows (n, D) that are not finite or not of unit norm."""
        norms = np.linalg.norm(rows, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
        if len(bad):
            first = int(bad[0])
            raise InputError(
                f"{self.name}: the {what} of item {ids[first]!r} has the norm "
                f"{norms[first]:.4g}, expected 1",
                tip="an encoder must give finite unit rows; look at its weights and preprocessing "
                '(and do not write "normalise": false there, if the model does not normalise); '
                "to leave a few such items out of a gallery: compatctl init or add --skip-bad",
            )


def embed_together(
    encoders: Sequence[Encoder],
    dataset: Dataset,
    rows: Sequence[Rows],
    *,
    skip_bad: bool = False,
    looks: bool = False,
    free: bool = False,
    progress: Sequence[Progress],
) -> list[Embedded]:
    """Embed ``rows`` (n,), ascending, with each of several encoders; an item is read once.

    ``rows`` and ``progress``: one for each encoder. ``free``: those with a free output give it too.
    Results and errors as ``Encoder.embed``.
    """
    runs = [
        _Run(encoder, own_rows, BATCH_SIZE, report, free=free and encoder.has_free)
        for encoder, own_rows, report in zip(encoders, rows, progress, strict=True)
    ]
    for run in runs:
        run.report()
    _embed(dataset, runs, skip_bad=skip_bad, looks=looks)
    return [run.embedded(dataset) for run in runs]


class _Run:
    """One encoder's way through its rows of a data set."""

    def __init__(
        self,
        encoder: Encoder,
        rows: Rows,
        batch_size: int,
        progress: Progress,
        *,
        free: bool = False,
        skip_empty: bool = False,
    ) -> None:
        self._skip_empty = skip_empty
        self.encoder = encoder
        self.rows = rows
        self.batch_size = min(batch_size, encoder.largest_batch)
        self._window = self.batch_size * (WINDOW if encoder.modality == "text" else 1)
        self._progress = progress
        self._rows_of = {
            output: np.zeros((len(rows), dim), np.float32)
            for output, dim in encoder.dims.items()
            if free or output == OUTPUT
        }
        self._digests = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
        self._good: list[int] = []
        self._bad: list[BadItem] = []
        self._pending: list[tuple[str, tuple[InputArray, ...]]] = []
        self._cut: list[str] = []
        self._unknown: list[str] = []

    def take(self, row: int, decoded: _Decoded, taker: int) -> None:
        """Take an item, or count a bad one; ``taker``: the position of the run's arrays."""
        if decoded.error is not None:
            self._bad.append(BadItem(id=decoded.id, reason=decoded.error.message))
            return
        self._digests[len(self._good)] = np.frombuffer(decoded.digest, np.uint8)
        self._good.append(row)
        arrays, cut = decoded.prepared[taker]
        self._pending.append((decoded.id, arrays))
        if cut:
            self._cut.append(decoded.id)
        for part, array in zip(self.encoder.inputs, arrays, strict=True):
            if isinstance(part, TextInput) and part.is_mostly_unknown(array):
                self._unknown.append(decoded.id)
        if len(self._pending) == self._window:
            self._flush()

    def embedded(self, dataset: Dataset) -> Embedded:
        """The result, after the last row of the data set."""
        if self._pending or self._bad:
            self._flush()
        if self._cut:
            notice(
                "long-text",
                self.encoder.name,
                f"texts that are longer than its {_max_length(self.encoder)} tokens",
                self._cut,
                "only their beginning is embedded",
            )
        if self._unknown:
            what = "texts of which at least half is unknown to the tokenizer"
            result = "it may be another model's, or of another language or case"
            notice("unknown-tokens", self.encoder.name, what, self._unknown, result)
        n, free = len(self._good), self._rows_of.get(FREE)
        features = self._rows_of[OUTPUT][:n]
        warn_of_equal_rows(self.encoder.name, features, [dataset.items[r].id for r in self._good])
        return Embedded(
            features=features,
            rows=np.array(self._good, np.int64),
            digests=self._digests[:n],
            bad=tuple(self._bad),
            free=None if free is None else free[:n],
        )

    def _flush(self) -> None:
        if self._pending:
            ids, prepared = zip(*self._pending, strict=True)
            outputs = tuple(self._rows_of)
            outs = self._outputs(outputs, prepared)
            if self._skip_empty:
                ids, outs = self._without_empty(ids, outs)
            self.encoder.check_unit(outputs, outs, ids)
            filled = slice(len(self._good) - len(ids), len(self._good))
            for rows, out in zip(self._rows_of.values(), outs, strict=True):
                rows[filled] = out
            self._pending.clear()
        self.report()

    def report(self) -> None:
        """Say how many items are embedded."""
        self._progress(
            f"{self.encoder.modality}s embedded", len(self._good) + len(self._bad), len(self.rows)
        )

    def _outputs(
        self, outputs: Sequence[str], prepared: Sequence[tuple[InputArray, ...]]
    ) -> list[Vectors]:
        """Rows (n, D) of each output, computed in batches of items of about one size."""
        order = np.argsort([sum(map(len, arrays)) for arrays in prepared], kind="stable")
        parts = [
            self.encoder.unchecked_rows(outputs, [prepared[row] for row in rows])
            for start in range(0, len(order), self.batch_size)
            for rows in [order[start : start + self.batch_size].tolist()]
        ]
        outs = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        back = np.argsort(order, kind="stable")
        return [rows[back] for rows in outs]

    def _without_empty(
        self, ids: Sequence[str], outs: list[Vectors]
    ) -> tuple[tuple[str, ...], list[Vectors]]:
        """The last ids and rows without those that are zero or not finite, which are bad items."""
        usable = np.ones(len(ids), bool)
        for rows in outs:
            norms = np.linalg.norm(rows, axis=1)
            usable &= np.isfinite(norms) & (norms > NORM_TOLERANCE)
        if usable.all():
            return tuple(ids), outs
        first = len(self._good) - len(ids)
        self._digests[first : first + usable.sum()] = self._digests[first : len(self._good)][usable]
        self._good[first:] = compress(self._good[first:], usable)
        reason = f"{self.encoder.name} gives it a vector that is zero or not finite"
        self._bad += [BadItem(id=item, reason=reason) for item in compress(ids, ~usable)]
        return tuple(compress(ids, usable)), [rows[usable] for rows in outs]


def _max_length(encoder: Encoder) -> int:
    return min(part.max_length for part in encoder.inputs if isinstance(part, TextInput))


def _embed(dataset: Dataset, runs: Sequence[_Run], *, skip_bad: bool, looks: bool) -> None:
    """Read each item once, in threads a few batches ahead, for all runs that take it."""
    for run in runs:
        _refuse_other_modality(run.encoder, dataset)
    rows = np.unique(np.concatenate([run.rows for run in runs]))
    takes = np.stack([np.isin(rows, run.rows) for run in runs], axis=1)

    def decode(position: int) -> _Decoded:
        row = int(rows[position])
        item = dataset.items[row]
        takers = [run for run, taken in zip(runs, takes[position], strict=True) if taken]
        try:
            content, digest = dataset.content_hashed(row, look=looks)
        except InputError as error:
            return _Decoded(id=item.id, takers=takers, error=error)
        try:
            prepared = [run.encoder.prepare(content, item.role) for run in takers]
        except InputError as error:
            named = InputError(f"item {item.id!r}: {error.message}", tip=error.tip)
            return _Decoded(id=item.id, takers=takers, error=named)
        return _Decoded(id=item.id, takers=takers, prepared=prepared, digest=digest)

    ahead = AHEAD * min(run.batch_size for run in runs)
    pool = ThreadPoolExecutor(processors(), thread_name_prefix="compatctl-decode")
    try:
        waiting = deque(pool.submit(decode, position) for position in range(min(ahead, len(rows))))
        for position, row in enumerate(rows.tolist()):
            decoded = waiting.popleft().result()
            if position + ahead < len(rows):
                waiting.append(pool.submit(decode, position + ahead))
            if decoded.error is not None and not skip_bad:
                raise decoded.error
            for taker, run in enumerate(decoded.takers):
                run.take(row, decoded, taker)
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse_other_modality(encoder: Encoder, dataset: Dataset) -> None:
    """Refuse data that the encoder does not take, before anything is read."""
    if len(dataset) and dataset.modality != encoder.modality:
        raise InputError(
            f"{encoder.name} takes {encoder.modality}s; the data has {dataset.modality}s",
            tip="name data of the model's own kind, or another model",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    """What each run that takes an item gets of it, or an error."""

    id: str
    takers: list[_Run]
    prepared: Sequence[tuple[tuple[InputArray, ...], bool]] = ()
    digest: bytes = b""
    error: InputError | None = None
