"""finetune: train the incoming backbone into an encoder that is compatible with the gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compatctl.deployment.rehearsal import rehearsal_items
from compatctl.deployment.training_inputs import load_inputs, require_torch
from compatctl.migration.candidate import FinetuneResult, train_candidate
from compatctl.migration.unlabelled import UnlabelledCost, unlabelled_cost, unlabelled_items
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """What finetune would train on and embed (``--dry-run``)."""

    recipe_sha256: str
    frames: tuple[str, ...]
    training_items: int
    training_classes: int
    rehearsed_items: int
    validation_items: int
    gallery_rows: int
    to_embed_with_the_old_model: int
    unlabelled: UnlabelledCost | None
    """None if the recipe names no unlabelled images"""
    warnings: tuple[str, ...] = ()


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
) -> FinetuneResult:
    """Train by the project's recipe and write the candidate: see ``train_candidate``.

    Processes that ``torchrun`` started train together, and the first one writes the candidate.

    Raises:
        PartDone: in each of the others, at its end.
        PeerError: another of these processes failed or ended.
        InputError: bad recipe, data or checkpoint; the exported file differs from the trained
            network; or torch is not installed.
    """
    require_torch()
    from compatctl.train import join

    with join() as processes:
        return train_candidate(
            project,
            processes.agree(lambda: load_inputs(project, base, seed)),
            base=base,
            resume=resume,
            memory=memory,
            skip_bad=skip_bad,
            shuffle_map=shuffle_map,
            processes=processes,
            progress=progress,
        )


def plan(
    project: Project, *, base: Path, seed: int | None = None, memory: Path | None = None
) -> FinetunePlan:
    """What ``finetune`` would do. Reads the data's descriptions and the memory, and no image but
    unlabelled ones and those that they are compared with.

    Raises:
        InputError: as ``finetune``, for errors that show without training.
    """
    inputs = load_inputs(project, base, seed)
    recipe, data, gallery = inputs.recipe, inputs.data, inputs.gallery
    from compatctl.train import items_to_encode

    training = data.filter(split="train")
    catalog = gallery.catalog if gallery else None
    stored = (catalog.ids, catalog.labels) if catalog else ((), ())
    earlier = rehearsal_items(project, recipe, data, gallery, memory)
    others = unlabelled_items(project, recipe, data, earlier, gallery)
    outside = others.outside if others else None
    return FinetunePlan(
        recipe_sha256=recipe.digest,
        frames=recipe.objective.frame,
        training_items=len(training),
        training_classes=len(set(training.labels)),
        validation_items=len(data.filter(split="validation")),
        rehearsed_items=len(earlier) if earlier else 0,
        gallery_rows=len(stored[0]),
        to_embed_with_the_old_model=len(items_to_encode(recipe, data, *stored, earlier, outside)),
        unlabelled=unlabelled_cost(others, project, recipe, base, gallery)
        if others and gallery
        else None,
        warnings=others.warnings if others else (),
    )
