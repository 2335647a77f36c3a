"""The command line: parse, call one function of ``commands``, render, exit.

Nothing heavy is imported here: every command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compatctl import _version
from compatctl.errors import CompatError, UsageError

if TYPE_CHECKING:
    from compatctl.commands.context import Project

app = typer.Typer(
    name="compatctl",
    help="Swap the model behind an embedding store without re-embedding the gallery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

F = TypeVar("F", bound=Callable[..., None])

ProjectFile = Annotated[
    Path | None,
    typer.Option("--project", envvar="COMPATCTL_PROJECT", help="Default: ./compatctl.yaml."),
]
StorePath = Annotated[
    Path | None, typer.Option("--store", envvar="COMPATCTL_STORE", help="The store's folder.")
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="COMPATCTL_DATA", help="Class folders, a .csv or .jsonl table, or .npz."
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy", envvar="COMPATCTL_POLICY", help="A shipped policy's name, or a YAML file."
    ),
]
ReportPath = Annotated[
    Path | None, typer.Option("--report", envvar="COMPATCTL_REPORT", help="The verdict's file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that do not decode, and count them.")
]
Side = Annotated[
    Path | None,
    typer.Option("--preprocessing", help="Preprocessing JSON of a foreign ONNX file."),
]


def command(function: F) -> F:
    """Register a command inside the one error boundary: every CompatError becomes its exit code."""

    @app.command(name=function.__name__.strip("_").replace("_", "-"))
    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> None:
        from compatctl import render

        try:
            function(*args, **kwargs)
        except CompatError as error:
            render.error(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted: nothing was committed", file=sys.stderr)
            raise typer.Exit(130) from None

    return bounded  # type: ignore[return-value]


def _project(file: Path | None, **flags: Any) -> Project:
    from compatctl.commands.context import project_for

    return project_for(file, **flags)


def _show(result: object, *, as_json: bool, code: int = 0) -> None:
    from compatctl import render

    render.result(result, as_json=as_json)
    if code:
        raise typer.Exit(code)


@command
def init(
    model: Annotated[Path, typer.Option("--model", help="The deployed encoder, an ONNX file.")],
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    preprocessing: Side = None,
    m: Annotated[int, typer.Option("--M", help="hnswlib: links a node.")] = 16,
    ef_construction: Annotated[int, typer.Option(help="hnswlib: width of the build.")] = 200,
    ef_search: Annotated[int, typer.Option(help="hnswlib: width of the search.")] = 64,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Embed the gallery once, build its index and begin a store."""
    from compatctl.commands import init as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.init(
            _project(project, store=store, data=data),
            model=model,
            preprocessing=preprocessing,
            m=m,
            ef_construction=ef_construction,
            ef_search=ef_search,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def import_(
    index: Annotated[Path, typer.Argument(help="The deployed hnswlib file.")],
    model: Annotated[Path, typer.Option("--model", help="The encoder that filled it.")],
    items: Annotated[
        Path | None,
        typer.Option("--items", help="CSV with key,id,label: what each hnswlib label means."),
    ] = None,
    space: Annotated[str, typer.Option(help="The index's space: ip, cosine or l2.")] = "ip",
    ef_search: Annotated[int, typer.Option(help="hnswlib: width of the search.")] = 64,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    preprocessing: Side = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Adopt a deployed hnswlib index as a store, embedding nothing."""
    from compatctl.commands import import_index as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.import_index(
            _project(project, store=store, data=data),
            index=index,
            model=model,
            items=items,
            space=space,
            ef_search=ef_search,
            preprocessing=preprocessing,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def finetune(
    base: Annotated[
        Path, typer.Option("--base", help="The incoming checkpoint: torch state dict, safetensors.")
    ],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", envvar="COMPATCTL_RECIPE", help="The recipe's YAML.")
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option("--candidate", help="Where the candidate is written.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where its ONNX file is copied to.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe's seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run.")] = False,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune the incoming backbone against the deployed gallery; write its ONNX file."""
    from compatctl.commands import finetune as verb
    from compatctl.render import progress

    where = _project(
        project, store=store, data=data, recipe=recipe, candidate=candidate, output=output
    )
    with progress() as report:
        done = verb.finetune(
            where,
            base=base,
            seed=seed,
            resume=resume,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def verify(
    old: Annotated[Path, typer.Argument(help="The deployed encoder.")],
    new: Annotated[Path, typer.Argument(help="The candidate.")],
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    policy: PolicyName = None,
    report_file: ReportPath = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="The candidate's training record.")
    ] = None,
    allow_seen: Annotated[
        bool,
        typer.Option("--allow-seen", help="Report held-out items used in training apart."),
    ] = False,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Test the two compatibility inequalities and the retrieval gain; exit 0, 3 or 4."""
    from compatctl.commands import verify as verb
    from compatctl.render import progress

    where = _project(project, store=store, data=data, policy=policy, report=report_file)
    with progress() as report:
        done = verb.verify(
            where,
            old=old,
            new=new,
            training=training,
            allow_seen=allow_seen,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json, code={"pass": 0, "fail": 3}.get(done.verdict.outcome, 4))


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
        _project(project, store=store, policy=policy, report=report_file),
        model=model,
        forced_reason=reason,
        dry_run=dry_run,
    )
    _show(done, as_json=as_json)


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
        _project(project, store=store), to=to, discard_added=discard_added, dry_run=dry_run
    )
    _show(done, as_json=as_json)


@command
def status(project: ProjectFile = None, store: StorePath = None, as_json: Json = False) -> None:
    """Say which model answers, over which gallery."""
    from compatctl.commands import lifecycle as verb

    _show(verb.status(_project(project, store=store)), as_json=as_json)


@command
def history(project: ProjectFile = None, store: StorePath = None, as_json: Json = False) -> None:
    """List every generation."""
    from compatctl.commands import lifecycle as verb

    _show(verb.history(_project(project, store=store)), as_json=as_json)


@command
def check(
    gc: Annotated[bool, typer.Option("--gc", help="Delete what no generation names.")] = False,
    project: ProjectFile = None,
    store: StorePath = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Re-hash every file of the store and open its index and models; exit 5 on damage."""
    from compatctl.commands import check as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.check(_project(project, store=store), gc=gc and not dry_run, progress=report)
    _show(done, as_json=as_json, code=0 if done.ok else 5)


@command
def search(
    images: Annotated[list[Path], typer.Argument(help="Query images.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to find.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Refused unless it is the store's query model."),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Find the nearest gallery items of query images, by the deployed query model."""
    from compatctl.commands import search as verb

    done = verb.search(_project(project, store=store), images=images, k=k, model=model)
    _show(done, as_json=as_json)


@command
def add(
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Embed and index the gallery items of --data that the store does not hold yet."""
    from compatctl.commands import add as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.add(
            _project(project, store=store, data=data),
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def matrix(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Versions, oldest first; default: the store's query models."),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Test every version's queries on every earlier version's gallery: M, AC, AA, ACA."""
    from compatctl.commands import matrix as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.matrix(
            _project(project, store=store, data=data),
            models=models or [],
            skip_bad=skip_bad,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def fuse(
    old: Annotated[Path, typer.Argument(help="The deployed encoder.")],
    new: Annotated[Path, typer.Argument(help="The candidate.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The fused ONNX file.")],
    weight: Annotated[
        float | None,
        typer.Option(help="Weight of the new feature; default: searched on validation classes."),
    ] = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="The new encoder's training record.")
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put both encoders into one file whose feature is their weighted mean."""
    from compatctl.commands import fuse as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.fuse(
            _project(project, store=store, data=data),
            old=old,
            new=new,
            output=output,
            weight=weight,
            training=training,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    _show(done, as_json=as_json)


@command
def demo(
    sabotage: Annotated[
        bool,
        typer.Option("--sabotage", help="Shuffle the class-to-vertex map; must end in exit 3."),
    ] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Leave the demo's project folder here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of both trainings.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole story on real images: train, verify, deploy, search, roll back."""
    from compatctl.commands import demo as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.demo(keep=keep, seed=seed, sabotage=sabotage, progress=report)
    _show(done, as_json=as_json, code={"pass": 0, "fail": 3}.get(done.verdict, 4))


def _version_asked(asked: bool) -> None:
    if asked:
        print(f"compatctl {_version.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version_asked, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the console script."""
    app()


if __name__ == "__main__":
    main()
