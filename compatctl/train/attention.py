"""Attention to the anchors: the encoder holds what the gallery holds of them.

A query's feature is the junction's answer plus the mean of the anchors' stored vectors, weighed by
how near the query is to each anchor in the new backbone's eyes; the keys by which it is near are
learned with the junction. Sources: Vinyals et al., "Matching Networks for One Shot Learning" (NIPS
2016, arXiv 1606.04080), whose support set is the anchors here and whose labels are their stored
vectors; as a regression, Nadaraya (Theory of Probability and Its Applications 9, 1964).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE = 16.0
"""Of the softmax over cosines of keys, when training begins; it is learned."""


class Attention(nn.Module):
    """S anchors with F backbone features and D stored numbers each, compared by K numbers.

    ``features`` are needed while the keys are trained, and are no part of the state.
    """

    features: Tensor
    stored: Tensor
    keys: Tensor

    def __init__(self, features: Tensor, stored: Tensor, key_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(features.shape[1], key_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.log_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("stored", stored)
        self.register_buffer("keys", torch.zeros(len(features), key_dim))

    def forward(self, z: Tensor, features: Tensor) -> Tensor:
        """(N, D) for the junction's answers ``z`` (N, D) to backbone features (N, F)."""
        return self._sum(z, self._scores(features, self.keys), self.stored)

    def forward_training(self, z: Tensor, features: Tensor, slots: Tensor, own: Tensor) -> Tensor:
        """``forward`` with the keys of the anchors ``slots`` (M,) alone, as they are being learned.

        ``own`` (N,) int64: which of the slots is the row's own image, which it may not attend to;
        -1: none.
        """
        scores = self._scores(features, self._keys(self.features[slots]))
        itself = own[:, None] == torch.arange(len(slots), device=own.device)
        return self._sum(z, scores.masked_fill(itself, -1e4), self.stored[slots])

    def refresh(self) -> None:
        """Compute the keys that ``forward`` uses anew."""
        with torch.no_grad():
            self.keys.copy_(self._keys(self.features))

    def drop_features(self) -> None:
        """Let go of what only training needs."""
        self.features = self.features.new_zeros((0, self.features.shape[1]))

    def _keys(self, features: Tensor) -> Tensor:
        return functional.normalize(self.key(features))

    def _scores(self, features: Tensor, keys: Tensor) -> Tensor:
        return self.log_scale.exp() * self._keys(features) @ keys.T

    def _sum(self, z: Tensor, scores: Tensor, stored: Tensor) -> Tensor:
        found = functional.normalize(scores.softmax(dim=1) @ stored)
        return functional.normalize(z) + self.log_weight.exp() * found
