"""Commands on files outside a store: export makes a model, inspect says what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compatctl.cli.app import Outcome, command
from compatctl.cli.options import DryRun, PreprocessingFile, with_project
from compatctl.errors import InputError, UsageError
from compatctl.progress import report_progress

if TYPE_CHECKING:
    from compatctl.recipe import Project


@command
@with_project("data", "data_root")
def export(
    project: Project,
    source: Annotated[
        str | None,
        typer.Argument(
            help="timm:NAME, torchvision:NAME, open_clip:NAME, transformers:FOLDER, "
            "sentence-transformers:FOLDER, module:callable, or an ONNX file of another tool."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The sealed ONNX file.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="The checkpoint on disk: a torch state dict or safetensors."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", help="Prefix of the tensors to load, if --weights has several networks."
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            help="NAME=VALUE, an argument of the architecture's function; repeatable. VALUE is "
            "read as JSON, else as text.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="Of module:callable: the method of the module that gives features."
        ),
    ] = "forward",
    pooling: Annotated[
        Literal["auto", "pooler", "cls", "mean"],
        typer.Option(
            "--pooling",
            help="Of a folder: pooler (its pooled output), cls (the first token), mean (of all "
            "tokens). auto: what the folder of a text model says; of images: pooler if the folder "
            "has its weights, else cls.",
        ),
    ] = "auto",
    preprocessing: PreprocessingFile = None,
    preprocessing_template: Annotated[
        bool,
        typer.Option(
            "--preprocessing-template",
            help="Print a preprocessing file with every entry, filled with what SOURCE, an ONNX "
            "file, says of itself. With -o: write it there.",
        ),
    ] = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Make an ONNX file of a library's model or of your own.

    Or of another ONNX file; it is sealed, and compared with the original on real images.
    Downloads nothing.
    """
    from compatctl.commands.export import ExportOptions, export

    if preprocessing_template:
        return _template(source, output)
    if source is None or output is None:
        missing = "SOURCE" if source is None else "-o FILE"
        raise UsageError(f"no {missing}", tip="compatctl export SOURCE -o old.onnx")
    options = ExportOptions(
        source=source,
        output=output,
        weights=weights,
        part=part,
        args=_arguments(arg or ()),
        method=method,
        pooling=pooling,
        preprocessing=preprocessing,
        dry_run=dry_run,
    )
    result = export(project, options, progress=report_progress)
    return Outcome(result=result, warnings=result.warnings)


def _arguments(texts: list[str] | tuple[()]) -> dict[str, Any]:
    """NAME=VALUE, each VALUE read as JSON, else as text."""
    import json

    arguments: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name.isidentifier() and sign):
            raise UsageError(f"--arg is NAME=VALUE, got {text!r}")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _template(source: str | None, output: Path | None) -> Outcome[Any]:
    from compatctl.commands.export import write_template
    from compatctl.render import json_table

    template = write_template(Path(source) if source is not None else None, output)
    return Outcome(result=template, table=json_table)


@command
def inspect(
    paths: Annotated[
        list[Path], typer.Argument(help="A file, a folder, or s3://BUCKET/PREFIX.", metavar="PATH")
    ],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="A line for each of several files; exit code 5 if something is missing to use "
            "one. For a hook that runs before a commit.",
        ),
    ] = False,
) -> Outcome[Any]:
    """Say what a file is and what is missing to use it.

    A model, checkpoint, index, table, store, recipe, project or policy: what it takes and gives.
    Runs nothing of it.
    """
    from compatctl.commands.inspect import check_files, inspect
    from compatctl.render.inspection_table import checked_table, inspection_table

    if check:
        checked = check_files(paths)
        code = InputError.exit_code if checked.unusable else 0
        return Outcome(result=checked, table=checked_table, exit_code=code)
    if len(paths) > 1:
        raise UsageError(
            "inspect describes one file", tip="compatctl inspect --check takes several"
        )
    return Outcome(result=inspect(paths[0]), table=inspection_table)
