"""Where removed items are still held: kept galleries, memories, and models with stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Checksums
from compatctl.data import Dataset, memory_bytes, read_memory
from compatctl.deployment.gallery import index_params
from compatctl.deployment.record_files import (
    FILE,
    ModelHeader,
    find_record,
    record_path,
    without_erased_items,
)
from compatctl.deployment.rehearsal import stored_memory
from compatctl.deployment.training_record import MEMORY_FILE
from compatctl.encoder import HeldVectors, held_vectors, record_of, sealed_bytes
from compatctl.errors import CompatError, InputError
from compatctl.files import sha256_bytes, write_atomic
from compatctl.index import held_marks, marks_of_rows, read_keys, read_rows
from compatctl.manifest import Manifest
from compatctl.recipe import Project
from compatctl.store import Store

Holds = Callable[[str], bool]
"""Whether an id was erased."""

Masks = dict[str, NDArray[np.bool_]]
"""(S,) by the name of a table: which of its rows are of removed items."""

_NO_MARKS = np.zeros(0, np.uint64)
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Traces:
    """What kept generations hold of some items: ``found`` (ids), and the ``marks`` of their
    vectors in any of those galleries."""

    found: frozenset[str]
    marks: Checksums


def whole_generations(store: Store) -> tuple[Manifest, ...]:
    """The generations of which galleries and memories are kept, oldest first."""
    first = max(store.manifest.oldest, store.manifest.whole_from)
    return tuple(one for one in store.history() if one.generation >= first)


def traces_of(store: Store, ids: frozenset[str]) -> Traces:
    """Look for items in every gallery and memory that is kept; each file is read once.

    Raises:
        DamagedError: a file is missing or changed.
    """
    found: set[str] = set()
    marks = [_NO_MARKS]
    for one in _galleries(store):
        catalog, info = store.catalog(one), one.index
        rows = [row for row, item in enumerate(catalog.ids) if item in ids]
        found.update(catalog.ids[row] for row in rows)
        if rows:
            path = store.verified("indexes", info.sha256, fresh=True)
            vectors = read_rows(path, index_params(info), info.count, catalog.keys[rows])
            marks.append(marks_of_rows(vectors))
    for one in {one.memory: one for one in whole_generations(store)}.values():
        memory = stored_memory(store, one)
        found.update(ids.intersection(memory.ids) if memory is not None else ())
    return Traces(found=frozenset(found), marks=np.unique(np.concatenate(marks)))


def _galleries(store: Store) -> Iterator[Manifest]:
    """A generation for each gallery that is kept."""
    once = {(one.catalog, one.index.sha256): one for one in whole_generations(store)}
    yield from once.values()


def removed_vectors(
    project: Project, store: Store, sha256: str, *, ids: frozenset[str], marks: Checksums, name: str
) -> Masks:
    """Which rows of a stored model's tables are of the items with these ids and marks.

    A row is known by its mark, by the model's training record, or because it is still in a gallery
    that is kept, where it is somebody else's.

    Raises:
        InputError: a row is none of these: nothing says whose it is.
        DamagedError: the model, or a gallery, is missing or changed.
    """
    path = store.verified("models", sha256)
    tables = held_vectors(path.read_bytes(), path)
    found = {one.name: np.isin(marks_of_rows(one.vectors), marks) for one in tables}
    ours = [one for one in tables if one.ours]
    anchors = _anchor_ids(project, path, sha256) if len(ours) == 1 else None
    for one in ours:
        if anchors is not None and len(anchors) >= len(one.vectors):
            found[one.name] |= np.array([item in ids for item in anchors[: len(one.vectors)]], bool)
        elif unknown := int((~found[one.name] & ~_in_a_gallery(store, one)).sum()):
            raise InputError(
                f"{name} holds {len(one.vectors)} stored vectors of gallery items, and nothing "
                f"says whose {unknown} of them are: they may be of what is to be removed",
                tip="put training.json, as finetune wrote it, into the candidate's folder; or "
                "fine-tune again without these items, deploy that, and remove them then",
            )
    return found


def _in_a_gallery(store: Store, table: HeldVectors) -> NDArray[np.bool_]:
    """Which rows (S,) of a table are those of an item in a gallery that is kept."""
    marks = marks_of_rows(table.vectors)
    known = np.zeros(len(marks), bool)
    for one in _galleries(store):
        known |= in_gallery(store, one, marks)
    return known


def in_gallery(
    store: Store, one: Manifest, marks: Checksums, *, but: NDArray[np.uint64] | None = None
) -> NDArray[np.bool_]:
    """Which marks (n,) are of a row of a generation's gallery, rows under ``but`` (m,) left out."""
    path, info = store.verified("indexes", one.index.sha256), one.index
    return held_marks(path, index_params(info), info.count, marks, but=but)


def _anchor_ids(project: Project, path: Path, sha256: str) -> tuple[str, ...] | None:
    """The ids of a model's anchors in the order of its table; None without a training.json."""
    model = ModelHeader(sha256=sha256, record=record_of(path))
    near = project.output if project.output.is_file() else path
    record = find_record(near, model, named=None, candidate=project.candidate, with_names=True)
    if record is None or record.path is None:
        return None
    return tuple(item.id for item in record.anchors)


def refuse_erased_vectors(store: Store, data: bytes, path: Path) -> None:
    """Refuse to take in a model that holds vectors of items that were removed from the store.

    Raises:
        InputError: it does.
    """
    if sha256_bytes(data) in store.manifest.erased_models:
        raise InputError(
            f"{path.name} is a model that was let go when items were removed from the store: it "
            "holds vectors of them, or of nobody knows whom",
            tip="fine-tune again: its anchors are drawn from the gallery of today",
        )
    if count := erased_vectors(store, data, path):
        raise InputError(
            f"{path.name} holds the stored vectors of {count} items that were removed from the "
            "store",
            tip="fine-tune again: its anchors are drawn from the gallery of today",
        )


def erased_vectors(store: Store, data: bytes, path: Path) -> int:
    """How many vectors an encoder holds that were erased and are of no row of today."""
    erased = store.erasures()
    if erased is None or not len(erased.marks):
        return 0
    tables = held_vectors(data, path)
    marks = np.concatenate([_NO_MARKS, *(marks_of_rows(one.vectors) for one in tables)])
    marks = np.intersect1d(marks, erased.marks)
    return int((~in_gallery(store, store.manifest, marks)).sum()) if len(marks) else 0


def erasure_problems(store: Store) -> list[str]:
    """What of erased items is still in a file that is kept; the store's own check looks through
    the catalogues.

    Every index has the keys of its catalogue and no other; no memory has an erased id; no model
    that can serve or be restored holds an erased vector.

    Raises:
        DamagedError: a file is missing or changed.
    """
    if store.manifest.erased is None:
        return []
    found = []
    for one in _galleries(store):
        info, path = one.index, store.path_of("indexes", one.index.sha256)
        keys = np.sort(read_keys(path, index_params(info), info.count))
        if not np.array_equal(keys, np.sort(store.catalog(one).keys)):
            found.append(f"{path} and the catalogue of generation {one.generation} have other keys")
    for one in {(one.memory, one.erased): one for one in whole_generations(store)}.values():
        memory, erased = stored_memory(store, one), store.erasures(one)
        back = erased.holding(memory.ids) if memory is not None and erased is not None else ()
        if back:
            path = store.path_of("memories", one.memory or "")
            found.append(f"{path} has {len(back)} erased items: {', '.join(back[:_SHOWN])}")
    for sha256 in sorted(_restorable_models(store)):
        path = store.verified("models", sha256)
        if count := erased_vectors(store, path.read_bytes(), path):
            found.append(f"{path} holds {count} vectors of erased items")
    return found


def _restorable_models(store: Store) -> set[str]:
    now, found = store.manifest, set()
    for one in store.history():
        if one.generation >= max(now.oldest, now.whole_from):
            found |= {model.sha256 for model in one.models}
        elif one.generation >= now.oldest and (share := now.restorable_model(one)) is not None:
            found.add(share.sha256)
    return found | {one.model.sha256 for one in now.stand_ins}


def without_ids(items: Dataset, gone: Holds) -> Dataset:
    """The other items."""
    return items.take([row for row, one in enumerate(items.ids) if not gone(one)])


def clean_side_files(
    project: Project, gone: Holds, rewritten: Mapping[str, str], *, dry_run: bool
) -> tuple[str, ...]:
    """Take erased items out of the candidate's memory and of training records; the files changed.

    ``rewritten``: digest -> digest of models whose files were written again; a record that is of
    one is of the other too. The record is written before the memory that it names by digest: a run
    that was killed in between is finished by the next.
    """
    memory, digest = _memory(project.candidate / MEMORY_FILE, gone)
    changed = []
    records = dict.fromkeys(
        (
            project.candidate / FILE,
            record_path(project.output),
            project.output.with_name(FILE),
        )
    )
    for path in records:
        own = digest if path.parent == project.candidate else None
        data = without_erased_items(path, gone, rewritten=rewritten, memory_sha256=own)
        if data is not None:
            changed.append(str(path))
            if not dry_run:
                write_atomic(path, data)
    if memory is not None:
        path = project.candidate / MEMORY_FILE
        changed.append(str(path))
        if not dry_run and memory:
            write_atomic(path, memory)
        elif not dry_run:
            path.unlink()
    return tuple(changed)


def candidates_with_erased(project: Project, store: Store) -> tuple[str, ...]:
    """The project's candidate files that hold erased vectors: deploy refuses them."""
    found = []
    for path in (project.output, project.candidate / "model.onnx"):
        try:
            if path.is_file() and erased_vectors(store, sealed_bytes(path), path):
                found.append(str(path))
        except CompatError:  # not a model that could be deployed
            continue
    return tuple(found)


def _memory(path: Path, gone: Holds) -> tuple[bytes | None, str | None]:
    """The bytes of a memory without erased items, None where it has none (empty: nothing is left),
    and their digest."""
    if not path.is_file():
        return None, None
    held = read_memory(path)
    kept = without_ids(held, gone)
    if len(kept) == len(held):
        return None, None
    data = memory_bytes(kept) if len(kept) else b""
    return data, sha256_bytes(data) if data else None
