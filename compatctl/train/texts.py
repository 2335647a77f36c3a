"""A text model on disk whose network trains: its tokens, its pooling, its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.data import Content, Role
from compatctl.errors import InputError
from compatctl.recipe import Augmentation
from compatctl.train.items import ItemRef
from compatctl.train.network import Junction, Network, unit

BATCH = 256
CHUNK = 32
"""Texts that pass at once: neighbours in length, so that little of it is padding."""

Tokens = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
    """A text model as a base.

    Attributes:
        model: int64 ids and mask (N, L) to the vectors of the tokens (N, L, F); it trains in place.
        pooling: of the vectors of a text's tokens: mean, cls, max or last.
        tokens: the ids (L,) of an item's text, in its role.
        stack: the ids (N, L) of several texts, padded with -1.
        sha256: the digest of its weights.
    """

    model: nn.Module
    pooling: str
    tokens: Callable[[Content, Role | None], Tokens]
    stack: Callable[[Sequence[Tokens]], Tokens]
    sha256: str

    @property
    def width(self) -> int:
        """F, measured on one token."""
        ids = torch.zeros((1, 1), dtype=torch.int64)
        with torch.no_grad():
            return int(self.model(ids, torch.ones_like(ids)).shape[-1])


class TextNetwork(Network):
    """Embeds token ids (N, L), padded with -1; the features are unit rows of pooled tokens."""

    def __init__(self, backbone: nn.Module, pooling: str, junction: nn.Module) -> None:
        super().__init__(backbone, junction)
        self.pooling = pooling

    def features(self, batch: Tensor) -> Tensor:
        lengths = (batch >= 0).sum(1)
        order = lengths.argsort()
        chunks = [
            self._pooled(batch[rows, : lengths[rows[-1]]]) for rows in torch.split(order, CHUNK)
        ]
        return torch.cat(chunks)[order.argsort()]

    def _pooled(self, ids: Tensor) -> Tensor:
        mask = ids >= 0
        hidden = self.backbone(ids.clamp_min(0), mask.long()).float()
        return unit(pool(hidden, mask, self.pooling))

    def with_junction(self, junction: Junction) -> Network:
        return TextNetwork(self.backbone, self.pooling, junction)


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(N, F) of the vectors of tokens (N, L, F); ``mask`` (N, L) says which are tokens.

    Tokens come first in each row, and every row has one.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if pooling == "max":
        return hidden.masked_fill(~mask[..., None], float("-inf")).amax(1)
    weights = mask.float() / mask.sum(1, keepdim=True)
    return (hidden * weights[..., None]).sum(1)


class TextReader:
    """Reads texts as token ids."""

    batch_size = BATCH

    def __init__(self, model: TextModel, augmentation: Augmentation) -> None:
        self.augmentation = augmentation
        self._model = model

    def batches(self, batches: Sequence[Sequence[ItemRef]]) -> Iterator[Tokens]:
        """(B, L) int64 for each batch in order, padded with -1.

        Raises:
            InputError: a text cannot be read or has no token; the message names its item.
        """
        for batch in batches:
            yield self._model.stack([self._read(ref) for ref in batch])

    def _read(self, ref: ItemRef) -> Tokens:
        content, _ = ref.dataset.content_hashed(ref.row)
        try:
            return self._model.tokens(content, ref.dataset.items[ref.row].role)
        except InputError as error:
            raise InputError(f"{ref.id}: {error.message}", tip=error.tip) from None
