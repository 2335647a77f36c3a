"""The application, its one error boundary, and the options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compatctl import _version
from compatctl.errors import CompatError

if TYPE_CHECKING:
    from compatctl.recipe import Project

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
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="COMPATCTL_DATA_ROOT",
        help="A folder besides the data's own in which its images may lie.",
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
EfSearch = Annotated[int, typer.Option(help="hnswlib: width of the search.")]
DrawSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the resampling.")]

RecipePath = Annotated[
    Path | None, typer.Option("--recipe", envvar="COMPATCTL_RECIPE", help="The recipe's YAML.")
]
RecipeSeed = Annotated[int | None, typer.Option(help="Overrides the recipe's seed.")]
TrainingRecord = Annotated[
    Path | None, typer.Option("--training", help="The new encoder's training record.")
]

FreeEncoder = Annotated[Path, typer.Argument(help="The new encoder, which knows no gallery.")]
MapKind = Annotated[
    str, typer.Option(help="auto, orthogonal, ridge, low-rank or mlp: the maps to try.")
]
PairShare = Annotated[
    float, typer.Option(help="Share of the gallery's items that the map may be fitted on.")
]
MapSeed = Annotated[int, typer.Option(help="Of the mlp.")]

ForceWrite = Annotated[
    bool, typer.Option("--force", help="Write against the gate; needs --reason.")
]
Reason = Annotated[str | None, typer.Option(help="Why; recorded in the manifest.")]


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


def project_of(file: Path | None, **flags: Any) -> Project:
    from compatctl.deployment.project import project_for

    return project_for(file, **flags)


def show(result: object, *, as_json: bool, code: int = 0) -> None:
    from compatctl import render

    render.result(result, as_json=as_json)
    if code:
        raise typer.Exit(code)


def _version_asked(asked: bool) -> None:
    if asked:
        print(f"compatctl {_version.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version_asked, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass
