"""What both models give the items of a plan, where the new one exists."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compatctl.core.arrays import Vectors, as_rows
from compatctl.data import Dataset, Judgments
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.training_inputs import build_reference
from compatctl.encoder import Encoder
from compatctl.evaluation.embedding import prefixed
from compatctl.evaluation.protocol import query_rows
from compatctl.migration.preflight import PlanningSplit
from compatctl.migration.ready_routes import ReadyInputs
from compatctl.migration.route_cost import Milliseconds
from compatctl.notices import notice
from compatctl.progress import Progress
from compatctl.recipe import Project, Recipe

if TYPE_CHECKING:
    from compatctl.train import ReadyModel


def embeddable_items(data: Dataset, old: Encoder, new: Encoder, stored: set[str]) -> Dataset:
    """The items that have what both models take; a stored item needs nothing for the old one.

    Only vectors can be missing; what is left out is a notice.
    """
    rows = np.arange(len(data))
    held = np.fromiter((item in stored for item in data.ids), bool, len(data))
    usable = new.can_embed(data, rows) & (held | old.can_embed(data, rows))
    if not usable.all():
        left_out = data.take(rows[~usable]).ids
        notice("no-vector", "the data", "items without a vector that is needed", left_out)
    return data.take(rows[usable])


def ready_base(
    data: Dataset,
    model: ModelFile,
    gallery: DeployedGallery | None,
    *,
    earlier: Sequence[Dataset | None] = (),
    progress: Progress,
) -> tuple[Dataset, ReadyModel]:
    """The data without training items and validation queries that lack a vector, and the model as a
    base: what it gives those items and all of ``earlier``.

    Only vectors can be missing; what is left out is a notice. Errors as ``Encoder.embed``.
    """
    from compatctl.train import ReadyModel

    training = as_rows(row for row, item in enumerate(data.items) if item.split == "train")
    needed = data.take(np.union1d(training, query_rows(data, "validation")))
    old, stored = (gallery.encoder, {*gallery.catalog.ids}) if gallery else (model.encoder, set())
    usable = embeddable_items(needed, old, model.encoder, stored)
    lacking = {*needed.ids} - {*usable.ids}
    rows: list[Vectors] = []
    ids: list[str] = []
    for part in (usable, *earlier):
        if part is not None and len(part):
            said = prefixed(progress, "new model")
            rows.append(model.encoder.embed(part, progress=said, looks=True).features)
            ids += part.ids
    base = ReadyModel(
        sha256=model.encoder.sha256,
        rows=np.concatenate(rows) if rows else np.zeros((0, model.dim), np.float32),
        row_of={item: row for row, item in enumerate(ids)},
    )
    return data.without(lacking.__contains__) if lacking else data, base


def ready_inputs(  # noqa: PLR0917
    split: PlanningSplit,
    deployed: DeployedGallery,
    new: Encoder,
    project: Project,
    judged: Judgments | None,
    kinds: tuple[str, ...],
    recipe: Recipe | None,
    progress: Progress,
) -> tuple[ReadyInputs, Milliseconds]:
    """Both models' features of every item of the plan, and each model's milliseconds an item.

    ``kinds`` of adapters are tried, and a head by ``recipe``. Errors as ``Encoder.embed``.
    """
    shared, old_ms = deployed_fields(split, deployed, project, progress)
    start = time.monotonic()
    ready = new.embed(split.data, progress=progress).features
    new_s = time.monotonic() - start
    inputs = ReadyInputs(
        **shared, ready=ready, sha256=new.sha256, recipe=recipe, judged=judged, kinds=kinds
    )
    return inputs, Milliseconds(old=old_ms, new=1000 * new_s / max(1, len(ready)))


def deployed_fields(
    split: PlanningSplit, deployed: DeployedGallery, project: Project, progress: Progress
) -> tuple[dict[str, Any], float]:
    """The fields of ``PlanningInputs`` that do not depend on the new model, and the milliseconds
    that the deployed one takes for an item; it embeds what is not stored."""
    data, catalog = split.data, deployed.catalog
    stored = np.array([catalog.row_of[data.ids[int(row)]] for row in split.gallery_rows])
    others = np.setdiff1d(np.arange(len(data)), split.gallery_rows)
    start = time.monotonic()
    encoded = deployed.encoder.embed(data.take(others), progress=progress).features
    old_s = time.monotonic() - start
    ids = tuple(data.ids[int(row)] for row in others)
    whole = build_reference(deployed, ids, encoded) if len(stored) < len(catalog) else None
    fields = {
        "data": data,
        "reference": build_reference(deployed, ids, encoded, stored),
        "whole": whole,
        "query_rows": split.query_rows,
        "ignore_same": project.ignore_same,
        "cluster": project.cluster,
        "old_model_gone": project.old_model_gone,
        "rescored": deployed.manifest.rescoring is not None,
        "pair_share": project.max_gallery_pass,
    }
    return fields, 1000 * old_s / max(1, len(others))
