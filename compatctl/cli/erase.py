"""The command that takes items out for good."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from compatctl.cli.app import (
    DryRun,
    Json,
    ProjectFile,
    StorePath,
    command,
    project_of,
    show,
)


@command
def remove(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of items.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--ids", help="A file of ids, one a line; - for stdin.", allow_dash=True),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Pass over ids that are not in the store.")
    ] = False,
    project: ProjectFile = None,
    store: StorePath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Erase items from the store: no rollback brings them back, and check proves it."""
    from compatctl.commands import remove as verb
    from compatctl.render import progress, warn

    named = [*(ids or ()), *(_ids_of(file) if file is not None else ())]
    with progress() as report:
        done = verb.remove(
            project_of(project, store=store),
            ids=named,
            missing_ok=missing_ok,
            dry_run=dry_run,
            progress=report,
        )
    warn(done.warnings)
    show(done, as_json=as_json)


def _ids_of(file: Path) -> tuple[str, ...]:
    from compatctl.recipe import read_ids

    if str(file) == "-":
        return tuple(line for line in sys.stdin.read().splitlines() if line.strip())
    return read_ids(file)
