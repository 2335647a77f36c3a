"""Results as tables or JSON on stdout; progress and errors on stderr. The one home of rich."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compatctl.errors import CompatError
from compatctl.files import json_safe
from compatctl.printable import printable
from compatctl.progress import Progress, silent
from compatctl.render import _sheets
from compatctl.render._basics import cell, fields, make_console
from compatctl.render._report import report_sheet

if TYPE_CHECKING:
    from rich.console import Console

SHOW_AFTER_S = 2.0


def error(problem: CompatError, *, as_json: bool) -> None:
    """The message and what to do next, on stderr; with ``as_json`` the same on stdout besides."""
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
        print(json.dumps({"error": entry}, indent=2, sort_keys=True))


def warn(lines: Sequence[str]) -> None:
    """What a user must know of a result, on stderr."""
    for line in lines:
        print(f"compatctl: warning: {printable(line)}", file=sys.stderr)


def result(value: object, *, as_json: bool) -> None:
    """One result: JSON of the dataclass, or its table."""
    if as_json:
        print(json.dumps(json_safe(value), indent=2, sort_keys=True, allow_nan=False))
        return
    console = make_console()
    show = _TABLES.get(type(value).__name__, fields)
    show(console, value)


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr for every stage that lasts over two seconds; nothing without a terminal."""
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
    began: dict[str, float] = {}
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(stage: str, done: int, total: int) -> None:
            started = began.setdefault(stage, time.monotonic())
            if stage not in tasks and time.monotonic() - started >= SHOW_AFTER_S:
                tasks[stage] = bars.add_task(cell(stage), total=total)
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total)
                if done >= total:
                    bars.remove_task(tasks.pop(stage))
            if done >= total:
                began.pop(stage, None)

        yield report


_TABLES: dict[str, Callable[[Console, Any], None]] = {
    "Bridged": _sheets.bridged_sheet,
    "Report": report_sheet,
    "CompatibilityMatrix": _sheets.matrix_sheet,
    "Power": _sheets.power_sheet,
    "History": _sheets.history_sheet,
    "Found": _sheets.found_sheet,
    "Plan": _sheets.plan_sheet,
    "Demo": _sheets.demo_sheet,
    "Backfilled": _sheets.backfilled_sheet,
    "Lifted": _sheets.lifted_sheet,
}
