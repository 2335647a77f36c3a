"""Training of heads on cached features, in which a study changes the loss, items or classifier.

``fit`` repeats ``compatctl/train/loop.py`` for a frozen backbone: with the shipped loss its weights
are those of ``compatctl.train``, up to rounding.

Shapes: N training items, F features, D dimensions, K classifier rows, G stored vectors, Q queries,
B items of a batch. All tensors are float32 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.data import Dataset
from compatctl.migration.routes import RouteInputs
from compatctl.recipe import Recipe
from compatctl.train import losses
from compatctl.train.frames import build_classifier
from compatctl.train.items import ItemRef
from compatctl.train.network import Junction, unit
from compatctl.train.setup import isolated_rng
from compatctl.train.training_set import select_training_set


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What one seed of a case trains on and is measured with."""

    inputs: RouteInputs
    """``query_rows`` are validation queries alone"""
    old_model: Callable[[Dataset], Vectors]
    """(n, D) what the old model makes of n images"""
    images: tuple[ItemRef, ...]
    """The N training items"""
    x: Tensor
    """(N, F) the new backbone's features"""
    classes: Tensor
    """(N,) int64"""
    targets: Tensor
    """(N,) int64 classifier row; -1: none"""
    rows: Tensor
    """(K, D) class means of the gallery"""
    old: Tensor
    """(N, D) old features"""
    labels: tuple[str, ...]
    """Of the N items"""
    queries: Tensor
    """(Q, F)"""
    stored: Tensor
    """(G, D)"""
    stored_classes: Tensor
    """(G,) int64 class; -1: no training class"""
    in_gallery: Bools
    """(N,) whether the item is stored"""
    kept: Rows
    """Training items that take part"""

    @property
    def recipe(self) -> Recipe:
        """The shipped recipe on the case's backbone."""
        return self.inputs.recipe

    @cached_property
    def shipped(self) -> Vectors:
        """(Q, D) queries by the shipped recipe."""
        return embed(fit(self, shipped_loss), self.queries)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One step's items."""

    material: Material
    z: Tensor
    """(B, D) raw outputs of the junction"""
    old: Tensor
    classes: Tensor
    targets: Tensor
    rows: Tensor
    """(K, D) classifier rows; they learn in some ideas"""

    @property
    def new(self) -> Tensor:
        """(B, D) unit rows."""
        return functional.normalize(self.z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What an idea ends in: unit rows; None where old queries and stored vectors stay."""

    queries: Vectors
    """(Q, D)"""
    old_queries: Vectors | None = None
    stored: Vectors | None = None


Loss = Callable[[Batch], Tensor]


def material_of(inputs: RouteInputs, old_model: Callable[[Dataset], Vectors]) -> Material:
    """The training items, classifier and validation queries of one seed.

    Raises:
        InputError: see ``train.train``.
    """
    data, reference, recipe = inputs.data, inputs.reference, inputs.recipe
    validation = [int(i) for i in inputs.query_rows if data.items[int(i)].split == "validation"]
    inputs = replace(inputs, query_rows=as_rows(validation))
    chosen_items = select_training_set(recipe, data, reference, None)
    frame = build_classifier(
        "prototypes", recipe.objective, chosen_items.classes, reference, reference.dim
    )
    code = {label: i for i, label in enumerate(chosen_items.classes)}
    labels, old = chosen_items.labels, chosen_items.old_features
    assert old is not None
    return Material(
        inputs=inputs,
        old_model=old_model,
        images=chosen_items.items,
        x=inputs.features.lookup(chosen_items.items),
        classes=torch.tensor([code[label] for label in labels]),
        targets=torch.tensor([frame.row_of.get(label, -1) for label in labels]),
        rows=torch.from_numpy(frame.rows),
        old=torch.from_numpy(old),
        labels=labels,
        queries=inputs.features.lookup([ItemRef(dataset=data, row=i) for i in validation]),
        stored=torch.from_numpy(reference.gallery_features),
        stored_classes=torch.tensor([code.get(label, -1) for label in reference.gallery_labels]),
        in_gallery=np.array([item in reference.row_of for item in chosen_items.ids]),
        kept=np.arange(len(labels)),
    )


def fit(
    material: Material,
    loss: Loss,
    *,
    seed: int | None = None,
    rows: Tensor | None = None,
    learns: bool = False,
) -> Junction:
    """Train a junction, step by step as ``compatctl.train`` does for a frozen backbone.

    ``rows``: (K, D) in the place of the class means; ``learns``: whether they train.
    """
    recipe, setting = material.recipe, material.recipe.optimiser
    seed = recipe.seed if seed is None else seed
    with isolated_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        junction = Junction(recipe.junction, material.x.shape[1], material.old.shape[1])
        junction.standardise(material.x)
        classifier = nn.Parameter((material.rows if rows is None else rows).clone(), learns)
        trained = [*junction.parameters(), *([classifier] if learns else [])]
        optimiser = torch.optim.AdamW(trained, lr=setting.lr, weight_decay=setting.weight_decay)
        junction.train()
        for epoch in range(setting.epochs):
            draw = (seed, 0, epoch)
            torch.manual_seed(int(np.random.default_rng((*draw, 1)).integers(2**31)))
            order = np.random.default_rng(draw).permutation(material.kept)
            steps = np.array_split(order, max(1, len(order) // setting.batch_size))
            for i, items in enumerate(steps):
                progress = (epoch * len(steps) + i) / (setting.epochs * len(steps))
                for group in optimiser.param_groups:
                    group["lr"] = setting.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
                batch = _batch(material, junction, torch.from_numpy(items), classifier)
                optimiser.zero_grad()
                torch.autograd.backward(loss(batch))
                optimiser.step()
    return junction.eval()


def _batch(material: Material, junction: Junction, items: Tensor, rows: Tensor) -> Batch:
    return Batch(
        material=material,
        z=junction(material.x[items]),
        old=material.old[items],
        classes=material.classes[items],
        targets=material.targets[items],
        rows=rows,
    )


def embed(junction: Junction, x: Tensor) -> Vectors:
    """(n, D) unit rows of features (n, F)."""
    with torch.no_grad():
        out: Vectors = unit(junction(x)).numpy()
    return out


def shipped_loss(batch: Batch) -> Tensor:
    """The recipe's own."""
    return blend(batch, entropy(batch), contrast(batch).mean())


def blend(batch: Batch, labelled: Tensor, contrasted: Tensor) -> Tensor:
    """``lambda * CE + (1 - lambda) * NCE``."""
    weight = batch.material.recipe.objective.lambda_[0]
    return weight * labelled + (1.0 - weight) * contrasted


def entropy(batch: Batch, z: Tensor | None = None, margin: float = 0.0) -> Tensor:
    """Cross-entropy of items with a classifier row; ``margin`` is taken off its cosine.

    An additive margin is CosFace's (CVPR 2018, arXiv 1801.09414).
    """
    scale = batch.material.recipe.objective.scale
    labelled = batch.targets >= 0
    targets = batch.targets[labelled]
    scores = losses.logits((batch.z if z is None else z)[labelled], batch.rows, scale)
    if margin:
        scores = scores - margin * (scale or 1.0) * functional.one_hot(targets, len(batch.rows))
    each = functional.cross_entropy(scores, targets, reduction="sum")
    return each / labelled.sum().clamp_min(1)


def contrast(batch: Batch) -> Tensor:
    """(B,) the recipe's contrast of each item: an old feature against new ones."""
    mu = batch.material.recipe.objective.mu[0]
    return _contrast(mu * batch.old @ batch.new.T, batch.classes)


def contrast_new(batch: Batch, stored: bool = False) -> Tensor:
    """(B,) a new feature against old ones; ``stored``: against stored vectors, too."""
    mu, material = batch.material.recipe.objective.mu[0], batch.material
    scores = mu * batch.new @ batch.old.T
    if not stored:
        return _contrast(scores, batch.classes)
    same = batch.classes[:, None] == material.stored_classes[None, :]
    others = (mu * batch.new @ material.stored.T).masked_fill(same, float("-inf"))
    return _contrast(scores, batch.classes, others)


def _contrast(scores: Tensor, classes: Tensor, others: Tensor | None = None) -> Tensor:
    is_own = torch.eye(len(classes), dtype=torch.bool)
    same = (classes[:, None] == classes[None, :]) & ~is_own
    negatives = scores.masked_fill(same, float("-inf"))
    if others is not None:
        negatives = torch.cat([negatives, others], dim=1)
    return torch.logsumexp(negatives, dim=1) - scores.diagonal()
