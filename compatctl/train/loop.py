"""One trial: a junction (and a backbone) trained for some epochs against one frame.

Source of the loss: ``losses.py``. Batches half of memory and half of new items for sequential
fine-tuning: TPAMI 2026 (arXiv 2606.12488); repository miccunifi/iamcl2r, ``src/iamcl2r/train.py``.
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
from compatctl.train.network import unit
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
    """What a trial works on."""

    setup: Setup
    batches: Batches
    classifier: Classifier
    class_rows: Rows
    """(N,) classifier row of each item of the training set, -1: none"""
    anchor_rows: Rows
    """(N,) which anchor is the same image, -1: none"""


def fit(
    run: TrialContext, trial: Trial, state: Checkpoint, after_epoch: Callable[[Checkpoint], None]
) -> None:
    """Train the network from ``state`` to the last epoch; ``state`` follows."""
    recipe = run.setup.recipe
    rows = nn.Parameter(torch.from_numpy(run.classifier.rows).to(run.setup.device))
    rows.requires_grad_(run.classifier.learns)
    optimiser = _optimiser(run, rows)
    if state.epoch:
        _restore(run, rows, state)
        optimiser.load_state_dict(state.optimiser)
    stored = torch.from_numpy(run.setup.training_set.anchor_vectors).to(run.setup.device)
    for epoch in range(state.epoch, recipe.optimiser.epochs):
        _training_mode(run)
        torch.manual_seed(_seed(recipe.seed, trial.index, epoch, 1))
        steps = list(_steps(run, _generator(recipe.seed, trial.index, epoch)))
        total = torch.zeros((), device=run.setup.device)
        for i, inputs in enumerate(run.batches.steps(steps)):
            _schedule(optimiser, epoch * len(steps) + i, recipe.optimiser.epochs * len(steps))
            loss = _loss(run, trial, steps[i], (rows, stored), inputs)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.detach()
        state.losses.append(float(total) / len(steps))
        state.epoch = epoch + 1
        if run.setup.network.attention is not None:
            run.setup.network.attention.refresh()
        state.model = trained_weights(run, rows)
        state.optimiser = optimiser.state_dict()
        after_epoch(state)


def trained_weights(run: TrialContext, rows: Tensor) -> dict[str, Tensor]:
    """A copy of what training changes, on the CPU."""
    full = run.setup.recipe.train == "full"
    found = {
        key: one.detach().cpu().clone()
        for key, one in run.setup.network.state_dict().items()
        if full or not key.startswith("backbone.")
    }
    if run.classifier.learns:
        found[CLASSIFIER] = rows.detach().cpu().clone()
    return found


def load_weights(run: TrialContext, state: dict[str, Tensor]) -> None:
    """Load what ``weights`` copied into the network."""
    changed = {key: one for key, one in state.items() if key != CLASSIFIER}
    run.setup.network.load_state_dict({**run.setup.network.state_dict(), **changed})


def validate(run: TrialContext) -> float | None:
    """recall@1 of the new queries on the deployed gallery, on validation classes; null: none."""
    validation = run.setup.training_set.validation
    if validation is None:
        return None
    run.setup.network.eval()
    with torch.no_grad():
        features = unit(run.setup.network.project(run.batches.validation())).cpu().numpy()
    found = exact_search(features, validation.gallery, 1, self_row=validation.self_row)
    result = evaluate(
        found,
        validation.query_labels,
        validation.gallery_labels,
        self_row=validation.self_row,
        ks=(1,),
        map_k=1,
    )
    return float(result.recall[1])


def _loss(
    run: TrialContext,
    trial: Trial,
    step: Step,
    frozen: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
) -> Tensor:
    """The labelled term, and the anchors' where there are any.

    ``frozen``: classifier rows (K, D) and all anchors' stored vectors (A, D); ``inputs``: backbone
    features of the step's items and anchors.
    """
    (rows, stored), (items, anchors) = frozen, inputs
    objective, n = run.setup.recipe.objective, len(items)
    with torch.autocast(run.setup.device.type, torch.bfloat16, enabled=run.setup.amp):
        z = _project(run, step, torch.cat([items, anchors]))
    z = z.float()
    old = None
    if run.setup.training_set.old_features is not None:
        old = torch.from_numpy(run.setup.training_set.old_features[step.items]).to(run.setup.device)
    loss = losses.total_loss(
        z=z[:n],
        labels=torch.from_numpy(run.class_rows[step.items]).to(run.setup.device),
        rows=rows,
        old=old,
        weight=trial.weight,
        mu=trial.mu,
        form=objective.contrast,
        scale=objective.scale,
    )
    if objective.anchors is None or not len(step.anchors):
        return loss
    table = torch.from_numpy(step.contrasted).to(run.setup.device)
    own = torch.arange(len(step.anchors), device=run.setup.device)
    term = losses.anchor_loss(unit(z[n:]), stored[table], own, objective.anchors.scale)
    return loss + objective.anchors.weight * term


def _project(run: TrialContext, step: Step, features: Tensor) -> Tensor:
    """(N, D) raw outputs for the step's backbone features (N, F), as they are trained."""
    network, anchors = run.setup.network, run.setup.recipe.objective.anchors
    if network.attention is None or anchors is None:
        return network.project(features)
    z: Tensor = network.junction(features)
    return network.attention.forward_training(z, features, *_attended(run, step, anchors.slots))


def _attended(run: TrialContext, step: Step, slots: int) -> tuple[Tensor, Tensor]:
    """The anchors that the step attends to, and which of them each row of it is (-1: none).

    A changed anchor is another image than the one that the gallery holds.
    """
    device = run.setup.device
    held = step.contrasted[step.contrasted < slots]
    place = np.full(len(run.setup.training_set.anchors) + 1, -1, np.int64)
    place[held] = np.arange(len(held))
    drawn = step.anchors.copy()
    drawn[: len(step.transfer)] = -1
    own = place[np.concatenate([run.anchor_rows[step.items], drawn])]
    return torch.from_numpy(held).to(device), torch.from_numpy(own).to(device)


def _steps(run: TrialContext, rng: np.random.Generator) -> Iterator[Step]:
    """The epoch's batches: every new item once; with a memory, half of each batch is from it."""
    known = np.flatnonzero(run.class_rows >= 0)
    first_memory = len(run.setup.training_set.images) - run.setup.training_set.n_memory
    fresh, memory = known[known < first_memory], known[known >= first_memory]
    size = run.setup.recipe.optimiser.batch_size
    anchors = run.setup.recipe.objective.anchors
    if len(memory) and len(fresh):
        size = max(1, size // 2)
    elif len(memory):
        fresh, memory = memory, fresh
    pairs = _pairs(run) if anchors is not None and anchors.transfer > 0.0 else []
    order = rng.permutation(fresh)
    count = max(1, len(order) // size)
    a = len(run.setup.training_set.anchors)
    for batch in np.array_split(order, count):
        items = batch
        if len(memory):
            items = np.concatenate([batch, rng.choice(memory, len(batch))])
        table = np.zeros(0, np.int64)
        if anchors is not None and a:
            table = rng.permutation(a)[: max(anchors.rows, anchors.batch)]
        drawn = table[: anchors.batch] if anchors is not None else table
        views = rng.integers(0, 2**31, len(items))
        changed = round(anchors.transfer * len(drawn)) if anchors is not None and pairs else 0
        chosen = [pairs[i] for i in rng.integers(0, max(1, len(pairs)), changed)]
        drawn_pairs = [[one[rng.integers(len(one))] for one in pair] for pair in chosen]
        transfer = np.array(drawn_pairs, np.int64).reshape(-1, 2)
        yield Step(items=items, anchors=drawn, contrasted=table, views=views, transfer=transfer)


def _pairs(run: TrialContext) -> list[tuple[Rows, Rows]]:
    """For every class with both: its training items outside the gallery, and those in it."""
    training_set, found = run.setup.training_set, []
    labels = np.array(training_set.labels)
    for label in training_set.classes:
        mine = labels == label
        others, held = (
            np.flatnonzero(mine & one)
            for one in (~training_set.in_gallery, training_set.in_gallery)
        )
        if len(others) and len(held):
            found.append((others, held))
    return found


def _optimiser(run: TrialContext, rows: nn.Parameter) -> torch.optim.Optimizer:
    """AdamW; the base rate of each group is kept beside it for the schedule."""
    recipe = run.setup.recipe.optimiser
    network = run.setup.network
    head = list(network.junction.parameters()) + ([rows] if run.classifier.learns else [])
    if network.attention is not None:
        head += network.attention.parameters()
    groups = [{"params": head, "lr": recipe.lr, "base_lr": recipe.lr}]
    for parameter in run.setup.network.backbone.parameters():
        parameter.requires_grad_(run.setup.recipe.train == "full")
    if run.setup.recipe.train == "full":
        backbone = list(run.setup.network.backbone.parameters())
        rate = recipe.backbone_lr
        groups.append({"params": backbone, "lr": rate, "base_lr": rate})
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _schedule(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Half a cosine from the base rate to 0."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _training_mode(run: TrialContext) -> None:
    run.setup.network.train()
    if run.setup.recipe.train == "head":
        run.setup.network.backbone.eval()
    elif run.setup.recipe.optimiser.frozen_norm:
        for module in run.setup.network.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _restore(run: TrialContext, rows: nn.Parameter, state: Checkpoint) -> None:
    load_weights(run, state.model)
    if run.classifier.learns:
        with torch.no_grad():
            rows.copy_(state.model[CLASSIFIER])


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _seed(*seed: int) -> int:
    return int(np.random.default_rng(seed).integers(2**31))
