"""A candidate: a backbone trained by the recipe, exported to ONNX with its record and weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.gallery_pass import GalleryPass
from compatctl.data import Dataset, Reference
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import checked_ids, gallery_pass
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.old_features import CACHE_FILE
from compatctl.deployment.record_files import FILE, find_record, write_model
from compatctl.deployment.rehearsal import rehearsal_items, write_memory
from compatctl.deployment.training_inputs import TrainingInputs, embed_reference
from compatctl.deployment.training_record import REGISTRY_FILE, TrainingRecord
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import UsageError
from compatctl.evaluation.protocol import query_rows
from compatctl.files import make_folders, require_place, write_atomic
from compatctl.migration.exports import (
    MODEL_FILE,
    export_behind,
    export_images,
    export_texts,
    text_base,
)
from compatctl.migration.ready_model import ready_base
from compatctl.migration.unlabelled import UnlabelledItems, unlabelled_items
from compatctl.processes import ALONE, PartDone, Processes
from compatctl.progress import Progress, silent, stage
from compatctl.recipe import Project

if TYPE_CHECKING:
    from compatctl.train import Base, TrainResult

WEIGHTS_FILE = "weights.safetensors"
"""Backbone and junction: a base for fine-tuning this model again."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The candidate's files, and what it was trained on.

    Attributes:
        output: where the model was copied to.
        weights: a base for fine-tuning this model again; None where the model's own file is one.
        rehearsed: how many of the ``items`` are of earlier runs.
        remembered: how many items are in the new rehearsal memory.
        gallery_pass: what of the deployed gallery went through the new model; None without one.
        unlabelled: images without labels that took part; ``left_out`` did not, by reason.
        blend: the share of the trained weights in the model's; 1 if the base's have none.
        parity: largest absolute difference between components of an embedding by the ONNX file and
            by the trained network, over real images.
        random: tensors of the backbone that the base lacks, which kept their random values;
            ``unexpected_keys`` counts those of the base that no part of the network has.
    """

    gallery_pass: GalleryPass | None
    model: str
    output: str
    weights: str | None
    sha256: str
    dim: int
    frame: str
    items: int
    classes: int
    unlabelled: int
    left_out: dict[str, int]
    rehearsed: int
    remembered: int
    old_features: dict[str, int]
    validation_hit_rate: float | None
    blend: float
    parity: float
    random: tuple[str, ...]
    unexpected_keys: int
    device: str
    seconds: float
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    """What to look at before the model is used"""


def train_candidate(
    project: Project,
    inputs: TrainingInputs,
    *,
    base: Path,
    resume: bool = False,
    memory: Path | None = None,
    skip_bad: bool = False,
    shuffle_map: bool = False,
    processes: Processes = ALONE,
    progress: Progress = silent,
) -> FinetuneResult:
    """Train by the recipe of ``inputs``, export ONNX, check its parity, write weights and record.

    With ``rehearsal`` in the recipe, items of the store's memory and of ``memory`` (data of earlier
    runs) train again, and the candidate gets a memory of its own, which deploy puts into the store.

    Args:
        shuffle_map: give every item the old feature of another one. The gate must refuse this
            candidate; for tests and the demo.
        processes: those that train together; the leader writes the candidate.

    Raises:
        InputError: bad data or checkpoint; or the exported file differs from the trained network.
        PartDone: in a process that is not the leader, when the network is trained.
    """
    recipe, gallery = inputs.recipe, inputs.gallery
    from compatctl.train import remove_checkpoint, train

    processes.agree(lambda: _make_room(project))
    given = processes.agree(
        lambda: _prepared(project, inputs, base, memory, processes, progress, skip_bad=skip_bad)
    )
    data, reference = given.data, given.reference
    if shuffle_map and reference is not None:
        reference = _shuffled(reference, recipe.seed)
    trained = train(
        recipe=recipe,
        base=given.base,
        data=data,
        reference=reference,
        work=project.candidate,
        resume=resume,
        memory=given.earlier,
        unlabelled=given.unlabelled.items if given.unlabelled else None,
        processes=processes,
        progress=progress,
    )
    if not processes.leads:
        raise PartDone
    record = _record(trained, data, given.earlier, given.unlabelled, measures=gallery is not None)
    record = write_memory(project, recipe, data, given.earlier, record)
    with stage("writing the network as ONNX"):
        model, encoder, record = _exported(project, inputs, trained, data, base, record)
    _write(project, record, model)
    if project.output.resolve() != (project.candidate / MODEL_FILE).resolve():
        write_atomic(project.output, model)
    remove_checkpoint(project.candidate)
    return _result(project, encoder, record, gallery, given.unlabelled, given.skipped)


def _make_room(project: Project) -> None:
    """Make the folders of the candidate and of the output.

    Raises:
        InputError: one cannot be made, or a folder is where the output goes.
    """
    for folder in (project.candidate, project.output.parent):
        make_folders(folder)
    require_place(project.output)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """What a run trains on: items that decode, those of earlier runs, unlabelled ones."""

    data: Dataset
    skipped: tuple[str, ...]
    earlier: Dataset | None
    unlabelled: UnlabelledItems | None
    base: Base
    reference: Reference | None


def _prepared(  # noqa: PLR0917
    project: Project,
    inputs: TrainingInputs,
    base: Path,
    memory: Path | None,
    processes: Processes,
    progress: Progress,
    *,
    skip_bad: bool,
) -> _Given:
    recipe, gallery = inputs.recipe, inputs.gallery
    data, skipped = inputs.data.readable() if skip_bad else (inputs.data, ())
    if inputs.ready is not None:
        _refuse_several(processes, base)
        _refuse_to_replace(project, base)
        check_steady(inputs.ready.encoder, data)
    earlier = rehearsal_items(project, recipe, data, gallery, memory)
    unlabelled = unlabelled_items(
        project, recipe, data, earlier, gallery, skip_bad=skip_bad, progress=progress
    )
    given: Base = base if inputs.text is None else text_base(inputs.text)
    if inputs.ready is not None:
        others = (earlier, unlabelled.items if unlabelled else None)
        data, given = ready_base(data, inputs.ready, gallery, earlier=others, progress=progress)
    return _Given(
        data=data,
        skipped=skipped,
        earlier=earlier,
        unlabelled=unlabelled,
        base=given,
        reference=_reference(project, inputs, data, earlier, unlabelled, processes, progress),
    )


def _refuse_several(processes: Processes, base: Path) -> None:
    """Refuse processes that would have nothing to divide.

    Raises:
        UsageError: there are several.
    """
    if processes.size > 1:
        raise UsageError(
            f"{base} is an encoder: a head behind it trains in one process",
            tip="compatctl finetune without torchrun",
        )


def _record(
    trained: TrainResult,
    data: Dataset,
    earlier: Dataset | None,
    unlabelled: UnlabelledItems | None,
    *,
    measures: bool,
) -> TrainingRecord:
    """The record of a run. ``measures``: validation queries measured it on a gallery."""
    registry = trained.registry.to_json() if trained.registry else None
    record = TrainingRecord.from_json(trained.record, registry)
    record = record.with_looks(data, earlier, unlabelled.items if unlabelled else None)
    validation = data.take(query_rows(data, "validation")).ids if measures else ()
    return record.with_measured({*validation, *checked_ids(data)})


def _exported(  # noqa: PLR0917
    project: Project,
    inputs: TrainingInputs,
    trained: TrainResult,
    data: Dataset,
    base: Path,
    record: TrainingRecord,
) -> tuple[bytes, Encoder, TrainingRecord]:
    """The model's file, its encoder and its record; a network's weights are written as well."""
    weights = project.candidate / WEIGHTS_FILE
    if inputs.ready is not None:
        weights.unlink(missing_ok=True)
        if not base.is_dir():
            record = _with_encoder(project, record, base, inputs.ready)
        return export_behind(trained, inputs.ready, data, record)
    if inputs.text is not None:
        weights.unlink(missing_ok=True)
        return export_texts(trained, inputs.text, data, record)
    record = _with_base(record, base)
    _write_weights(trained, weights, record)
    return export_images(trained, inputs.recipe, data, record)


def _refuse_to_replace(project: Project, base: Path) -> None:
    """Refuse a run whose files would replace the encoder that it begins with.

    Raises:
        UsageError: one of them would.
    """
    for flag, path in (
        ("--output", project.output),
        ("--candidate", project.candidate / MODEL_FILE),
    ):
        if path.resolve() == base.resolve():
            raise UsageError(f"{path} would replace the base", tip=f"name another {flag}")


def _reference(  # noqa: PLR0917
    project: Project,
    inputs: TrainingInputs,
    data: Dataset,
    memory: Dataset | None,
    unlabelled: UnlabelledItems | None,
    processes: Processes,
    progress: Progress,
) -> Reference | None:
    """The gallery and the old features of all items outside it; None without a gallery."""
    if inputs.gallery is None:
        return None
    return embed_reference(
        inputs.recipe,
        data,
        memory,
        inputs.gallery,
        progress,
        unlabelled=unlabelled.outside if unlabelled else None,
        cache=project.candidate / CACHE_FILE,
        processes=processes,
    )


def _shuffled(reference: Reference, seed: int) -> Reference:
    """Every item with the feature of another one, stored and encoded ones apart."""
    order = np.random.default_rng(seed).permutation(len(reference.gallery_ids))
    others = np.random.default_rng(seed).permutation(len(reference.encoded_ids))
    return replace(
        reference,
        gallery_features=reference.gallery_features[order],
        encoded_features=reference.encoded_features[others],
    )


def _with_encoder(
    project: Project, record: TrainingRecord, base: Path, model: ModelFile
) -> TrainingRecord:
    """The record with that of the base: what its encoder was trained on, where that is known."""
    earlier = find_record(
        base, model.encoder, named=None, candidate=project.candidate, with_names=True
    )
    return record.including(earlier or TrainingRecord(whole=False))


def _with_base(record: TrainingRecord, base: Path) -> TrainingRecord:
    """The record with what the base was trained on, where it is the weights of an earlier run.

    None of that went through the new model: it adds no gallery row to those that passed.

    Raises:
        InputError: the base's record cannot be read.
    """
    from compatctl.train import carried_record

    text = carried_record(base)
    if text is None:
        return record
    return record.including(TrainingRecord.from_text(text, base).of_the_old_encoder())


def _write_weights(trained: TrainResult, target: Path, record: TrainingRecord) -> None:
    from compatctl.train import save_weights

    with tempfile.TemporaryDirectory() as scratch:
        save_weights(trained.network, Path(scratch) / target.name, record.to_text())
        write_atomic(target, (Path(scratch) / target.name).read_bytes())


def _result(  # noqa: PLR0917
    project: Project,
    encoder: Encoder,
    record: TrainingRecord,
    gallery: DeployedGallery | None,
    unlabelled: UnlabelledItems | None,
    skipped: tuple[str, ...],
) -> FinetuneResult:
    details, random = record.details, tuple(record.details["base"]["missing"])
    warnings = unlabelled.warnings if unlabelled else ()
    if random:
        warnings += (
            f"{len(random)} tensors of the backbone are not in the base and are random: "
            f"{', '.join(random)}",
        )
    assert record.parity is not None, "export measured it"
    return FinetuneResult(
        gallery_pass=gallery_pass(gallery.catalog, record) if gallery else None,
        model=str(project.candidate / MODEL_FILE),
        output=str(project.output),
        weights=str(weights) if (weights := project.candidate / WEIGHTS_FILE).is_file() else None,
        sha256=encoder.sha256,
        dim=encoder.dim,
        frame=details["classifier"]["frame"],
        items=len(record.items),
        classes=len(record.labels),
        unlabelled=details["unlabelled_items"],
        left_out=unlabelled.left_out if unlabelled else {},
        rehearsed=details["memory_items"],
        remembered=details["remembered"],
        old_features=details["old_features"],
        validation_hit_rate=details["validation_hit_at_1"],
        blend=details["blend"],
        parity=record.parity,
        random=random,
        unexpected_keys=len(details["base"]["unexpected"]),
        device=details["device"],
        seconds=details["seconds"],
        skipped=skipped + (unlabelled.skipped if unlabelled else ()),
        warnings=warnings,
    )


def _write(project: Project, record: TrainingRecord, model: bytes) -> None:
    """Write registry.json (for a simplex), training.json, and then the model."""
    registry = project.candidate / REGISTRY_FILE
    registry.unlink(missing_ok=True)
    if record.registry is not None:
        write_atomic(registry, record.registry.encode())
    write_model(project.candidate / MODEL_FILE, model, record, record_file=project.candidate / FILE)
