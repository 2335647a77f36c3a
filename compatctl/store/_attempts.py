"""Attempts: the verifications of one candidate on the same data, one ``attempts/<digest>.json``.

Each verification with another seed or policy is another chance of a false pass, so the gate counts
them. Every attempt is kept, in the order of its first run; a repeated one counts once. The files
belong to no generation: gc keeps them, and a rollback does not undo them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, ConflictError, DamagedError
from compatctl.files import (
    TEMPORARY,
    Lock,
    canonical_json,
    make_folder,
    os_errors,
    read_json,
    sha256_bytes,
    write_atomic,
)
from compatctl.manifest import is_digest, refuse_other_format
from compatctl.store._layout import ATTEMPTS, LOCK, is_regular_file, refuse_links
from compatctl.store._remote import remote_of

FORMAT = 2
"""The format of the files of attempts that this version reads and writes."""
_MAX_BYTES = 64 << 20
_MAX_RACES = 50
"""How often machines that verify one candidate at once may come first."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One verification: ``key`` is the digest of everything that can change its outcome,
    ``settings`` (JSON values) describe it to people."""

    key: str
    settings: Mapping[str, Any]


def read_attempts(root: Path, candidate: str, question: str) -> tuple[Attempt, ...]:
    """The attempts of a candidate (sha256) on a question (sha256 of the data), oldest first.

    Raises:
        InputError: the file is of another format.
        DamagedError: the file is not what this program wrote.
    """
    path = _path(root, candidate, question)
    if remote := remote_of(root):
        remote.mirror(f"{ATTEMPTS}/{path.name}")
    return _read(path, candidate, question) if os.path.lexists(path) else ()


def record_attempt(
    root: Path, candidate: str, question: str, attempt: Attempt, *, timeout_s: float = 10.0
) -> tuple[Attempt, ...]:
    """Record an attempt unless it is known; return the attempts up to and including it.

    Raises:
        ConflictError: another process holds the lock for longer than ``timeout_s`` seconds.
        DamagedError: the file is not what this program wrote.
        InputError: the file is of another format, or the store is not writable; in the second case
            the cause is the system's error.
    """
    refuse_links(root)
    with os_errors("writing into", root / ATTEMPTS):
        make_folder(root / ATTEMPTS)
    with Lock(root / ATTEMPTS / LOCK, timeout_s, "verify"):
        _sweep(root)
        for _ in range(_MAX_RACES):
            with contextlib.suppress(_Beaten):
                return _record(root, candidate, question, attempt)
    raise ConflictError(
        "other machines verify this candidate on these data all the time",
        tip="run the command again",
    )


class _Beaten(Exception):  # noqa: N818
    """Another machine wrote the file first."""


def _record(root: Path, candidate: str, question: str, attempt: Attempt) -> tuple[Attempt, ...]:
    """Record an attempt under the lock; in a bucket on condition that no other came first."""
    path, remote = _path(root, candidate, question), remote_of(root)
    e_tag = remote.mirror(f"{ATTEMPTS}/{path.name}") if remote else None
    attempts = _read(path, candidate, question) if os.path.lexists(path) else ()
    keys = [known.key for known in attempts]
    if attempt.key in keys:
        return attempts[: keys.index(attempt.key) + 1]
    attempts = (*attempts, attempt)
    data = _bytes(candidate, question, attempts)
    if remote:
        remote.refuse_careless_server()
        try:
            remote.bucket.swap(f"{ATTEMPTS}/{path.name}", data, e_tag)
        except ConflictError:
            raise _Beaten from None
    write_atomic(path, data)
    return attempts


def attempts_problems(root: Path) -> Iterator[str]:
    """The problems of the files of attempts."""
    folder = root / ATTEMPTS
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if path.name.startswith(TEMPORARY):  # of a killed process, or being written
            continue
        try:
            raw = _read_json(path)
            names = (raw.get("candidate"), raw.get("question")) if isinstance(raw, dict) else ()
            if len(names) != 2 or not all(map(is_digest, names)):
                yield f"{path} is not a file of attempts"
            elif path != _path(root, str(names[0]), str(names[1])):
                yield f"{path} is of another candidate or other data than its name says"
            else:
                _read(path, str(names[0]), str(names[1]))
        except CompatError as error:
            yield error.message


def unfinished_attempts(root: Path) -> list[Path]:
    """Temporary files of processes that are writing attempts, or were killed while writing."""
    return sorted(path for path in (root / ATTEMPTS).glob(f"{TEMPORARY}*") if is_regular_file(path))


def sweep_attempts(root: Path) -> tuple[list[Path], int]:
    """Delete temporary files of killed processes; return their paths and total size in bytes.

    Nothing is deleted while another process holds the lock: it may be writing one of them.
    """
    if not unfinished_attempts(root):
        return [], 0
    try:
        with Lock(root / ATTEMPTS / LOCK, 0.0, "check --gc"):
            return _sweep(root)
    except ConflictError:
        return [], 0


def _sweep(root: Path) -> tuple[list[Path], int]:
    """``sweep_attempts`` for a caller that holds the lock."""
    paths, freed = unfinished_attempts(root), 0
    with os_errors("deleting in", root / ATTEMPTS):
        for path in paths:
            freed += path.stat().st_size
            path.unlink()
    return paths, freed


def _path(root: Path, candidate: str, question: str) -> Path:
    return root / ATTEMPTS / f"{sha256_bytes(f'{candidate} {question}'.encode())}.json"


def _bytes(candidate: str, question: str, attempts: tuple[Attempt, ...]) -> bytes:
    """The bytes of a file of attempts; it contains the digest of its content."""
    content = {
        "format": FORMAT,
        "candidate": candidate,
        "question": question,
        "attempts": [asdict(attempt) for attempt in attempts],
    }
    return canonical_json({**content, "sha256": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(content))


def _read_json(path: Path) -> object:
    if not is_regular_file(path):  # opening a pipe would wait for ever
        raise _damaged(path)
    raw = read_json(path, _MAX_BYTES, error=DamagedError)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        _refuse_format(raw, path)
    return raw


def _refuse_format(raw: Mapping[str, Any], path: Path) -> None:
    """Raise if the file is intact and of another format; a wrong digest is damage."""
    try:
        digest = _digest({name: value for name, value in raw.items() if name != "sha256"})
    except (ValueError, RecursionError):
        return
    if raw.get("sha256") == digest:
        refuse_other_format(raw, FORMAT, f"{path}: attempts")


def _read(path: Path, candidate: str, question: str) -> tuple[Attempt, ...]:
    raw = _read_json(path)
    try:
        attempts = tuple(Attempt(**entry) for entry in raw["attempts"])  # type: ignore[index]
        keys = [attempt.key for attempt in attempts]
        valid = all(map(is_digest, keys)) and len(set(keys)) == len(keys) > 0
        if valid and path.read_bytes() == _bytes(candidate, question, attempts):
            return attempts
    except (KeyError, TypeError, ValueError, RecursionError, OSError):
        pass
    raise _damaged(path)


def _damaged(path: Path) -> DamagedError:
    return DamagedError(
        f"{path} is not what verify wrote",
        tip="restore the file from a backup; without it the count of attempts starts again",
    )
