"""Several processes that do the same, and the one that starts them and starts again what dies."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Event, Thread
from types import FrameType
from typing import Any, Generic, TypeVar

from compatctl.errors import CompatError
from compatctl.serving.server import DRAIN_S

LOG = logging.getLogger("compatctl.serve")

S = TypeVar("S")
R = TypeVar("R")

LOOK_S = 0.2
"""Seconds between two looks at the processes."""

STEADY_S = 10.0
"""Seconds after which a process counts as one that had started well."""

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
"""Seconds before a process that died earlier is started again: twice as many each time."""

END_S = DRAIN_S + 20.0
"""Seconds that the processes get to end, before they are killed."""

Target = Callable[[Callable[[S], None]], R]


@dataclass(frozen=True, kw_only=True)
class _Message:
    """What a process says: it is ready, it failed, or it has ended."""

    kind: str
    value: Any


@dataclass(kw_only=True, eq=False)
class _Child:
    """A process, and when the next one starts in its place."""

    process: BaseProcess
    channel: Connection
    since: float
    delay: float = 0.0
    due: float | None = None


class Processes(Generic[S, R]):
    """Runs ``target(ready)`` in ``count`` processes; pickle must take it.

    The target calls ``ready`` once it serves, and returns when it gets SIGTERM. A process ends with
    the one that started it. ``ended`` gets the id of each that ended.
    """

    def __init__(self, target: Target[S, R], count: int, *, ended: Callable[[int], None]) -> None:
        self._target, self._count, self._ended = target, count, ended
        self._children: list[_Child] = []

    def run(self, started: Callable[[list[S]], None]) -> list[R]:
        """Run until SIGTERM or Ctrl-C; what the processes returned that ended by themselves.

        ``started`` gets what each said when it was ready, once all are.

        Raises:
            CompatError: one failed, or died, before all were ready.
        """
        results: list[R] = []
        try:
            self._children = [self._start() for _ in range(self._count)]
            started([self._first(child) for child in self._children])
            with _until_signal() as stop:
                while not stop.is_set():
                    self._look()
        finally:
            results = self._end()
        return results

    def _start(self) -> _Child:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_main, args=(self._target, there), daemon=True)
        process.start()
        there.close()
        return _Child(process=process, channel=here, since=time.monotonic())

    def _first(self, child: _Child) -> S:
        """What a process says when it is ready."""
        try:
            message: _Message = child.channel.recv()
        except EOFError:
            child.process.join()
            raise CompatError(
                f"a process of the service ended with {_how(child.process)} before it answered",
                tip="there may be too little memory for so many processes: --processes",
            ) from None
        if message.kind == "failed":
            raise message.value
        value: S = message.value
        return value

    def _look(self) -> None:
        """Wait a moment, and start again what has ended."""
        wait([child.process.sentinel for child in self._children if child.due is None], LOOK_S)
        now = time.monotonic()
        for number, child in enumerate(self._children):
            if child.due is not None:
                if now >= child.due:
                    self._children[number] = self._start()
                    self._children[number].delay = child.delay
            elif not child.process.is_alive():
                self._mourn(child, now)

    def _mourn(self, child: _Child, now: float) -> None:
        """Say what ended, and when the next one starts."""
        early = now - child.since < STEADY_S
        child.delay = min(MAX_DELAY_S, 2 * child.delay or FIRST_DELAY_S) if early else 0.0
        child.due = now + child.delay
        failed = [said.value for said in _said(child.channel) if said.kind == "failed"]
        why = failed[0].message if failed else _how(child.process)
        LOG.error("process %s ended: %s; another one starts", child.process.pid, why)
        child.channel.close()
        self._ended(child.process.pid or 0)

    def _end(self) -> list[R]:
        """End what runs."""
        running = [child for child in self._children if child.due is None]
        for child in running:
            child.process.terminate()
        deadline = time.monotonic() + END_S
        results: list[R] = []
        for child in running:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                LOG.error("process %s does not end: it is killed", child.process.pid)
                child.process.kill()
                child.process.join()
            results += [said.value for said in _said(child.channel) if said.kind == "done"]
            child.channel.close()
        return results


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _said(channel: Connection) -> Iterator[_Message]:
    """What a process that has ended said and nobody read."""
    with contextlib.suppress(EOFError, OSError):
        while channel.poll():
            yield channel.recv()


@contextlib.contextmanager
def _until_signal() -> Iterator[Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = Event()

    def take(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(target: Target[Any, Any], channel: Connection) -> None:
    """The main function of a process. Ctrl-C in a terminal reaches all; the first one ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, name="compatctl-parent", daemon=True).start()

    def say(kind: str, value: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            channel.send(_Message(kind=kind, value=value))

    try:
        result = target(lambda value: say("ready", value))
    except CompatError as error:
        say("failed", error)
        sys.exit(1)
    say("done", result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
