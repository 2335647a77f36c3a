"""What the frozen backbone makes of images: one pass serves every head that is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.recipe import Augmentation, Backbone, InputSpec, Recipe
from compatctl.train.images import ImageReader, ImageRef
from compatctl.train.network import Network, unit
from compatctl.train.setup import default_device, isolated_rng, make_network

BATCH_PIXELS = 32 * 160 * 160
"""Pixels of one inference batch: larger ones spend their time on memory (measured: three times
slower an image at twice the size)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The backbone's answers to unchanged images, F numbers each."""

    backbone: Backbone
    base_sha256: str | None
    """With ``backbone``: whose answers they are."""
    row_of: dict[str, int]
    """Digest of an image -> row of ``table``"""
    table: Tensor
    """(N, F) float32, on the CPU"""

    @classmethod
    def extract(
        cls,
        recipe: Recipe,
        base: Path | None,
        data: Dataset,
        rows: Sequence[int],
        progress: Progress = silent,
    ) -> Features:
        """One pass of the recipe's backbone, with the weights of ``base``, over rows of the data.

        Raises:
            InputError: see ``make_backbone`` and ``load_base``; an image does not decode.
        """
        device = default_device()
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(data.digest(row), row)
        with isolated_rng(device), ImageReader(recipe.backbone.input, Augmentation()) as reader:
            network, match = make_network(recipe, base, 1)
            images = [ImageRef(dataset=data, row=row) for row in first.values()]
            table = run_backbone(network.to(device), reader, images, progress)
        return cls(
            backbone=recipe.backbone,
            base_sha256=match.sha256,
            row_of={digest: at for at, digest in enumerate(first)},
            table=table,
        )

    def lookup(self, images: Sequence[ImageRef]) -> Tensor:
        """(n, F) float32 features of unchanged images.

        Raises:
            InputError: one of them did not go through the backbone.
        """
        found = [self.row_of.get(one.dataset.digest(one.row)) for one in images]
        lacking = [one for one, row in zip(images, found, strict=True) if row is None]
        if lacking:
            name = lacking[0].dataset.ids[lacking[0].row]
            raise InputError(f"{len(lacking)} images have no features, {name} the first")
        return self.table[torch.tensor(found, dtype=torch.long)]

    def embed(self, network: Network, data: Dataset, rows: Sequence[int]) -> NDArray[np.float32]:
        """(n, D) float32 unit rows: what a network on this backbone makes of rows of the data."""
        images = [ImageRef(dataset=data, row=row) for row in rows]
        network.cpu().eval()
        with torch.no_grad():
            out: NDArray[np.float32] = unit(network.project(self.lookup(images))).numpy()
        return out


def run_backbone(
    network: Network, reader: ImageReader, images: Sequence[ImageRef], progress: Progress
) -> Tensor:
    """(N, F) float32 features on the CPU, without gradient; the network stays where it is."""
    spec: InputSpec = reader.spec
    device = network.mean.device
    size = min(256, max(1, BATCH_PIXELS // (spec.height * spec.width)))
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    done: list[Tensor] = []
    with torch.no_grad():
        for pixels in reader.batches(batches):
            done.append(network.features(torch.from_numpy(pixels).to(device)).float().cpu())
            progress("backbone", min(len(done) * size, len(images)), len(images))
    return torch.cat(done) if done else torch.zeros(0, 0)
