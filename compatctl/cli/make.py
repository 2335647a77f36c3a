"""Commands that make things: a store, a candidate, new rows, the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compatctl.cli.app import (
    DataPath,
    DataRoot,
    DryRun,
    EfSearch,
    FreeEncoder,
    Json,
    MapKind,
    MapSeed,
    PairShare,
    ProjectFile,
    RecipePath,
    RecipeSeed,
    Side,
    SkipBad,
    StorePath,
    TrainingRecord,
    command,
    project_of,
    show,
)


@command
def init(
    model: Annotated[Path, typer.Option("--model", help="The deployed encoder, an ONNX file.")],
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    preprocessing: Side = None,
    m: Annotated[int, typer.Option("--M", help="hnswlib: links a node.")] = 16,
    ef_construction: Annotated[int, typer.Option(help="hnswlib: width of the build.")] = 200,
    ef_search: EfSearch = 64,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Embed the gallery once, build its index and begin a store."""
    from compatctl.commands import init as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.init(
            project_of(project, store=store, data=data, data_root=data_root),
            model=model,
            preprocessing=preprocessing,
            m=m,
            ef_construction=ef_construction,
            ef_search=ef_search,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    show(done, as_json=as_json)


@command
def import_(
    index: Annotated[Path, typer.Argument(help="The deployed hnswlib file.")],
    model: Annotated[Path, typer.Option("--model", help="The encoder that filled it.")],
    items: Annotated[
        Path | None,
        typer.Option("--items", help="CSV with key,id,label: what each hnswlib label means."),
    ] = None,
    space: Annotated[str, typer.Option(help="The index's space: ip, cosine or l2.")] = "ip",
    ef_search: EfSearch = 64,
    drop_deleted: Annotated[
        bool,
        typer.Option(
            "--drop-deleted",
            help="Leave out rows that are marked deleted, and build the index anew.",
        ),
    ] = False,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    preprocessing: Side = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Adopt a deployed hnswlib index as a store, embedding nothing."""
    from compatctl.commands import import_index as verb
    from compatctl.render import progress, warn

    with progress() as report:
        done = verb.import_index(
            project_of(project, store=store, data=data, data_root=data_root),
            index=index,
            model=model,
            items=items,
            space=space,
            ef_search=ef_search,
            preprocessing=preprocessing,
            drop_deleted=drop_deleted,
            dry_run=dry_run,
            progress=report,
        )
    warn(done.warnings)
    show(done, as_json=as_json)


@command
def finetune(
    base: Annotated[
        Path, typer.Option("--base", help="The incoming checkpoint: torch state dict, safetensors.")
    ],
    recipe: RecipePath = None,
    candidate: Annotated[
        Path | None, typer.Option("--candidate", help="Where the candidate is written.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where its ONNX file is copied to.")
    ] = None,
    seed: RecipeSeed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run.")] = False,
    memory: Annotated[
        Path | None,
        typer.Option("--memory", help="Data to rehearse besides the store's memory."),
    ] = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune the incoming backbone against the deployed gallery; write its ONNX file."""
    from compatctl.commands import finetune as verb
    from compatctl.render import progress, warn

    where = project_of(
        project,
        store=store,
        data=data,
        data_root=data_root,
        recipe=recipe,
        candidate=candidate,
        output=output,
    )
    if dry_run:
        show(verb.plan(where, base=base, seed=seed, memory=memory), as_json=as_json)
        return
    with progress() as report:
        done = verb.finetune(
            where,
            base=base,
            seed=seed,
            resume=resume,
            memory=memory,
            skip_bad=skip_bad,
            progress=report,
        )
    warn(done.warnings)
    show(done, as_json=as_json)


@command
def fuse(
    old: Annotated[Path, typer.Argument(help="The deployed encoder.")],
    new: Annotated[Path, typer.Argument(help="The candidate.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The fused ONNX file.")],
    weight: Annotated[
        float | None,
        typer.Option(help="Weight of the new feature; default: searched on validation classes."),
    ] = None,
    training: TrainingRecord = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put both encoders into one file whose feature is their weighted mean."""
    from compatctl.commands import fuse as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.fuse(
            project_of(project, store=store, data=data, data_root=data_root),
            old=old,
            new=new,
            output=output,
            weight=weight,
            training=training,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    show(done, as_json=as_json)


@command
def bridge(
    new: FreeEncoder,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bridged ONNX file.")],
    kind: MapKind = "auto",
    share: PairShare = 1.0,
    seed: MapSeed = 0,
    training: TrainingRecord = None,
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Map an independent encoder's feature into the deployed gallery, without labels."""
    from compatctl.commands import bridge as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.bridge(
            project_of(project, store=store, data=data, data_root=data_root),
            new=new,
            output=output,
            kind=kind,
            share=share,
            seed=seed,
            training=training,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    show(done, as_json=as_json)


@command
def add(
    project: ProjectFile = None,
    store: StorePath = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed",
            help="Embed items again whose image is another than the indexed one, and take changed "
            "labels; without it they are an error.",
        ),
    ] = False,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Embed and index the gallery items of --data that the store does not hold yet."""
    from compatctl.commands import add as verb
    from compatctl.render import progress

    with progress() as report:
        done = verb.add(
            project_of(project, store=store, data=data, data_root=data_root),
            changed=changed,
            skip_bad=skip_bad,
            dry_run=dry_run,
            progress=report,
        )
    show(done, as_json=as_json)


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
    show(done, as_json=as_json, code={"pass": 0, "fail": 3}.get(done.verdict, 4))
