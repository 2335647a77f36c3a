"""Commands that switch what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compatctl.cli.app import (
    DataPath,
    DataRoot,
    DryRun,
    ForceWrite,
    FreeEncoder,
    Json,
    MapKind,
    MapSeed,
    PairShare,
    PolicyName,
    ProjectFile,
    Reason,
    ReportPath,
    SkipBad,
    StorePath,
    TrainingRecord,
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
    again: Annotated[
        bool,
        typer.Option("--again", help="Deploy a model that was rolled back; needs --reason."),
    ] = False,
    reason: Reason = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    policy: PolicyName = None,
    report_file: ReportPath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make the verified candidate the query model; the index stays as it is."""
    from compatctl.commands import deploy as verb

    done = verb.deploy(
        project_of(
            project, store=store, data=data, data_root=data_root, policy=policy, report=report_file
        ),
        model=model,
        forced_reason=None if again else _forced_reason(force, reason),
        again_reason=_again_reason(force, reason) if again else None,
        dry_run=dry_run,
    )
    show(done, as_json=as_json)


@command
def backfill(
    share: Annotated[
        float,
        typer.Option("--share", help="Of all rows, above 0, at most 1: those of the query model."),
    ] = 1.0,
    order: Annotated[
        Path | None,
        typer.Option(
            "--order",
            help="A file of item ids, one a line, the most wanted first; the others follow by a "
            "hash of their id.",
        ),
    ] = None,
    force: ForceWrite = False,
    reason: Reason = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    policy: PolicyName = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Re-embed a share of the gallery with the query model, once it is shown to find more."""
    from compatctl.commands import backfill as verb
    from compatctl.render import progress, warn

    options = verb.BackfillOptions(
        share=share,
        order=order,
        forced_reason=_forced_reason(force, reason),
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    where = project_of(project, store=store, data=data, data_root=data_root, policy=policy)
    with progress() as report:
        done = verb.backfill(where, options=options, progress=report)
    warn(done.warnings)
    show(done, as_json=as_json, code=done.exit_code)


@command
def lift(
    new: FreeEncoder,
    kind: MapKind = "auto",
    share: PairShare = 1.0,
    seed: MapSeed = 0,
    training: TrainingRecord = None,
    force: ForceWrite = False,
    reason: Reason = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    policy: PolicyName = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Map the stored vectors to an independent encoder's space, once it is shown to find more."""
    from compatctl.commands import lift as verb
    from compatctl.render import progress

    options = verb.LiftOptions(
        kind=kind,
        share=share,
        seed=seed,
        training=training,
        forced_reason=_forced_reason(force, reason),
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    where = project_of(project, store=store, data=data, data_root=data_root, policy=policy)
    with progress() as report:
        done = verb.lift(where, new=new, options=options, progress=report)
    show(done, as_json=as_json, code=done.exit_code)


@command
def rollback(
    to: Annotated[int | None, typer.Option("--to", help="The generation to restore.")] = None,
    added: Annotated[
        Literal["auto", "keep", "drop"],
        typer.Option(
            "--added",
            help="Items indexed since. auto: keep those that a model of that generation embedded, "
            "embed the others with the restored model (from --data). keep: every row stays as it "
            "is. drop: the gallery of that generation; the dropped ids are listed.",
        ),
    ] = "auto",
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Go back to an earlier generation, by a new one; by default to before the last deploy."""
    from compatctl.commands import rollback as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.rollback(
            project_of(project, store=store, data=data, data_root=data_root),
            to=to,
            added=added,
            dry_run=dry_run,
            progress=report,
        )
    show(done, as_json=as_json)


def _forced_reason(force: bool, reason: str | None) -> str | None:
    if force and not (reason and reason.strip()):
        raise UsageError("--force needs --reason: it is recorded in the manifest")
    if reason and not force:
        raise UsageError("--reason goes with --force, or with --again of deploy")
    return reason


def _again_reason(force: bool, reason: str | None) -> str:
    if force:
        raise UsageError("--force needs no --again: it deploys whatever happened before")
    if not (reason and reason.strip()):
        raise UsageError("--again needs --reason: it is recorded in the manifest")
    return reason
