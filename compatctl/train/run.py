"""``train``: from a recipe, a base and a deployed gallery to a network and its record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compatctl.core.simplex import Registry
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.recipe import Recipe
from compatctl.train import checkpoint as checkpoints
from compatctl.train.attention import Attention
from compatctl.train.batches import Batches, CachedBatches, ImageBatches
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.features import Features
from compatctl.train.frames import Classifier
from compatctl.train.grid_search import build_classifiers, search
from compatctl.train.images import ImageReader
from compatctl.train.network import Network
from compatctl.train.record import record
from compatctl.train.reference import Reference
from compatctl.train.setup import Setup, default_device, embedding_dim, isolated_rng, make_network
from compatctl.train.training_set import select_training_set


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """The network (on the CPU, in evaluation mode) and everything that says where it is from."""

    network: Network
    record: dict[str, Any]
    """JSON-able: see ``record``"""
    registry: Registry | None
    """Class -> vertex, the new classes at its end; null for frames without a simplex"""
    validation_recall: float | None
    """recall@1 of validation queries on the deployed gallery; null where none could be asked"""
    dim: int
    """D of the embedding"""


def train(
    *,
    recipe: Recipe,
    base: Path | None,
    data: Dataset,
    reference: Reference | None,
    work: Path,
    resume: bool = False,
    memory: Dataset | None = None,
    features: Features | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train by ``recipe`` and choose the best trial on validation classes.

    Args:
        recipe: what to compute.
        base: the backbone's weights; null starts from random ones, drawn by the seed.
        data: every split; the training part trains, validation queries choose among trials.
        reference: the deployed gallery; null for a model that knows none (frame ``free``).
        work: an existing folder for the checkpoint, which is removed when the run has ended.
        resume: go on from the checkpoint in ``work``, if there is one; else begin anew.
        memory: items of earlier runs to rehearse; needs ``rehearsal`` in the recipe.
        features: what the base's backbone makes of every image that takes part, instead of a pass
            over them; for ``train: head``.
        progress: told of each batch of the backbone's pass and of each epoch.

    Raises:
        InputError: see ``select_training_set``, ``classifier``, ``make_backbone``, ``load_base``.
        ConflictError: the checkpoint to resume is another run's.
    """
    device = default_device()
    dim = embedding_dim(recipe, reference)
    training_set = select_training_set(recipe, data, reference, memory)
    with isolated_rng(device):
        network, match = make_network(recipe, base, dim)
        network.to(device)
        setup = Setup(
            recipe=recipe,
            training_set=training_set,
            reference=reference,
            network=network,
            base_match=match,
            device=device,
            dim=dim,
        )
        build_classifiers(setup)  # refuse an impossible frame before the images are read
        rows, state = _train(setup, work, features, resume=resume, progress=progress)
    network.cpu().eval()
    if network.attention is not None:
        network.attention.drop_features()
    made = record(setup, rows, state)
    checkpoints.remove(work)
    return TrainResult(
        network=network,
        record=made,
        registry=rows.registry,
        validation_recall=made["validation_recall_at_1"],
        dim=dim,
    )


def _train(
    setup: Setup, work: Path, features: Features | None, *, resume: bool, progress: Progress
) -> tuple[Classifier, Checkpoint]:
    key = setup.key
    state = checkpoints.load(work, key) if resume else None
    if state is None:
        checkpoints.remove(work)
    state = state or Checkpoint()
    with ImageReader(setup.recipe.backbone.input, setup.recipe.augmentation) as reader:
        batches: Batches
        if setup.recipe.train == "head":
            batches = CachedBatches(setup, reader, progress, features)
            _attend(setup, batches)
        elif features is not None:
            raise InputError("features of a frozen backbone, and train: full, which changes it")
        else:
            batches = ImageBatches(setup, reader)
        rows = search(setup, batches, state, lambda now: checkpoints.save(work, key, now), progress)
    return rows, state


def _attend(setup: Setup, batches: CachedBatches) -> None:
    """Give the network its attention to the first anchors, where the recipe wants it."""
    anchors = setup.recipe.objective.anchors
    if anchors is None or anchors.attention is None or not len(batches.anchors):
        return
    torch.manual_seed(setup.recipe.seed)
    stored = torch.from_numpy(setup.training_set.anchor_vectors[: anchors.slots])
    held = Attention(batches.anchors[: anchors.slots], stored, anchors.attention)
    setup.network.attention = held.to(setup.device)
