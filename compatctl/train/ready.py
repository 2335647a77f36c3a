"""A base that exists as an encoder: its embeddings are at hand, and a head is trained on them.

Nothing of the encoder itself trains. The head becomes layers behind it, in its own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from compatctl.core.arrays import Vectors
from compatctl.errors import InputError
from compatctl.recipe import Augmentation
from compatctl.train.items import ItemRef
from compatctl.train.network import Junction, Network

BATCH = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyModel:
    """An encoder as a base.

    Attributes:
        sha256: the digest of its file.
        rows: (N, F) float32 unit rows, what it gives each item of the run.
        row_of: item id -> row.
    """

    sha256: str
    rows: Vectors
    row_of: Mapping[str, int]

    @property
    def width(self) -> int:
        """F."""
        return int(self.rows.shape[1])


class ReadyNetwork(Network):
    """A head alone: a batch is the encoder's embeddings (N, F)."""

    def __init__(self, junction: nn.Module) -> None:
        super().__init__(nn.Identity(), junction)

    def features(self, batch: Tensor) -> Tensor:
        return batch

    def with_junction(self, junction: Junction) -> Network:
        return ReadyNetwork(junction)


class ReadyReader:
    """Reads items from the encoder's embeddings."""

    batch_size = BATCH

    def __init__(self, model: ReadyModel, augmentation: Augmentation) -> None:
        self.augmentation = augmentation
        self._model = model

    def batches(self, batches: Sequence[Sequence[ItemRef]]) -> Iterator[Vectors]:
        """(B, F) float32 unit rows for each batch in order.

        Raises:
            InputError: the encoder did not embed an item.
        """
        for batch in batches:
            rows = [self._model.row_of.get(ref.id, -1) for ref in batch]
            if -1 in rows:
                raise InputError(f"{batch[rows.index(-1)].id} has no embedding of the base")
            yield self._model.rows[np.array(rows, np.int64)]
