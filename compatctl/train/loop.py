"""One trial: the training loop for one frame, lambda and mu.

For the loss see ``losses.py``. In sequential fine-tuning half of each batch is from the memory:
TPAMI 2026 (arXiv 2606.12488); repository miccunifi/iamcl2r, ``src/iamcl2r/train.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compatctl.core.arrays import Rows
from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.recipe import Frame
from compatctl.train import losses
from compatctl.train.batches import Batches, Step
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.frames import Classifier
from compatctl.train.network import Network, unit
from compatctl.train.setup import Setup

CLASSIFIER = "classifier"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the grid."""

    index: int
    frame: Frame
    weight: float
    """lambda"""
    mu: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialContext:
    """What a trial trains and on what."""

    setup: Setup
    batches: Batches
    classifier: Classifier
    class_rows: Rows
    """(N,) int64 classifier row of each training item; -1: none"""
    anchor_rows: Rows
    """(N,) int64 anchor that is the same item; -1: none"""


def fit(
    context: TrialContext,
    trial: Trial,
    state: Checkpoint,
    after_epoch: Callable[[Checkpoint], None],
) -> None:
    """Train the network from ``state`` to the last epoch; ``state`` is updated in place."""
    recipe, network = context.setup.recipe, context.setup.network
    rows = nn.Parameter(torch.from_numpy(context.classifier.rows).to(context.setup.device))
    rows.requires_grad_(context.classifier.learns)
    optimiser = _optimiser(context, rows)
    if state.epoch:
        load_weights(network, state.model)
        if context.classifier.learns:
            rows.data.copy_(state.model[CLASSIFIER])
        optimiser.load_state_dict(state.optimiser)
    stored = torch.from_numpy(context.setup.training_set.anchor_vectors).to(context.setup.device)
    for epoch in range(state.epoch, recipe.optimiser.epochs):
        _training_mode(context.setup)
        seed = (recipe.seed, trial.index, epoch)
        torch.manual_seed(int(np.random.default_rng((*seed, 1)).integers(2**31)))
        steps = list(_steps(context, np.random.default_rng(seed)))
        total = torch.zeros((), device=context.setup.device)
        for i, inputs in enumerate(context.batches.steps(steps)):
            _schedule(optimiser, epoch * len(steps) + i, recipe.optimiser.epochs * len(steps))
            loss = _loss(context, trial, steps[i], (rows, stored), inputs)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.detach()
        state.losses.append(float(total) / len(steps))
        state.epoch = epoch + 1
        if network.attention is not None:
            network.attention.refresh()
        state.model = trained_weights(context, rows)
        state.optimiser = optimiser.state_dict()
        after_epoch(state)


def trained_weights(context: TrialContext, rows: Tensor) -> dict[str, Tensor]:
    """A copy, on the CPU, of the weights that training changes."""
    full = context.setup.recipe.train == "full"
    state = {
        key: value.detach().cpu().clone()
        for key, value in context.setup.network.state_dict().items()
        if full or not key.startswith("backbone.")
    }
    if context.classifier.learns:
        state[CLASSIFIER] = rows.detach().cpu().clone()
    return state


def load_weights(network: Network, state: dict[str, Tensor]) -> None:
    """Load the weights that ``trained_weights`` copied into the network."""
    changed = {key: value for key, value in state.items() if key != CLASSIFIER}
    network.load_state_dict({**network.state_dict(), **changed})


def validate(context: TrialContext) -> float | None:
    """recall@1 of new queries on the deployed gallery; None without validation queries."""
    validation = context.setup.training_set.validation
    if validation is None:
        return None
    context.setup.network.eval()
    with torch.no_grad():
        features = unit(context.setup.network.project(context.batches.validation())).cpu().numpy()
    neighbours = exact_search(features, validation.gallery, 1, self_row=validation.self_row)
    result = evaluate(
        neighbours,
        validation.query_labels,
        validation.gallery_labels,
        self_row=validation.self_row,
        ks=(1,),
        map_k=1,
    )
    return float(result.recall[1])


def _loss(
    context: TrialContext,
    trial: Trial,
    step: Step,
    targets: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
) -> Tensor:
    """The loss of a step: ``total_loss`` of the items plus the weighted anchor loss.

    ``targets``: classifier rows (K, D) and the stored vectors of all anchors; ``inputs``: backbone
    features of the step's items and anchors.
    """
    (rows, stored), (items, anchors) = targets, inputs
    objective, n = context.setup.recipe.objective, len(items)
    with torch.autocast(context.setup.device.type, torch.bfloat16, enabled=context.setup.amp):
        z = _project(context, step, torch.cat([items, anchors]))
    z = z.float()
    old = None
    if context.setup.training_set.old_features is not None:
        old = torch.from_numpy(context.setup.training_set.old_features[step.items]).to(
            context.setup.device
        )
    loss = losses.total_loss(
        z=z[:n],
        labels=torch.from_numpy(context.class_rows[step.items]).to(context.setup.device),
        rows=rows,
        old=old,
        weight=trial.weight,
        mu=trial.mu,
        form=objective.contrast,
        scale=objective.scale,
    )
    if objective.anchors is None or not len(step.anchors):
        return loss
    contrasted = stored[torch.from_numpy(step.contrasted).to(context.setup.device)]
    own = torch.arange(len(step.anchors), device=context.setup.device)
    anchor_loss = losses.anchor_loss(unit(z[n:]), contrasted, own, objective.anchors.scale)
    return loss + objective.anchors.weight * anchor_loss


def _project(context: TrialContext, step: Step, features: Tensor) -> Tensor:
    """(N, D) raw training outputs for the step's backbone features (N, F)."""
    network, anchors = context.setup.network, context.setup.recipe.objective.anchors
    if network.attention is None or anchors is None:
        return network.project(features)
    z: Tensor = network.junction(features)
    return network.attention.forward_training(z, features, *_attended(context, step, anchors.slots))


def _attended(context: TrialContext, step: Step, slots: int) -> tuple[Tensor, Tensor]:
    """The anchors that the step attends to, and the position among them of each row's own image.

    -1: none. A shifted anchor is another image than the one in the gallery.
    """
    device = context.setup.device
    attended = step.contrasted[step.contrasted < slots]
    position = np.full(len(context.setup.training_set.anchors) + 1, -1, np.int64)
    position[attended] = np.arange(len(attended))
    anchors = step.anchors.copy()
    anchors[: len(step.transfer)] = -1
    own = position[np.concatenate([context.anchor_rows[step.items], anchors])]
    return torch.from_numpy(attended).to(device), torch.from_numpy(own).to(device)


def _steps(context: TrialContext, rng: np.random.Generator) -> Iterator[Step]:
    """The steps of an epoch: every new item once; with a memory, half of each batch is from it."""
    trainable = np.flatnonzero(context.class_rows >= 0)
    first_memory = len(context.setup.training_set.images) - context.setup.training_set.n_memory
    fresh, memory = trainable[trainable < first_memory], trainable[trainable >= first_memory]
    size = context.setup.recipe.optimiser.batch_size
    anchors = context.setup.recipe.objective.anchors
    if len(memory) and len(fresh):
        size = max(1, size // 2)
    elif len(memory):
        fresh, memory = memory, fresh
    pairs = _pairs(context) if anchors is not None and anchors.transfer > 0.0 else []
    order = rng.permutation(fresh)
    count = max(1, len(order) // size)
    n_anchors = len(context.setup.training_set.anchors)
    for batch in np.array_split(order, count):
        items = batch
        if len(memory):
            items = np.concatenate([batch, rng.choice(memory, len(batch))])
        contrasted = np.zeros(0, np.int64)
        if anchors is not None and n_anchors:
            contrasted = rng.permutation(n_anchors)[: max(anchors.rows, anchors.batch)]
        drawn = contrasted[: anchors.batch] if anchors is not None else contrasted
        views = rng.integers(0, 2**31, len(items))
        n_shifted = round(anchors.transfer * len(drawn)) if anchors is not None and pairs else 0
        classes = [pairs[i] for i in rng.integers(0, max(1, len(pairs)), n_shifted)]
        drawn_pairs = [[rows[rng.integers(len(rows))] for rows in pair] for pair in classes]
        yield Step(
            items=items,
            anchors=drawn,
            contrasted=contrasted,
            views=views,
            transfer=np.array(drawn_pairs, np.int64).reshape(-1, 2),
        )


def _pairs(context: TrialContext) -> list[tuple[Rows, Rows]]:
    """For each class with both: its training items outside the gallery, and those in it."""
    training_set, pairs = context.setup.training_set, []
    labels = np.array(training_set.labels)
    for label in training_set.classes:
        outside = np.flatnonzero((labels == label) & ~training_set.in_gallery)
        inside = np.flatnonzero((labels == label) & training_set.in_gallery)
        if len(outside) and len(inside):
            pairs.append((outside, inside))
    return pairs


def _optimiser(context: TrialContext, rows: nn.Parameter) -> torch.optim.Optimizer:
    """AdamW; ``base_lr`` of each group is for the schedule."""
    recipe, network = context.setup.recipe.optimiser, context.setup.network
    full = context.setup.recipe.train == "full"
    head = list(network.junction.parameters()) + ([rows] if context.classifier.learns else [])
    if network.attention is not None:
        head += network.attention.parameters()
    groups = [{"params": head, "lr": recipe.lr, "base_lr": recipe.lr}]
    backbone = list(network.backbone.parameters())
    for parameter in backbone:
        parameter.requires_grad_(full)
    if full:
        rate = recipe.backbone_lr
        groups.append({"params": backbone, "lr": rate, "base_lr": rate})
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _schedule(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rates: half a cosine from the base rate to 0."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _training_mode(setup: Setup) -> None:
    setup.network.train()
    if setup.recipe.train == "head":
        setup.network.backbone.eval()
    elif setup.recipe.optimiser.frozen_norm:
        for module in setup.network.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
