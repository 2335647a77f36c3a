"""Backbone features of each step: from a cache (``train: head``) or from the images (``full``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    """The rows of the training set in one step."""

    items: Rows
    """(B,) int64 training items"""
    views: Rows
    """(B,) int64: seeds of the images (full) or, modulo their number, cached views (head)"""
    contrasted: Rows
    """(R,) int64 anchors whose stored vectors are the classes of the anchor loss"""
    anchors: Rows
    """(A,) int64: the first of ``contrasted``, which go through the network"""
    transfer: Rows
    """(T, 2) int64 pairs of training items of one class, T <= A: the difference of each pair's
    features is added to one of the first T anchors"""


class CachedBatches:
    """Features of a frozen backbone: each image passes once, training images once per view.

    ``anchors``: (A, F) float32 features of the training set's anchors, on the CPU.
    """

    def __init__(
        self, setup: Setup, reader: ImageReader, progress: Progress, known: Features | None = None
    ) -> None:
        training_set, recipe = setup.training_set, setup.recipe
        views = recipe.augmentation.views
        queries = training_set.validation.images if training_set.validation else ()
        originals = {
            _source(ref): ref for ref in training_set.images + training_set.anchors + queries
        }
        augmented = [
            replace(ref, seed=(recipe.seed, view, i))
            for view in range(1, views)
            for i, ref in enumerate(training_set.images)
        ]
        if known is None:
            table = run_backbone(setup.network, reader, [*originals.values(), *augmented], progress)
        else:
            if known.backbone != recipe.backbone or known.base_sha256 != setup.base_match.sha256:
                raise InputError("the features are of another backbone, or of other weights")
            table = known.lookup([*originals.values()])
            if augmented:
                views_table = run_backbone(setup.network, reader, augmented, progress)
                table = torch.cat([table, views_table])
        row_of = {source: row for row, source in enumerate(originals)}
        first_view = table[[row_of[_source(ref)] for ref in training_set.images]]
        others = torch.split(table[len(originals) :], len(first_view)) if augmented else ()
        self._items = torch.stack([first_view, *others])
        self.anchors = table[[row_of[_source(ref)] for ref in training_set.anchors]]
        self._has_negatives = bool((table < 0.0).any())
        self._validation = table[[row_of[_source(ref)] for ref in queries]]
        self._device = setup.device

    def steps(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """float32 features of each step's items (B, F) and anchors (A, F), on the run's device."""
        for step in steps:
            views = torch.from_numpy(step.views % len(self._items))
            items = self._items[views, torch.from_numpy(step.items)]
            anchors = self.anchors[torch.from_numpy(step.anchors)]
            if len(step.transfer):
                anchors = self._transferred(anchors, torch.from_numpy(step.transfer))
            yield items.to(self._device), anchors.to(self._device)

    def _transferred(self, anchors: Tensor, pairs: Tensor) -> Tensor:
        """The first anchors, each shifted by the difference of a pair of one class.

        Source: Hariharan and Girshick, "Low-shot Visual Recognition by Shrinking and Hallucinating
        Features" (ICCV 2017, arXiv 1606.02819), with a difference in place of their generator.
        Features that are never negative stay so.
        """
        shift = self._items[0, pairs[:, 0]] - self._items[0, pairs[:, 1]]
        shifted = anchors[: len(pairs)] + shift
        if not self._has_negatives:
            shifted = shifted.clamp_min(0.0)
        return torch.cat([shifted, anchors[len(pairs) :]])

    def validation(self) -> Tensor:
        """(Q, F) features of the validation queries."""
        return self._validation.to(self._device)


class ImageBatches:
    """Features of a backbone that is trained: images are read and augmented in every step."""

    def __init__(self, setup: Setup, reader: ImageReader) -> None:
        self._setup = setup
        self._reader = reader

    def steps(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """As those of ``CachedBatches``, with gradient."""
        batches = [self._images(step) for step in steps]
        for step, images in zip(steps, self._reader.batches(batches), strict=True):
            pixels = torch.from_numpy(images).to(self._setup.device)
            with torch.autocast(self._setup.device.type, torch.bfloat16, enabled=self._setup.amp):
                features = self._setup.network.features(pixels)
            yield features[: len(step.items)], features[len(step.items) :]

    def validation(self) -> Tensor:
        """(Q, F) features of the validation queries, by the current weights."""
        validation = self._setup.training_set.validation
        queries = validation.images if validation else ()
        self._setup.network.eval()
        out = run_backbone(self._setup.network, self._reader, queries, silent)
        return out.to(self._setup.device)

    def _images(self, step: Step) -> list[ImageRef]:
        training_set, seed = self._setup.training_set, self._setup.recipe.seed
        items = [
            replace(training_set.images[i], seed=(seed, int(view), int(i)))
            for i, view in zip(step.items, step.views, strict=True)
        ]
        return items + [training_set.anchors[i] for i in step.anchors]


Batches = CachedBatches | ImageBatches


def _source(ref: ImageRef) -> tuple[int, int]:
    """Identifies an image: an anchor may also be a training item."""
    return id(ref.dataset), ref.row
