"""Every option that several commands share, once; a command's own are in its signature.

``@with_project("store", "data")`` adds ``--project`` and the named options to a command, which
receives the ``Project`` that they make; with ``data`` also ``--column`` and ``--strict``. The other
options are annotated types.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compatctl.errors import UsageError
from compatctl.notices import refused

if TYPE_CHECKING:
    from compatctl.recipe import Project


def setting(flag: str, text: str) -> Any:
    """An option that the environment may also give, as COMPATCTL_NAME."""
    variable = flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, envvar=f"COMPATCTL_{variable}", help=text)


PROJECT_OPTIONS: dict[str, Any] = {
    "store": Annotated[
        Path | None, setting("--store", "Folder of the store, or s3://BUCKET/PREFIX.")
    ],
    "data": Annotated[
        Path | None,
        setting(
            "--data",
            "Images or texts: a folder, a table or an archive; docs/data.md lists the forms.",
        ),
    ],
    "data_root": Annotated[
        Path | None,
        setting("--data-root", "Folder that may hold images, in addition to the data's own."),
    ],
    "old_model_gone": Annotated[
        bool | None,
        setting("--old-model-gone", "Queries can no longer run the deployed model."),
    ],
    "ray": Annotated[
        str | None,
        setting(
            "--ray",
            "Embed on a cluster of Ray: its address, or local, which starts one on this machine.",
        ),
    ],
    "policy": Annotated[
        str | None, setting("--policy", "Name of a shipped policy, or a YAML file.")
    ],
    "report": Annotated[Path | None, setting("--report", "The report file of verify.")],
    "recipe": Annotated[Path | None, setting("--recipe", "The training recipe, a YAML file.")],
    "candidate": Annotated[
        Path | None, typer.Option("--candidate", help="Folder to write the candidate to.")
    ],
    "output": Annotated[
        Path | None, typer.Option("--output", help="File to copy the candidate's ONNX model to.")
    ],
}

ProjectFile = Annotated[
    Path | None, setting("--project", "The project file. Default: ./compatctl.yaml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out items that do not decode, and list them.")
]

PreprocessingFile = Annotated[
    Path | None,
    typer.Option(
        "--preprocessing", help="Preprocessing JSON of a model that compatctl did not export."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--name", help="What the store calls the model. Default: the name of its file."),
]
EfSearch = Annotated[
    int,
    typer.Option(help="hnswlib: candidates kept in a search. More find more and take longer."),
]

Cluster = Annotated[
    list[str] | None,
    setting(
        "--cluster",
        "A column, such as user, whose values are resampled as units; repeatable.",
    ),
]
ResamplingSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of the resampling.")
]
RecipeSeed = Annotated[int | None, typer.Option(help="Overrides the seed of the recipe.")]
TrainingRecordFile = Annotated[
    Path | None, typer.Option("--training", help="Training record of the new encoder.")
]

IndependentEncoder = Annotated[
    Path, typer.Argument(help="The new encoder, trained without the gallery.")
]
AdapterKind = Annotated[
    str, typer.Option(help="The adapter: orthogonal, ridge, low-rank, mlp; auto tries each.")
]
PairShare = Annotated[
    float | None,
    typer.Option(
        help="Share of the gallery whose items, beside training items, are pairs of the adapter. "
        "Default: max_gallery_pass of compatctl.yaml."
    ),
]
AdapterSeed = Annotated[int, typer.Option(help="Seed of the mlp adapter's training.")]

ForceWrite = Annotated[
    bool, typer.Option("--force", help="Write although the gate does not pass; needs --reason.")
]
Reason = Annotated[
    str | None, typer.Option(help="Why the gate is overridden; recorded in the manifest.")
]

Strict = Annotated[
    bool,
    setting(
        "--strict",
        "Refuse data of which something would be left out, merged, guessed or changed.",
    ),
]

Column = Annotated[
    list[str] | None,
    setting(
        "--column",
        "NAME=COLUMN: the column of the data that holds NAME (id, path, text, label, split or "
        "role); repeatable.",
    ),
]

VectorTables = Annotated[
    list[str] | None,
    setting(
        "--vectors",
        "SPACE=FILE: a table of ids and vectors (.npz, .npy, .parquet or .jsonl) that a model "
        "behind an API made; the space is the model's name. Repeatable, the deployed one first.",
    ),
]

Rescore = Annotated[
    int | None,
    setting(
        "--rescore",
        "Rank this many first answers of a query again, by free vectors of the new model.",
    ),
]
Passes = Annotated[
    int | None,
    setting(
        "--passes",
        "With --rescore: items that a query may embed at most. Default: as many as it re-scores.",
    ),
]


_LISTS = {"columns": "column", "vectors": "vectors"}
"""Entries of the project that are repeatable options, and the option's parameter."""


def with_project(
    *names: str, models: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command ``--project`` and the options ``names``, and pass it the Project they make.

    ``models``: parameters that name models, one or several, whose files are looked up.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(**arguments: Any) -> Any:
            from compatctl.deployment.project import project_for

            file = arguments.pop("project_file")
            flags = {name: arguments.pop(f"project_{name}") for name in names}
            lists = {key: arguments.pop(name, None) for key, name in _LISTS.items()}
            with refused(strict=arguments.pop("strict", False)):
                project = project_for(file, **lists, **flags)
                found = {name: _models(project, arguments[name]) for name in models}
                return function(project=project, **{**arguments, **found})

        options: dict[str, tuple[Any, Any]] = {
            f"project_{name}": (PROJECT_OPTIONS[name], None) for name in names
        }
        if "data" in names:
            options["column"] = (Column, None)
            options["vectors"] = (VectorTables, None)
            options["strict"] = (Strict, False)
        add_parameters(run, function, {"project_file": (ProjectFile, None), **options}, "project")
        return run

    return decorate


def _models(project: Project, given: Any) -> Any:
    """The files of a model's name, of a list of them, or None where none is given."""
    from compatctl.deployment.model_names import named_model

    if isinstance(given, list):
        return [named_model(project, name) for name in given]
    return None if given is None else named_model(project, given)


def refuse_given(context: typer.Context, parameters: Collection[str], reason: str) -> None:
    """Refuse options that were written on the command line.

    Raises:
        UsageError: one of ``parameters`` was; entries of the project and the environment pass.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in parameters and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{parameter.opts[0]} has no effect: {reason}", tip="leave it out")


def forced_reason(force: bool, reason: str | None) -> str | None:
    """The reason of ``--force``; None without it.

    Raises:
        UsageError: one of the two is missing.
    """
    if force and not (reason and reason.strip()):
        raise UsageError("--force needs --reason: it is recorded in the manifest")
    if reason and not force:
        raise UsageError("--reason goes with --force, or with --again of deploy")
    return reason


def add_parameters(
    run: Callable[..., Any],
    function: Callable[..., Any],
    added: Mapping[str, tuple[Any, Any]],
    without: str = "",
) -> None:
    """Make ``run`` look like ``function``, with more parameters: name -> (type, default).

    ``without``: a parameter of ``function`` that ``run`` fills in.
    """
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name != without]
    if hasattr(function, "__signature__"):
        hints = {name: signature.parameters[name].annotation for name in names}
    else:
        hints = typing.get_type_hints(function, localns={"Project": object}, include_extras=True)
    defaults = {name: signature.parameters[name].default for name in names}
    types = {name: hints[name] for name in names} | {key: kind for key, (kind, _) in added.items()}
    defaults |= {key: default for key, (_, default) in added.items()}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = types
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind
            )
            for name, kind in types.items()
        ]
    )
