"""The rehearsal memory's way: from the store into a fine-tuning, and with its model back again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compatctl.data import Dataset, load, memory_bytes, read_memory, remembered, together
from compatctl.deployment.data import split_rule
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store
from compatctl.deployment.training_record import MEMORY_FILE, find
from compatctl.encoder import Encoder
from compatctl.errors import DamagedError, InputError
from compatctl.files import sha256_bytes, sha256_file, write_atomic
from compatctl.manifest import Erasures, Manifest
from compatctl.recipe import Project, Recipe
from compatctl.report import Bound
from compatctl.store import Store, Transaction


def stored_memory(store: Store, manifest: Manifest) -> Dataset | None:
    """The memory of a generation, as training items; null where it has none.

    Raises:
        DamagedError: its file is missing, changed, or no memory.
    """
    if manifest.memory is None:
        return None
    return read_memory(store.verified("memories", manifest.memory), error=DamagedError)


def rehearsed(
    project: Project,
    recipe: Recipe,
    data: Dataset,
    gallery: DeployedGallery | None,
    named: Path | None,
) -> Dataset | None:
    """Earlier items to rehearse: those of ``named``, and those that the store's memory holds.

    At most ``per_class`` of a class, none of which trains anyway; where both have an id, the named
    data say what it is. Null where there are none: the first fine-tuning of a store's life.

    Raises:
        InputError: data are named and the recipe rehearses nothing, or they hold nothing but items
            that train anyway.
        DamagedError: the store's memory is damaged.
    """
    if named is None and recipe.rehearsal is None:
        return None
    if recipe.rehearsal is None:
        raise InputError(
            "--memory is given, and the recipe has no rehearsal",
            tip="write rehearsal: {per_class: 20} into the recipe, or leave --memory out",
        )
    parts, training = [], set(data.where(split="train").ids)
    if named is not None:
        parts.append(load(named, split_rule(project)).where(split="train"))
        if training.issuperset(parts[0].ids):
            raise InputError(f"the memory {named} holds nothing but items that train anyway")
    store = gallery.store if gallery else any_store(project)
    held = stored_memory(store, store.manifest) if store else None
    found = together(*parts, *([held] if held is not None else []))
    found = found.take(row for row, one in enumerate(found.ids) if one not in training)
    found = found.take(remembered(found.ids, found.labels, recipe.rehearsal.per_class))
    return found if len(found) else None


def any_store(project: Project) -> Store | None:
    """The project's store, where there is one already."""
    return open_store(project) if (project.store / "manifest.json").exists() else None


def keep(
    project: Project,
    recipe: Recipe,
    data: Dataset,
    earlier: Dataset | None,
    record: dict[str, Any],
) -> None:
    """Write the candidate's memory: of each class some items that trained now or earlier.

    ``record`` gets its digest and the number of its items; where the recipe rehearses nothing there
    is no memory, and the store's stays what it is.

    Raises:
        InputError: an image changed since it was trained on, or the images are too large.
    """
    path = project.candidate / MEMORY_FILE
    path.unlink(missing_ok=True)
    record["memory_sha256"], record["remembered"] = None, 0
    if recipe.rehearsal is None:
        return
    trained = {item["id"]: item["sha256"] for item in record["items"]}
    new = data.where(split="train")
    new = new.take(row for row, one in enumerate(new.ids) if one in trained)
    found = together(new, *([earlier] if earlier is not None else []))
    found = found.take(remembered(found.ids, found.labels, recipe.rehearsal.per_class))
    for row, one in enumerate(found.ids):
        if one in trained and trained[one] != found.digest(row):
            raise InputError(f"the image of {one} changed since it was trained on")
    held = memory_bytes(found)
    write_atomic(path, held)
    record["memory_sha256"] = sha256_bytes(held)
    record["remembered"] = len(found)


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What goes into the store with a model, where finetune wrote it: class registry and memory."""

    registry: str | None
    memory: Path | None

    def put(
        self, tx: Transaction, before: Manifest | None, erased: Erasures | None = None
    ) -> dict[str, str | None]:
        """Write them into the store: the manifest's entries, else those that it has.

        Images of items that were ``erased`` from the store since the memory was written are left
        out of it.
        """
        registry = before.registry if before else None
        memory = before.memory if before else None
        return {
            "registry": tx.put("registries", self._registry) if self.registry else registry,
            "memory": self._memory(tx, erased) if self.memory else memory,
        }

    def _registry(self, path: Path) -> None:
        _write((self.registry or "").encode(), path)

    def _memory(self, tx: Transaction, erased: Erasures | None) -> str | None:
        assert self.memory is not None
        held = read_memory(self.memory) if erased is not None else None
        gone = set(erased.holding(held.ids)) if held is not None and erased is not None else set()
        if held is None or not gone:
            return tx.put("memories", self.memory)
        kept = held.take([row for row, one in enumerate(held.ids) if one not in gone])
        if not len(kept):
            return None
        return tx.put("memories", partial(_write, memory_bytes(kept)))


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def papers_of(
    project: Project, model: Path, encoder: Encoder, bound: Bound | None = None
) -> Papers:
    """The class registry that the model carries, and the memory that its record names.

    Raises:
        InputError: the memory is not there, has another digest, or is no memory; the report is of
            a model with another registry.
    """
    seen = find(model, encoder, named=None, candidate=project.candidate)
    if bound is not None and bound.new_sha256 == encoder.sha256:
        own = seen.registry_sha256 if seen else None
        if bound.registry_sha256 != own:
            raise InputError(
                f"the report is of a model with the class registry {bound.registry_sha256}; this "
                f"one's is {own}",
                tip="keep the candidate's folder as finetune wrote it until it is deployed",
            )
    memory = seen.memory_sha256 if seen else None
    folder = seen.path.parent if seen and seen.path else model.parent
    found = Papers(
        registry=seen.registry if seen else None,
        memory=_memory(project, folder, memory),
    )
    if found.memory is not None:
        read_memory(found.memory)
    return found


def _memory(project: Project, beside: Path, sha256: str | None) -> Path | None:
    if sha256 is None:
        return None
    for folder in (beside, project.candidate):
        path = folder / MEMORY_FILE
        if path.is_file() and sha256_file(path) == sha256:
            return path
    raise InputError(
        f"{project.candidate / MEMORY_FILE} is not the rehearsal memory {sha256[:12]} that was "
        "written with the candidate",
        tip="keep the candidate's folder as finetune wrote it until it is deployed",
    )
