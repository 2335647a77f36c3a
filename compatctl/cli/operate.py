"""Commands on a store in service: deploy, rollback, lift, promote, add, remove, search,
check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compatctl.cli.app import Outcome, command
from compatctl.cli.options import (
    AdapterKind,
    AdapterSeed,
    DryRun,
    ForceWrite,
    IndependentEncoder,
    PairShare,
    Passes,
    Reason,
    Rescore,
    SkipBad,
    TrainingRecordFile,
    forced_reason,
    with_project,
)
from compatctl.errors import UsageError
from compatctl.progress import report_progress

if TYPE_CHECKING:
    from compatctl.recipe import Project


@command
@with_project("store", "data", "data_root", "policy", "report", "old_model_gone", models=("model",))
def deploy(
    project: Project,
    model: Annotated[
        Path | None, typer.Option("--model", help="Default: the model that the report verified.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Deploy although the gate does not pass; needs --reason."),
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Deploy a model that was rolled back; needs --reason."),
    ] = False,
    reason: Reason = None,
    rescore: Rescore = None,
    passes: Passes = None,
    max_ms: Annotated[
        float | None,
        typer.Option(
            "--max-ms",
            min=0.0,
            help="With --rescore: milliseconds after which a query embeds no further item.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Make the verified candidate the query model.

    The index does not change.
    """
    from compatctl.commands.deploy import RescoringOptions, deploy

    result = deploy(
        project,
        rescoring=RescoringOptions(rescore=rescore, passes=passes, max_ms=max_ms),
        model=model,
        forced_reason=None if again else forced_reason(force, reason),
        again_reason=_again_reason(force, reason) if again else None,
        dry_run=dry_run,
    )
    return Outcome(result=result)


@command
@with_project("store", "data", "data_root")
def rollback(
    project: Project,
    to: Annotated[int | None, typer.Option("--to", help="The generation to restore.")] = None,
    added: Annotated[
        Literal["auto", "keep", "drop"],
        typer.Option(
            "--added",
            help="Items added since then. auto: keep those that a model of that generation "
            "embedded, re-embed the others with the restored model (from --data). keep: leave "
            "every row as it is. drop: restore the gallery of that generation, and list the "
            "dropped ids.",
        ),
    ] = "auto",
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Restore an earlier generation, as a new one.

    Default: the one before the last deploy.
    """
    from compatctl.commands.rollback import rollback

    result = rollback(project, to=to, added=added, dry_run=dry_run, progress=report_progress)
    return Outcome(result=result)


@command
@with_project("store", "data", "data_root", "policy", "old_model_gone", models=("new",))
def lift(
    new: IndependentEncoder,
    project: Project,
    kind: AdapterKind = "auto",
    share: PairShare = None,
    seed: AdapterSeed = 0,
    training: TrainingRecordFile = None,
    force: ForceWrite = False,
    reason: Reason = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Map the stored vectors to a new encoder's space.

    Writes only what passes a test on held-out queries.
    """
    from compatctl.commands.lift import LiftOptions, lift
    from compatctl.render.tables import lift_table

    options = LiftOptions(
        kind=kind,
        share=share,
        seed=seed,
        training=training,
        forced_reason=forced_reason(force, reason),
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    result = lift(project, new=new, options=options, progress=report_progress)
    return Outcome(result=result, table=lift_table, exit_code=result.exit_code)


@command
@with_project("store", "data", "data_root", "policy")
def promote(
    project: Project,
    force: ForceWrite = False,
    reason: Reason = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Make the free vectors of a re-scoring store its index.

    Writes only what passes a test on held-out queries.
    """
    from compatctl.commands.promote import PromoteOptions, promote
    from compatctl.render.tables import promote_table

    options = PromoteOptions(
        forced_reason=forced_reason(force, reason), skip_bad=skip_bad, dry_run=dry_run
    )
    result = promote(project, options=options, progress=report_progress)
    return Outcome(
        result=result, table=promote_table, warnings=result.warnings, exit_code=result.exit_code
    )


@command
@with_project("store", "data", "data_root", "ray")
def add(
    project: Project,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed",
            help="Also re-embed items whose content differs from the indexed one, and update "
            "changed labels. Without it, such items are an error.",
        ),
    ] = False,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Embed and index the items that the store lacks.

    The gallery items of --data.
    """
    from compatctl.commands.add import add

    result = add(
        project, changed=changed, skip_bad=skip_bad, dry_run=dry_run, progress=report_progress
    )
    return Outcome(result=result)


@command
@with_project("store")
def remove(
    project: Project,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of items.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--ids", help="A file of item ids, one per line; - for stdin.", allow_dash=True
        ),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Ignore ids that are not in the store.")
    ] = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Erase items for good.

    No rollback restores them, and check proves it.
    """
    from compatctl.commands.remove import remove

    all_ids = [*(ids or ()), *(_read_ids(file) if file is not None else ())]
    result = remove(
        project,
        ids=all_ids,
        missing_ok=missing_ok,
        dry_run=dry_run,
        progress=report_progress,
    )
    return Outcome(result=result, warnings=result.warnings)


@command
@with_project("store", "data", "data_root", models=("model",))
def search(
    project: Project,
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            help="Query images; of a text model the texts, each in quotes; of a model behind an "
            "API tables of vectors, SPACE=FILE."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="Search for each text of a file: .txt, .csv, .jsonl, .npz."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of items to find.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Fail unless this file is the store's query model."),
    ] = None,
    ignore_same: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-same",
            help="COLUMN=VALUE of the queries, such as camera=c3: leave out gallery items that "
            "have this value in the data; repeatable.",
        ),
    ] = None,
    norms: Annotated[
        Path | None,
        typer.Option(
            "--norms",
            help="The file that import --norms wrote: rank and score as the index before the "
            "import did.",
        ),
    ] = None,
) -> Outcome[Any]:
    """Find the gallery items nearest to queries.

    Images, texts or vectors, embedded with the deployed query model.
    """
    from compatctl.commands.search import search
    from compatctl.render.tables import search_table

    pairs = [text.partition("=") for text in ignore_same or ()]
    for text, (name, sign, value) in zip(ignore_same or (), pairs, strict=True):
        if not (name and sign and value):
            raise UsageError(f"--ignore-same of search is COLUMN=VALUE, got {text!r}")
    result = search(
        project,
        queries=queries or (),
        texts=texts,
        k=k,
        model=model,
        ignore_same=[(name, value) for name, _, value in pairs],
        norms=norms,
    )
    warnings = []
    if pairs and not result.left_out:
        warnings.append("no gallery item shares a value that was given: nothing is left out")
    if result.unknown:
        warnings.append(
            f"{result.unknown} gallery items have no value in the data, and are searched"
        )
    if result.rescoring is not None:
        warnings += result.rescoring.warnings
    return Outcome(result=result, table=search_table, warnings=warnings)


@command
@with_project("store", "data", "data_root")
def warm(
    traffic: Annotated[
        Path,
        typer.Argument(help="A log: one id a line, or a CSV with the columns id and count."),
    ],
    project: Project,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Embed at most this many items.")
    ] = None,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Embed ahead what a log of traffic touches.

    The free vectors of its items, most touched first.
    """
    from compatctl.commands.warm import warm

    result = warm(project, traffic=traffic, limit=limit, dry_run=dry_run, progress=report_progress)
    return Outcome(result=result, warnings=result.warnings)


@command
@with_project("store")
def check(
    project: Project,
    gc: Annotated[
        bool, typer.Option("--gc", help="Delete files that no generation refers to.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            help="With --gc: keep this many generations (and what a rollback needs) restorable, "
            "and delete the files of older ones. Default: all.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", help="A head that status printed earlier; it must be in the history."
        ),
    ] = None,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Check every byte of the store.

    Files, history, index and model. Exit code 5 means damage.
    """
    from compatctl.commands.check import check

    if keep is not None and not gc:
        raise UsageError("--keep goes with --gc (and --dry-run, to see what would go)")
    if dry_run and not gc:
        raise UsageError("--dry-run goes with --gc: check alone writes nothing")
    result = check(project, gc=gc and not dry_run, keep=keep, head=head, progress=report_progress)
    return Outcome(result=result, exit_code=0 if result.ok else 5)


@command
@with_project("store")
def status(project: Project) -> Outcome[Any]:
    """Show the query model, the gallery and what passed."""
    from compatctl.commands.status import status
    from compatctl.render.store_tables import status_table

    result = status(project)
    return Outcome(result=result, warnings=result.warnings, table=status_table)


@command
@with_project("store")
def history(project: Project) -> Outcome[Any]:
    """List every generation of the store."""
    from compatctl.commands.history import history
    from compatctl.render.store_tables import history_table

    return Outcome(result=history(project), table=history_table)


def _read_ids(file: Path) -> tuple[str, ...]:
    from compatctl.recipe import read_ids

    if str(file) == "-":
        return tuple(
            line for line in sys.stdin.read().removeprefix("\ufeff").splitlines() if line.strip()
        )
    return read_ids(file)


def _again_reason(force: bool, reason: str | None) -> str:
    if force:
        raise UsageError("--force needs no --again: it deploys whatever happened before")
    if not (reason and reason.strip()):
        raise UsageError("--again needs --reason: it is recorded in the manifest")
    return reason
