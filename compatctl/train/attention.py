"""Attention to anchors: the encoder contains the stored vectors of anchors and attends to them.

A query's embedding is the junction's output plus a weighted mean of the anchors' stored vectors.
The weights are a softmax over cosines of keys, which are computed from backbone features and
learned with the junction. Sources: Vinyals et al., "Matching Networks for One Shot Learning" (NIPS
2016, arXiv 1606.04080), with the anchors as support set and their stored vectors as labels; as a
regression, Nadaraya (Theory of Probability and Its Applications 9, 1964).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE = 16.0
"""Initial scale of the softmax over cosines of keys; it is learned."""


class Attention(nn.Module):
    """S anchors: backbone features (S, F), stored vectors (S, D), keys (S, ``key_dim``).

    Only training needs ``features``; they are not part of the state dict.
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
        """(N, D) from the junction's outputs ``z`` (N, D) for backbone features (N, F)."""
        return self._attend(z, self._scores(features, self.keys), self.stored)

    def forward_training(self, z: Tensor, features: Tensor, slots: Tensor, own: Tensor) -> Tensor:
        """``forward`` with only the anchors ``slots`` (M,), whose keys get gradients.

        ``own`` (N,) int64: the slot that holds the row's own image, which is masked; -1: none.
        """
        scores = self._scores(features, self._keys(self.features[slots]))
        is_own = own[:, None] == torch.arange(len(slots), device=own.device)
        return self._attend(z, scores.masked_fill(is_own, -1e4), self.stored[slots])

    def refresh(self) -> None:
        """Recompute the keys that ``forward`` uses."""
        with torch.no_grad():
            self.keys.copy_(self._keys(self.features))

    def drop_features(self) -> None:
        """Drop the backbone features, which only training needs."""
        self.features = self.features.new_zeros((0, self.features.shape[1]))

    def _keys(self, features: Tensor) -> Tensor:
        return functional.normalize(self.key(features))

    def _scores(self, features: Tensor, keys: Tensor) -> Tensor:
        return self.log_scale.exp() * self._keys(features) @ keys.T

    def _attend(self, z: Tensor, scores: Tensor, stored: Tensor) -> Tensor:
        mean = functional.normalize(scores.softmax(dim=1) @ stored)
        return functional.normalize(z) + self.log_weight.exp() * mean
