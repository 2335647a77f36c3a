"""Ideas of ``objective_ideas.py`` that train on the features of both models together.

Shapes are those of ``heads.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.heads import Answers, Batch, Material, blend, embed, entropy, fit
from compatctl.core.arrays import Vectors
from compatctl.train.network import unit
from compatctl.train.setup import isolated_rng

ORTHOGONAL_SLACK = 4.0
"""The Frobenius norm of ``B^T B - I`` that costs nothing"""
SUPCON_SCALE = 1 / 0.07


def joint(material: Material, weight: float) -> Answers:
    """One head on both models' features, whose output is added to ``weight`` times the old one.

    The old feature is among its inputs, so that the contrast is with the old features of other
    items of the class (SupCon, arXiv 2004.11362), at the recipe's mu.
    """
    before = torch.from_numpy(material.inputs.old_queries.queries)
    both = replace(
        material,
        x=torch.cat([material.x, material.old], dim=1),
        queries=torch.cat([material.queries, before], dim=1),
    )
    mu = material.recipe.objective.mu[0]

    def loss(batch: Batch) -> Tensor:
        z = batch.z + weight * batch.old
        scores = mu * functional.normalize(z) @ batch.old.T
        contrasted = class_mates(scores, batch.classes)
        return blend(batch, entropy(batch, z), contrasted)

    head = fit(both, loss)
    with torch.no_grad():
        queries: Vectors = unit(head(both.queries) + weight * before).numpy()
    return Answers(queries=queries)


def class_mates(scores: Tensor, classes: Tensor) -> Tensor:
    """The mean negative log of what rows (B, B) give to other items of their class together."""
    is_own = torch.eye(len(classes), dtype=torch.bool)
    mates = (classes[:, None] == classes[None, :]) & ~is_own
    others = torch.log_softmax(scores.masked_fill(is_own, float("-inf")), dim=1)
    has_mate = mates.any(dim=1)
    return -others.masked_fill(~mates, float("-inf"))[has_mate].logsumexp(dim=1).mean()


def pair_of_maps(material: Material) -> Answers:
    """Lambda-orthogonality (NeurIPS 2025, arXiv 2509.16664), with a contrast over both models.

    A model is trained without the gallery. B maps its features and is nearly orthogonal; F maps the
    old features, so that stored vectors are rewritten without their images. The loss: squared
    distance of the two maps of an image; SupCon (NeurIPS 2020, arXiv 2004.11362) over the mapped
    features of both models; and what the norm of ``B^T B - I`` has over ``ORTHOGONAL_SLACK``, a
    hinge in the place of the authors' smooth gate. B starts at the Procrustes rotation, F at I.
    """
    free = material.recipe.without_gallery(material.old.shape[1])
    n_classes = int(material.classes.max()) + 1
    start = np.random.default_rng(0).standard_normal((n_classes, material.old.shape[1]))
    rows = functional.normalize(torch.from_numpy(start.astype(np.float32)))
    without = replace(
        material, inputs=replace(material.inputs, recipe=free), targets=material.classes
    )
    head = fit(without, entropy, rows=rows, learns=True)
    new = torch.from_numpy(embed(head, material.x))
    forward, backward = _train_maps(material, new)
    with torch.no_grad():
        queries: Vectors = unit(backward(torch.from_numpy(embed(head, material.queries)))).numpy()
        old = torch.from_numpy(material.inputs.old_queries.queries)
        return Answers(
            queries=queries,
            old_queries=unit(forward(old)).numpy(),
            stored=unit(forward(material.stored)).numpy(),
        )


def _train_maps(material: Material, new: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """F and B, from old and new features (N, D)."""
    D, setting, seed = material.old.shape[1], material.recipe.optimiser, material.recipe.seed
    with isolated_rng(torch.device("cpu")):
        forward, backward = nn.Linear(D, D), nn.Linear(D, D)
    U, _, Vt = torch.linalg.svd(material.old.T @ new)
    with torch.no_grad():
        for linear, matrix in ((forward, torch.eye(D)), (backward, U @ Vt)):
            linear.weight.copy_(matrix)
            linear.bias.zero_()
    parameters = [*forward.parameters(), *backward.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=0.0)
    total = setting.epochs * max(1, len(new) // setting.batch_size)
    rng = np.random.default_rng((seed, 2))
    for step in range(total):
        for group in optimiser.param_groups:
            group["lr"] = setting.lr * 0.5 * (1.0 + math.cos(math.pi * step / total))
        size = min(len(new), setting.batch_size)
        items = torch.from_numpy(rng.choice(len(new), size, replace=False))
        mapped_old = unit(forward(material.old[items]))
        mapped_new = unit(backward(new[items]))
        gap = torch.linalg.matrix_norm(backward.weight.T @ backward.weight - torch.eye(D))
        loss = (mapped_old - mapped_new).square().sum(dim=1).mean()
        loss = loss + (gap - ORTHOGONAL_SLACK).clamp_min(0.0)
        loss = loss + supcon(torch.cat([mapped_old, mapped_new]), material.classes[items].repeat(2))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return forward, backward


def supcon(rows: Tensor, classes: Tensor) -> Tensor:
    """Supervised contrastive loss of unit rows (B, D), each of which has a class mate."""
    is_own = torch.eye(len(rows), dtype=torch.bool)
    mates = (classes[:, None] == classes[None, :]) & ~is_own
    scores = (SUPCON_SCALE * rows @ rows.T).masked_fill(is_own, float("-inf"))
    logs = torch.log_softmax(scores, dim=1).masked_fill(~mates, 0.0)
    return -(logs.sum(dim=1) / mates.sum(dim=1)).mean()
