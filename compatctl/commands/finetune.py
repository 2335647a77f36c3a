"""finetune: the incoming backbone becomes an encoder that speaks the gallery's language."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.data import Dataset, Preprocessing, prepare
from compatctl.deployment.record_files import FILE, write_model
from compatctl.deployment.rehearsal import rehearsal_items, write_memory
from compatctl.deployment.training_inputs import embed_reference, load_inputs
from compatctl.deployment.training_record import REGISTRY_FILE, TrainingRecord
from compatctl.encoder import Encoder, EncoderInput, check_steady
from compatctl.files import write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, Recipe

if TYPE_CHECKING:
    from compatctl.train import TrainResult

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"
"""Backbone and junction: the base of the next fine-tuning of this very model."""


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """The candidate: where it is, what it was trained on, and how far ONNX is from torch.

    Of the ``items``, ``rehearsed`` are of earlier runs; ``remembered`` are in the new memory.
    ``weights``: a base for fine-tuning this model again.
    ``parity``: the largest absolute difference of any number of the embedding, over real images.
    """

    model: str
    output: str
    weights: str
    sha256: str
    dim: int
    frame: str
    items: int
    classes: int
    anchors: int
    rehearsed: int
    remembered: int
    old_features: dict[str, int]
    validation_recall: float | None
    parity: float
    random: tuple[str, ...]
    """The backbone's tensors that the base lacks, which kept the numbers that they began with"""
    missing_keys: int
    unexpected_keys: int
    device: str
    seconds: float
    skipped: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should look at before the model is used."""
        if not self.random:
            return ()
        return (
            f"{len(self.random)} tensors of the backbone are not in the base and are random: "
            f"{', '.join(self.random)}",
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What finetune would do (``--dry-run``): the items it would train on and embed."""

    recipe_sha256: str
    frames: tuple[str, ...]
    training_items: int
    training_classes: int
    rehearsed_items: int
    validation_items: int
    gallery_rows: int
    to_embed_with_the_old_model: int


def finetune(
    project: Project,
    *,
    base: Path,
    seed: int | None = None,
    resume: bool = False,
    memory: Path | None = None,
    skip_bad: bool = False,
    shuffle_map: bool = False,
    progress: Progress = silent,
) -> FineTuned:
    """Train by the project's recipe, export ONNX, check its parity, write weights and record.

    Where the recipe has ``rehearsal``, items of the store's memory are rehearsed, and those of
    ``memory``, data of earlier runs; and the candidate gets a memory of its own, which deploy puts
    into the store. ``shuffle_map`` gives every class and every anchor another one's stored
    vector: a candidate that the gate must refuse, for tests and the demo.

    Raises:
        InputError: bad recipe, data or checkpoint; the exported file differs from what was
            trained; or torch is not installed.
    """
    inputs = load_inputs(project, base, seed)
    recipe, gallery = inputs.recipe, inputs.gallery
    from compatctl.train import train

    data, skipped = inputs.data.readable() if skip_bad else (inputs.data, ())
    earlier = rehearsal_items(project, recipe, data, gallery, memory)
    reference = embed_reference(recipe, data, earlier, gallery, progress) if gallery else None
    if shuffle_map and reference is not None:
        order = np.random.default_rng(recipe.seed).permutation(len(reference.gallery_ids))
        reference = replace(reference, gallery_features=reference.gallery_features[order])
    project.candidate.mkdir(parents=True, exist_ok=True)
    trained = train(
        recipe=recipe,
        base=base,
        data=data,
        reference=reference,
        work=project.candidate,
        resume=resume,
        memory=earlier,
        progress=progress,
    )
    registry = trained.registry.to_json() if trained.registry else None
    record = TrainingRecord.from_json(trained.record, registry).with_looks(data, earlier)
    record = write_memory(project, recipe, data, earlier, record)
    _write_weights(trained, project.candidate / WEIGHTS_FILE)
    model, encoder, record = export(trained, recipe, data, record)
    _write(project, record, model)
    if project.output.resolve() != (project.candidate / MODEL_FILE).resolve():
        project.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(project.output, (project.candidate / MODEL_FILE).read_bytes())
    return _result(project, encoder, record, skipped)


def export(
    trained: TrainResult, recipe: Recipe, data: Dataset, record: TrainingRecord
) -> tuple[bytes, Encoder, TrainingRecord]:
    """The network as a sealed ONNX file that carries the record, after both were compared on real
    images. The record is returned with the parity.

    Raises:
        InputError: the two differ by more than 1e-3 in some number.
    """
    from compatctl.train import embed
    from compatctl.train import export as export_onnx

    image = recipe.backbone.input
    size = Preprocessing(height=image.height, width=image.width, resize=image.resize, fit=image.fit)
    with tempfile.TemporaryDirectory() as scratch:
        raw, sealed = Path(scratch) / "raw.onnx", Path(scratch) / "sealed.onnx"
        export_onnx(trained.network, raw, image.height, image.width)
        onnx_files.seal(raw, sealed, (EncoderInput(name="image", preprocessing=size),))
        encoder = Encoder.load(sealed)
        check_steady(encoder, data)
        sample = onnx_files.parity_images(data)
        images = np.stack([prepare(sample.read(row), size) for row in range(len(sample))])
        parity = onnx_files.check_parity(
            encoder.run({"image": images}),
            embed(trained.network, images),
            "the exported ONNX file differs from the trained network",
            tip="the backbone uses an operation that does not export faithfully",
        )
        record = replace(record, parity=parity)
        model = onnx_files.with_record(sealed.read_bytes(), sealed, record.to_text())
    return model, Encoder.from_bytes(model, Path(MODEL_FILE)), record


def _write_weights(trained: TrainResult, target: Path) -> None:
    from compatctl.train import save_weights

    with tempfile.TemporaryDirectory() as scratch:
        save_weights(trained.network, Path(scratch) / target.name)
        write_atomic(target, (Path(scratch) / target.name).read_bytes())


def _result(
    project: Project, encoder: Encoder, record: TrainingRecord, skipped: tuple[str, ...]
) -> FineTuned:
    details = record.details
    assert record.parity is not None, "export measured it"
    return FineTuned(
        model=str(project.candidate / MODEL_FILE),
        output=str(project.output),
        weights=str(project.candidate / WEIGHTS_FILE),
        sha256=encoder.sha256,
        dim=encoder.dim,
        frame=details["classifier"]["frame"],
        items=len(record.items),
        classes=len(record.labels),
        anchors=len(record.anchors),
        rehearsed=details["memory_items"],
        remembered=details["remembered"],
        old_features=details["old_features"],
        validation_recall=details["validation_recall_at_1"],
        parity=record.parity,
        random=tuple(details["base"]["missing"]),
        missing_keys=len(details["base"]["missing"]),
        unexpected_keys=len(details["base"]["unexpected"]),
        device=details["device"],
        seconds=details["seconds"],
        skipped=skipped,
    )


def plan(
    project: Project, *, base: Path, seed: int | None = None, memory: Path | None = None
) -> Planned:
    """What ``finetune`` would do; nothing is read but the table and the memory.

    Raises:
        InputError: as ``finetune``, for what can be seen without training.
    """
    inputs = load_inputs(project, base, seed)
    recipe, data, gallery = inputs.recipe, inputs.data, inputs.gallery
    from compatctl.train import items_to_encode

    training = data.filter(split="train")
    held = gallery.catalog.ids if gallery else ()
    earlier = rehearsal_items(project, recipe, data, gallery, memory)
    return Planned(
        recipe_sha256=recipe.digest,
        frames=recipe.objective.frame,
        training_items=len(training),
        training_classes=len(set(training.labels)),
        validation_items=len(data.filter(split="validation")),
        rehearsed_items=len(earlier) if earlier else 0,
        gallery_rows=len(held),
        to_embed_with_the_old_model=len(items_to_encode(recipe, data, held, earlier)),
    )


def _write(project: Project, record: TrainingRecord, model: bytes) -> None:
    """registry.json where the frame has vertices, training.json, and then the model."""
    registry = project.candidate / REGISTRY_FILE
    registry.unlink(missing_ok=True)
    if record.registry is not None:
        write_atomic(registry, record.registry.encode())
    write_model(project.candidate / MODEL_FILE, model, record, record_file=project.candidate / FILE)
