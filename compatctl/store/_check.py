"""check: find missing and changed files, and files that no generation needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from compatctl.errors import CompatError, UsageError
from compatctl.files import sha256_file
from compatctl.manifest import Manifest, Operation
from compatctl.progress import Progress, silent
from compatctl.store._attempts import attempts_problems, unfinished_attempts
from compatctl.store._layout import (
    BACKFILL,
    HISTORY,
    KINDS,
    MANIFEST,
    SIDE,
    blob_path,
    catalog_problems,
    changed_bytes,
    erasure_problems,
    generation_path,
    is_own_name,
    is_regular_file,
    manifest_digest,
    older_manifest_problems,
    read_generation,
    read_manifest,
    retained_blobs,
)
from compatctl.store._remote import pull, remote_of, shown_path
from compatctl.store._remote_check import BucketFiles, erased_names
from compatctl.store._rollback import rollback_plan
from compatctl.store._side_layout import side_path
from compatctl.store._store import Store
from compatctl.store._transitions import transition_problems

_MAX_CHECKS = 5
"""How often a store that writers keep changing is checked before its problems are reported."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; paths are relative to the store. After a gc: the state that it left.

    Attributes:
        head: the digest of the newest generation, which fixes every earlier one too.
        oldest_restorable: the first generation whose files are kept.
        files: number of files that the kept generations need; ``bytes`` is their size.
        unreferenced: files that no kept generation needs, the remains of killed processes included.
        deleted: files that gc deleted; ``freed_bytes`` is their size.
        erasure: whether items were erased. ``unfinished``: files that held them still exist,
            because a removal was killed; the next removal or gc finishes it.
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
    """Check the history, and that every file exists; nothing is written.

    If a writer changed the store meanwhile, problems are checked again: a file that gc deleted
    during the check is no damage.

    Args:
        deep: also hash every file, never trusting the digest cache, and read the catalogue.
        keep: report as unreferenced what ``gc`` would delete with this ``keep``.
        head: a digest that some generation must have.

    Raises:
        InputError: there is no store.
        DamagedError: manifest.json cannot be read.
    """
    for _ in range(_MAX_CHECKS):
        pull(root)
        current = read_manifest(root)
        report = _check_once(root, current, deep=deep, keep=keep, head=head, progress=progress)
        pull(root)
        if report.ok or read_manifest(root) == current:
            break
    if remote_of(root) is None:
        return report
    problems = (text.replace(str(root), shown_path(root)) for text in report.problems)
    return replace(report, problems=tuple(problems))


def _check_once(
    root: Path,
    current: Manifest,
    *,
    deep: bool,
    keep: int | None,
    head: str | None,
    progress: Progress,
) -> CheckReport:
    remote = remote_of(root)
    files = BucketFiles.of(remote) if remote else None
    generations, problems = _history(root, current)
    problems += files.history_problems(generations) if files else []
    problems += transition_problems(generations[::-1])
    problems += older_manifest_problems(root, current)
    if head is not None and head not in {manifest_digest(state) for state in generations}:
        problems.append(
            f"no generation of {shown_path(root)} has the digest {head}: its history was "
            "rewritten, or it is another store"
        )
    oldest = current.oldest_restorable
    if keep is not None and not problems:
        oldest = oldest_kept(Store(root, current), keep)
    kept = [state for state in generations if state.generation >= current.oldest_restorable]
    blobs = all_blobs(kept, current)
    problems += _file_problems(root, files, blobs, deep=deep, progress=progress)
    if deep:
        problems += _content_problems(root, files, kept, current)
    needed = all_blobs([state for state in kept if state.generation >= oldest], current)
    present = _present(root, files, generations, current, needed)
    return CheckReport(
        ok=not problems,
        head=manifest_digest(current),
        generations=current.generation,
        oldest_restorable=oldest,
        files=len(needed),
        bytes=present.bytes,
        problems=tuple(problems),
        unreferenced=present.unreferenced,
        erasure="none" if not current.erasures else "unfinished" if present.erased else "done",
    )


def oldest_kept(store: Store, keep: int) -> int:
    """The oldest of the newest ``keep`` generations, not counting those that gc made, or the one
    that a rollback would restore if that is older; UsageError if ``keep`` is less than 1."""
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, got {keep}")
    numbers = [state.generation for state in store.history() if state.operation != Operation.GC]
    oldest = numbers[-keep] if len(numbers) >= keep else 1
    with contextlib.suppress(UsageError):  # there is no deploy to undo
        oldest = min(oldest, rollback_plan(store).target.generation)
    return max(oldest, store.manifest.oldest_restorable)


def _history(root: Path, current: Manifest) -> tuple[list[Manifest], list[str]]:
    """The readable generations, newest first, and the problems of the chain."""
    generations: list[Manifest] = []
    problems: list[str] = []
    child = current
    for number in range(current.generation, 0, -1):
        try:
            state = read_generation(root, number)
        except CompatError as error:
            newest = f": {root / MANIFEST} records it" if number == current.generation else ""
            problems.append(error.message + newest)
            continue
        if number == current.generation and state != current:
            problems.append(f"{generation_path(root, number)} differs from manifest.json")
        if number == child.generation - 1 and child.parent != manifest_digest(state):
            problems.append(
                f"{generation_path(root, number)} is not the parent that generation "
                f"{child.generation} records"
            )
        generations.append(state)
        child = state
    return generations, problems


def all_blobs(generations: Iterable[Manifest], current: Manifest) -> list[tuple[str, str]]:
    """(kind, sha256) of every file kept for these generations and the current one, each once."""
    blobs = {blob for state in generations for blob in retained_blobs(state, current)}
    return sorted(blobs | set(current.blobs()))


def erased_files(root: Path, generations: Iterable[Manifest], current: Manifest) -> set[Path]:
    """Existing files of generations before the last erasure that no kept generation needs."""
    before = [state for state in generations if state.generation < current.oldest_gallery]
    blobs = {blob for state in before for blob in state.blobs()}
    blobs -= set(all_blobs(generations, current))
    return {path for path in (blob_path(root, *blob) for blob in blobs) if path.exists()}


def _content_problems(
    root: Path, files: BucketFiles | None, kept: list[Manifest], current: Manifest
) -> list[str]:
    """What catalogues, lists of erasures and files of attempts say, which are read."""
    if files:
        blobs = all_blobs(kept, current)
        files.fetch(blob for blob in blobs if blob[0] in {"catalogs", "erasures"})
        files.fetch_attempts()
    problems = catalog_problems(root, current)
    problems += _erased_row_problems(root, kept, current)
    return [*problems, *attempts_problems(root)]


@dataclass(frozen=True, kw_only=True)
class _Present:
    """The size of the needed files in bytes, the names of those that nothing needs, and whether
    any holds what was erased."""

    bytes: int
    unreferenced: tuple[str, ...]
    erased: bool


def _present(
    root: Path,
    files: BucketFiles | None,
    generations: list[Manifest],
    current: Manifest,
    needed: list[tuple[str, str]],
) -> _Present:
    if files:
        gone = erased_names(generations, current, tuple(all_blobs(generations, current)))
        return _Present(
            bytes=files.bytes(tuple(needed)),
            unreferenced=files.unreferenced(current, tuple(needed)),
            erased=bool(gone & files.sizes.keys()),
        )
    paths = [blob_path(root, *blob) for blob in needed]
    return _Present(
        bytes=sum(path.lstat().st_size for path in paths if is_regular_file(path)),
        unreferenced=_unreferenced(root, current, [*paths, *_side_files(root, needed)]),
        erased=bool(erased_files(root, generations, current)),
    )


def _erased_row_problems(root: Path, kept: list[Manifest], current: Manifest) -> list[str]:
    """Problems: a kept gallery contains rows that were erased before it was made."""
    galleries = {
        (state.catalog, state.erasures): state
        for state in kept
        if state.generation >= current.oldest_gallery
    }
    return [problem for state in galleries.values() for problem in erasure_problems(root, state)]


def _file_problems(
    root: Path,
    files: BucketFiles | None,
    needed: list[tuple[str, str]],
    *,
    deep: bool,
    progress: Progress,
) -> list[str]:
    if files:
        return files.problems(tuple(needed), deep=deep, progress=progress)
    problems = []
    for checked, (kind, digest) in enumerate(needed):
        progress("checking files", checked, len(needed))
        path = blob_path(root, kind, digest)
        try:
            if not is_regular_file(path):
                problems.append(f"{path} is missing")
            elif path.stat().st_size == 0:
                problems.append(f"{path} is empty")
            elif deep and sha256_file(path) != digest:
                problems.append(changed_bytes(path))
        except CompatError as error:
            problems.append(error.message)
    progress("checking files", len(needed), len(needed))
    return problems


def _side_files(root: Path, needed: list[tuple[str, str]]) -> list[Path]:
    """The side files of the models that are kept; they need not exist."""
    return [side_path(root, sha256) for kind, sha256 in needed if kind == "models"]


def _unreferenced(root: Path, current: Manifest, needed: list[Path]) -> tuple[str, ...]:
    keep = {*needed, *(generation_path(root, n + 1) for n in range(current.generation))}
    paths = [path for path in own_files(root) if path not in keep]
    return tuple(str(path.relative_to(root)) for path in sorted(paths + unfinished_attempts(root)))


def own_files(root: Path) -> Iterable[Path]:
    """Every file with a name that only this program gives; others are never touched."""
    for name in ("", HISTORY, SIDE, BACKFILL, *KINDS):
        folder = root / name
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_own_name(name, path.name) and is_regular_file(path):
                yield path
