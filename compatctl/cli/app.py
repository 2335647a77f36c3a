"""The application and its one error boundary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from compatctl import _version
from compatctl.cli.options import Json, add_parameters
from compatctl.errors import CompatError
from compatctl.notices import collected

if TYPE_CHECKING:
    from compatctl.render.console import Table

app = typer.Typer(
    name="compatctl",
    help="Swap the model behind an embedding store without re-embedding the gallery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

VERDICT_EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """What a command prints: the result by its ``table`` (None: a line for each field) or as JSON
    on stdout, the warnings on stderr; and its exit code."""

    result: T
    table: Table[T] | None = None
    warnings: Sequence[str] = ()
    exit_code: int = 0


def command(function: Callable[..., Outcome[Any]]) -> Callable[..., Outcome[Any]]:
    """Register a command, with ``--json``; a CompatError becomes a message and its exit code."""

    def run(*, as_json: bool, **arguments: Any) -> None:
        from compatctl import render

        with collected() as notices:
            try:
                outcome = function(**arguments)
                render.warn([*notices.messages(), *outcome.warnings])
                table = outcome.table or render.fields_table
                render.result(outcome.result, table, as_json=as_json, notices=notices.entries())
            except CompatError as error:
                render.warn(notices.messages())
                render.error(error, as_json=as_json, notices=notices.entries())
                raise typer.Exit(error.exit_code) from None
            except KeyboardInterrupt:
                print("interrupted: nothing was committed", file=sys.stderr)
                raise typer.Exit(130) from None
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)

    add_parameters(run, function, {"as_json": (Json, False)})
    app.command(name=function.__name__.strip("_").replace("_", "-"))(run)
    return function


def _print_version(requested: bool) -> None:
    if requested:
        print(f"compatctl {_version.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
