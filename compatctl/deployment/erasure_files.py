"""What lies beside a store of removed items: the candidate's memory and training record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compatctl.data import Dataset, memory_bytes, read_memory
from compatctl.deployment import training_record
from compatctl.deployment.erasure import erased_vectors
from compatctl.deployment.training_record import MEMORY_FILE
from compatctl.encoder import sealed_bytes
from compatctl.errors import CompatError
from compatctl.files import canonical_json, read_json, sha256_bytes, write_atomic
from compatctl.recipe import Project
from compatctl.store import Store

Holds = Callable[[str], bool]
"""Whether an id was erased."""


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
            project.candidate / training_record.FILE,
            training_record.record_path(project.output),
            project.output.with_name(training_record.FILE),
        )
    )
    for path in records:
        own = digest if path.parent == project.candidate else None
        data = _record(path, gone, rewritten, own)
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


def _record(
    path: Path, gone: Holds, rewritten: Mapping[str, str], memory: str | None
) -> bytes | None:
    """A training record without erased items; None where nothing in it changes."""
    if not path.is_file():
        return None
    raw = read_json(path, training_record.MAX_BYTES)
    if not isinstance(raw, dict):
        return None
    new: dict[str, Any] = dict(raw)
    for name in ("items", "anchors"):
        if isinstance(entries := raw.get(name), list):
            new[name] = [one for one in entries if not (isinstance(one, dict) and gone(_id(one)))]
    if new != raw:
        new[training_record.PARTIAL] = True
    if isinstance(models := raw.get("models"), list):
        of_these = (rewritten[one] for one in models if one in rewritten)
        new["models"] = [*models, *(one for one in of_these if one not in models)]
    if memory is not None:
        new["memory_sha256"] = memory
    return canonical_json(new) if new != raw else None


def _id(entry: dict[str, Any]) -> str:
    return str(entry.get("id"))
