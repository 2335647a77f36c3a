"""Tables of init, import, status and history: models by name, 12 characters of a digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compatctl.files import json_safe
from compatctl.printable import quantity
from compatctl.render.console import cell, fields_table, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from compatctl.commands.history import History
    from compatctl.commands.status import Status

_LABEL = 15
"""Width of the first column of status."""


def named(name: str, sha256: str) -> str:
    """A model for people: its name, and 12 characters of its digest."""
    return f"{name} ({sha256[:12]})" if name else sha256[:12]


class Created(Protocol):
    """The result of a command that makes a store."""

    @property
    def project_file(self) -> str | None:
        """The compatctl.yaml that was written; None: there was one."""


def created_table(console: Console, created: Created) -> None:
    """A line for each field; then the compatctl.yaml that was written, as it is."""
    fields = json_safe(created)
    fields_table(console, {key: entry for key, entry in fields.items() if key != "project_file"})
    if created.project_file is not None:
        console.print(f"\nwrote {cell(created.project_file)}, which every command reads:\n")
        for line in Path(created.project_file).read_text().splitlines():
            console.print(f"    {cell(line)}")


def status_table(console: Console, status: Status) -> None:
    """What answers, over what, and what of that it passed; then only what is set."""
    console.print(status.gallery_pass.text)
    for label, text in _status_lines(status):
        console.print(f"{label:<{_LABEL}} {cell(text)}")


def _status_lines(status: Status) -> Iterator[tuple[str, str]]:
    yield "query model", named(status.names.get(status.query_model, ""), status.query_model)
    yield "generation", f"{status.generation}, {status.operation}, {_minute(status.created_at)}"
    yield "gallery", f"{quantity(status.rows, 'row')} of {quantity(status.dim, 'dimension')}"
    for sha256, share in status.shares.items():
        yield "", f"{share:7.2%}  {named(status.names.get(sha256, ''), sha256)}"
    yield "index", f"{status.index_sha256[:12]}, ef {status.ef_search}"
    yield "store", f"{status.store}, head {status.head[:12]}"
    for label, digest in (
        ("report", status.report),
        ("class registry", status.registry),
        ("memory", status.memory),
    ):
        if digest is not None:
            yield label, digest[:12]
    if status.forced_reason is not None:
        yield "forced", status.forced_reason
    if status.again_reason is not None:
        yield "again", status.again_reason
    if not status.proven:
        yield "proven", "no"
    if status.calibrated:
        yield "scores", "mapped to the scale of an earlier model"
    yield from _rescoring_lines(status)
    if status.engine is not None:
        rows = "not reached" if status.engine.rows is None else quantity(status.engine.rows, "row")
        yield "rows", f"{status.engine.engine} {status.engine.table}: {rows}"
    restorable = f"from generation {status.oldest_restorable}"
    if status.oldest_gallery > status.oldest_restorable:
        restorable += f", with its gallery from {status.oldest_gallery}"
    yield "restorable", restorable


def _rescoring_lines(status: Status) -> Iterator[tuple[str, str]]:
    if status.rescoring is not None:
        entry = status.rescoring
        ends = "" if entry.max_ms is None else f", for {entry.max_ms:g} ms"
        yield (
            "re-scoring",
            f"the first {quantity(entry.candidates, 'answer')}, at most "
            f"{quantity(entry.passes, 'item')} a query{ends}",
        )
    if status.rescoring_limit is not None:
        limit = status.rescoring_limit
        bound = "" if limit.exact else "at most "
        yield (
            "",
            f"{bound}{quantity(limit.rows_passed, 'row')} passed, {limit.rows_allowed} may "
            f"(max_gallery_pass {limit.share:g})",
        )
    if status.free_vectors is not None:
        free = status.free_vectors
        text = f"{free.count}, {free.share:.2%} of the rows, {free.bytes} bytes"
        yield "free vectors", f"{text}; {free.advice}" if free.advice else text


def history_table(console: Console, history: History) -> None:
    """A line for each generation."""
    rows = [
        (
            entry.gallery_pass.short,
            entry.generation,
            entry.operation,
            _minute(entry.created_at),
            named(entry.query_model_name, entry.query_model),
            entry.rows,
            entry.note,
        )
        for entry in history.generations
    ]
    columns = ("passed", "generation", "operation", "at", "query model", "rows", "note")
    print_table(console, columns, rows, keys=2)


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
