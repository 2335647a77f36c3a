"""Commands that measure models and change nothing in a store: verify, report, power, matrix,
plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compatctl.cli.app import VERDICT_EXIT_CODES, Outcome, command
from compatctl.cli.options import (
    AdapterKind,
    Cluster,
    DryRun,
    Passes,
    RecipeSeed,
    ResamplingSeed,
    Rescore,
    SkipBad,
    TrainingRecordFile,
    refuse_given,
    setting,
    with_project,
)
from compatctl.errors import UsageError
from compatctl.progress import report_progress

if TYPE_CHECKING:
    from compatctl.evaluation.options import VerifyOptions
    from compatctl.recipe import Project


Similarity = Annotated[
    str | None,
    typer.Option(
        "--similarity",
        help="Similarity of feature tables that do not name one: cosine, dot or l2.",
    ),
]

MODEL_OPTIONS = {
    "project_store",
    "project_data",
    "project_data_root",
    "column",
    "skip_bad",
    "allow_seen",
}
"""Parameters of verify that need models, images or a store."""


def _old_and_new(models: list[Path]) -> tuple[Path | None, Path]:
    if not models:
        raise UsageError("verify needs the candidate", tip="compatctl verify new.onnx")
    if len(models) > 2:
        raise UsageError(f"verify compares two models, got {len(models)}", tip="name OLD and NEW")
    return (models[0] if len(models) == 2 else None), models[-1]


@command
@with_project(
    "store", "data", "data_root", "policy", "report", "old_model_gone", models=("models",)
)
def verify(
    project: Project,
    context: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OLD] NEW",
            help="The deployed encoder (default: the store's query model) and the candidate; or "
            "the features of both (.npz).",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            help="Judge the answers in a log of serve --shadow, by --qrels or the data's labels; "
            "nothing is embedded.",
        ),
    ] = None,
    junit: Annotated[
        Path | None, setting("--junit", "Write JUnit XML, one test case for each check.")
    ] = None,
    markdown: Annotated[
        Path | None, setting("--markdown", "Write a Markdown summary for a pipeline's job page.")
    ] = None,
    metrics: Annotated[Path | None, setting("--metrics", "Write OpenMetrics text.")] = None,
    queries: Annotated[
        Path | None,
        setting("--queries", "Write one line for each query: .csv, .jsonl or .parquet."),
    ] = None,
    html: Annotated[
        Path | None,
        setting("--html", "Write the report as one HTML file for people: compatctl[report]."),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            envvar="COMPATCTL_SLICES",
            help="A column whose values are each judged separately; repeatable.",
        ),
    ] = None,
    cluster: Cluster = None,
    ignore_same: Annotated[
        list[str] | None,
        setting(
            "--ignore-same",
            "A column, such as camera. Gallery items with the query's label and the query's "
            "value in this column do not count, neither for nor against; repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        setting("--threshold", "The cosine at which the deployed system accepts a match."),
    ] = None,
    new_threshold: Annotated[
        float | None,
        typer.Option("--new-threshold", help="The threshold for new queries. Default: the same."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Map the scores of new queries to the old scale, so that thresholds keep their "
            "meaning. deploy puts the map into the store, and search applies it.",
        ),
    ] = False,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Verification pairs: CSV of id_a,id_b,same.")
    ] = None,
    similarity: Similarity = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            "--qrels",
            help="Relevance judgments: TREC, a table with a header, JSON lines, or a log.",
        ),
    ] = None,
    training: TrainingRecordFile = None,
    allow_seen: Annotated[
        bool,
        typer.Option(
            "--allow-seen",
            help="Report held-out items that were used in training as a separate group.",
        ),
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Time both encoders; the report then differs from run to run."
        ),
    ] = False,
    rescore: Rescore = None,
    passes: Passes = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test",
            help="Embed the gallery with the new model too, to test it on its own and on a mixed "
            "gallery.",
        ),
    ] = True,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show everything that was measured.")
    ] = False,
    seed: ResamplingSeed = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Test whether a new model may answer on the old gallery.

    Exit code 0 means pass, 3 fail, 4 too little evidence.
    """
    from compatctl.evaluation.options import VerifyOptions
    from compatctl.evaluation.verdict import Outputs

    if log is not None:
        return _verify_log(project, context, log, models or [], qrels, seed)
    options = VerifyOptions(
        training=training,
        allow_seen=allow_seen,
        skip_bad=skip_bad,
        threshold=threshold,
        new_threshold=new_threshold,
        calibrate=calibrate,
        slices=tuple(slices or ()),
        cluster=tuple(cluster or ()),
        ignore_same=tuple(ignore_same or ()),
        pairs=pairs,
        qrels=qrels,
        similarity=similarity,
        rescore=rescore,
        passes=passes,
        latency=latency,
        self_test=self_test,
        seed=seed,
        dry_run=dry_run,
        outputs=Outputs(
            junit=junit, markdown=markdown, metrics=metrics, queries=queries, html=html
        ),
    )
    return _verify(project, context, models or [], options, verbose=verbose)


def _verify(
    project: Project,
    context: typer.Context,
    models: list[Path],
    options: VerifyOptions,
    *,
    verbose: bool,
) -> Outcome[Any]:
    """``verify`` of models or feature tables."""
    from compatctl.commands.verify import verify
    from compatctl.evaluation.report_match import refusals
    from compatctl.render.report_table import report_table

    old, new = _old_and_new(models)
    if any(model.suffix.lower() == ".npz" for model in models):
        refuse_given(
            context, MODEL_OPTIONS, "feature tables are compared without a store or images"
        )
    report = verify(project, old=old, new=new, options=options, progress=report_progress)
    return Outcome(
        result=report,
        table=partial(report_table, verbose=verbose),
        warnings=(*report.warnings, *refusals(report, project)),
        exit_code=VERDICT_EXIT_CODES[report.verdict.outcome],
    )


def _verify_log(
    project: Project,
    context: typer.Context,
    log: Path,
    models: list[Path],
    qrels: Path | None,
    seed: int | None,
) -> Outcome[Any]:
    """``verify --log``."""
    from compatctl.commands.verify_log import verify_log
    from compatctl.render.report_table import log_table

    taken = {"log", "models", "project_store", "project_data", "project_data_root", "qrels", "seed"}
    taken |= {"project_policy", "project_file", "column", "strict", "as_json"}
    others = {part.name or "" for part in context.command.params} - taken
    refuse_given(context, others, "--log judges logged answers, and embeds nothing")
    if len(models) > 1:
        raise UsageError("with --log, name at most the candidate")
    result = verify_log(
        project, log, candidate=models[0] if models else None, qrels=qrels, seed=seed
    )
    return Outcome(
        result=result,
        table=log_table,
        warnings=result.warnings,
        exit_code=VERDICT_EXIT_CODES[result.verdict.outcome],
    )


@command
@with_project("data", "data_root")
def report(
    project: Project,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="REPORT", help="A report.json. Default: the project's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page. Default: beside the report, as .html."),
    ] = None,
    matrix: Annotated[
        Path | None,
        typer.Option("--matrix", help="Also show a matrix: what compatctl matrix --json printed."),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option("--curve", help="Also show the curve that compatctl backfill --curve wrote."),
    ] = None,
) -> Outcome[Any]:
    """Write a report as one HTML file for people.

    It has the verdict, each check against its limit, and what changed, with images or texts of the
    data. Exit code 0 whatever the verdict.
    """
    from compatctl.commands.report import report

    return Outcome(result=report(project, source=source, output=output, matrix=matrix, curve=curve))


@command
@with_project("data", "data_root", "policy")
def power(
    project: Project,
    tables: Annotated[
        list[Path] | None,
        typer.Argument(help="Feature tables (.npz) to use instead of data: old, or old and new."),
    ] = None,
    similarity: Similarity = None,
    cluster: Cluster = None,
    gains: Annotated[
        list[float] | None,
        typer.Option(
            "--gain", help="A gain in hit rate to detect; repeatable. Default: .01, .02, .05."
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", help="An earlier report, to take the observed variance from."),
    ] = None,
) -> Outcome[Any]:
    """Say which gain the held-out queries can detect.

    Says how many queries would detect a smaller one. No model runs.
    """
    from compatctl.commands.power import GAINS, PowerOptions, power
    from compatctl.render.tables import power_table

    options = PowerOptions(
        tables=tuple(tables or ()),
        similarity=similarity,
        report=report_file,
        gains=tuple(gains or GAINS),
        cluster=tuple(cluster or ()),
    )
    return Outcome(result=power(project, options), table=power_table)


@command
@with_project("store", "data", "data_root", models=("models",))
def matrix(
    project: Project,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Model versions, oldest first. Default: the store's query models."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
    skip_bad: SkipBad = False,
) -> Outcome[Any]:
    """Test every model version on every earlier gallery.

    Prints the compatibility matrix, AC, AA and ACA.
    """
    from compatctl.commands.matrix import matrix
    from compatctl.render.tables import matrix_table

    result = matrix(
        project, models=models or [], seed=seed, skip_bad=skip_bad, progress=report_progress
    )
    warnings = []
    if result.not_kept:
        names = ", ".join(sha256[:12] for sha256 in result.not_kept)
        count = len(result.not_kept)
        warnings = [f"{count} earlier query models are not kept, and left out: {names}"]
    return Outcome(result=result, table=matrix_table, warnings=warnings)


@command
@with_project("store", "data", "data_root", "recipe", "policy", "old_model_gone", models=("new",))
def plan(
    project: Project,
    context: typer.Context,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The incoming checkpoint; heads are trained."),
    ] = None,
    new: Annotated[
        Path | None,
        typer.Option(
            "--new",
            help="A model that exists, instead of --base: an ONNX file, or a space of --vectors. "
            "Only a head behind it is trained.",
        ),
    ] = None,
    kind: AdapterKind = "auto",
    limit: Annotated[
        int, typer.Option(min=100, help="At most this many gallery and training items are used.")
    ] = 20_000,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast/--no-forecast",
            help="Train on parts of the data too, and say what more would give.",
        ),
    ] = True,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the plan as one HTML file too: compatctl[report]."),
    ] = None,
    seed: RecipeSeed = None,
    skip_bad: SkipBad = False,
) -> Outcome[Any]:
    """Estimate the gain of every route before training.

    On validation classes; recommends one route, or none.
    """
    from compatctl.commands.plan import plan, plan_ready
    from compatctl.migration.plan_page import check_plan_page, write_plan_page
    from compatctl.render.tables import plan_table

    if (base is None) == (new is None):
        raise UsageError("plan needs --base or --new", tip="give one of them")
    check_plan_page(html, (base, new, project.data, project.recipe))
    if new is not None:
        of_base = {"seed", "project_recipe"} | ({"forecast"} if forecast else set())
        refuse_given(context, of_base, "it is of plan --base")
        result = plan_ready(
            project,
            new=new,
            kind=kind,
            limit=limit,
            skip_bad=skip_bad,
            progress=report_progress,
        )
    elif base is not None:
        refuse_given(context, {"kind"}, "plan --base tries every adapter")
        result = plan(
            project,
            base=base,
            seed=seed,
            limit=limit,
            skip_bad=skip_bad,
            forecast=forecast,
            progress=report_progress,
        )
    write_plan_page(
        html,
        result.routes,
        recommended=(result.recommended, result.reason),
        commands=result.commands,
        warnings=result.warnings,
        forecast=result.forecast,
    )
    return Outcome(result=result, table=plan_table, warnings=result.warnings)


@command
@with_project("report", "policy")
def mlflow(
    project: Project,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="The server of MLflow. Default: MLFLOW_TRACKING_URI."),
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", help="Where a new run is made.")
    ] = "compatctl",
    run: Annotated[
        str | None, typer.Option("--run", help="Log to this run, by its id, and make none.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The registered model; needs --version.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="The version that has the candidate's file.")
    ] = None,
    alias: Annotated[
        str, typer.Option("--alias", help="Moves to --version if the report passes.")
    ] = "champion",
) -> Outcome[Any]:
    """Log the report to MLflow; move an alias if it passes.

    Exit codes as verify.
    """
    from compatctl.commands.mlflow import MlflowTarget, publish

    if (model is None) is not (version is None):
        raise UsageError("--model and --version go together")
    result = publish(
        project,
        MlflowTarget(
            tracking_uri=tracking_uri,
            experiment=experiment,
            run=run,
            model=model,
            version=version,
            alias=alias,
        ),
    )
    return Outcome(result=result, exit_code=VERDICT_EXIT_CODES[result.outcome])
