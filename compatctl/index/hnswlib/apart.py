"""An index in a process of its own.

hnswlib holds the whole interpreter while it reads a file, about 0.7 seconds for each gigabyte: no
other thread of the process answers meanwhile.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from threading import Lock, Thread
from typing import Any, NoReturn, Self

from compatctl.core.arrays import Keys, Scores, Vectors
from compatctl.errors import CompatError, UsageError
from compatctl.index.hnswlib.index import HnswIndex
from compatctl.index.hnswlib.params import HnswParams
from compatctl.progress import Progress, silent

LOG = logging.getLogger("compatctl.index")

_ASKED = ("search", "vectors", "keys")
_NICE = 10
"""How far loading stands back behind what else the machine does."""
_GONE = (EOFError, OSError)
_GONE_S = 5.0
"""Seconds that a process gets to end which says nothing any more."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """What ``HnswIndex.load`` takes."""

    path: Path
    params: HnswParams
    count: int
    prevalidated: bool

    def load(self) -> HnswIndex:
        return HnswIndex.load(self.path, self.params, self.count, prevalidated=self.prevalidated)


class IndexApart:
    """The rows of a file, which another process has loaded and searches; any thread may ask.

    Where that process ends, as when the machine runs out of memory, the next call loads the file
    here and goes on. It ends with this object, and with the process that started it.
    """

    def __init__(self, file: _File, channel: Connection, process: subprocess.Popen[bytes]) -> None:
        self._file, self._channel, self._process = file, channel, process
        self._asking = Lock()
        self._here: HnswIndex | None = None
        self.end = weakref.finalize(self, _end, channel, process)

    @classmethod
    def load(cls, path: Path, params: HnswParams, count: int, *, prevalidated: bool) -> Self:
        """Start a process that loads a file; it does so at a lower priority.

        Raises as ``HnswIndex.load``; CompatError: the process ended before it had loaded.
        """
        file = _File(path=path, params=params, count=count, prevalidated=prevalidated)
        here, there = socketpair()
        program = _PROGRAM.format(nice=_NICE, descriptor=there.fileno())
        with there:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C in a terminal is for the service, which ends this
            )
        apart = cls(file, Connection(here.detach()), process)
        try:
            apart._channel.send(file)
            apart._result()
        except _GONE:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GONE_S)
            apart.end()
            raise CompatError(
                f"{path}: the process that loads the index ended, with code {process.returncode}",
                tip="there may be too little memory for two indexes at once",
            ) from None
        except CompatError:
            apart.end()
            raise
        return apart

    def __len__(self) -> int:
        return self._file.count

    @property
    def max_ef(self) -> int:
        """As ``HnswIndex.max_ef``."""
        return len(self)

    def add(self, vectors: Vectors, keys: Keys, progress: Progress = silent) -> NoReturn:
        """Refuse: what answers queries does not change.

        Raises:
            UsageError: always.
        """
        raise UsageError("an index that answers queries takes no rows")

    def keys(self) -> Keys:
        """As ``HnswIndex.keys``."""
        found: Keys = self._ask("keys")
        return found

    def vectors(self, keys: Keys | None = None) -> Vectors:
        """As ``HnswIndex.vectors``."""
        found: Vectors = self._ask("vectors", keys)
        return found

    def search(self, queries: Vectors, k: int, ef: int | None = None) -> tuple[Keys, Scores]:
        """As ``HnswIndex.search``."""
        found: tuple[Keys, Scores] = self._ask("search", queries, k, ef)
        return found

    def _ask(self, name: str, *arguments: object) -> Any:
        with self._asking:
            if self._here is None:
                try:
                    self._channel.send((name, arguments))
                    return self._result()
                except _GONE:
                    LOG.warning("the process %d of the index ended: it is loaded again",
                                self._process.pid)  # fmt: skip
                    self._here = self._file.load()
                    self.end()
        return getattr(self._here, name)(*arguments)

    def _result(self) -> Any:
        failed, value = self._channel.recv()
        if failed:
            raise value
        return value


_PROGRAM = """
import os, threading
loaded = []
def load():
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), {nice})  # of this thread
    from compatctl.index.hnswlib import apart
    loaded.append(apart.load({descriptor}))
loading = threading.Thread(target=load)
loading.start()
loading.join()
loaded[0]()
"""
"""Libraries are imported at the lower priority too; answers are given at the usual one."""


def load(descriptor: int) -> Callable[[], None]:
    """In the process: load the file that the first message names. The call that this returns
    answers until the other end is closed."""
    channel = Connection(descriptor)
    loaded: list[HnswIndex] = []
    with suppress(*_GONE):
        file: _File = channel.recv()
        _say(channel, lambda: loaded.append(file.load()))

    def answer() -> None:
        with suppress(*_GONE):
            while loaded:
                name, arguments = channel.recv()
                assert name in _ASKED
                method = getattr(loaded[0], name)
                _say(channel, lambda: method(*arguments))  # noqa: B023

    return answer


def _say(channel: Connection, call: Callable[[], object]) -> None:
    """Send what a call returns, or the error that it raises."""
    try:
        said: tuple[bool, object] = False, call()
    except CompatError as error:
        said = True, error
    channel.send(said)


def _end(channel: Connection, process: subprocess.Popen[bytes]) -> None:
    channel.close()
    process.kill()  # it has only memory
    try:  # freeing it takes a moment, and this may be the thread that answers
        Thread(target=process.wait, name="compatctl-index-end", daemon=True).start()
    except RuntimeError:  # the interpreter ends
        process.wait()
