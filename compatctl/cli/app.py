"""The application and its one error boundary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from compatctl import _version
from compatctl.cli.help import HELP_FLAGS, Commands, OneCommand
from compatctl.cli.options import Json, add_parameters
from compatctl.errors import CompatError, PeerError, UsageError
from compatctl.files import temporary_folder_errors
from compatctl.notices import collected
from compatctl.processes import Launch, PartDone

if TYPE_CHECKING:
    from compatctl.render.console import Table

app = typer.Typer(
    name="compatctl",
    help="Swap the model behind an embedding store without re-embedding the gallery.",
    cls=Commands,
    context_settings=HELP_FLAGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DIVIDED = {"finetune"}
"""Commands that divide their work among processes."""
_SERVES = {"serve"}
"""Commands that go on until they are stopped, and log what they do."""
_CONTINUED = {
    "finetune": "nothing was committed; compatctl finetune --resume goes on",
    "backfill": "steps that ended are committed; the same command goes on",
    "check": "the check is not complete; the same command begins again",
    "serve": "the service had not started",
    "warm": "what was embedded is kept; the same command goes on",
}
"""What is kept of a command's work at Ctrl-C, and how to go on."""
_BEGUN_AGAIN = "nothing was committed; the same command begins again"
REPORT_S = 1.0
"""How long a process waits for the first one to report: torchrun stops all when one ends."""

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


def _launch(*, as_json: bool) -> Launch | None:
    """``Launch.current``; an environment that contradicts itself ends the command."""
    from compatctl import render

    try:
        return Launch.current()
    except CompatError as error:
        render.error(error, as_json=as_json)
        raise typer.Exit(error.exit_code) from None


def command(function: Callable[..., Outcome[Any]]) -> Callable[..., Outcome[Any]]:
    """Register a command, with ``--json``; a CompatError becomes a message and its exit code."""

    def run(*, as_json: bool, **arguments: Any) -> None:
        from compatctl import render

        launch = _launch(as_json=as_json)
        with collected() as notices:
            try:
                _refuse_several(function.__name__, launch)
                with temporary_folder_errors():
                    outcome = _watched(function, arguments)
                if launch is not None and launch.rank:  # as with --dry-run: the first one prints
                    raise PartDone
                render.warn([*notices.messages(), *outcome.warnings])
                table = outcome.table or render.fields_table
                render.result(outcome.result, table, as_json=as_json, notices=notices.entries())
            except PartDone:
                raise typer.Exit from None
            except CompatError as error:
                if launch is not None and launch.rank:
                    _report_from(launch.rank, error)
                else:
                    render.warn(notices.messages())
                    render.error(error, as_json=as_json, notices=notices.entries())
                raise typer.Exit(error.exit_code) from None
            except KeyboardInterrupt:
                if launch is None or launch.rank == 0:
                    how = _CONTINUED.get(function.__name__, _BEGUN_AGAIN)
                    print(f"interrupted: {how}", file=sys.stderr)
                raise typer.Exit(130) from None
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)

    add_parameters(run, function, {"as_json": (Json, False)})
    name = function.__name__.strip("_").replace("_", "-")
    app.command(name=name, cls=OneCommand, context_settings=HELP_FLAGS)(run)
    return function


def _watched(function: Callable[..., Outcome[Any]], arguments: dict[str, Any]) -> Outcome[Any]:
    """Call a command's function, and show on stderr what it is doing."""
    from compatctl.render import watching

    name = function.__name__.strip("_").replace("_", "-")
    if name in _SERVES:
        return function(**arguments)
    with watching(name):
        return function(**arguments)


def _refuse_several(name: str, launch: Launch | None) -> None:
    """Refuse a command that several processes would run one over the other.

    Raises:
        UsageError: ``torchrun`` started several, and the command does not divide its work.
    """
    if launch is not None and name not in _DIVIDED:
        if launch.rank:
            raise PeerError("refused", code=UsageError.exit_code)
        raise UsageError(
            f"torchrun started {launch.size} processes, and {name} runs in one",
            tip=f"compatctl {name} without torchrun",
        )


def _report_from(rank: int, error: CompatError) -> None:
    """Say what failed in a process that is not the first; what another one says, it does not."""
    if isinstance(error, PeerError):
        time.sleep(REPORT_S)
        return
    from compatctl import render

    error.message = f"process {rank}: {error.message}"
    render.error(error, as_json=False)


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
