"""Where a step's features come from: a cache (head) or the images themselves (full).

Both give (B, F) float32 backbone features of training items, anchors and validation queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from compatctl.core.arrays import Rows
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.train.features import Features, run_backbone
from compatctl.train.images import ImageReader, ImageRef
from compatctl.train.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Step:
    """Rows of the training set that one step trains on."""

    items: Rows
    """(B,) int64 training items"""
    views: Rows
    """(B,) int64: seeds (full) or, modulo their number, the cached views (head) of the items"""
    contrasted: Rows
    """(R,) int64 anchors whose stored vectors are told apart"""
    anchors: Rows
    """(A,) the first of ``contrasted``: those that go through the network"""
    transfer: Rows
    """(T, 2) training items of one class, T <= A: the first T anchors are changed as the first of
    the two differs from the second"""


class Batches(Protocol):
    """The source of a run's batches: cached features, or images that go through the backbone."""

    def steps(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of each step's items (B, F) and anchors (R, F), differentiable if trained."""

    def validation(self) -> Tensor:
        """(Q, F) features of the validation queries, unchanged."""


class CachedBatches:
    """The backbone is frozen: every image goes through it once, ``views`` times if it trains.

    ``anchors``: (A, F) float32 features of the training set's anchors, on the CPU.
    """

    def __init__(
        self, setup: Setup, reader: ImageReader, progress: Progress, known: Features | None = None
    ) -> None:
        training_set, recipe = setup.training_set, setup.recipe
        views = recipe.augmentation.views
        queries = training_set.validation.images if training_set.validation else ()
        plain = {_source(one): one for one in training_set.images + training_set.anchors + queries}
        changed = [
            replace(ref, seed=(recipe.seed, view, i))
            for view in range(1, views)
            for i, ref in enumerate(training_set.images)
        ]
        if known is None:
            table = run_backbone(setup.network, reader, [*plain.values(), *changed], progress)
        else:
            table = _known(setup, known).lookup([*plain.values()])
            if changed:
                made = run_backbone(setup.network, reader, changed, progress)
                table = torch.cat([table, made])
        at = {source: i for i, source in enumerate(plain)}
        first = table[[at[_source(one)] for one in training_set.images]]
        others = torch.split(table[len(plain) :], len(first)) if changed else ()
        self._items = torch.stack([first, *others])
        self.anchors = table[[at[_source(one)] for one in training_set.anchors]]
        self._signed = bool((table < 0.0).any())
        self._validation = table[[at[_source(one)] for one in queries]]
        self._device = setup.device

    def steps(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the cache."""
        for step in steps:
            views = torch.from_numpy(step.views % len(self._items))
            items = self._items[views, torch.from_numpy(step.items)]
            anchors = self.anchors[torch.from_numpy(step.anchors)]
            if len(step.transfer):
                anchors = self._transferred(anchors, torch.from_numpy(step.transfer))
            yield items.to(self._device), anchors.to(self._device)

    def _transferred(self, anchors: Tensor, pairs: Tensor) -> Tensor:
        """Features of images that nobody drew: an anchor in the manner of another class's images.

        Source: Hariharan and Girshick, "Low-shot Visual Recognition by Shrinking and Hallucinating
        Features" (ICCV 2017, arXiv 1606.02819), without its generator: the difference is added.
        Features that are never negative stay so.
        """
        change = self._items[0, pairs[:, 0]] - self._items[0, pairs[:, 1]]
        changed = anchors[: len(pairs)] + change
        if not self._signed:
            changed = changed.clamp_min(0.0)
        return torch.cat([changed, anchors[len(pairs) :]])

    def validation(self) -> Tensor:
        """Rows of the cache."""
        return self._validation.to(self._device)


class ImageBatches:
    """The backbone trains: images are read, changed and run through it in every step."""

    def __init__(self, setup: Setup, reader: ImageReader) -> None:
        self._setup = setup
        self._reader = reader

    def steps(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass of the backbone over the step's items and anchors together."""
        batches = [self._images(step) for step in steps]
        for step, images in zip(steps, self._reader.batches(batches), strict=True):
            pixels = torch.from_numpy(images).to(self._setup.device)
            with torch.autocast(self._setup.device.type, torch.bfloat16, enabled=self._setup.amp):
                features = self._setup.network.features(pixels)
            yield features[: len(step.items)], features[len(step.items) :]

    def validation(self) -> Tensor:
        """The backbone in its present state over the validation queries."""
        queries = (
            self._setup.training_set.validation.images
            if self._setup.training_set.validation
            else ()
        )
        self._setup.network.eval()
        out = run_backbone(self._setup.network, self._reader, queries, silent)
        return out.to(self._setup.device)

    def _images(self, step: Step) -> list[ImageRef]:
        items = [
            replace(
                self._setup.training_set.images[i],
                seed=(self._setup.recipe.seed, int(view), int(i)),
            )
            for i, view in zip(step.items, step.views, strict=True)
        ]
        return items + [self._setup.training_set.anchors[i] for i in step.anchors]


def _source(ref: ImageRef) -> tuple[int, int]:
    """What makes two references the same image: an anchor may train with its label, too."""
    return id(ref.dataset), ref.row


def _known(setup: Setup, known: Features) -> Features:
    """The features, if they are this run's backbone's.

    Raises:
        InputError: they are another's.
    """
    theirs, ours = (
        (known.backbone, known.base_sha256),
        (setup.recipe.backbone, setup.base_match.sha256),
    )
    if theirs != ours:
        raise InputError("the features are of another backbone, or of other weights")
    return known
