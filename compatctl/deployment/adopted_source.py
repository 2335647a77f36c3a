"""An index file to adopt: byte for byte if it is an hnswlib file of unit rows, or built anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Keys
from compatctl.core.similarity import Similarity
from compatctl.deployment.adopted_rows import Norms, build_index, measure_norms, refuse_norms
from compatctl.deployment.creation import index_info
from compatctl.errors import InputError, UsageError
from compatctl.files import refuse_replacing, require_place, sha256_file
from compatctl.index import (
    DATABASES,
    ForeignRows,
    Form,
    HnswIndex,
    HnswParams,
    NotUnitError,
    VectorIndex,
    build_without_deleted,
    count_deleted,
    form_of,
    hnswlib_rows,
    open_source,
    read_faiss_header,
    read_header,
)
from compatctl.manifest import IndexInfo
from compatctl.notices import notice
from compatctl.progress import Progress
from compatctl.store import Switch

SIMILARITY_OF: dict[str, Similarity] = {"ip": "dot", "l2": "l2", "cosine": "cosine"}


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The file or folder to adopt, and how to read it.

    Attributes:
        table: of a LanceDB folder, or the collection of a Chroma folder; None: the only one.
        space: ip, l2 or cosine; None: what the file says, ip for hnswlib.
        columns: id, vector and label of a table -> the column's name; of Chroma only label.
        norms: a new .npz for the norms of rows that are not of unit length.
        dim: the model's dimension, which the rows must have.
    """

    path: Path
    dim: int
    space: str | None = None
    ef_search: int = 64
    drop_deleted: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    norms: Path | None = None
    table: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AdoptedSource:
    """The index to put into a store.

    Attributes:
        path, sha256: its file, and the digest.
        index: its N rows. ``info``: the manifest's entry for it.
        engine, kind: what wrote the file that was named, and its structure.
        rebuilt: the graph is new: the file was of another engine, or its rows had to change.
        lossy: why the rows are not those that were indexed; "" if they are.
        ids, labels: N each, if the file names its items itself.
        norms: of the rows before; None if they were of unit length.
        dropped: keys (n,) that are left out.
        switch: of the engine that has the rows; None where the file has them.
    """

    path: Path
    sha256: str
    index: VectorIndex
    info: IndexInfo
    engine: str
    kind: str
    rebuilt: bool
    dropped: Keys
    lossy: str = ""
    ids: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    norms: Norms | None = None
    switch: Switch | None = None


@contextmanager
def open_adopted(request: SourceRequest, progress: Progress) -> Iterator[AdoptedSource]:
    """Read the file, and build an index of its rows where it cannot be adopted as it is.

    Raises:
        InputError: the file is of no known form, of another dimension, or its norms would be lost.
        UsageError: an option that has no meaning for this file.
        DamagedError: the file is damaged, or has rows marked deleted and not ``drop_deleted``.
    """
    if request.space not in {None, *SIMILARITY_OF}:
        raise InputError(f"the space must be ip, cosine or l2, got {request.space!r}")
    form = form_of(request.path)
    _refuse_options(request, form)
    with ExitStack() as stack:

        def scratch() -> Path:
            """A folder for what is built; a file that is adopted as it is needs none."""
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        if form is Form.HNSWLIB:
            yield _hnswlib(request, scratch, progress)
            return
        if form is Form.FAISS:  # before its rows are read, which may take minutes
            _check_dim(request.path, read_faiss_header(request.path).dim, request.dim)
        progress("reading the index", 0, 1)
        folder = scratch()
        source = open_source(request.path, form, folder, request.columns, request.table)
        progress("reading the index", 1, 1)
        yield _rebuilt(request, source, folder, progress)


_NAMED = ("id", "vector", "label")
_COLUMNS: Mapping[Form, tuple[str, ...]] = {
    Form.NPZ: _NAMED,
    Form.PARQUET: _NAMED,
    Form.LANCEDB: _NAMED,
    Form.CHROMA: ("label",),
}
"""What ``--items-column`` can name in each form."""


def _refuse_options(request: SourceRequest, form: Form) -> None:
    """Refuse options that would do nothing."""
    if request.drop_deleted and form is not Form.HNSWLIB:
        raise UsageError(
            f"--drop-deleted is for hnswlib files; {request.path} is {form.value}, which has no "
            "row that is marked deleted",
            tip="leave it out",
        )
    useless = [name for name in request.columns if name not in _COLUMNS.get(form, ())]
    if useless:
        has_labels = form is Form.CHROMA
        raise UsageError(
            f"--items-column {useless[0]} names a column of a table; {request.path} is "
            f"{form.value}, which has {'only label, a key of the metadata' * has_labels or 'none'}",
            tip="leave it out" if has_labels else "--items names the table of its keys",
        )
    if request.table is not None and form not in DATABASES:
        raise UsageError(
            f"--table names a table of LanceDB or a collection of Chroma; {request.path} is "
            f"{form.value}",
            tip="leave it out",
        )
    if request.norms is not None and request.norms.suffix != ".npz":
        raise UsageError(f"--norms writes an .npz file, got {request.norms.name}")
    if request.norms is not None:
        require_place(request.norms)
        refuse_replacing(request.norms, (request.path,))


def _hnswlib(
    request: SourceRequest, scratch: Callable[[], Path], progress: Progress
) -> AdoptedSource:
    """An hnswlib file: as it is, without rows that are marked deleted, or with unit rows."""
    path, space = request.path, request.space or "ip"
    _check_dim(path, read_header(path).dim, request.dim)
    params = HnswParams.from_header(read_header(path), space=space, ef_search=request.ef_search)
    adopted, dropped = path, np.zeros(0, np.uint64)
    try:
        if request.drop_deleted and count_deleted(path):
            index, dropped = build_without_deleted(path, params, progress)
            index.save(adopted := scratch() / "live.bin")
            del index
        progress("reading the index", 0, 1)
        sha256 = sha256_file(adopted)
        index = HnswIndex.load(adopted, params)
        progress("reading the index", 1, 1)
    except NotUnitError as error:
        if space == "cosine":
            raise InputError(
                f"{error.message}: hnswlib normalises the rows of a cosine index, so this file is "
                "of the space ip or l2",
                tip="--space ip or --space l2 says which",
            ) from None
        source = hnswlib_rows(path, space, drop_deleted=request.drop_deleted)
        return _rebuilt(request, source, scratch(), progress)
    if request.norms is not None:
        refuse_norms(Norms.ones(len(index)), path, request.norms)
    return AdoptedSource(
        path=adopted,
        sha256=sha256,
        index=index,
        info=index_info(params, sha256, len(index)),
        engine="hnswlib",
        kind=space,
        rebuilt=adopted != path,
        dropped=dropped,
    )


def _rebuilt(
    request: SourceRequest, source: ForeignRows, scratch: Path, progress: Progress
) -> AdoptedSource:
    """A new index of the rows, each divided by its norm."""
    path = request.path
    _check_dim(path, source.dim, request.dim)
    norms = measure_norms(source, path, _similarity(request, source))
    refuse_norms(norms, path, request.norms, reconstructed=bool(source.lossy))
    params = HnswParams(
        dim=source.dim,
        M=source.M,
        ef_construction=source.ef_construction,
        ef_search=request.ef_search,
    )
    if source.lossy:
        result = "what the store holds differs from the vectors that were indexed"
        notice("lossy-rows", path, f"rows of which {source.lossy}", [source.kind], result,
               count=len(source))  # fmt: skip
    keys = np.arange(len(source), dtype=np.uint64) if source.keys is None else source.keys
    built = scratch / "built.bin"
    index = build_index(source, keys, norms, params, progress)
    index.save(built)
    sha256 = sha256_file(built)
    return AdoptedSource(
        path=built,
        sha256=sha256,
        index=index,
        info=index_info(params, sha256, len(index)),
        engine=source.engine,
        kind=source.kind,
        rebuilt=True,
        dropped=np.zeros(0, np.uint64) if source.dropped is None else source.dropped,
        lossy=source.lossy,
        ids=source.ids,
        labels=source.labels,
        norms=None if norms.are_one else norms,
    )


def _similarity(request: SourceRequest, source: ForeignRows) -> Similarity | None:
    """What the rows were ranked by: the file says it, or else ``--space``."""
    if request.space is None:
        return source.similarity
    said = SIMILARITY_OF[request.space]
    if source.similarity not in {None, said}:
        raise InputError(
            f"{request.path} is a {source.engine} index that ranks by {source.similarity}; --space "
            f"says {request.space}",
            tip="leave --space out: the file says it",
        )
    return said


def _check_dim(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"{path} has {found} dimensions, the model has {expected}",
            tip="name the model that filled this index",
        )
