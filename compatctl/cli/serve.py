"""The command that serves a store over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compatctl.cli.app import Outcome, command
from compatctl.cli.options import with_project
from compatctl.errors import UsageError

if TYPE_CHECKING:
    from compatctl.recipe import Project


@command
@with_project("store", "data", "data_root", "policy", "report")
def serve(
    project: Project,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. One that other machines reach needs COMPATCTL_TOKEN.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any free port, which is printed.")
    ] = 8080,
    shadow: Annotated[
        str | None,
        typer.Option(
            "--shadow",
            help="MODEL or MODEL=10%: a candidate that answers this share of the queries too, for "
            "the log alone.",
        ),
    ] = None,
    traffic: Annotated[
        str | None,
        typer.Option(
            "--traffic",
            help="MODEL=5%: a candidate whose answers this share of the tenants or queries gets.",
        ),
    ] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified", help="With --traffic: the candidate needs no passing report."
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            help="File to append answers to, one JSON line a query; or FOLDER.parquet, for parts "
            "in Parquet.",
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, help="Bytes of a request's body.")
    ] = 10 << 20,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Width x height of an image.")
    ] = 50_000_000,
    max_k: Annotated[int, typer.Option("--max-k", min=1, help="Answers of a query.")] = 1000,
    max_requests: Annotated[
        int,
        typer.Option("--max-requests", min=1, help="Requests at once; others get status 503."),
    ] = 64,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            min=1,
            max=128,
            help="Processes that answer on the port, each with a model and an index of its own.",
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Threads that compute a batch in each process (default: OMP_NUM_THREADS, or the "
            "processors, divided among the processes).",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds until an answer, or status 504.")
    ] = 10.0,
) -> Outcome[Any]:
    """Answer queries over HTTP, through every deploy.

    And through every rollback, add and backfill, until it is stopped.
    """
    from compatctl.serving import require_serving

    require_serving()
    from compatctl.commands.serve import ServeOptions, Trial, serve
    from compatctl.deployment.model_names import named_model
    from compatctl.serving.service import Limits

    if allow_unverified and traffic is None:
        raise UsageError("--allow-unverified goes with --traffic")
    if shadow is not None and traffic is not None:
        raise UsageError(
            "--shadow and --traffic exclude each other",
            tip="try the candidate with --shadow first, then let --traffic answer some queries",
        )
    shadowed, tried = _share(shadow, "--shadow", 1.0), _share(traffic, "--traffic", None)

    def trial(given: tuple[Path, float] | None) -> Trial | None:
        return given and Trial(model=named_model(project, given[0]), share=given[1])

    options = ServeOptions(
        host=host,
        port=port,
        shadow=trial(shadowed),
        traffic=trial(tried),
        allow_unverified=allow_unverified,
        log=log,
        limits=Limits(
            body_bytes=max_bytes,
            pixels=max_pixels,
            k=max_k,
            seconds=timeout,
            requests=max_requests,
        ),
        processes=processes,
        threads=threads,
    )
    result = serve(project, options, announce=lambda text: print(text, file=sys.stderr, flush=True))
    return Outcome(result=result)


def _share(text: str | None, flag: str, default: float | None) -> tuple[Path, float] | None:
    """The file and the share of MODEL=5%, or MODEL where there is a default."""
    if text is None:
        return None
    file, sign, share = text.rpartition("=")
    if not sign and default is not None:
        return Path(text), default
    try:
        value = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not file or not 0 < value <= 1:
        raise UsageError(
            f"{flag} is MODEL=SHARE, got {text!r}", tip=f"for example {flag} new.onnx=5%"
        )
    return Path(file), value
