"""Several processes that do the same, and the one that starts them and starts again what dies or
hangs."""

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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from types import FrameType
from typing import Any, Generic, TypeVar

from compatctl.errors import CompatError
from compatctl.serving.server import DRAIN_S, TERMINATED

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

STUCK_S = 30.0
"""Seconds without a beat after which a process is killed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Link(Generic[S]):
    """A process's way to the one that started it; no call waits for an answer.

    Attributes:
        ready: says that it serves, with a value.
        again: whether this process stands for one that has ended.
        pulse: one number that both see: the time of the last beat, 0 before the first.
    """

    ready: Callable[[S], None]
    pulse: Any
    again: bool = False

    def beat(self) -> None:
        """Show that this process goes on."""
        self.pulse[0] = time.monotonic()


Target = Callable[[Link[S]], R]


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
    pulse: Any
    since: float
    delay: float = 0.0
    due: float | None = None


class Processes(Generic[S, R]):
    """Runs ``target(link)`` in ``count`` processes; pickle must take it.

    The target calls ``link.ready`` once it serves, ``link.beat`` again and again from then on, and
    returns when it gets SIGTERM. One that stops beating is killed, and started again as one that
    died. A process ends with the one that started it. ``ended`` gets the id of each that ended.
    """

    def __init__(self, target: Target[S, R], count: int, *, ended: Callable[[int], None]) -> None:
        self._target, self._count, self._ended = target, count, ended
        self._children: list[_Child] = []
        self._looked = self._awake = 0.0

    def run(self, started: Callable[[list[S]], None]) -> list[R]:
        """Run until SIGTERM, SIGHUP or Ctrl-C.

        Returns what the processes returned that ended by themselves.
        ``started`` gets what each said when it was ready, once all are.

        Raises:
            CompatError: one failed, or died, before all were ready.
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM came before all were ready.
        """
        results: list[R] = []
        try:
            with _until_signal() as stop:
                is_begun = self._begin(stop, started)
                while stop.number is None:
                    self._look()
        finally:
            results = self._end()
        if not is_begun:
            raise KeyboardInterrupt if stop.number == signal.SIGINT else SystemExit(TERMINATED)
        return results

    def _begin(self, stop: _Stop, started: Callable[[list[S]], None]) -> bool:
        """Start all, and wait until they are ready; False: a signal came before."""
        for _ in range(self._count):
            self._children.append(self._start())
        first: list[S] = []
        for child in self._children:
            while not child.channel.poll(LOOK_S) and stop.number is None:
                pass
            if stop.number is not None:
                return False
            first.append(self._first(child))
        started(first)
        self._looked = self._awake = time.monotonic()
        return True

    def _start(self, *, again: bool = False) -> _Child:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        pulse = context.RawArray("d", 1)
        process = context.Process(
            target=_main, args=(self._target, there, pulse, again), daemon=True
        )
        try:
            with _without_interrupts():
                process.start()
        except OSError:  # too many processes, or too little memory
            here.close()
            raise
        finally:
            there.close()
        return _Child(process=process, channel=here, pulse=pulse, since=time.monotonic())

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
        if now - self._looked > STUCK_S / 2:  # this process was stopped, maybe with all of them
            self._awake = now
        self._looked = now
        for number, child in enumerate(self._children):
            if child.due is not None:
                if now >= child.due:
                    self._children[number] = self._replaced(child, now)
            elif not child.process.is_alive() or self._kill_stuck(child):
                self._mourn(child, now)

    def _replaced(self, child: _Child, now: float) -> _Child:
        """The process that stands for one that ended or, if none can start now, that one still."""
        try:
            started = self._start(again=True)
        except OSError as error:
            child.delay = min(MAX_DELAY_S, 2 * child.delay or FIRST_DELAY_S)
            child.due = now + child.delay
            LOG.error("no process starts: %s; tried again in %g s", error.strerror, child.delay)
            return child
        started.delay = child.delay
        return started

    def _kill_stuck(self, child: _Child) -> bool:
        """Kill a process that does not go on; whether it did not."""
        last = child.pulse[0]
        if not last or time.monotonic() - max(last, self._awake) < STUCK_S:
            return False
        LOG.error("process %s hangs: it is killed", child.process.pid)
        child.process.kill()
        child.process.join()
        return True

    def _mourn(self, child: _Child, now: float) -> None:
        """Say what ended, and when the next one starts."""
        early = now - child.since < STEADY_S
        child.delay = min(MAX_DELAY_S, 2 * child.delay or FIRST_DELAY_S) if early else 0.0
        child.due = now + child.delay
        failed = [said.value for said in _said(child.channel) if said.kind == "failed"]
        why = failed[0].message if failed else _how(child.process)
        LOG.error("process %s ended: %s; another one starts", child.process.pid, why)
        child.channel.close()
        try:
            self._ended(child.process.pid or 0)
        except OSError as error:  # no space, now: the others go on
            LOG.error("the counts of process %s are lost: %s", child.process.pid, error.strerror)

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


@dataclass(kw_only=True)
class _Stop:
    """The signal that came; None: none has."""

    number: int | None = None


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C, for good in the processes that are started meanwhile: a terminal sends it to
    all, and the first one ends them."""
    resource_tracker.ensure_running()  # when the first process starts it, it lets Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _until_signal() -> Iterator[_Stop]:
    """SIGTERM, SIGHUP or Ctrl-C, once one has come; SIGHUP not where it is ignored (``nohup``)."""
    stop = _Stop()

    def take(number: int, frame: FrameType | None) -> None:
        stop.number = number

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(target: Target[Any, Any], channel: Connection, pulse: Any, again: bool) -> None:
    """The main function of a process."""
    Thread(target=_end_with_parent, name="compatctl-parent", daemon=True).start()

    def say(kind: str, value: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            channel.send(_Message(kind=kind, value=value))

    try:
        result = target(Link(ready=lambda value: say("ready", value), pulse=pulse, again=again))
    except CompatError as error:
        say("failed", error)
        sys.exit(1)
    say("done", result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
