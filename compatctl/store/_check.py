"""Is everything there and unchanged, and what is there that no generation needs?"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.errors import CompatError, UsageError
from compatctl.files import TEMPORARY, clear_errors, sha256_file, sync
from compatctl.manifest import Manifest, is_digest
from compatctl.progress import Progress, silent
from compatctl.store._layout import (
    HISTORY,
    KINDS,
    MANIFEST,
    blob_path,
    catalog_problems,
    generation_path,
    is_plain,
    manifest_digest,
    read_generation,
    read_manifest,
)
from compatctl.store._replay import replay
from compatctl.store._rollback import rollback_plan
from compatctl.store._store import Store


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; paths are relative to the store.

    ``head`` is the digest of the newest generation, which pins all before it; ``oldest`` the first
    generation whose files are kept; ``files`` and ``bytes`` are of what the kept ones need,
    ``unreferenced`` is what none of them needs (the remains of a killed process among it),
    ``deleted`` those of it that gc removed.
    """

    ok: bool
    head: str
    generations: int
    oldest: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    unreferenced: tuple[str, ...]
    deleted: tuple[str, ...] = ()
    freed_bytes: int = 0


def check(
    root: Path,
    *,
    deep: bool = True,
    keep: int | None = None,
    head: str | None = None,
    progress: Progress = silent,
) -> CheckReport:
    """Look at everything: the history, the files, with ``deep`` their bytes and the catalogue.

    With ``keep``, ``unreferenced`` is what ``collect`` with that number would delete; ``head`` is
    the digest that some generation must have. Nothing is written, and no digest is taken from
    memory.

    Raises:
        InputError: there is no store.
        DamagedError: manifest.json cannot be read.
    """
    current = read_manifest(root)
    generations, problems = _history(root, current)
    problems += replay(sorted(generations, key=lambda one: one.generation))
    if head is not None and head not in {manifest_digest(one) for one in generations}:
        problems.append(
            f"no generation of {root} has the digest {head}: its history was rewritten, or it is "
            "another store"
        )
    oldest = current.oldest
    if keep is not None and not problems:
        oldest = oldest_kept(Store.open(root), keep)
    kept = [one for one in generations if one.generation >= current.oldest]
    problems += _files(root, _blobs([*kept, current]), deep=deep, progress=progress)
    if deep:
        problems += catalog_problems(root, current)
    needed = _blobs([*(one for one in kept if one.generation >= oldest), current])
    return CheckReport(
        ok=not problems,
        head=manifest_digest(current),
        generations=current.generation,
        oldest=oldest,
        files=len(needed),
        bytes=sum(_size(blob_path(root, kind, digest)) for kind, digest in needed),
        problems=tuple(problems),
        unreferenced=tuple(
            str(path.relative_to(root)) for path in _unreferenced(root, current, needed)
        ),
    )


def collect(
    store: Store,
    *,
    keep: int | None = None,
    at: str = "",
    deep: bool = True,
    progress: Progress = silent,
) -> CheckReport:
    """Check, and delete under the lock what no kept generation names.

    With ``keep``, the newest ``keep`` states are kept, and what a rollback would restore; older
    ones can no longer be restored, but stay in the history. That is committed as a generation of
    its own before the first file goes, so that a process killed anywhere has deleted nothing that
    a kept generation names, and the next run deletes the rest. While anything is damaged nothing
    is deleted: what a damaged generation names is unknown. ``at`` is the time, ISO 8601, UTC.

    Raises:
        ConflictError: the store is locked, or moved on.
        UsageError: ``keep`` is less than 1.
    """
    oldest = store.manifest.oldest if keep is None else oldest_kept(store, keep)
    with store.transaction(store.manifest, operation="check --gc") as tx:
        found = check(store.path, deep=deep, keep=keep, progress=progress)
        if not found.ok:
            if not found.unreferenced:
                return found
            why = "nothing was deleted: a damaged generation may need it"
            return replace(found, problems=(*found.problems, why))
        head = store.manifest
        if oldest > store.manifest.oldest:
            head = tx.commit(operation="gc", created_at=at, oldest=oldest)
        paths = [store.path / name for name in found.unreferenced]
        freed = _delete(paths)
    return replace(
        found,
        head=manifest_digest(head),
        generations=head.generation,
        deleted=found.unreferenced,
        freed_bytes=freed,
    )


def oldest_kept(store: Store, keep: int) -> int:
    """The oldest generation to keep: ``keep`` states, gc's own generations not counted.

    The generation that a rollback would restore is always among them.

    Raises:
        UsageError: ``keep`` is less than 1.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, got {keep}")
    states = [one.generation for one in store.history() if one.operation != "gc"]
    oldest = states[-keep] if len(states) >= keep else 1
    with contextlib.suppress(UsageError):  # there is no deploy to undo
        oldest = min(oldest, rollback_plan(store).target.generation)
    return max(oldest, store.manifest.oldest)


def _history(root: Path, current: Manifest) -> tuple[list[Manifest], list[str]]:
    found: list[Manifest] = []
    problems: list[str] = []
    child = current
    for number in range(current.generation, 0, -1):
        try:
            one = read_generation(root, number)
        except CompatError as error:
            newest = f": {root / MANIFEST} records it" if number == current.generation else ""
            problems.append(error.message + newest)
            continue
        if number == current.generation and one != current:
            problems.append(f"{generation_path(root, number)} differs from manifest.json")
        if number == child.generation - 1 and child.parent != manifest_digest(one):
            problems.append(
                f"{generation_path(root, number)} is not the parent that generation "
                f"{child.generation} records"
            )
        found.append(one)
        child = one
    return found, problems


def _blobs(generations: Iterable[Manifest]) -> list[tuple[str, str]]:
    """(kind, sha256) of every file that the generations name, each once."""
    return sorted({blob for one in generations for blob in one.blobs()})


def _files(
    root: Path, needed: list[tuple[str, str]], *, deep: bool, progress: Progress
) -> list[str]:
    problems = []
    for at, (kind, digest) in enumerate(needed):
        progress("checking files", at, len(needed))
        problems += _blob(blob_path(root, kind, digest), digest, deep=deep)
    progress("checking files", len(needed), len(needed))
    return problems


def _blob(path: Path, digest: str, *, deep: bool) -> list[str]:
    if not is_plain(path):
        return [f"{path} is missing"]
    if path.stat().st_size == 0:
        return [f"{path} is empty"]
    if deep:
        try:
            if sha256_file(path) != digest:
                return [f"{path} was changed: its bytes are not those of its name"]
        except CompatError as error:
            return [error.message]
    return []


def _size(path: Path) -> int:
    return path.lstat().st_size if is_plain(path) else 0


def _unreferenced(root: Path, current: Manifest, needed: list[tuple[str, str]]) -> list[Path]:
    keep = {blob_path(root, kind, digest) for kind, digest in needed}
    keep |= {generation_path(root, number + 1) for number in range(current.generation)}
    return sorted(path for path in _written_by_us(root) if path not in keep)


def _written_by_us(root: Path) -> Iterable[Path]:
    """Every file whose name only this program would give; others' files are left alone."""
    for folder, suffix in ((root, None), (root / HISTORY, None), *_folders(root)):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            temporary = path.name.startswith(TEMPORARY)
            blob = suffix is not None and path.name.endswith(suffix)
            named = (blob and is_digest(path.name.removesuffix(suffix or ""))) or (
                folder.name == HISTORY and re.fullmatch(r"\d{6,}\.json", path.name) is not None
            )
            if (temporary or named) and path.is_file() and not path.is_symlink():
                yield path


def _folders(root: Path) -> list[tuple[Path, str]]:
    return [(root / kind, suffix) for kind, suffix in KINDS.items()]


def _delete(paths: list[Path]) -> int:
    """Delete files; how many bytes that freed."""
    freed = 0
    for path in paths:
        with clear_errors("deleting", path):
            freed += path.stat().st_size
            path.unlink()
    for folder in sorted({path.parent for path in paths}):
        with clear_errors("deleting in", folder):
            sync(folder)
    return freed
