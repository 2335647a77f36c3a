"""Results as tables or JSON on stdout; progress and errors on stderr. The one home of rich."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from compatctl.errors import CompatError
from compatctl.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

SHOW_AFTER_S = 2.0
LOG_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
_SMALL = 0.00005
"""What four decimals would show as nothing."""


def error(problem: CompatError, *, as_json: bool) -> None:
    """The message and what to do next, on stderr; with ``as_json`` the same on stdout besides."""
    print(f"compatctl: {problem.message}", file=sys.stderr)
    if problem.tip:
        print(f"  next: {problem.tip}", file=sys.stderr)
    if as_json:
        entry = {
            "kind": type(problem).__name__,
            "message": problem.message,
            "tip": problem.tip,
            "exit_code": problem.exit_code,
        }
        print(json.dumps({"error": entry}, indent=2, sort_keys=True))


def result(value: object, *, as_json: bool) -> None:
    """One result: JSON of the dataclass, or its table."""
    if as_json:
        print(json.dumps(_plain(value), indent=2, sort_keys=True, allow_nan=False))
        return
    console = _console()
    show = _TABLES.get(type(value).__name__, _fields)
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
                tasks[stage] = bars.add_task(stage, total=total)
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total)
                if done >= total:
                    bars.remove_task(tasks.pop(stage))
            if done >= total:
                began.pop(stage, None)

        yield report


def _console() -> Console:
    from rich.console import Console

    on_screen = sys.stdout.isatty()
    width = None if on_screen or "COLUMNS" in os.environ else LOG_WIDTH
    return Console(highlight=False, soft_wrap=not on_screen, emoji=False, width=width)


def _plain(value: Any) -> Any:
    """JSON values only; a number that is not defined becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(
            name, justify="left" if at == 0 else "right", no_wrap=at > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(entry) for entry in row))
    console.print(table)


def _cell(entry: object) -> str:
    from rich.markup import escape

    if entry is None:
        return "-"
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, float):
        return f"{entry:.1e}" if 0 < abs(entry) < _SMALL else f"{entry:.4f}"
    return escape(str(entry))


def _fields(console: Console, value: Any) -> None:
    """The plain sheet: one line a field."""
    for name, entry in _plain(value).items():
        if isinstance(entry, list):
            shown = ", ".join(map(_cell, entry[:8])) + (" ..." if len(entry) > 8 else "")
        else:
            shown = _cell(entry)
        console.print(f"{name.replace('_', ' '):<22} {shown}")


_TESTS = {
    "old_old": "old / old",
    "new_old": "new / old",
    "new_new": "new / new",
    "old_new": "old / new",
    "old_mixed": "old / mixed",
    "new_mixed": "new / mixed",
}


def _report(console: Console, report: Any) -> None:
    for group in report.groups:
        _group(console, group)
    checks = [check for check in report.verdict.checks if check.decides]
    if checks:
        _checks(console, checks)
    first = report.groups[0].name
    others = [
        check
        for check in report.verdict.checks
        if not check.decides and check.group.startswith((first, "pairs"))
    ]
    if others:
        console.print("measured, without a say in the policy or with too few queries:")
        _checks(console, others)
    if report.pairs is not None:
        _pairs(console, report.pairs)
    if report.ann is not None:
        console.print(
            f"ANN recall@{report.ann.k} of the new queries: {report.ann.recall_now:.4f} at ef "
            f"{report.ann.ef_now}; ef for {report.ann.target}: {report.ann.ef_needed}"
        )
    if report.latency is not None:
        console.print(
            f"a batch of {report.latency.batch}: {report.latency.old_ms:.3g} ms old, "
            f"{report.latency.new_ms:.3g} ms new"
        )
    console.print(f"not checked: {_cell('; '.join(report.not_checked))}")
    console.print(f"\nverdict: {report.verdict.outcome}. {_cell(report.summary)}")
    console.print(f"next: {report.next_step}")


def _group(console: Console, group: Any) -> None:
    console.print(
        f"{_cell(group.name)}: {group.n_queries} queries of {group.n_classes} classes"
        f"{_left_out(group.n_without_match)}"
    )
    ks = sorted(group.recall["old_old"], key=int)
    rows = [
        (
            _TESTS[pair],
            *(recall[k] for k in ks),
            group.map_at_k[pair],
            group.cos_same.get(pair),
            group.cos_diff.get(pair),
        )
        for pair, recall in group.recall.items()
    ]
    columns = (
        "query / gallery",
        *(f"recall@{k}" for k in ks),
        f"mAP@{group.map_k}",
        "same",
        "diff",
    )
    _table(console, columns, rows)
    line = f"queries that become wrong {group.negative_flips:.4f}, right {group.positive_flips:.4f}"
    if group.rank_bias:
        line += (
            f"; rank bias towards re-embedded items: {group.rank_bias['old']:+.4f} of old, "
            f"{group.rank_bias['new']:+.4f} of new queries"
        )
    console.print(line)
    if group.error_rates is not None:
        rates = group.error_rates
        console.print(
            f"accepted at {rates.old_threshold:g} by old, {rates.new_threshold:g} by new queries: "
            f"FAR {rates.far['old']:.3g}, {rates.far['new']:.3g}; FRR {rates.frr['old']:.4f}, "
            f"{rates.frr['new']:.4f}; threshold that keeps the FAR: {rates.keeping_threshold:.4f} "
            f"(FRR {rates.keeping_frr:.4f})"
        )
    console.print("")


def _named(check: Any) -> str:
    part = check.group.removeprefix("unseen").removeprefix(", ")
    return f"{check.name} ({part})" if part else str(check.name)


def _checks(console: Console, checks: Sequence[Any]) -> None:
    rows = [
        (
            _named(check),
            check.estimate,
            None if check.low is None else f"{check.low:.4f} .. {check.high:.4f}",
            None if check.threshold is None else check.threshold - (check.margin or 0.0),
            check.n,
            check.outcome if check.threshold is not None else "",
        )
        for check in checks
    ]
    _table(console, ("check", "estimate", "interval", "limit", "n", "outcome"), rows)


def _pairs(console: Console, pairs: Any) -> None:
    console.print(f"given pairs: {pairs.n_same} of one class, {pairs.n_diff} of two")
    fars = list(pairs.tar["old"])
    rows = [
        (
            name,
            pairs.accuracy[name],
            pairs.equal_error_rate[name],
            *(pairs.tar[name][far] for far in fars),
        )
        for name in ("old", "new")
    ]
    columns = ("query model", "accuracy", "EER", *(f"TAR@{far}" for far in fars))
    _table(console, columns, rows)


def _left_out(count: int) -> str:
    return f" ({count} more have no match in the gallery)" if count else ""


def _matrix(console: Console, matrix: Any) -> None:
    columns = ("query \\ gallery", *matrix.versions)
    size = len(matrix.versions)
    rows = [
        (name, *row, *([""] * (size - len(row))))
        for name, row in zip(matrix.versions, matrix.values, strict=True)
    ]
    _table(console, columns, rows)
    for name in ("ac", "aa", "aca"):
        ends = getattr(matrix, f"{name}_interval")
        between = "" if ends is None else f" ({ends[0]:.4f} to {ends[1]:.4f})"
        console.print(f"{name.upper():<4} {_cell(getattr(matrix, name))}{between}")
    console.print(
        f"recall@1 of {matrix.n_queries} queries of {matrix.n_classes} classes; 95% intervals"
    )


def _history(console: Console, history: Any) -> None:
    rows = [
        (
            entry.generation,
            entry.operation,
            entry.created_at,
            entry.query_model[:12],
            entry.rows,
            entry.note,
        )
        for entry in history.generations
    ]
    _table(console, ("generation", "operation", "at", "query model", "rows", "note"), rows)


def _found(console: Console, found: Any) -> None:
    for query in found.queries:
        console.print(query.image)
        rows = [(hit.id, hit.label, hit.score) for hit in query.hits]
        _table(console, ("item", "label", "cosine"), rows)


def _demo(console: Console, demo: Any) -> None:
    routes = [
        (route.name, route.new_old, route.new_old - demo.old_old, route.new_new, route.verdict)
        for route in demo.routes
    ]
    console.print(
        f"recall@1 on {demo.classes} classes that no model was trained on, {demo.queries} queries; "
        f"today: {demo.old_old:.4f}"
    )
    _table(
        console, ("route", "new on old gallery", "gain", "new on new gallery", "verdict"), routes
    )
    for line in demo.story:
        console.print(line)
    console.print(
        f"\nverdict: {demo.verdict}; deployed: {_cell(demo.deployed_route)}; {demo.seconds:.0f} s"
    )


def _bridged(console: Console, done: Any) -> None:
    rows = [(trial.kind, trial.setting, trial.recall) for trial in done.trials]
    _table(console, ("map", "setting", "recall@1"), rows)
    _fields(console, {key: entry for key, entry in _plain(done).items() if key != "trials"})


_TABLES: dict[str, Callable[[Console, Any], None]] = {
    "Bridged": _bridged,
    "Report": _report,
    "CompatibilityMatrix": _matrix,
    "History": _history,
    "Found": _found,
    "Demo": _demo,
}
