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

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.recipe import Frame
from compatctl.train import losses
from compatctl.train.batches import Batches, Step
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.frames import Classifier
from compatctl.train.layers import trained_names
from compatctl.train.network import Network, unit
from compatctl.train.process_group import same_tensors
from compatctl.train.setup import Setup
from compatctl.train.training_set import ValidationSet

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
    classes: Rows
    """(N,) int64 class of each training item; one without a label is a class of its own"""


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
    for epoch in range(state.epoch, recipe.optimiser.epochs):
        _training_mode(context.setup)
        seed = (recipe.seed, trial.index, epoch)
        torch.manual_seed(int(np.random.default_rng((*seed, 1)).integers(2**31)))
        steps = list(_steps(context, trial, np.random.default_rng(seed)))
        total = torch.zeros((), device=context.setup.device)
        for i, features in enumerate(context.batches.steps(steps)):
            _schedule(optimiser, epoch * len(steps) + i, recipe.optimiser.epochs * len(steps))
            loss = _loss(context, trial, steps[i], rows, features.values)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            features.propagate()
            optimiser.step()
            total += loss.detach()
        state.losses.append(float(total) / len(steps))
        state.epoch = epoch + 1
        same_tensors(context.setup.processes, _trained(network, rows))
        state.model = trained_weights(context, rows)
        state.optimiser = optimiser.state_dict()
        after_epoch(state)


def trained_weights(context: TrialContext, rows: Tensor) -> dict[str, Tensor]:
    """A copy, on the CPU, of the weights that training changes."""
    network, changed = context.setup.network, set[str]()
    if context.setup.recipe.train != "head":
        changed = {f"backbone.{name}" for name in trained_names(network.backbone)}
    state = {
        key: value.detach().cpu().clone()
        for key, value in network.state_dict().items()
        if key in changed or not key.startswith("backbone.")
    }
    if context.classifier.learns:
        state[CLASSIFIER] = rows.detach().cpu().clone()
    return state


def _trained(network: Network, rows: Tensor) -> Iterator[Tensor]:
    """Every weight that trains, in one order."""
    yield from (weight for weight in network.parameters() if weight.requires_grad)
    yield rows


def load_weights(network: Network, state: dict[str, Tensor]) -> None:
    """Load the weights that ``trained_weights`` copied into the network."""
    changed = {key: value for key, value in state.items() if key != CLASSIFIER}
    network.load_state_dict({**network.state_dict(), **changed})


def validate(context: TrialContext) -> float | None:
    """hit@1 of new queries on the deployed gallery; None without validation queries."""
    validation = context.setup.training_set.validation
    if validation is None:
        return None
    context.setup.network.eval()
    with torch.no_grad():
        features = unit(context.setup.network.project(context.batches.validation())).cpu().numpy()
    return context.setup.processes.from_leader(lambda: _hit_rate(features, validation))


def _hit_rate(features: Vectors, validation: ValidationSet) -> float:
    """hit@1 of validation queries with these features (Q, D)."""
    neighbours = exact_search(features, validation.gallery, 1, self_row=validation.self_row)
    result = evaluate(
        neighbours,
        validation.query_labels,
        validation.gallery_labels,
        self_row=validation.self_row,
        ks=(1,),
        map_k=1,
    )
    return float(result.hit_rate[1])


def _loss(
    context: TrialContext, trial: Trial, step: Step, rows: Tensor, features: Tensor
) -> Tensor:
    """``total_loss`` of a step: classifier rows (K, D), and the items' features (B, F)."""
    setup = context.setup
    with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.amp):
        z = setup.network.project(features)
    old = setup.training_set.old_features
    return losses.total_loss(
        z=z.float(),
        labels=torch.from_numpy(context.classes[step.items]).to(setup.device),
        targets=torch.from_numpy(context.class_rows[step.items]).to(setup.device),
        rows=rows,
        old=None if old is None else torch.from_numpy(old[step.items]).to(setup.device),
        weight=trial.weight,
        mu=trial.mu,
        form=setup.recipe.objective.contrast,
        scale=setup.recipe.objective.scale,
    )


def _steps(context: TrialContext, trial: Trial, rng: np.random.Generator) -> Iterator[Step]:
    """The steps of an epoch: every new item once, with a label or without.

    Items without a label are spread evenly: each batch has the same number, up to one. Of the
    others in it, half are from the memory, if there is one. An item without a label, or whose class
    has no row of the classifier, trains by the contrast alone.
    """
    training_set, size = context.setup.training_set, context.setup.recipe.optimiser.batch_size
    contrasted = training_set.old_features is not None and trial.weight < 1.0
    trainable = np.flatnonzero((context.class_rows >= 0) | contrasted)
    n_labelled = training_set.n_labelled
    ends = np.searchsorted(trainable, [n_labelled - training_set.n_memory, n_labelled])
    fresh, memory, unlabelled = np.split(trainable, ends)
    share = 1
    if len(memory) and len(fresh):
        share = 2
    elif len(memory):
        fresh, memory = memory, fresh
    order = rng.permutation(fresh)
    count = max(1, (len(order) + len(unlabelled) // share) // max(1, size // share))
    others = rng.permutation(unlabelled) if len(unlabelled) else unlabelled
    pairs = zip(np.array_split(order, count), np.array_split(others, count), strict=True)
    for batch, part in pairs:
        items = batch
        if len(memory):
            items = np.concatenate([batch, rng.choice(memory, len(batch))])
        items = np.concatenate([items, part])
        yield Step(items=items, views=rng.integers(0, 2**31, len(items)))


def _optimiser(context: TrialContext, rows: nn.Parameter) -> torch.optim.Optimizer:
    """AdamW; ``base_lr`` of each group is for the schedule."""
    recipe, network = context.setup.recipe.optimiser, context.setup.network
    head = list(network.junction.parameters()) + ([rows] if context.classifier.learns else [])
    groups = [{"params": head, "lr": recipe.lr, "base_lr": recipe.lr}]
    if backbone := [weight for weight in network.backbone.parameters() if weight.requires_grad]:
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
