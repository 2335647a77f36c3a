"""The published ways to a compatible query, as their papers have them, on a frozen backbone.

All train the head of the recipe on the same features, training items, epochs and optimiser as
``finetune``, or fit a map of the free model on training items. No gallery row passes the new model
but training items. Here ``o`` is an item's old feature, ``z`` its new one, ``y`` its class, ``W`` a
classifier that learns, and ``CE`` the cross-entropy of cosines times the recipe's scale.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compatctl.core.adapters import Affine, Moments, orthogonal, ridge
from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.migration.routes import WEIGHTS, FreeModels, RouteInputs
from compatctl.migration.selection import Selection, Variant
from compatctl.train.items import ItemRef
from compatctl.train.network import Junction, unit

BCT = "BCT"
UNIBCT = "UniBCT prototypes"
MIXBCT = "MixBCT"
TRAINED = (BCT, UNIBCT, MIXBCT)

MIX, CREDIBLE = 0.3, 0.9
"""MixBCT: share of a batch that is replaced, and share of a class's items that may be."""
KEPT, TEMPERATURE = 0.9, 0.05
"""UniBCT: how far old features spread within a class, and over how near new ones"""
INITIAL = 0.01
"""Deviation of a classifier's first weights: so small, its rows turn as fast as the head does"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """N training items: new features of the backbone, old features, classes, C class means."""

    x: Tensor
    o: Tensor
    y: Tensor
    means: Tensor
    """(C, D) unit means of the old features"""
    credible: Tensor
    """(N,) bool: among the nearest to the mean of its class"""


def train_baseline(inputs: RouteInputs, method: str) -> Variant:
    """The head that ``method`` trains, on the stored gallery.

    - BCT (Shen et al., CVPR 2020, arXiv 2003.11942): CE(z W, y) + CE(z P, y), where P, the old
      classifier, is made of class means of old features, as the paper does for new classes.
    - UniBCT (Zhang et al., IJCAI 2022, arXiv 2203.01583, eq. 9 and 10): the same with P refined.
      Within a class, E is the softmax over other items of z z' / .05, and the old features spread
      by (1 - .9)(I - .9 E)^-1; P is their mean. Two sevenths of the epochs are without P; it is
      refined then and again after two more sevenths, as in the authors' 35 epochs.
    - MixBCT (Liang et al., arXiv 2308.06948): CE(m W, y), where m is o for a random 30% of a batch,
      of items among the 90% of their class that are nearest to its mean, and z for the others.
    """
    start = time.monotonic()
    pairs = _pairs(inputs)
    generator = torch.Generator().manual_seed(inputs.recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.recipe.seed)
        head = Junction(inputs.recipe.junction, pairs.x.shape[1], inputs.reference.dim)
        head.standardise(pairs.x)
        _fit(head, pairs, inputs, method, generator)
    items = _embedded(head, inputs, inputs.gallery_rows)
    return Variant(
        queries=_embedded(head, inputs, inputs.query_rows),
        gallery=inputs.reference.gallery_features,
        item_features=items,
        seconds=time.monotonic() - start,
    )


def training_rows(inputs: RouteInputs) -> Rows:
    """(N,) rows of the data that train."""
    return as_rows(row for row, item in enumerate(inputs.data.items) if item.split == "train")


def _pairs(inputs: RouteInputs) -> _Pairs:
    rows = training_rows(inputs)
    o = torch.from_numpy(inputs.old_features(rows))
    labels = np.array([inputs.data.labels[int(row)] for row in rows])
    y = torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64))
    sums = torch.zeros(int(y.max()) + 1, o.shape[1]).index_add_(0, y, o)
    means = unit(sums)
    nearness = (o * means[y]).sum(1)
    credible = torch.ones(len(y), dtype=torch.bool)
    for one in range(len(means)):
        (members,) = torch.nonzero(y == one, as_tuple=True)
        dropped = len(members) - max(1, round(CREDIBLE * len(members)))
        credible[members[nearness[members].argsort()[:dropped]]] = False
    return _Pairs(x=_features(inputs, rows), o=o, y=y, means=means, credible=credible)


def _features(inputs: RouteInputs, rows: Rows) -> Tensor:
    return inputs.features.lookup([ItemRef(dataset=inputs.data, row=int(row)) for row in rows])


def _embedded(head: Junction, inputs: RouteInputs, rows: Rows) -> Vectors:
    head.eval()
    with torch.no_grad():
        vectors: Vectors = unit(head(_features(inputs, rows))).numpy()
    return vectors


def _fit(
    head: Junction, pairs: _Pairs, inputs: RouteInputs, method: str, generator: torch.Generator
) -> None:
    """Half a cosine of AdamW's rate, as ``train.train`` has it."""
    given = inputs.recipe.optimiser
    scale = inputs.recipe.objective.scale or 16.0
    classifier = torch.nn.Parameter(INITIAL * torch.randn(pairs.means.shape, generator=generator))
    optimiser = torch.optim.AdamW(
        [*head.parameters(), classifier], lr=given.lr, weight_decay=given.weight_decay
    )
    steps = max(1, len(pairs.y) // given.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, given.epochs * steps)
    prototypes = pairs.means if method == BCT else None
    for epoch in range(given.epochs):
        if method == UNIBCT and epoch in {2 * given.epochs // 7, 4 * given.epochs // 7}:
            prototypes = refined(_new(head, pairs), pairs.o, pairs.y)
        head.train()
        order = torch.randperm(len(pairs.y), generator=generator)
        for batch in order.tensor_split(steps):
            z, y = unit(head(pairs.x[batch])), pairs.y[batch]
            if method == MIXBCT:
                z = _mixed(z, pairs, batch, generator)
            loss = cross_entropy(scale * z @ unit(classifier).T, y)
            if prototypes is not None:
                loss = loss + cross_entropy(scale * z @ prototypes.T, y)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()


def _new(head: Junction, pairs: _Pairs) -> Tensor:
    head.eval()
    with torch.no_grad():
        return unit(head(pairs.x))


def _mixed(z: Tensor, pairs: _Pairs, batch: Tensor, generator: torch.Generator) -> Tensor:
    """(n, D) z, with old features for some credible items."""
    (credible,) = torch.nonzero(pairs.credible[batch], as_tuple=True)
    drawn = torch.randperm(len(credible), generator=generator)[: round(MIX * len(batch))]
    replaced = torch.zeros(len(batch), dtype=torch.bool)
    replaced[credible[drawn]] = True
    return torch.where(replaced[:, None], pairs.o[batch], z)


def refined(z: Tensor, o: Tensor, y: Tensor) -> Tensor:
    """(C, D) unit rows: UniBCT's prototypes of C classes, from new and old features (N, D)."""
    prototypes = []
    for one in range(int(y.max()) + 1):
        (members,) = torch.nonzero(y == one, as_tuple=True)
        near = z[members] @ z[members].T / TEMPERATURE
        near.fill_diagonal_(-1e9)
        edges = torch.softmax(near, dim=1) if len(members) > 1 else torch.zeros(1, 1)
        spread = (1 - KEPT) * torch.linalg.inv(torch.eye(len(members)) - KEPT * edges)
        prototypes.append((spread @ o[members]).mean(0))
    return unit(torch.stack(prototypes))


def procrustes(inputs: RouteInputs, free: FreeModels) -> Selection:
    """The orthogonal map of the free model to the old features that is best on training items."""
    return free.selector.refine(free.heads, lambda head: _maps(inputs, head, "orthogonal"))


def ridge_map(inputs: RouteInputs, free: FreeModels) -> Selection:
    """The affine map with the least penalised squared error; the strength is chosen."""
    return free.selector.refine(free.heads, lambda head: _maps(inputs, head, "ridge"))


def _maps(inputs: RouteInputs, head: Variant, kind: str) -> Iterator[Variant]:
    assert head.trained is not None
    rows = training_rows(inputs)
    moments = Moments.from_pairs(inputs.new_features(head.trained, rows), inputs.old_features(rows))
    maps: list[Affine] = [orthogonal(moments)] if kind == "orthogonal" else ridge(moments)
    for adapter in maps:
        yield replace(
            head,
            queries=adapter(head.queries),
            gallery=inputs.reference.gallery_features,
            item_features=adapter(head.gallery),
        )


def slerp_variants(old: Variant, mapped: Variant) -> Iterator[Variant]:
    """Old and mapped queries, interpolated on the sphere by weight; two encoders a query.

    The method of github.com/miccunifi/SLERP_backward_compatibility, with the orthogonal map.
    """
    assert mapped.item_features is not None
    for weight in WEIGHTS:
        yield replace(
            mapped,
            setting=f"weight {weight}",
            queries=slerp(old.queries, mapped.queries, weight),
            item_features=slerp(old.gallery, mapped.item_features, weight),
            encoders=("old", "new"),
        )


def slerp(old: Vectors, new: Vectors, weight: float) -> Vectors:
    """(N, D) unit rows at ``weight`` of the arc from ``old`` to ``new`` (N, D), unit rows."""
    cosine = np.clip((old * new).sum(axis=1, keepdims=True), -1 + 1e-6, 1 - 1e-6)
    arc = np.arccos(cosine)
    mixed = (np.sin((1 - weight) * arc) * old + np.sin(weight * arc) * new) / np.sin(arc)
    rows: Vectors = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    return rows
