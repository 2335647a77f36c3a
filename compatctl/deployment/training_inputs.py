"""Inputs of a training run: the recipe, the data, the deployed gallery and its features."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.simplex import Registry
from compatctl.data import Dataset, Reference
from compatctl.deployment.data import has_classes, load_data, require_classes
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.old_features import cached_features
from compatctl.deployment.project import find_store, open_store, require
from compatctl.deployment.text_export import TextFolder, is_text_folder, seal_text_folder
from compatctl.errors import InputError
from compatctl.libraries import require_library
from compatctl.processes import ALONE, Processes
from compatctl.progress import Progress
from compatctl.recipe import Augmentation, Project, Recipe
from compatctl.store import shown_path


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingInputs:
    """The recipe, the data and the deployed gallery of a run.

    ``gallery``: None for the frame ``free``, and for a first model on a simplex without a store.
    ``ready``: the base, where it is an encoder; ``text``: where it is a text model's folder, whose
    network trains. With neither it is a checkpoint.
    """

    recipe: Recipe
    data: Dataset
    gallery: DeployedGallery | None
    ready: ModelFile | None = None
    text: TextFolder | None = None


def load_inputs(project: Project, base: Path, seed: int | None) -> TrainingInputs:
    """Read the recipe and the data, and open the store if the recipe needs one.

    Raises:
        InputError: torch is not installed; or the recipe, the checkpoint or the store is missing or
            invalid.
    """
    recipe = _load_recipe(project, base, seed)
    gallery, frames = None, set(recipe.objective.frame)
    store = find_store(project)
    needs_no_store = frames <= {"free", "simplex"}
    if needs_no_store and "simplex" in frames and recipe.objective.dim is None and store is None:
        raise InputError(
            f"there is no store at {shown_path(project.store)}, and the recipe has no "
            "objective.dim",
            tip="a first model on a simplex needs dim: 128, for example; every other one needs a "
            "gallery: name the --store, or create one with compatctl init",
        )
    first = needs_no_store and recipe.objective.dim is not None and store is None
    if frames != {"free"} and not first:
        gallery = DeployedGallery.open(open_store(project))
    _refuse_useless_images(recipe, gallery)
    data = load_data(project)
    _refuse_other_items(data, recipe, checkpoint=is_checkpoint(project, base))
    require_classes(project, data)
    model = _model(project, base, recipe)
    return TrainingInputs(recipe=recipe, data=data, gallery=gallery, **model)


def load_first_inputs(
    project: Project, base: Path, seed: int | None, dim: int | None
) -> TrainingInputs:
    """The inputs of a first model on a simplex, whatever frame the recipe has.

    Args:
        dim: D of the embedding. Default: the recipe's.

    Raises:
        InputError: as ``load_inputs``; no dimension; too few vertices for the training classes; or
            there is a store of more than one generation, or of a model without a registry.
    """
    recipe = _load_recipe(project, base, seed)
    dim = dim or recipe.objective.dim
    store = find_store(project)
    if store is not None and (store.manifest.generation > 1 or store.manifest.registry is None):
        raise InputError(
            f"{store.name} is already a store, at generation {store.manifest.generation}",
            tip="compatctl finetune trains its next model; name another --store to begin one",
        )
    data = load_data(project)
    _refuse_other_items(data, recipe, checkpoint=is_checkpoint(project, base))
    classes = len(set(data.filter(split="train").labels))
    if dim is None or (recipe.objective.K or dim + 1) < classes:
        raise InputError(
            f"a simplex needs a vertex for each of the {classes} training classes and for those "
            f"to come; {'no dimension is given' if dim is None else f'the dimension is {dim}'}",
            tip="give --dim, twice the number of classes for example: it stays as long as the "
            "store, and D dimensions have room for D + 1 classes",
        )
    _refuse_useless_images(recipe, None)
    objective = replace(recipe.objective, frame=("simplex",), lambda_=(1.0,), dim=dim)
    recipe = replace(recipe, objective=objective)
    return TrainingInputs(recipe=recipe, data=data, gallery=None, **_model(project, base, recipe))


def _refuse_other_items(data: Dataset, recipe: Recipe, *, checkpoint: bool) -> None:
    """Refuse what the recipe does with images alone, where the data are something else."""
    if data.modality == "image":
        return
    if checkpoint:
        raise InputError(
            f"a checkpoint's network is trained on images, and the data has {data.modality}s",
            tip="compatctl finetune --base names an encoder (an ONNX file, such as that of "
            "compatctl export, or a space of vectors), or the folder of a text model",
        )
    for key, value in (("rehearsal", recipe.rehearsal), ("unlabelled", recipe.unlabelled)):
        if value is not None:
            raise InputError(
                f"the recipe's {key} is of images, and the data has {data.modality}s",
                tip=f"write {key}: null",
            )


def _load_recipe(project: Project, base: Path, seed: int | None) -> Recipe:
    """The recipe, by which ``base`` can train; only a checkpoint needs one."""
    require_torch()
    checkpoint = is_checkpoint(project, base)
    if project.recipe is None and (not checkpoint or base.is_dir()):
        recipe = Recipe()
    else:
        recipe = Recipe.load(require(project.recipe, "recipe"), project.factories)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    if not checkpoint:
        _refuse_network_settings(recipe, base, trains=base.is_dir())
        return recipe
    if base.is_dir():
        return _of_folder(recipe, base)
    if not base.is_file():
        raise InputError(f"no checkpoint at {base}")
    _ = recipe.image_backbone
    return recipe


def _of_folder(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with the network of an image model's folder.

    Raises:
        InputError: the recipe names a backbone, or the folder is of no such model.
    """
    from compatctl.train import folder_backbone

    if recipe.backbone is not None:
        raise InputError(
            f"{base} is a model's folder, and the recipe names a backbone",
            tip="leave backbone out; or compatctl finetune --base names a file of weights",
        )
    return replace(recipe, backbone=folder_backbone(base))


def _model(project: Project, base: Path, recipe: Recipe) -> dict[str, Any]:
    """The base as a field of ``TrainingInputs``; none for a checkpoint.

    Raises:
        InputError: the folder or file is no such model.
    """
    if is_encoder(project, base):
        return {"ready": ModelFile.named(project, base)}
    if is_checkpoint(project, base):
        return {}
    if recipe.train != "head":
        return {"text": TextFolder.load(base)}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(f"{base.name}.onnx")
        sealed = seal_text_folder(base, "auto", None, Path(scratch), file)
    return {"ready": ModelFile(path=file, data=sealed.content)}


def head_recipe(project: Project, base: Path, data: Dataset) -> tuple[Recipe | None, str]:
    """The recipe of a head behind the encoder ``base``; or None, and why there can be none."""
    try:
        recipe = _load_recipe(project, base, None)
        _refuse_other_items(data, recipe, checkpoint=False)
    except InputError as error:
        return None, error.message
    if recipe.objective.frame == ("free",):
        return None, "the recipe has frame: free"
    if not has_classes(data) or len(set(data.filter(split="train").labels)) < 2:
        return None, "the data have no training items of two labels"
    return recipe, ""


def is_encoder(project: Project, base: Path) -> bool:
    """Whether a base is an ONNX file or a space of the project's vectors."""
    return base.suffix.lower() == ".onnx" or str(base) in project.vectors


def is_checkpoint(project: Project, base: Path) -> bool:
    """Whether a base is weights of a network of images: no encoder, and no text model's folder."""
    return not is_encoder(project, base) and not (base.is_dir() and is_text_folder(base))


def _refuse_network_settings(recipe: Recipe, base: Path, *, trains: bool) -> None:
    """Refuse what the recipe says of another network than the base's. ``trains``: it is a text
    model's folder, and no encoder, which stays as it is.

    Raises:
        InputError: the recipe names a backbone, changes images, or trains an encoder.
    """
    what = "a text model's folder" if trains else "an encoder, whose head alone is trained"
    for key, given, instead in (
        ("backbone", recipe.backbone is not None, "leave backbone out"),
        ("train", recipe.train != "head" and not trains, "write train: head"),
        ("layers", recipe.layers is not None and not trains, "write layers: null"),
        ("augmentation", recipe.augmentation != Augmentation(), "leave augmentation out"),
    ):
        if given:
            raise InputError(
                f"{base} is {what}: the recipe's {key} has no effect on it",
                tip=f"{instead}; or compatctl finetune --base names a checkpoint",
            )


def _refuse_useless_images(recipe: Recipe, gallery: DeployedGallery | None) -> None:
    """Refuse unlabelled images where no old feature is a target."""
    contrasts = gallery is not None and min(recipe.objective.lambda_) < 1.0
    if recipe.unlabelled is not None and not contrasts:
        what = "lambda: 1.0 leaves out" if gallery is not None else "needs a deployed gallery"
        raise InputError(
            f"unlabelled images train by the contrast with old features, which {what}",
            tip="write unlabelled: null" + (", or a lambda below 1" if gallery is not None else ""),
        )


def require_torch() -> None:
    """Raise ``InputError`` unless torch, and with it ``compatctl.train``, can be imported."""
    for name in ("torch", "safetensors"):
        require_library(name, extra="train", subject="finetune")


def embed_reference(
    recipe: Recipe,
    data: Dataset,
    memory: Dataset | None,
    gallery: DeployedGallery,
    progress: Progress,
    *,
    unlabelled: Dataset | None = None,
    cache: Path | None = None,
    processes: Processes = ALONE,
) -> Reference:
    """The deployed gallery, and the deployed encoder's embeddings of training items outside it.

    Only items whose old feature the recipe needs are embedded (``items_to_encode``).

    Args:
        unlabelled: items without labels that are outside the gallery; ``cache``: the file that
            keeps their features.
        processes: the leader embeds, for all.
    """
    from compatctl.train import items_to_encode

    catalog = gallery.catalog
    ids = items_to_encode(recipe, data, catalog.ids, catalog.labels, memory, unlabelled)

    def embed() -> Vectors:
        return _old_features(ids, (data, memory), gallery, progress, unlabelled, cache)

    return build_reference(gallery, ids, processes.from_leader(embed))


def _old_features(  # noqa: PLR0917
    ids: tuple[str, ...],
    datasets: tuple[Dataset, Dataset | None],
    gallery: DeployedGallery,
    progress: Progress,
    unlabelled: Dataset | None,
    cache: Path | None,
) -> Vectors:
    """(E, D) float32 embeddings of ``ids`` by the deployed encoder; see ``embed_reference``."""
    encoded = np.zeros((len(ids), gallery.manifest.index.dim), np.float32)
    positions = {item_id: position for position, item_id in enumerate(ids)}
    for dataset in datasets:
        if dataset is None:
            continue
        rows = [row for row, item_id in enumerate(dataset.ids) if item_id in positions]
        if rows:
            embedded = gallery.encoder.embed(dataset.take(rows), progress=progress, looks=True)
            encoded[[positions[dataset.ids[row]] for row in rows]] = embedded.features
    if unlabelled is not None and cache is not None and len(unlabelled):
        features = cached_features(unlabelled, gallery.encoder, cache, progress)
        encoded[[positions[item_id] for item_id in unlabelled.ids]] = features
    return encoded


def build_reference(
    gallery: DeployedGallery,
    encoded_ids: tuple[str, ...],
    encoded_features: Vectors,
    rows: Rows | None = None,
) -> Reference:
    """The deployed gallery as training sees it.

    Args:
        encoded_ids: E items outside ``rows`` that the deployed encoder embedded.
        encoded_features: (E, D) float32 unit rows, their embeddings.
        rows: rows of the catalogue. Default: all.
    """
    catalog = gallery.catalog
    rows = np.arange(len(catalog.ids)) if rows is None else rows
    registry = load_registry(gallery)
    return Reference(
        gallery_ids=tuple(catalog.ids[int(row)] for row in rows),
        gallery_labels=tuple(catalog.labels[int(row)] for row in rows),
        gallery_features=gallery.index.vectors(np.asarray(catalog.keys)[rows]),
        encoded_ids=encoded_ids,
        encoded_features=encoded_features,
        registry=registry,
        K=registry.K if registry else None,
    )


def load_registry(gallery: DeployedGallery) -> Registry | None:
    """The store's class registry, if the deployed model was trained on a simplex."""
    sha256 = gallery.manifest.registry
    if sha256 is None:
        return None
    path = gallery.store.verified_path("registries", sha256)
    return Registry.from_json(path.read_text(encoding="utf-8"))
