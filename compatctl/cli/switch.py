"""Commands that switch what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compatctl.cli.app import (
    DryRun,
    Json,
    PolicyName,
    ProjectFile,
    ReportPath,
    StorePath,
    command,
    project_of,
    show,
)
from compatctl.errors import UsageError


@command
def deploy(
    model: Annotated[
        Path | None, typer.Option("--model", help="Default: the model that the report verified.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Deploy against the gate; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; recorded in the manifest.")] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    policy: PolicyName = None,
    report_file: ReportPath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make the verified candidate the query model; the index stays as it is."""
    from compatctl.commands import deploy as verb

    if force and not (reason and reason.strip()):
        raise UsageError("--force needs --reason: it is recorded in the manifest")
    if reason and not force:
        raise UsageError("--reason goes with --force")
    done = verb.deploy(
        project_of(project, store=store, policy=policy, report=report_file),
        model=model,
        forced_reason=reason,
        dry_run=dry_run,
    )
    show(done, as_json=as_json)


@command
def rollback(
    to: Annotated[int | None, typer.Option("--to", help="The generation to restore.")] = None,
    discard_added: Annotated[
        bool, typer.Option("--discard-added", help="Let go of the items indexed since.")
    ] = False,
    project: ProjectFile = None,
    store: StorePath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Restore an earlier generation whole, as a new generation; by default the last deploy's."""
    from compatctl.commands import lifecycle as verb

    done = verb.rollback(
        project_of(project, store=store), to=to, discard_added=discard_added, dry_run=dry_run
    )
    show(done, as_json=as_json)
