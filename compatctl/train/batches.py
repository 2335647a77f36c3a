"""Backbone features of each step: from a cache (``train: head``) or from the images (``full``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.core.arrays import Rows
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.train.divided import Part, StepFeatures, divided_features, part_rows
from compatctl.train.features import Features, run_backbone
from compatctl.train.images import changed_views
from compatctl.train.items import ItemRef, Reader
from compatctl.train.network import Junction
from compatctl.train.setup import Setup

SAMPLE = 4096
"""Training items on which the features of a backbone that trains are standardised."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The rows of the training set in one step."""

    items: Rows
    """(B,) int64 training items"""
    views: Rows
    """(B,) int64: seeds of the images (full) or, modulo their number, cached views (head)"""


class CachedBatches:
    """Features of a frozen backbone: each image passes once, training images once per view."""

    def __init__(
        self,
        setup: Setup,
        reader: Reader,
        progress: Progress = silent,
        known: Features | None = None,
    ) -> None:
        training_set, recipe = setup.training_set, setup.recipe
        queries = training_set.validation.items if training_set.validation else ()
        originals = {_source(ref): ref for ref in training_set.items + queries}
        variants = changed_views(training_set.items, recipe)
        if known is None:
            images = [*originals.values(), *variants]
            self._table = run_backbone(setup.network, reader, images, progress, setup.processes)
        else:
            if known.backbone != recipe.backbone or known.base_sha256 != setup.base_match.sha256:
                raise InputError("the features are of another backbone, or of other weights")
            self._table = known.lookup([*originals.values()])
            if variants:
                changed = known.lookup_variants(variants, setup.network, reader, progress)
                self._table = torch.cat([self._table, changed])
        row_of = {source: row for row, source in enumerate(originals)}
        first = torch.tensor([row_of[_source(ref)] for ref in training_set.items])
        others = torch.arange(len(originals), len(self._table)).view(-1, len(first))
        self._rows = torch.cat([first[None], others])
        self._validation = self._table[[row_of[_source(ref)] for ref in queries]]
        self._device = setup.device

    def steps(self, steps: Sequence[Step]) -> Iterator[StepFeatures]:
        """float32 features (B, F) of each step's items, on the run's device.

        Each of several processes has those of the whole step.
        """
        for step in steps:
            views = torch.from_numpy(step.views % len(self._rows))
            rows = self._rows[views, torch.from_numpy(step.items)]
            yield StepFeatures(values=self._table[rows].to(self._device))

    def sample(self) -> Tensor:
        """(N, F) features of the training items as they are, on the CPU."""
        first = self._rows[0]
        # Training images come first, so this is a view unless one of them is there twice.
        if torch.equal(first, torch.arange(len(first))):
            return self._table[: len(first)]
        return self._table[first]

    def validation(self) -> Tensor:
        """(Q, F) features of the validation queries."""
        return self._validation.to(self._device)


class ItemBatches:
    """Features of a backbone that is trained: images are read and augmented in every step."""

    def __init__(self, setup: Setup, reader: Reader) -> None:
        self._setup = setup
        self._reader = reader

    def steps(self, steps: Sequence[Step]) -> Iterator[StepFeatures]:
        """As those of ``CachedBatches``, with gradient; divided as the recipe and processes say."""
        processes, size = self._setup.processes, self._setup.recipe.optimiser.micro_batch
        own = [part_rows(processes, len(step.items), size) for step in steps]
        images = ((self._images(step), parts) for step, parts in zip(steps, own, strict=True))
        reading = self._reader.batches([refs[part] for refs, parts in images for part in parts])
        for step, parts in zip(steps, own, strict=True):
            if processes.size == 1 and len(parts) == 1:
                yield StepFeatures(values=self._features(next(reading)))
                continue
            yield divided_features(
                [
                    Part(rows=rows, batch=next(reading), seed=int(step.views[rows.start]))
                    for rows in parts
                ],
                self._features,
                processes,
                shape=(len(step.items), self._width),
                weights=self._weights,
            )

    def sample(self) -> Tensor:
        """(n, F) features of ``SAMPLE`` training items, or of all, by the current weights."""
        images = self._setup.training_set.items
        chosen = np.random.default_rng(self._setup.recipe.seed).permutation(len(images))[:SAMPLE]
        return self._run([images[i] for i in chosen])

    def validation(self) -> Tensor:
        """(Q, F) features of the validation queries, by the current weights."""
        validation = self._setup.training_set.validation
        return self._run(validation.items if validation else ()).to(self._setup.device)

    def _features(self, batch: NDArray[Any]) -> Tensor:
        device, setup = self._setup.device, self._setup
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.amp):
            return setup.network.features(torch.from_numpy(batch).to(device))

    def _run(self, images: Sequence[ItemRef]) -> Tensor:
        setup = self._setup
        setup.network.eval()
        return run_backbone(setup.network, self._reader, images, silent, setup.processes)

    @property
    def _width(self) -> int:
        """F, as the junction takes it."""
        junction = self._setup.network.junction
        assert isinstance(junction, Junction)
        return len(junction.center)

    @property
    def _weights(self) -> list[nn.Parameter]:
        return [one for one in self._setup.network.backbone.parameters() if one.requires_grad]

    def _images(self, step: Step) -> list[ItemRef]:
        training_set, seed = self._setup.training_set, self._setup.recipe.seed
        return [
            replace(training_set.items[i], seed=(seed, int(view), int(i)))
            for i, view in zip(step.items, step.views, strict=True)
        ]


Batches = CachedBatches | ItemBatches


def _source(ref: ItemRef) -> tuple[int, int]:
    """Identifies an image: a validation query may be a rehearsed item, too."""
    return id(ref.dataset), ref.row
