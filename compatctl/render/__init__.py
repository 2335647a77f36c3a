"""Results as tables or JSON on stdout; progress and errors on stderr. Only render uses rich."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from compatctl.errors import CompatError
from compatctl.files import json_safe
from compatctl.printable import printable
from compatctl.processes import Launch
from compatctl.progress import close_stages
from compatctl.render.console import T, fields_table, json_table, make_console
from compatctl.render.progress_line import ProgressLine

if TYPE_CHECKING:
    from compatctl.render.console import Table

__all__ = ["announce", "error", "fields_table", "json_table", "result", "step", "warn", "watching"]

_lines: list[ProgressLine] = []
"""The lines of progress that are drawn: one at most, but in a demo that is run by a test."""


def error(
    problem: CompatError, *, as_json: bool, notices: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print the message and its tip on stderr; with ``as_json`` also as JSON on stdout."""
    _say(f"compatctl: {printable(problem.message)}", sys.stderr)
    if problem.tip:
        _say(f"  next: {printable(problem.tip)}", sys.stderr)
    if as_json:
        entry: dict[str, Any] = {
            "kind": type(problem).__name__,
            "message": problem.message,
            "tip": problem.tip,
            "exit_code": problem.exit_code,
        }
        if problem.details:
            entry["details"] = json_safe(problem.details)
        answer = {"error": entry, **({"notices": notices} if notices else {})}
        _say(json.dumps(answer, indent=2, sort_keys=True), sys.stdout)


def warn(lines: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for line in lines:
        _say(f"compatctl: warning: {printable(line)}", sys.stderr)


def announce(line: str) -> None:
    """Print a line on stderr, such as what a command is about to do."""
    _say(f"compatctl: {printable(line)}", sys.stderr)


def step(line: str) -> None:
    """Print a line on stderr about what a command does now, as it is."""
    _say(printable(line), sys.stderr)


def _say(text: str, stream: TextIO) -> None:
    """Print a line, or do without where the stream takes nothing more."""
    for line in _lines:
        line.clear()
    try:
        print(text, file=stream, flush=True)
    except OSError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Let a stream that failed write to nowhere, so that its end fails no more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def result(
    value: T, table: Table[T], *, as_json: bool, notices: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print a result on stdout: as JSON, with ``notices`` if there are any, or by its table.

    Raises:
        CompatError: stdout does not take it, as where the disk is full.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        _print(value, table, as_json=as_json, notices=notices)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        _silence(sys.stdout)
        raise CompatError(
            f"the command is done, but its result cannot be printed: {problem.strerror}",
            tip="make room where the output goes; compatctl status says what is deployed",
        ) from problem


def _print(
    value: T, table: Table[T], *, as_json: bool, notices: Sequence[Mapping[str, Any]]
) -> None:
    if as_json:
        answer = json_safe(value)
        if notices:
            answer = {**answer, "notices": notices}
        print(json.dumps(answer, indent=2, sort_keys=True, allow_nan=False))
        return
    table(make_console(), value)


@contextmanager
def watching(command: str) -> Iterator[None]:
    """Show on stderr what the block does, from the first second; see ``progress_line``.

    Processes of ``torchrun`` other than the first show nothing.
    """
    launch = Launch.current()
    if launch is not None and launch.rank:
        yield
        return
    close_stages()
    line = ProgressLine(command, sys.stderr)
    _lines.append(line)
    line.start()
    try:
        yield
    finally:
        line.stop()
        _lines.remove(line)
        close_stages()
