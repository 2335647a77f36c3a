"""The rows of a collection of Chroma, in a process of its own (``read_in_child``).

Chroma writes to a folder that it opens, so a copy is opened. Chroma before 1.0 reads a pickle of
the folder, which could run code, and is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compatctl.data import LABEL_NAMES
from compatctl.errors import InputError
from compatctl.index.sources.child import answer_parent, rows_path, write_names
from compatctl.index.sources.databases import choose_table, collection_name
from compatctl.index.sources.rows import EF_CONSTRUCTION, M
from compatctl.index.sources.tables import named
from compatctl.printable import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH = 2000
_FIRST_READ = 1
_SPACES = {"cosine": "cosine", "dot": "ip", "l2": "l2"}
_TOLERANCE = 1e-3
"""Relative difference of a distance in float32; the three distances differ by more."""


def read(path: Path, scratch: Path, *, table: str | None, label: str | None) -> dict[str, Any]:
    """Write the rows and ids of a collection; returns the other fields of ForeignRows.

    Raises:
        InputError: no such collection, or several and none is named; no record; another space; no
            record has the key ``label``; a program writes to the folder; a Chroma before 1.0.
        ValueError: Chroma cannot read the folder.
    """
    import chromadb
    from chromadb.config import Settings

    if int(chromadb.__version__.split(".")[0]) < _FIRST_READ:
        raise InputError(
            f"Chroma {chromadb.__version__} reads pickles, which could run code; 1.0 does not",
            tip="pip install -U chromadb",
        )
    copy = scratch / "copy"
    _copy(path, copy)
    with _chroma_errors():
        options = Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(copy), options)
        found = _collections(client, chromadb.AdminClient(options))
        name = choose_table([*found], table, "collection")
        database, own_name = found[name]
        client.set_database(database)
        collection = client.get_collection(own_name, embedding_function=None)
        settings = collection.configuration_json.get("hnsw") or {}
        _Reading(collection, scratch, label).read()
        similarity = _similarity(collection)
    shutil.rmtree(copy)
    return {
        "kind": f"collection {name}",
        "similarity": similarity,
        "M": int(settings.get("max_neighbors", M)),
        "ef_construction": int(settings.get("ef_construction", EF_CONSTRUCTION)),
    }


def _collections(client: Any, admin: Any) -> dict[str, tuple[str, str]]:
    """Name by which a collection is chosen -> its database and its name there."""
    found = {}
    for database in (entry["name"] for entry in admin.list_databases()):
        client.set_database(database)
        for collection in client.list_collections():
            shown = collection_name(database, collection.name)
            found[shown] = (database, collection.name)
    return found


def _copy(path: Path, copy: Path) -> None:
    """Copy the folder, and see that it stays the same meanwhile.

    Raises:
        InputError: a file changed.
    """
    before = _state(path)
    shutil.copytree(path, copy)
    if _state(path) != before:
        raise InputError(
            "its files changed while they were copied", tip="stop the program that writes to it"
        )


def _state(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of each file."""
    files = [part for part in path.rglob("*") if part.is_file()]
    return {str(part): (part.stat().st_size, part.stat().st_mtime_ns) for part in files}


def _similarity(collection: Any) -> str | None:
    """What the collection ranks by, from a distance that it computes; None: its metadata say that
    it ranks by another. Chroma before 1.0 ranks by the metadata, and newer releases then report
    L2 for its folders, and rank small ones by it.

    Raises:
        InputError: it is neither the cosine, the inner product nor L2.
    """
    first = collection.get(include=["embeddings"], limit=1)["embeddings"][0]
    query = 2.0 * np.asarray(first, np.float64)
    include = ["embeddings", "distances"]
    answer = collection.query(query_embeddings=[query.tolist()], n_results=1, include=include)
    row = np.asarray(answer["embeddings"][0][0], np.float64)
    found = float(answer["distances"][0][0])
    norms = float(np.linalg.norm(row) * np.linalg.norm(query)) or 1.0
    distances = {
        "cosine": 1.0 - float(row @ query) / norms,
        "dot": 1.0 - float(row @ query),
        "l2": float(np.square(row - query).sum()),
    }
    name = min(distances, key=lambda name: abs(distances[name] - found))
    if abs(distances[name] - found) > _TOLERANCE * (1.0 + abs(found)):
        raise InputError(f"its collection ranks by another distance than {', '.join(distances)}")
    said = (collection.metadata or {}).get("hnsw:space")
    return name if said in {None, _SPACES[name]} else None


class _Reading:
    """One reading of a collection: vectors into a file, ids and labels into lists."""

    def __init__(self, collection: Any, scratch: Path, label: str | None) -> None:
        self._collection, self._scratch, self._label = collection, scratch, label
        self._ids: list[str] = []
        self._labels: dict[str, list[str]] = {}
        self._keys: set[str] = set()
        self._count = int(collection.count())

    def read(self) -> None:
        """All records."""
        if not self._count:
            raise InputError("its collection has no records", tip="add some before it is imported")
        rows = None
        while len(self._ids) < self._count:
            first = len(self._ids)
            page = self._collection.get(
                include=["embeddings", "metadatas"], limit=_BATCH, offset=first
            )
            if not page["ids"]:
                raise ValueError(f"Chroma gives {first} of its {self._count} records")
            block = np.asarray(page["embeddings"], np.float32)
            if rows is None:
                shape = (self._count, block.shape[1])
                rows = np.lib.format.open_memmap(rows_path(self._scratch), "w+", np.float32, shape)
            rows[first : first + len(block)] = block
            for row, metadata in enumerate(page["metadatas"], first):
                self._read_label(row, metadata or {})
            self._ids += page["ids"]
        assert rows is not None
        rows.flush()
        names = named(tuple(self._ids), Path(self._collection.name))
        write_names(self._scratch, **names, labels=self._chosen())

    def _read_label(self, row: int, metadata: Mapping[str, Any]) -> None:
        """Note the values of every key that could be the label."""
        self._keys.update(metadata)
        for key, value in metadata.items():
            is_label = key.lower() in LABEL_NAMES if self._label is None else key == self._label
            if is_label and value is not None:
                self._labels.setdefault(key, [""] * self._count)[row] = str(value)

    def _chosen(self) -> list[str] | None:
        """The labels; None where no record has one.

        Raises:
            InputError: no record has the key that is named, or two keys could be the label.
        """
        if self._label is not None and self._label not in self._labels:
            raise InputError(
                f"no record has the key {self._label!r}; their keys are "
                f"{listed(sorted(self._keys), most=20) or '(none)'}"
            )
        if len(self._labels) > 1:
            raise InputError(
                f"{' and '.join(map(repr, sorted(self._labels)))} could each be the label",
                tip=f"compatctl import --items-column label={min(self._labels)} says which",
            )
        return next(iter(self._labels.values()), None)


@contextmanager
def _chroma_errors() -> Iterator[None]:
    """Chroma's errors as those of ``answer_parent``."""
    from chromadb.errors import ChromaError

    try:
        yield
    except ChromaError as error:
        raise ValueError(f"Chroma says: {error}") from error


if __name__ == "__main__":
    answer_parent(read)
