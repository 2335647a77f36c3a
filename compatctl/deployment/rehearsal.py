"""The rehearsal memory: items of earlier fine-tunings that a new one trains on again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compatctl.data import (
    Dataset,
    memory_bytes,
    merge_items,
    read_memory,
    sample_per_class,
)
from compatctl.deployment.data import load_named
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import find_store
from compatctl.deployment.training_record import MEMORY_FILE, TrainingRecord
from compatctl.errors import DamagedError, InputError
from compatctl.files import sha256_bytes, write_atomic
from compatctl.manifest import Manifest
from compatctl.recipe import Project, Recipe
from compatctl.store import Store


def stored_memory(store: Store, manifest: Manifest) -> Dataset | None:
    """The memory of a generation, as training items; None without one.

    Raises:
        DamagedError: its file is missing, damaged, or no memory.
    """
    if manifest.memory is None:
        return None
    return read_memory(store.verified_path("memories", manifest.memory), error=DamagedError)


def rehearsal_items(
    project: Project,
    recipe: Recipe,
    data: Dataset,
    gallery: DeployedGallery | None,
    named: Path | None,
) -> Dataset | None:
    """Earlier items to rehearse, from the ``named`` data and from the store's memory.

    At most ``per_class`` items of each class, and none that trains anyway. If both sources have an
    id, the named data win. None if there are no such items, as in the first fine-tuning.

    Raises:
        InputError: data are named but the recipe has no rehearsal, or all of them train anyway.
        DamagedError: the store's memory is damaged.
    """
    if named is None and recipe.rehearsal is None:
        return None
    if recipe.rehearsal is None:
        raise InputError(
            "--memory is given, and the recipe has no rehearsal",
            tip="write rehearsal: {per_class: 20} into the recipe, or leave --memory out",
        )
    parts, training = [], set(data.filter(split="train").ids)
    if named is not None:
        parts.append(load_named(project, named).filter(split="train"))
        if training.issuperset(parts[0].ids):
            raise InputError(f"the memory {named} holds nothing but items that train anyway")
    store = gallery.store if gallery else find_store(project)
    held = stored_memory(store, store.manifest) if store else None
    items = merge_items(*parts, *([held] if held is not None else []))
    items = items.without(training.__contains__)
    items = items.take(sample_per_class(items.ids, items.labels, recipe.rehearsal.per_class))
    return items if len(items) else None


def write_memory(
    project: Project,
    recipe: Recipe,
    data: Dataset,
    earlier: Dataset | None,
    record: TrainingRecord,
) -> TrainingRecord:
    """Write the candidate's memory: items of each class that trained now or earlier.

    Returns the record with the memory's digest and, in its details, the number of its items. If
    the recipe has no rehearsal, the candidate has no memory, and the store's memory stays.

    Raises:
        InputError: an image changed since it was trained on, or the images are too large.
    """
    path = project.candidate / MEMORY_FILE
    path.unlink(missing_ok=True)
    if recipe.rehearsal is None:
        return replace(record, memory_sha256=None, details={**record.details, "remembered": 0})
    trained = {item.id: item.sha256 for item in record.items}
    new = data.filter(split="train").without(lambda item: item not in trained)
    memory = merge_items(new, *([earlier] if earlier is not None else []))
    memory = memory.take(sample_per_class(memory.ids, memory.labels, recipe.rehearsal.per_class))
    for row, item in enumerate(memory.ids):
        if item in trained and trained[item] != memory.digest(row):
            raise InputError(f"the image of {item} changed since it was trained on")
    content = memory_bytes(memory)
    write_atomic(path, content)
    details = {**record.details, "remembered": len(memory)}
    return replace(record, memory_sha256=sha256_bytes(content), details=details)
