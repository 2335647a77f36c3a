"""Results as tables or JSON on stdout; progress and errors on stderr. Only render uses rich."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compatctl.errors import CompatError
from compatctl.files import json_safe
from compatctl.printable import printable
from compatctl.progress import Progress, silent
from compatctl.render.console import T, cell, fields_table, json_table, make_console

if TYPE_CHECKING:
    from compatctl.render.console import Table

__all__ = ["error", "fields_table", "json_table", "progress", "result", "warn"]

SHOW_AFTER_S = 2.0
"""A stage that lasts longer gets a progress bar."""


def error(
    problem: CompatError, *, as_json: bool, notices: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print the message and its tip on stderr; with ``as_json`` also as JSON on stdout."""
    print(f"compatctl: {printable(problem.message)}", file=sys.stderr)
    if problem.tip:
        print(f"  next: {printable(problem.tip)}", file=sys.stderr)
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
        print(json.dumps(answer, indent=2, sort_keys=True))


def warn(lines: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for line in lines:
        print(f"compatctl: warning: {printable(line)}", file=sys.stderr)


def result(
    value: T, table: Table[T], *, as_json: bool, notices: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print a result on stdout: as JSON, with ``notices`` if there are any, or by its table."""
    if as_json:
        answer = json_safe(value)
        if notices:
            answer = {**answer, "notices": notices}
        print(json.dumps(answer, indent=2, sort_keys=True, allow_nan=False))
        return
    table(make_console(), value)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show a bar on stderr for each stage over two seconds; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    start_times: dict[str, float] = {}
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(stage: str, done: int, total: int) -> None:
            started = start_times.setdefault(stage, time.monotonic())
            if stage not in tasks and time.monotonic() - started >= SHOW_AFTER_S:
                tasks[stage] = bars.add_task(cell(stage), total=total)
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total)
                if done >= total:
                    bars.remove_task(tasks.pop(stage))
            if done >= total:
                start_times.pop(stage, None)

        yield report
