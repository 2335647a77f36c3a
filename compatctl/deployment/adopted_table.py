"""A table or collection to adopt: every row is read once, nothing is copied."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compatctl.core.arrays import NORM_TOLERANCE, Checksums
from compatctl.deployment.adopted_source import AdoptedSource
from compatctl.engines import (
    Deployment,
    Inspection,
    Location,
    RowBlock,
    RowChecksums,
    Rows,
    TableFile,
    VectorIndexFacts,
    deployment_of,
    inspect,
    open_connection_to,
    operators_of,
    rows_of,
)
from compatctl.errors import ConflictError, InputError, UsageError
from compatctl.files import sha256_file
from compatctl.index import EngineIndex, row_checksums
from compatctl.manifest import IndexInfo
from compatctl.notices import notice
from compatctl.printable import listed
from compatctl.progress import Progress
from compatctl.store import Switch, finish_creation, store_exists


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """The table to adopt.

    Attributes:
        store: where the store will be, or is.
        dim: the model's dimension.
        space: ip, l2 or cosine; None: what the table's index says, or cosine without one.
        dry_run: complete no creation that was killed.
    """

    location: Location
    store: Path
    dim: int
    space: str | None = None
    ef_search: int = 64
    dry_run: bool = False


@contextmanager
def open_adopted_table(request: TableRequest, progress: Progress) -> Iterator[AdoptedSource]:
    """Read the table, and describe it for a store.

    Raises:
        InputError: the table, its columns or its rows cannot be a gallery of this model.
        UsageError: the space is not that of the table's index.
        ConflictError: another store switches the table.
        CompatError: the server cannot be reached.
    """
    with open_connection_to(request.location.from_environment()) as connection:
        found = inspect(connection, request.location, request.dim)
        location = found.location
        _refuse_table(found)
        index = _chosen_index(request, found)
        space = request.space or (index.space if index else "cosine")
        rows = rows_of(
            location, id_type=found.id_type, vector_type=found.vector_type, dim=request.dim
        )
        table = deployment_of(location.from_environment())
        if not request.dry_run:
            finish_creation(request.store, table)
        _refuse_other_store(request.store, location, table)
        adopted = _read(rows, connection, progress)
        without = rows.count(connection)[1]
    adopted.refuse(location.url, space)
    _tell(found, index, without, request.dim)
    _tell_no_labels(location, adopted)
    file = TableFile(
        location=location,
        id_type=rows.id_type,
        vector_type=rows.vector_type,
        operator=operators_of(location)[space],
        iterative_scan=found.iterative_scan,
        rows=len(adopted.ids),
    )
    with tempfile.TemporaryDirectory() as folder:
        yield _source(request, file, adopted, index, space, Path(folder))


def _source(  # noqa: PLR0917
    request: TableRequest,
    file: TableFile,
    adopted: _AdoptedRows,
    index: VectorIndexFacts | None,
    space: str,
    folder: Path,
) -> AdoptedSource:
    order = adopted.order(file.id_type)
    ids = tuple(adopted.ids[row] for row in order.tolist())
    path = folder / "adopted.table"
    file.write(path, RowChecksums.of_table(np.concatenate(adopted.checksums)[order]))
    sha256 = sha256_file(path)
    keys = np.arange(len(ids), dtype=np.uint64)
    info = IndexInfo(
        engine=file.engine,
        space=space,
        dim=request.dim,
        M=index.m if index else 16,
        ef_construction=index.ef_construction if index else 64,
        ef_search=request.ef_search,
        count=len(ids),
        sha256=sha256,
        seed=0,
    )
    labels = adopted.labels
    return AdoptedSource(
        path=path,
        sha256=sha256,
        index=EngineIndex(
            file,
            ids=ids,
            row_of={item: row for row, item in enumerate(ids)},
            keys=keys,
            dim=request.dim,
            epoch=None,
            ef_search=request.ef_search,
        ),
        info=info,
        engine=file.engine,
        kind=f"{file.vector_type} {index.method if index else 'without index'} {space}",
        rebuilt=False,
        dropped=np.zeros(0, np.uint64),
        ids=ids,
        labels=tuple(labels[row] for row in order.tolist()) if labels else None,
        switch=Switch(file=file, root=request.store),
    )


@dataclass(kw_only=True, eq=False)
class _AdoptedRows:
    """What is kept of each row: id, label, checksum; and the norms' range."""

    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    checksums: list[Checksums] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    least: float = np.inf
    most: float = 0.0

    @property
    def is_unit(self) -> bool:
        """Whether every row has the norm 1, as far as half precision can."""
        return max(abs(self.least - 1.0), abs(self.most - 1.0)) <= NORM_TOLERANCE

    def take(self, block: RowBlock) -> None:
        """Keep what is needed of a block."""
        self.ids += block.ids
        self.labels += block.labels or ()
        self.checksums.append(row_checksums(block.vectors))
        norms = np.sqrt(np.einsum("nd,nd->n", block.vectors, block.vectors, dtype=np.float64))
        self.zero += [block.ids[row] for row in np.flatnonzero(norms == 0.0).tolist()]
        self.least = min(self.least, float(norms.min()))
        self.most = max(self.most, float(norms.max()))

    def order(self, id_type: str) -> np.ndarray:
        """The order (N,) of the ids: whole numbers by value, others as texts."""
        ids = np.array(self.ids, np.int64) if id_type in _WHOLE else np.array(self.ids, object)
        return np.argsort(ids, kind="stable")

    def refuse(self, url: str, space: str) -> None:
        """Refuse rows that are no gallery.

        Raises:
            InputError: no rows, an id twice, a zero vector, or norms that are part of the ranking.
        """
        if not self.ids:
            raise InputError(f"{url}: no row has a vector", tip="adopt the table once it is filled")
        if "" in self.ids:
            raise empty_id(url)
        if len(set(self.ids)) < len(self.ids):
            seen = set[str]()
            twice = [item for item in self.ids if item in seen or seen.add(item)]  # type: ignore[func-returns-value]
            raise InputError(
                f"{url}: {len(twice)} ids are there twice: {listed(twice)}",
                tip="name a column that is a key of the table: ?id=COLUMN",
            )
        if self.zero:
            raise InputError(
                f"{url}: {len(self.zero)} rows have a zero vector, which no direction has: "
                f"{listed(self.zero)}",
                tip="set them to NULL, or embed these items again",
            )
        if space != "cosine" and not self.is_unit:
            ranked = "inner product" if space == "ip" else "L2 distance"
            raise InputError(
                f"{url}: its rows have norms from {self.least:.4g} to {self.most:.4g} and are "
                f"ranked by {ranked}, so that norms are part of the ranking",
                tip="store unit rows, or an index with vector_cosine_ops; compatctl verify old.npz "
                "new.npz --similarity dot (or l2) compares two models as the table ranks",
            )


def empty_id(url: str) -> InputError:
    """The error for a row whose id is the empty text."""
    return InputError(
        f"{url}: a row has an empty id, and an item is known by its id",
        tip="give the row an id, or name another column: ?id=COLUMN",
    )


_WHOLE = ("smallint", "integer", "bigint", "int64")


def _read(rows: Rows, connection: object, progress: Progress) -> _AdoptedRows:
    found = _AdoptedRows()
    with closing(rows.blocks(connection)) as blocks:
        for block in blocks:
            found.take(block)
            progress("reading the table", len(found.ids), len(found.ids) + 1)
    progress("reading the table", 1, 1)
    return found


def _refuse_table(found: Inspection) -> None:
    problems = found.errors
    if problems:
        raise InputError(
            f"{found.location.url}: {'; '.join(check.problem for check in problems)}",
            tip=problems[0].tip or "compatctl doctor URL lists what is missing",
        )


def _chosen_index(request: TableRequest, found: Inspection) -> VectorIndexFacts | None:
    """The index that a search uses, hnsw before ivfflat; it must be of the space that is asked."""
    if request.space not in {None, *operators_of(found.location)}:
        raise UsageError(f"the space must be ip, cosine or l2, got {request.space!r}")
    usable = sorted(found.usable, key=lambda index: index.method != "hnsw")
    spaces = sorted({index.space for index in usable})
    if request.space is None and len(spaces) > 1:
        raise UsageError(
            f"{request.location.url} has indexes that rank by {' and by '.join(spaces)}",
            tip="--space says by which the application searches",
        )
    fits = [index for index in usable if request.space in {None, index.space}]
    if usable and not fits:
        raise UsageError(
            f"the index {usable[0].name} ranks by {usable[0].space}; --space says {request.space}",
            tip="leave --space out: the index says it",
        )
    return fits[0] if fits else None


def _tell(found: Inspection, index: VectorIndexFacts | None, without: int, dim: int) -> None:
    """Notices of what is there and is not used."""
    url = found.location.url
    if index is not None and found.vector_type == "FLOAT_VECTOR":
        _tell_collection(found, index)
        return
    for check in found.checks:
        if check.name == "row security":
            notice("row-security", url, "policies of row-level security", [check.found],
                   check.problem)  # fmt: skip
    if without:
        notice("null-vectors", url, "rows without a vector", ["NULL"],
               "they are not part of the gallery; compatctl add takes them in later",
               count=without)  # fmt: skip
    if index is None:
        limit = 2000 if found.vector_type == "vector" else 4000
        beyond = f": hnsw takes at most {limit} dimensions of {found.vector_type}"
        unused = [f"{other.name} ({other.defect})" for other in found.indexes if other.defect]
        notice("no-index", url, "indexes that a search of the column can use", unused or ["none"],
               f"every search reads the whole table{beyond * (dim > limit)}", count=0)  # fmt: skip
    elif index.method != "hnsw":
        notice("ivfflat", url, "indexes of another kind than hnsw", [index.name],
               "ef_search has no effect: ivfflat.probes decides")  # fmt: skip


def _tell_no_labels(location: Location, adopted: _AdoptedRows) -> None:
    """A notice of a column of classes that is empty, or a dynamic field that no row has."""
    if location.label and not any(adopted.labels):
        notice("no-labels", location.url, "columns of classes without a value", [location.label],
               "no item has a class")  # fmt: skip


def _tell_collection(found: Inspection, index: VectorIndexFacts) -> None:
    """Notices of an alias, of rows that are not in the index, and of an index without ef."""
    url = found.location.url
    for check in found.checks:
        if check.problem and check.name in {"collection", "index"}:
            kind = "alias" if check.name == "collection" else "index-behind"
            notice(kind, url, f"the {check.name}", [check.found], check.problem)
    if index.method not in {"hnsw", "flat"}:
        notice("no-ef", url, "indexes of another kind than HNSW", [index.name],
               "ef_search has no effect: the index's own settings decide")  # fmt: skip


def _refuse_other_store(store: Path, location: Location, table: Deployment) -> None:
    """Refuse a table that another store switches, before anything is written."""
    if store_exists(store):
        return
    row = table.read()
    if row is not None:
        raise ConflictError(
            f"another store switches this table: {location.row} is at epoch {row.epoch}",
            tip="go on with that store; &name=OTHER in the URL makes a second row, which the "
            "application then has to read",
        )
