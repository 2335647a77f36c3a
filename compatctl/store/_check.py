"""check: find missing and changed files, and files that no generation needs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compatctl.errors import CompatError, UsageError
from compatctl.files import TEMPORARY, sha256_file
from compatctl.manifest import Manifest, Operation, is_digest
from compatctl.progress import Progress, silent
from compatctl.store._attempts import attempts_problems, unfinished_attempts
from compatctl.store._layout import (
    HISTORY,
    KINDS,
    MANIFEST,
    blob_path,
    catalog_problems,
    erasure_problems,
    generation_path,
    is_regular_file,
    manifest_digest,
    older_manifest_problems,
    read_generation,
    read_manifest,
    retained_blobs,
)
from compatctl.store._rollback import rollback_plan
from compatctl.store._store import Store
from compatctl.store._transitions import transition_problems

_MAX_CHECKS = 5
"""Checks of a store that writers keep changing before its problems are reported."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; paths are relative to the store. After a gc: the state that it left.

    Attributes:
        head: the digest of the newest generation; it pins every earlier one.
        oldest_restorable: the first generation whose files are kept.
        files: number of files that the kept generations need; ``bytes`` is their size.
        unreferenced: files that no kept generation needs, the remains of killed processes included.
        deleted: files that gc deleted; ``freed_bytes`` is their size.
        erasure: whether items were erased. ``unfinished`` if files that held them still exist:
            a removal was killed, and the next removal or gc finishes it.
    """

    ok: bool
    head: str
    generations: int
    oldest_restorable: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    unreferenced: tuple[str, ...]
    deleted: tuple[str, ...] = ()
    freed_bytes: int = 0
    erasure: Literal["none", "done", "unfinished"] = "none"


def check(
    root: Path,
    *,
    deep: bool = True,
    keep: int | None = None,
    head: str | None = None,
    progress: Progress = silent,
) -> CheckReport:
    """Check the history and that every file exists. Nothing is written.

    If a writer changed the store meanwhile, problems are checked again: files that gc deleted
    during the check are no damage.

    Args:
        deep: also hash every file, never trusting the digest cache, and read the catalogue.
        keep: report as unreferenced what ``gc`` would delete with this ``keep``.
        head: a digest that some generation must have.

    Raises:
        InputError: there is no store.
        DamagedError: manifest.json cannot be read.
    """
    for _ in range(_MAX_CHECKS):
        current = read_manifest(root)
        found = _check_once(root, current, deep=deep, keep=keep, head=head, progress=progress)
        if found.ok or read_manifest(root) == current:
            break
    return found


def _check_once(
    root: Path,
    current: Manifest,
    *,
    deep: bool,
    keep: int | None,
    head: str | None,
    progress: Progress,
) -> CheckReport:
    generations, problems = _history(root, current)
    problems += transition_problems(sorted(generations, key=lambda one: one.generation))
    problems += older_manifest_problems(root, current)
    if head is not None and head not in {manifest_digest(one) for one in generations}:
        problems.append(
            f"no generation of {root} has the digest {head}: its history was rewritten, or it is "
            "another store"
        )
    oldest = current.oldest_restorable
    if keep is not None and not problems:
        oldest = oldest_kept(Store(root, current), keep)
    kept = [one for one in generations if one.generation >= current.oldest_restorable]
    problems += _file_problems(root, _all_blobs(kept, current), deep=deep, progress=progress)
    if deep:
        problems += catalog_problems(root, current)
        problems += _erased_row_problems(root, kept, current)
        problems += attempts_problems(root)
    needed = _all_blobs([one for one in kept if one.generation >= oldest], current)
    return CheckReport(
        ok=not problems,
        head=manifest_digest(current),
        generations=current.generation,
        oldest_restorable=oldest,
        files=len(needed),
        bytes=sum(_size(blob_path(root, kind, digest)) for kind, digest in needed),
        problems=tuple(problems),
        unreferenced=tuple(
            str(path.relative_to(root)) for path in _unreferenced(root, current, needed)
        ),
        erasure=_erasure(root, generations, current),
    )


def oldest_kept(store: Store, keep: int) -> int:
    """The oldest of the newest ``keep`` generations, not counting those that gc made.

    The generation that a rollback would restore is always kept too.

    Raises:
        UsageError: ``keep`` is less than 1.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, got {keep}")
    states = [one.generation for one in store.history() if one.operation != Operation.GC]
    oldest = states[-keep] if len(states) >= keep else 1
    with contextlib.suppress(UsageError):  # there is no deploy to undo
        oldest = min(oldest, rollback_plan(store).target.generation)
    return max(oldest, store.manifest.oldest_restorable)


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


def _all_blobs(generations: Iterable[Manifest], current: Manifest) -> list[tuple[str, str]]:
    """(kind, sha256) of every file kept for these generations and the current one, each once."""
    kept = {blob for one in generations for blob in retained_blobs(one, current)}
    return sorted(kept | set(current.blobs()))


def erased_files(root: Path, generations: Iterable[Manifest], current: Manifest) -> set[Path]:
    """Existing files of generations before the last erasure that no kept generation needs."""
    before = {
        blob
        for one in generations
        if one.generation < current.oldest_gallery
        for blob in one.blobs()
    }
    left = before - set(_all_blobs(generations, current))
    return {path for path in (blob_path(root, *blob) for blob in left) if path.exists()}


def _erasure(
    root: Path, generations: list[Manifest], current: Manifest
) -> Literal["none", "done", "unfinished"]:
    if current.erasures is None:
        return "none"
    return "unfinished" if erased_files(root, generations, current) else "done"


def _erased_row_problems(root: Path, kept: list[Manifest], current: Manifest) -> list[str]:
    """Problems: a kept gallery contains rows that were erased before it was made."""
    whole = [one for one in kept if one.generation >= current.oldest_gallery]
    once = {(one.catalog, one.erasures): one for one in whole}
    return [problem for one in once.values() for problem in erasure_problems(root, one)]


def _file_problems(
    root: Path, needed: list[tuple[str, str]], *, deep: bool, progress: Progress
) -> list[str]:
    problems = []
    for at, (kind, digest) in enumerate(needed):
        progress("checking files", at, len(needed))
        problems += _blob_problems(blob_path(root, kind, digest), digest, deep=deep)
    progress("checking files", len(needed), len(needed))
    return problems


def _blob_problems(path: Path, digest: str, *, deep: bool) -> list[str]:
    if not is_regular_file(path):
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
    return path.lstat().st_size if is_regular_file(path) else 0


def _unreferenced(root: Path, current: Manifest, needed: list[tuple[str, str]]) -> list[Path]:
    keep = {blob_path(root, kind, digest) for kind, digest in needed}
    keep |= {generation_path(root, number + 1) for number in range(current.generation)}
    left = (path for path in _own_files(root) if path not in keep)
    return sorted([*left, *unfinished_attempts(root)])


def _own_files(root: Path) -> Iterable[Path]:
    """Every file that is named as only this program names files; others are not touched."""
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
