"""A cache of digests: a large file is hashed once, not by every command.

An entry says that the file with this device, inode, size, mtime and ctime had this digest. Nobody
can set ctime, so a file that was written to is hashed again. The cache does not see changes by a
failing disk: ``check``, and commands that copy a file into a new generation, read all bytes.

The cache is in COMPATCTL_CACHE, XDG_CACHE_HOME/compatctl or ~/.cache/compatctl, one small file an
entry. It can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from compatctl.files._write import sha256_file

SMALLEST = 1 << 20
"""Bytes; smaller files are not cached."""
RECENT_NS = 2_000_000_000
"""A file changed this recently could change again within the same mtime."""
MOST = 256
"""Maximum number of entries; the oldest are deleted."""

_FIELDS = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An entry of the cache; empty if ``sha256`` is."""

    sha256: str = ""
    facts: tuple[str, ...] = ()


def has_digest(path: Path, sha256: str) -> bool:
    """Whether the file has this sha256: as cached, or else hashed.

    Raises:
        InputError: the file is missing or unreadable.
    """
    if _recall(path).sha256 == sha256:
        return True
    before = _state(path)
    if sha256_file(path) != sha256:
        return False
    if before is not None and before == _state(path):
        _write(path, before, _Known(sha256=sha256))
    return True


def is_remembered(path: Path, sha256: str, fact: str) -> bool:
    """Whether ``remember`` holds this fact about these bytes."""
    known = _recall(path)
    return known.sha256 == sha256 and fact in known.facts


def remember(path: Path, sha256: str, fact: str) -> None:
    """Remember a fact about a file whose digest is cached; do nothing for other files."""
    known = _recall(path)
    state = _state(path)
    if known.sha256 == sha256 and state is not None:
        facts = tuple(sorted({*known.facts, fact}))
        _write(path, state, _Known(sha256=sha256, facts=facts))


def cache_folder() -> Path | None:
    """COMPATCTL_CACHE, XDG_CACHE_HOME/compatctl or ~/.cache/compatctl; None without a home."""
    for name, below in (("COMPATCTL_CACHE", ""), ("XDG_CACHE_HOME", "compatctl")):
        if value := os.environ.get(name):
            return Path(value) / below
    try:
        return Path.home() / ".cache" / "compatctl"
    except RuntimeError:
        return None


def _state(path: Path) -> list[int] | None:
    """The metadata of a file; None unless it is large and old enough to be cached."""
    try:
        status = path.stat()
    except OSError:
        return None
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if status.st_size < SMALLEST or not changed < time.time_ns() - RECENT_NS:
        return None
    return [int(getattr(status, name)) for name in _FIELDS]


def _entry(state: list[int]) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"{state[0]:x}-{state[1]:x}.json"


def _recall(path: Path) -> _Known:
    state = _state(path)
    entry = None if state is None else _entry(state)
    if entry is None:
        return _Known()
    try:
        content = json.loads(entry.read_bytes())
        if content["state"] != state:
            return _Known()
        return _Known(sha256=str(content["sha256"]), facts=tuple(map(str, content["facts"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Known()


def _write(path: Path, state: list[int], known: _Known) -> None:
    entry = _entry(state)
    if entry is None:
        return
    with contextlib.suppress(OSError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = entry.with_name(f".{secrets.token_hex(8)}")
        text = json.dumps({**asdict(known), "state": state, "path": str(path)})
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(entry)
        entries = sorted(entry.parent.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for old in entries[:-MOST]:
            old.unlink(missing_ok=True)
