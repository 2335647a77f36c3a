"""A commit: files first, then the generation that names them. All or nothing, one writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from compatctl._version import __version__
from compatctl.errors import ConflictError, InputError
from compatctl.files import (
    FOLDER_MODE,
    TEMPORARY,
    Lock,
    copy,
    make_folder,
    os_errors,
    parse_json,
    sha256_file,
    sync,
    write_atomic,
    write_blob,
)
from compatctl.manifest import FORMAT, Manifest
from compatctl.store._copy import REMOTE
from compatctl.store._layout import (
    ATTEMPTS,
    BACKFILL,
    HISTORY,
    KINDS,
    LOCK,
    MANIFEST,
    SIDE,
    catalog_problems,
    erasure_problems,
    generation_path,
    manifest_bytes,
    manifest_digest,
    read_current,
    refuse_links,
    refuse_missing_manifest,
    refuse_older_manifest,
    require_blobs,
)
from compatctl.store._remote import WRITING, pull, remote_of, shown_path
from compatctl.store._switch import Switch, engine_switch


class Transaction:
    """One writer's work on a store; begin it with ``Store.create`` or ``Store.transaction``.

    A context manager. Leaving it without ``commit`` changes nothing: files stored by ``put`` are
    unreferenced, and gc deletes them.

    Of a store whose rows are in an engine, the engine's row is switched with each commit.

    Raises:
        ConflictError: on entering, the store is locked, its generation is not the expected one, or
            the engine's row is of another one.
        InputError: on entering a creation, the folder holds something else.
    """

    def __init__(
        self,
        root: Path,
        expected: Manifest | None,
        *,
        operation: str,
        timeout_s: float = 10.0,
        switch: Switch | None = None,
    ) -> None:
        self._root = root
        self._current = expected
        self._switch = switch
        self._lock = Lock(root / LOCK, timeout_s, operation)
        self._stack = ExitStack()
        self._new_catalogs: set[str] = set()
        self._remote = remote_of(root)
        self._e_tag: str | None = None

    def __enter__(self) -> Self:
        if self._current is None:
            self._make_folder()
        with ExitStack() as entering:
            entering.enter_context(self._lock)
            self._e_tag = self._remote.pull() if self._remote else None
            if self._current is None:
                self._refuse_content()
            else:
                self._refuse_stale(self._current)
            self._stack = entering.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def put(self, kind: str, source: Path | Callable[[Path], object]) -> str:
        """Store a copy of a file, or what ``source(path)`` writes to a new file; return its sha256.

        Raises:
            InputError: the file is missing or empty, or changed while it was copied.
            CompatError: no space, or no permission.
        """
        folder = self._root / kind
        if callable(source):
            blob = write_blob(folder, KINDS[kind], source)
        else:
            digest = sha256_file(source)
            blob = write_blob(folder, KINDS[kind], partial(copy, source))
            if blob.sha256 != digest:
                raise InputError(f"{source} changed while it was copied", tip="run it again")
        if not blob.bytes:
            raise InputError(f"{kind}: the file is empty")
        if kind == "catalogs":
            self._new_catalogs.add(blob.sha256)
        return blob.sha256

    def commit(self, *, operation: str, created_at: str, **changes: Any) -> Manifest:
        """Make the next generation: the current one with ``changes``, fields of ``Manifest``.

        A change of ``query_model`` resets calibration, re-scoring, report, policy and the reasons
        unless they are given; ``restores`` is not inherited. ``created_at``: ISO 8601, UTC,
        ending in Z.

        Raises:
            InputError: the generation would contradict itself, or its catalogue contradicts it.
            DamagedError: a file that it names is missing.
            CompatError: no space, or no permission; the store is unchanged.
            ConflictError: of a store in a bucket: another machine was first.
        """
        after = self._next(operation, created_at, changes)
        _refuse_problems(after.contradictions())
        if self._remote is None:
            require_blobs(self._root, after)
        if after.catalog in self._new_catalogs:
            _refuse_problems(catalog_problems(self._root, after))
        if self._current is not None and after.catalog != self._current.catalog:
            if self._remote and after.erasures is not None:
                self._remote.fetch("catalogs", after.catalog)
                self._remote.fetch("erasures", after.erasures)
            _refuse_problems(erasure_problems(self._root, after))
        data = manifest_bytes(after)
        path = generation_path(self._root, after.generation)
        Manifest.from_json(parse_json(data, path), "the new generation")
        if self._remote:
            self._e_tag = self._remote.publish(self._current, after, self._e_tag)
            self._switch_to(after)
        else:
            self._write(path, data, after)
        self._current = after
        return after

    def _write(self, path: Path, data: bytes, after: Manifest) -> None:
        """Write a generation's manifest into the folder: history first, an engine's row, then the
        commit."""
        with os_errors("creating", path.parent):
            make_folder(path.parent)
        write_atomic(path, data)
        self._switch_to(after)
        write_atomic(self._root / MANIFEST, data)

    def _switch_to(self, after: Manifest) -> None:
        """Switch an engine's row, where the rows are in one."""
        if self._switch is not None:
            self._switch.switch(self._current, after)

    def _next(self, operation: str, created_at: str, changes: dict[str, Any]) -> Manifest:
        changes = {"restores": None, "operation": operation, "created_at": created_at, **changes}
        if self._current is None:
            return Manifest(generation=1, parent=None, **changes)
        if "query_model" in changes:
            reset = ("report", "policy", "forced_reason", "again_reason")
            changes = {**dict.fromkeys(("calibration", "rescoring", *reset)), **changes}
        return replace(
            self._current,
            **changes,
            format=FORMAT,
            tool_version=__version__,
            generation=self._current.generation + 1,
            parent=manifest_digest(self._current),
        )

    def _refuse_stale(self, expected: Manifest) -> None:
        current = read_current(self._root)
        self._switch = self._switch or engine_switch(self._root, current)
        if self._switch is not None:
            current = self._switch.roll_forward(self._root, current)
        if manifest_bytes(current) != manifest_bytes(expected):
            raise ConflictError(
                f"{shown_path(self._root)} moved on to generation {current.generation} "
                f"({current.operation}) while this was computed from generation "
                f"{expected.generation}",
                tip="run the command again",
            )
        refuse_older_manifest(self._root, current)

    def _refuse_content(self) -> None:
        """Take over what a killed creation left; refuse any other content."""
        pull(self._root)
        if (self._root / MANIFEST).exists():
            raise InputError(
                f"{shown_path(self._root)} is already a store", tip="name another folder"
            )
        refuse_links(self._root)
        refuse_missing_manifest(self._root)
        own = {LOCK, HISTORY, *KINDS} | (
            {REMOTE, ATTEMPTS, SIDE, BACKFILL} if self._remote else set()
        )
        with os_errors("reading", self._root):
            names = {path.name for path in self._root.iterdir()}
        if self._remote:
            names |= {name.partition("/")[0] for name in self._remote.bucket.sizes()} - {WRITING}
        if foreign := sorted(name for name in names - own if not name.startswith(TEMPORARY)):
            raise InputError(
                f"{shown_path(self._root)} is not empty: it holds {foreign[0]}",
                tip="name a new, empty folder",
            )

    def _make_folder(self) -> None:
        """Create the folder; refuse one with other content before a lock file is made in it."""
        with os_errors("creating", self._root):
            if self._root.exists() and not self._root.is_dir():
                raise InputError(f"{self._root} is a file", tip="name a new, empty folder")
            self._root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            sync(self._root.parent)
        self._refuse_content()


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        raise InputError(f"the new generation would be wrong: {'; '.join(problems)}")
