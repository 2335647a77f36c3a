"""The command backfill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compatctl.cli.app import Outcome, command
from compatctl.cli.options import (
    DryRun,
    ForceWrite,
    Reason,
    SkipBad,
    forced_reason,
    refuse_given,
    with_project,
)
from compatctl.progress import report_progress

if TYPE_CHECKING:
    from compatctl.migration.backfill_budget import Amount
    from compatctl.migration.backfill_result import BackfillOptions
    from compatctl.recipe import Project

UNUSED = (
    "share",
    "budget",
    "step",
    "until_gain",
    "sample",
    "curve",
    "force",
    "reason",
    "dry_run",
)
"""Options that a forecast has no use for."""

OWN = ("order", "traffic", "forecast", "skip_bad")
"""Further options that a worker has no use for."""


@command
@with_project("store", "data", "data_root", "policy", "ray")
def backfill(
    context: typer.Context,
    project: Project,
    share: Annotated[
        float,
        typer.Option(
            "--share", help="Target fraction of rows embedded by the query model, in (0, 1]."
        ),
    ] = 1.0,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="random (or hash), hubs (or hubness), uncertainty or mean-distance; or a file: a "
            "service's log of answers, a CSV with the columns id and count, or item "
            "ids, one a line, most important first. Equals follow in the order of a hash of their "
            "id.",
        ),
    ] = "hash",
    traffic: Annotated[
        Path | None,
        typer.Option(
            "--traffic",
            help="With --order traffic: a CSV with the columns id and count, of gallery items, or "
            "a service's log of answers.",
        ),
    ] = None,
    forecast: Annotated[
        int | None,
        typer.Option(
            "--forecast",
            help="Embed only a sample of at most this many rows, print the hit rate to expect at "
            "every share, and write nothing.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Work in steps, and end when this much is spent: a time (2h, 90m, 30s), a number "
            "of items (10000) or a share of the gallery (10%). The same command continues a run "
            "that was interrupted.",
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            "--step",
            help="Work in steps of this size, in the units of --budget; each is one generation. "
            "Default with --budget: ten minutes of embedding, more where the index takes long.",
        ),
    ] = None,
    until_gain: Annotated[
        bool,
        typer.Option(
            "--until-gain",
            help="Work in steps, and end when the rest is no longer shown to gain. A sample is "
            "embedded first.",
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option("--sample", min=2, help="With --until-gain: rows of the sample, at most."),
    ] = 1000,
    curve: Annotated[
        Path | None,
        typer.Option(
            "--curve",
            help="Write the hit rate after each step to this JSON file, and a figure beside it "
            "(.svg).",
        ),
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            help="Embed for a backfill that another process runs on this store (PostgreSQL), and "
            "end when there was nothing to do for this long (30s, 10m).",
        ),
    ] = None,
    force: ForceWrite = False,
    reason: Reason = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Re-embed part of the gallery with the query model.

    Writes only what passes a test on held-out queries.
    """
    from compatctl.migration.backfill_budget import Amount
    from compatctl.migration.backfill_curve import curve_path
    from compatctl.migration.backfill_orders import named_order
    from compatctl.migration.backfill_result import BackfillOptions

    if worker is not None:
        refuse_given(context, (*UNUSED, *OWN), "--worker embeds what the backfill asks for")
        return _work(project, Amount.parse(worker, "--worker"))
    if not until_gain:
        refuse_given(context, ("sample",), "it is the sample of --until-gain")
    options = BackfillOptions(
        share=share,
        order=named_order(order),
        traffic=traffic,
        budget=None if budget is None else Amount.parse(budget, "--budget"),
        step=None if step is None else Amount.parse(step, "--step"),
        until_gain=until_gain,
        sample=sample,
        curve=None if curve is None else curve_path(curve, (traffic, project.data)),
        forced_reason=forced_reason(force, reason),
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    if forecast is None:
        return _backfill(project, options)
    refuse_given(context, UNUSED, "--forecast shows every share and writes nothing")
    return _forecast(project, forecast, options)


def _backfill(project: Project, options: BackfillOptions) -> Outcome[Any]:
    from compatctl.commands.backfill import backfill
    from compatctl.render import announce
    from compatctl.render.tables import backfill_table

    result = backfill(project, options=options, progress=report_progress, announce=announce)
    return Outcome(
        result=result, table=backfill_table, warnings=result.warnings, exit_code=result.exit_code
    )


def _work(project: Project, idle: Amount) -> Outcome[Any]:
    from compatctl.commands.backfill_worker import work_for_backfill
    from compatctl.errors import UsageError

    if idle.seconds is None:
        raise UsageError(f"--worker is a time (30s, 10m), got {idle.text!r}")
    return Outcome(result=work_for_backfill(project, idle_s=idle.seconds))


def _forecast(project: Project, passes: int, options: BackfillOptions) -> Outcome[Any]:
    from compatctl.commands.backfill import forecast_backfill
    from compatctl.render.tables import forecast_table

    expected = forecast_backfill(project, passes=passes, options=options, progress=report_progress)
    return Outcome(result=expected, table=forecast_table, warnings=expected.warnings)
