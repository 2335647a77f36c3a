"""Is everything there and unchanged, and what is there that no generation needs?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compatctl.errors import CompatError
from compatctl.files import TEMPORARY, Lock, clear_errors, sha256_file, sync
from compatctl.manifest import Catalog, Manifest, is_digest
from compatctl.progress import Progress
from compatctl.store._layout import (
    HISTORY,
    KINDS,
    LOCK,
    blob_path,
    generation_path,
    manifest_digest,
    read_current,
    read_generation,
)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; paths are relative to the store.

    ``files`` and ``bytes`` are of what the generations need, ``unreferenced`` is what none of them
    needs (the remains of a killed process), ``deleted`` those of it that gc removed.
    """

    ok: bool
    generations: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    unreferenced: tuple[str, ...]
    deleted: tuple[str, ...]
    freed_bytes: int


def check(root: Path, *, gc: bool, deep: bool, progress: Progress) -> CheckReport:
    """Check the store at ``root``; with ``gc``, delete under the lock what is unreferenced."""
    if not gc:
        return _check(root, gc=False, deep=deep, progress=progress)
    with Lock(root / LOCK, operation="check --gc"):
        return _check(root, gc=True, deep=deep, progress=progress)


def _check(root: Path, *, gc: bool, deep: bool, progress: Progress) -> CheckReport:
    current = read_current(root)
    generations, problems = _history(root, current)
    complete = not problems
    needed = sorted({blob for one in (*generations, current) for blob in one.blobs()})
    size = 0
    for at, (kind, digest) in enumerate(needed):
        progress("checking files", at, len(needed))
        path = blob_path(root, kind, digest)
        size += path.stat().st_size if path.is_file() else 0
        problems += _blob(path, kind, digest, deep=deep)
    progress("checking files", len(needed), len(needed))
    if deep:
        problems += _catalog(root, current)
    keep = {blob_path(root, kind, digest) for kind, digest in needed}
    keep |= {generation_path(root, number + 1) for number in range(current.generation)}
    unreferenced = sorted(path for path in _written_by_us(root) if path not in keep)
    deleted: list[Path] = []
    freed = 0
    if gc and complete:
        deleted, freed = _delete(unreferenced)
    elif gc and unreferenced:
        problems.append("nothing was deleted: a damaged generation may need it")
    return CheckReport(
        ok=not problems,
        generations=current.generation,
        files=len(needed),
        bytes=size,
        problems=tuple(problems),
        unreferenced=tuple(str(path.relative_to(root)) for path in unreferenced),
        deleted=tuple(str(path.relative_to(root)) for path in deleted),
        freed_bytes=freed,
    )


def _history(root: Path, current: Manifest) -> tuple[list[Manifest], list[str]]:
    found: list[Manifest] = []
    problems: list[str] = []
    child = current
    for number in range(current.generation, 0, -1):
        try:
            one = read_generation(root, number)
        except CompatError as error:
            problems.append(error.message)
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


def _blob(path: Path, kind: str, digest: str, *, deep: bool) -> list[str]:
    if not path.is_file():
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


def _catalog(root: Path, current: Manifest) -> list[str]:
    path = blob_path(root, "catalogs", current.catalog)
    try:
        counts = Catalog.read(path).counts()
    except CompatError as error:
        return [error.message]
    rows, wanted = sum(counts.values()), current.index.count
    found = [f"{path} has {rows} rows, the index {wanted}"] if rows != wanted else []
    for model in current.models:
        held = counts.pop(model.sha256, 0)
        if held != model.rows:
            found.append(f"{path} has {held} rows of model {model.name}, not {model.rows}")
    strangers = sorted(model for model, held in counts.items() if held)
    return found + [f"{path} has rows of a model {model} that is not listed" for model in strangers]


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


def _delete(paths: list[Path]) -> tuple[list[Path], int]:
    freed = 0
    for path in paths:
        with clear_errors("deleting", path):
            freed += path.stat().st_size
            path.unlink()
    for folder in {path.parent for path in paths}:
        sync(folder)
    return paths, freed
