"""Commands that create a store or a candidate: init, begin, import, finetune and others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compatctl.cli.app import VERDICT_EXIT_CODES, Outcome, command
from compatctl.cli.options import (
    AdapterKind,
    AdapterSeed,
    DryRun,
    EfSearch,
    IndependentEncoder,
    ModelName,
    PairShare,
    PreprocessingFile,
    RecipeSeed,
    SkipBad,
    TrainingRecordFile,
    refuse_given,
    with_project,
)
from compatctl.errors import UsageError
from compatctl.progress import report_progress

if TYPE_CHECKING:
    from compatctl.recipe import Project


_ITEM_COLUMNS = ("key", "id", "label", "vector")


@command
@with_project("store", "data", "data_root", "ray")
def init(
    project: Project,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The deployed encoder, an ONNX file. Default: the model behind the one table of "
            "--vectors.",
        ),
    ] = None,
    name: ModelName = None,
    preprocessing: PreprocessingFile = None,
    m: Annotated[int, typer.Option("--M", help="hnswlib: links of a node.")] = 16,
    ef_construction: Annotated[
        int, typer.Option(help="hnswlib: candidates kept while the index is built.")
    ] = 200,
    ef_search: EfSearch = 64,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Embed the gallery once and create a store.

    Takes its --vectors instead where a model behind an API made them.
    """
    from compatctl.commands.init import init
    from compatctl.render.store_tables import created_table

    result = init(
        project,
        model=model,
        name=name,
        preprocessing=preprocessing,
        m=m,
        ef_construction=ef_construction,
        ef_search=ef_search,
        skip_bad=skip_bad,
        dry_run=dry_run,
        progress=report_progress,
    )
    return Outcome(result=result, table=created_table)


@command
@with_project("store", "data", "data_root", "recipe", "candidate", "output")
def begin(
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            help="The first checkpoint: a torch state dict or safetensors; or an encoder "
            "(ONNX, or a space of vectors), behind which a head is trained.",
        ),
    ],
    project: Project,
    dim: Annotated[
        int | None,
        typer.Option(
            "--dim",
            min=1,
            help="The dimension, for good: room for one class more. Default: the recipe's.",
        ),
    ] = None,
    seed: RecipeSeed = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Train a first model on a simplex and create its store.

    The store has its embeddings of the gallery.
    """
    from compatctl.commands.begin import begin

    result = begin(
        project,
        base=base,
        dim=dim,
        seed=seed,
        skip_bad=skip_bad,
        dry_run=dry_run,
        progress=report_progress,
    )
    return Outcome(result=result)


@command
@with_project("store", "data", "data_root")
def import_(
    index: Annotated[
        str,
        typer.Argument(
            help="A deployed index: hnswlib, FAISS, usearch, .npy, .npz, Parquet, or a folder of "
            "LanceDB or Chroma; or the URL of a table of PostgreSQL or a "
            "collection of Milvus, "
            "postgresql://USER@HOST:PORT/DATABASE/TABLE?id=COLUMN&vector=COLUMN."
        ),
    ],
    project: Project,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The encoder whose features the index holds. Default: the model behind the one "
            "table of --vectors.",
        ),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items",
            help="Table of key, id and label: the item behind each key of the index. CSV, JSON, "
            "JSONL, SQLite, or a .txt of ids in the order of the keys.",
        ),
    ] = None,
    items_column: Annotated[
        list[str] | None,
        typer.Option(
            "--items-column",
            help="NAME=COLUMN: the column that holds NAME (key, id, label or vector), in --items "
            "or in an index that is a table; for Chroma label=KEY of the metadata; repeatable.",
        ),
    ] = None,
    items_table: Annotated[
        str | None, typer.Option("--items-table", help="The table of an SQLite --items.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            help="The table of a LanceDB folder, or the collection of a Chroma folder, where there "
            "are several.",
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="What the index ranks by: ip, cosine or l2. Default: what the file says, or ip."
        ),
    ] = None,
    norms: Annotated[
        Path | None,
        typer.Option(
            "--norms", help="New .npz for the norms of rows whose norms are part of the ranking."
        ),
    ] = None,
    ef_search: EfSearch = 64,
    drop_deleted: Annotated[
        bool,
        typer.Option(
            "--drop-deleted", help="Leave out rows that are marked deleted, and rebuild the index."
        ),
    ] = False,
    name: ModelName = None,
    preprocessing: PreprocessingFile = None,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Create a store from a deployed index, and embed nothing.

    The index is hnswlib's or another engine's, or a table or collection that stays where it is.
    """
    from compatctl.commands.import_index import import_index
    from compatctl.render.store_tables import created_table

    result = import_index(
        project,
        index=index,
        model=model,
        items=items,
        columns=_item_columns(items_column),
        items_table=items_table,
        table=table,
        space=space,
        ef_search=ef_search,
        name=name,
        preprocessing=preprocessing,
        drop_deleted=drop_deleted,
        norms=norms,
        dry_run=dry_run,
        progress=report_progress,
    )
    return Outcome(result=result, warnings=result.warnings, table=created_table)


def _item_columns(pairs: list[str] | None) -> dict[str, str]:
    """NAME -> COLUMN of the options ``--items-column``."""
    columns: dict[str, str] = {}
    for pair in pairs or ():
        name, separator, column = pair.partition("=")
        if name not in _ITEM_COLUMNS or not separator or not column:
            raise UsageError(
                f"--items-column {pair}: expected NAME=COLUMN with NAME one of "
                f"{', '.join(_ITEM_COLUMNS)}"
            )
        if name in columns:
            raise UsageError(f"--items-column {name} is given twice")
        columns[name] = column
    return columns


def _print_recipe(requested: bool) -> None:
    if requested:
        from compatctl.recipe import default_recipe

        print(default_recipe(), end="")
        raise typer.Exit


@command
@with_project("store", "data", "data_root", "recipe", "candidate", "output", "old_model_gone")
def finetune(
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            help="The incoming checkpoint: a torch state dict or safetensors; a model's "
            "folder; or an encoder (ONNX, or a space of vectors), behind which a head is trained.",
        ),
    ],
    project: Project,
    seed: RecipeSeed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    memory: Annotated[
        Path | None,
        typer.Option("--memory", help="Data to rehearse, in addition to the store's memory."),
    ] = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    print_recipe: Annotated[
        bool,
        typer.Option(
            "--print-recipe",
            callback=_print_recipe,
            is_eager=True,
            help="Print a recipe with every setting and its default, and exit.",
        ),
    ] = False,
) -> Outcome[Any]:
    """Fine-tune a new backbone against the deployed gallery.

    Exports the candidate to ONNX.
    """
    from compatctl.commands.finetune import finetune, plan
    from compatctl.render.tables import finetune_plan_table, finetune_table

    if dry_run and (resume or skip_bad):
        flag = "--resume" if resume else "--skip-bad"
        raise UsageError(f"{flag} has no effect with --dry-run, which trains nothing")
    if dry_run:
        planned = plan(project, base=base, seed=seed, memory=memory)
        return Outcome(result=planned, table=finetune_plan_table, warnings=planned.warnings)
    result = finetune(
        project,
        base=base,
        seed=seed,
        resume=resume,
        memory=memory,
        skip_bad=skip_bad,
        progress=report_progress,
    )
    return Outcome(result=result, table=finetune_table, warnings=result.warnings)


@command
@with_project("store", "data", "data_root", "old_model_gone", models=("old", "new"))
def fuse(
    old: Annotated[Path, typer.Argument(help="The deployed encoder.")],
    new: Annotated[Path, typer.Argument(help="The candidate.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The fused ONNX file.")],
    project: Project,
    weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the new feature. Default: the best of .1 to .9 on validation classes."
        ),
    ] = None,
    training: TrainingRecordFile = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Combine the old and the new encoder in one file.

    Its feature is their weighted mean.
    """
    from compatctl.commands.fuse import fuse
    from compatctl.render.tables import fuse_table

    result = fuse(
        project,
        old=old,
        new=new,
        output=output,
        weight=weight,
        training=training,
        skip_bad=skip_bad,
        dry_run=dry_run,
        progress=report_progress,
    )
    warnings = () if result.search is None else result.search.warnings
    return Outcome(result=result, table=fuse_table, warnings=warnings)


@command
@with_project("store", "data", "data_root", "old_model_gone", models=("new",))
def bridge(
    new: IndependentEncoder,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bridged ONNX file.")],
    project: Project,
    kind: AdapterKind = "auto",
    share: PairShare = None,
    seed: AdapterSeed = 0,
    training: TrainingRecordFile = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
) -> Outcome[Any]:
    """Map an independent encoder into the gallery's space.

    Needs no labels.
    """
    from compatctl.commands.bridge import bridge
    from compatctl.render.tables import bridge_table

    result = bridge(
        project,
        new=new,
        output=output,
        kind=kind,
        share=share,
        seed=seed,
        training=training,
        skip_bad=skip_bad,
        dry_run=dry_run,
        progress=report_progress,
    )
    return Outcome(result=result, table=bridge_table)


@command
def demo(
    context: typer.Context,
    sabotage: Annotated[
        bool,
        typer.Option(
            "--sabotage", help="Train with a shuffled class-to-vertex map; must end in exit 3."
        ),
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Leave the demo's project, with its report, in this folder."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both trainings.")] = 0,
    text: Annotated[
        bool,
        typer.Option("--text", help="Two text models on WordNet instead."),
    ] = False,
    vectors: Annotated[
        bool,
        typer.Option(
            "--vectors", help="The same two models behind an API: tables of their vectors."
        ),
    ] = False,
    old_model_gone: Annotated[
        bool,
        typer.Option(
            "--old-model-gone",
            help="With --vectors: the old model answers no new query, and half of the others' "
            "vectors were logged.",
        ),
    ] = False,
) -> Outcome[Any]:
    """Run a whole upgrade on shipped data.

    Trains, verifies, deploys, searches and rolls back. The HTML report stays in the working folder,
    or in that of --keep.
    """
    from compatctl.render import step

    if text and vectors:
        raise UsageError("demo takes --text or --vectors", tip="give one of them")
    if old_model_gone and not vectors:
        raise UsageError("--old-model-gone needs --vectors", tip="compatctl demo --vectors")
    if text or vectors:
        refuse_given(context, ("sabotage", "seed"), "they are of the demo on images")
    step("A whole model upgrade on real data: a few minutes, nothing is downloaded")
    from compatctl.commands.demo import demo
    from compatctl.commands.demo_text import demo_text
    from compatctl.commands.demo_vectors import demo_vectors
    from compatctl.render.tables import demo_table

    if vectors:
        result = demo_vectors(
            old_model_gone=old_model_gone, keep=keep, progress=report_progress, say=step
        )
    elif text:
        result = demo_text(keep=keep, progress=report_progress, say=step)
    else:
        result = demo(keep=keep, seed=seed, sabotage=sabotage, progress=report_progress, say=step)
    return Outcome(result=result, table=demo_table, exit_code=VERDICT_EXIT_CODES[result.verdict])
