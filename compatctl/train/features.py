"""Features of a frozen backbone: one pass over the images serves every head trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.processes import ALONE, Processes
from compatctl.progress import Progress, silent
from compatctl.recipe import Augmentation, Backbone, Recipe
from compatctl.train.images import changed_views
from compatctl.train.items import ItemRef, Reader
from compatctl.train.network import Network, unit
from compatctl.train.process_group import fill
from compatctl.train.setup import default_device, isolated_rng, make_network, open_reader

_Variant = tuple[str, tuple[int, ...] | None, Augmentation]
"""Digest of the image, seed of the change, and what may change"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The backbone's features of images, and of variants of images that heads were trained on."""

    backbone: Backbone
    base_sha256: str | None
    """sha256 of the weights; with ``backbone`` it identifies the network"""
    row_of: dict[str, int]
    """Digest of an image -> row of ``table``"""
    table: Tensor
    """(N, F) float32, on the CPU"""
    variants: dict[_Variant, Tensor] = field(default_factory=dict)
    """(F,) each; ``lookup_variants`` adds to them, so that the next head finds them"""

    @classmethod
    def extract(
        cls,
        recipe: Recipe,
        base: Path | None,
        data: Dataset,
        rows: Sequence[int],
        progress: Progress = silent,
        *,
        training: Sequence[int] = (),
    ) -> Features:
        """Run the recipe's backbone, with the weights of ``base``, over rows of the data.

        ``training``: of these rows, those whose variants heads will train on.

        Raises:
            InputError: see ``make_backbone`` and ``load_base``; an image does not decode.
        """
        device = default_device()
        row_by_digest: dict[str, int] = {}
        for row in rows:
            row_by_digest.setdefault(data.digest(row), row)
        with (
            isolated_rng(device),
            open_reader(recipe, base) as reader,
        ):
            network, match = make_network(recipe, base, 1)
            images = [ItemRef(dataset=data, row=row) for row in row_by_digest.values()]
            features = cls(
                backbone=recipe.image_backbone,
                base_sha256=match.sha256,
                row_of={digest: i for i, digest in enumerate(row_by_digest)},
                table=run_backbone(network.to(device), reader, images, progress),
            )
            trained = [ItemRef(dataset=data, row=row) for row in training]
            if variants := changed_views(trained, recipe):
                features.lookup_variants(variants, network, reader, progress)
        return features

    def lookup(self, images: Sequence[ItemRef]) -> Tensor:
        """(n, F) float32 features of images.

        Raises:
            InputError: an image did not pass through the backbone.
        """
        rows = [self.row_of.get(ref.digest) for ref in images]
        missing = [ref for ref, row in zip(images, rows, strict=True) if row is None]
        if missing:
            raise InputError(f"{len(missing)} images have no features, such as {missing[0].id}")
        return self.table[torch.tensor(rows, dtype=torch.long)]

    def lookup_variants(
        self,
        images: Sequence[ItemRef],
        network: Network,
        reader: Reader,
        progress: Progress = silent,
    ) -> Tensor:
        """(n, F) float32 features of variants of images; ``network`` runs over unknown ones."""
        keys = [(ref.digest, ref.seed, reader.augmentation) for ref in images]
        unknown = {k: ref for k, ref in zip(keys, images, strict=True) if k not in self.variants}
        if unknown:
            table = run_backbone(network, reader, [*unknown.values()], progress)
            self.variants.update(zip(unknown, table.unbind(), strict=True))
        return torch.stack([self.variants[key] for key in keys])

    def embed(self, network: Network, data: Dataset, rows: Sequence[int]) -> NDArray[np.float32]:
        """(n, D) float32 unit rows: rows of the data, embedded by a network on this backbone."""
        images = [ItemRef(dataset=data, row=row) for row in rows]
        network.cpu().eval()
        with torch.no_grad():
            out: NDArray[np.float32] = unit(network.project(self.lookup(images))).numpy()
        return out


def run_backbone(
    network: Network,
    reader: Reader,
    images: Sequence[ItemRef],
    progress: Progress,
    processes: Processes = ALONE,
) -> Tensor:
    """(N, F) float32 features on the CPU, without gradient; the network stays on its device.

    Each of several processes runs a share of the batches, and all get the whole table.
    """
    size = reader.batch_size
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    shares = [processes.share(len(batches), rank) for rank in range(processes.size)]
    rows = [slice(part.start * size, min(part.stop * size, len(images))) for part in shares]
    own, part = rows[processes.rank], batches[shares[processes.rank]]

    def run() -> Tensor:
        return _run(network, reader, part, own, len(images), progress)

    table = processes.agree(run)
    if processes.size > 1:
        width = max(processes.exchange(table.shape[1]))
        table = table if table.shape[1] else torch.empty(len(images), width)
        fill(processes, table, rows)
    return table


def _run(  # noqa: PLR0917
    network: Network,
    reader: Reader,
    batches: Sequence[Sequence[ItemRef]],
    rows: slice,
    total: int,
    progress: Progress,
) -> Tensor:
    """A table (N, F) with ``rows`` filled by the batches; (0, 0) without any."""
    table, done = torch.zeros(0, 0), rows.start
    with torch.no_grad():
        for batch in reader.batches(batches):
            features = network.features(torch.from_numpy(batch).to(network.device)).float().cpu()
            if done == rows.start:
                table = torch.empty(total, features.shape[1])
            table[done : done + len(features)] = features
            done += len(features)
            progress("backbone", done - rows.start, rows.stop - rows.start)
    return table
