"""Commands that judge and look: they change no generation of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compatctl.cli.app import (
    DataPath,
    DataRoot,
    DrawSeed,
    DryRun,
    Json,
    PolicyName,
    ProjectFile,
    RecipePath,
    RecipeSeed,
    ReportPath,
    SkipBad,
    StorePath,
    command,
    project_of,
    show,
)


def _file(name: str, text: str) -> Any:
    return typer.Option(name, envvar=f"COMPATCTL_{name.strip('-').upper()}", help=text)


@command
def verify(
    old: Annotated[Path, typer.Argument(help="The deployed encoder, or its features (.npz).")],
    new: Annotated[Path, typer.Argument(help="The candidate, or its features (.npz).")],
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    policy: PolicyName = None,
    report_file: ReportPath = None,
    junit: Annotated[Path | None, _file("--junit", "Write JUnit XML, a case a check.")] = None,
    markdown: Annotated[Path | None, _file("--markdown", "Write a job summary.")] = None,
    metrics: Annotated[Path | None, _file("--metrics", "Write OpenMetrics text.")] = None,
    queries: Annotated[
        Path | None,
        _file("--queries", "Write a line for each query: .csv, .jsonl or .parquet."),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            envvar="COMPATCTL_SLICES",
            help="A column whose values are judged one by one; repeatable.",
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster",
            envvar="COMPATCTL_CLUSTER",
            help="A column whose values, such as users, are resampled as units; repeatable.",
        ),
    ] = None,
    ignore_same: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-same",
            envvar="COMPATCTL_IGNORE_SAME",
            help="A column, such as camera: gallery items of the query's label with its value do "
            "not count, neither for nor against; repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            envvar="COMPATCTL_THRESHOLD",
            help="The cosine at which the deployed system accepts.",
        ),
    ] = None,
    new_threshold: Annotated[
        float | None,
        typer.Option("--new-threshold", help="The one for new queries; default: the same."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Map new scores to the scale of the old ones, so that thresholds keep their "
            "meaning; deploy takes the map into the store, and search applies it.",
        ),
    ] = False,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="CSV of id_a,id_b,same: verification pairs.")
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            "--similarity",
            help="How feature tables that do not say it are compared: cosine, dot or l2.",
        ),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="Relevance judgments in TREC format.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="The candidate's training record.")
    ] = None,
    allow_seen: Annotated[
        bool,
        typer.Option("--allow-seen", help="Report held-out items used in training apart."),
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time both encoders; the report then differs by run.")
    ] = False,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test",
            help="Whether the new model embeds the gallery too, for self-test and mixed gallery.",
        ),
    ] = True,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the resampling.")] = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Test the two compatibility inequalities and the retrieval gain; exit 0, 3 or 4."""
    from compatctl.commands import verify as verb
    from compatctl.evaluation.options import VerifyOptions
    from compatctl.evaluation.verdict import Outputs
    from compatctl.render import progress, warn

    where = project_of(
        project, store=store, data=data, data_root=data_root, policy=policy, report=report_file
    )
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
        latency=latency,
        self_test=self_test,
        seed=seed,
        dry_run=dry_run,
        outputs=Outputs(junit=junit, markdown=markdown, metrics=metrics, queries=queries),
    )
    with progress() as report:
        done = verb.verify(where, old=old, new=new, options=options, progress=report)
    warn(done.warnings)
    show(done, as_json=as_json, code={"pass": 0, "fail": 3}.get(done.verdict.outcome, 4))


@command
def power(
    tables: Annotated[
        list[Path] | None,
        typer.Argument(help="Feature tables (.npz) instead of data: old, or old and new."),
    ] = None,
    project: ProjectFile = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    policy: PolicyName = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", envvar="COMPATCTL_CLUSTER", help="As for verify; repeatable."),
    ] = None,
    gains: Annotated[
        list[float] | None,
        typer.Option("--gain", help="A gain in recall to be shown; repeatable: .01, .02, .05."),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", help="An earlier report, whose scatter is taken."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which gain the held-out queries can show, and how many would show more; no model runs."""
    from compatctl.commands import power as verb

    options = verb.PowerOptions(
        tables=tuple(tables or ()),
        report=report_file,
        gains=tuple(gains or verb.GAINS),
        cluster=tuple(cluster or ()),
    )
    where = project_of(project, data=data, data_root=data_root, policy=policy)
    show(verb.power(where, options), as_json=as_json)


@command
def matrix(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Versions, oldest first; default: the store's query models."),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    seed: DrawSeed = 0,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Test every version's queries on every earlier version's gallery: M, AC, AA, ACA."""
    from compatctl.commands import matrix as verb
    from compatctl.render import progress, warn

    with progress() as report:
        done = verb.matrix(
            project_of(project, store=store, data=data, data_root=data_root),
            models=models or [],
            seed=seed,
            skip_bad=skip_bad,
            progress=report,
        )
    if done.let_go:
        names = ", ".join(one[:12] for one in done.let_go)
        warn([f"{len(done.let_go)} earlier query models are not kept, and left out: {names}"])
    show(done, as_json=as_json)


@command
def check(
    gc: Annotated[bool, typer.Option("--gc", help="Delete what no generation names.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            help="With --gc: keep this many states (and what a rollback needs) restorable, delete "
            "the files of older ones. Default: all.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", help="A head that status once printed: it must be in the history."),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Re-hash every file of the store, replay its history, open index and model; 5 on damage."""
    from compatctl.commands import check as verb
    from compatctl.errors import UsageError
    from compatctl.render import progress

    if keep is not None and not gc:
        raise UsageError("--keep goes with --gc (and --dry-run, to see what would go)")
    with progress() as report:
        done = verb.check(
            project_of(project, store=store),
            gc=gc and not dry_run,
            keep=keep,
            head=head,
            progress=report,
        )
    show(done, as_json=as_json, code=0 if done.ok else 5)


@command
def search(
    images: Annotated[list[Path], typer.Argument(help="Query images.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to find.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Refused unless it is the store's query model."),
    ] = None,
    ignore_same: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-same",
            help="COLUMN=VALUE of the queries, such as camera=c3: gallery items that the data give "
            "this value are no answers; repeatable.",
        ),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Find the nearest gallery items of query images, by the deployed query model."""
    from compatctl.commands import search as verb
    from compatctl.errors import UsageError
    from compatctl.render import warn

    pairs = [one.partition("=") for one in ignore_same or ()]
    for whole, (name, sign, value) in zip(ignore_same or (), pairs, strict=True):
        if not (name and sign and value):
            raise UsageError(f"--ignore-same of search is COLUMN=VALUE, got {whole!r}")
    done = verb.search(
        project_of(project, store=store, data=data, data_root=data_root),
        images=images,
        k=k,
        model=model,
        ignore_same=[(name, value) for name, _, value in pairs],
    )
    if pairs and not done.left_out:
        warn(["no gallery item shares a value that was given: nothing is left out"])
    if done.unknown:
        warn([f"{done.unknown} gallery items have no value in the data, and are searched"])
    show(done, as_json=as_json)


@command
def status(project: ProjectFile = None, store: StorePath = None, as_json: Json = False) -> None:
    """Say which model answers, over which gallery."""
    from compatctl.commands import status as verb
    from compatctl.render import warn

    found = verb.status(project_of(project, store=store))
    warn(found.warnings)
    show(found, as_json=as_json)


@command
def history(project: ProjectFile = None, store: StorePath = None, as_json: Json = False) -> None:
    """List every generation."""
    from compatctl.commands import history as verb

    show(verb.history(project_of(project, store=store)), as_json=as_json)


@command
def plan(
    base: Annotated[Path, typer.Option("--base", help="The incoming checkpoint.")],
    recipe: RecipePath = None,
    policy: PolicyName = None,
    limit: Annotated[
        int, typer.Option(min=100, help="Gallery items, and training items, that are looked at.")
    ] = 20_000,
    seed: RecipeSeed = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Try every route on classes held out for it; say which gains most here, or none."""
    from compatctl.commands import plan as verb
    from compatctl.render import progress, warn

    with progress() as report:
        done = verb.plan(
            project_of(
                project, store=store, data=data, data_root=data_root, recipe=recipe, policy=policy
            ),
            base=base,
            seed=seed,
            limit=limit,
            skip_bad=skip_bad,
            progress=report,
        )
    warn(done.warnings)
    show(done, as_json=as_json)
