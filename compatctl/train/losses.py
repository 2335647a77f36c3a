"""The terms of the loss, on torch tensors.

Sources: CVPR 2024 (arXiv 2405.02581); TPAMI 2026 (arXiv 2606.12488); the authors' code (repository
miccunifi/iamcl2r, ``src/iamcl2r/methods/hoc.py`` and ``er.py`` beside it). All shapes: B
items of a batch, D dimensions, K classes; features are unit rows, float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Contrast = Literal["hoc", "infonce"]


def contrastive_loss(new: Tensor, old: Tensor, labels: Tensor, mu: float, form: Contrast) -> Tensor:
    """The higher-order term: each new feature against the old features of the batch, averaged.

    With ``s_ij = mu * old_i . new_j``, y the class and ``m_i = #{j : y_j = y_i}``:

        hoc      L_i = -s_ii + log(m_i + sum over j of another class of exp(s_ij))
        infonce  L_i = -s_ii + log(exp(s_ii) + sum over j of another class of exp(s_ij))

    ``hoc`` is what the authors' code computes (a masked entry is multiplied by 0 and still adds
    exp(0)), so it may be negative: its floor is about ``log(B) - mu``. ``infonce`` is the equation
    of the paper and is never negative.

    Args:
        new: (B, D) unit rows that are trained.
        old: (B, D) unit rows of the same items, frozen.
        labels: (B,) int64 class codes.
        mu: inverse temperature, > 0 (10 in the papers).
        form: which of the two.

    Returns:
        A scalar, differentiable in ``new``.
    """
    scores = mu * old @ new.T
    own = scores.diagonal()
    same = labels[:, None] == labels[None, :]
    if form == "hoc":
        kept = torch.where(same, torch.zeros_like(scores), scores)
    else:
        kept = scores.masked_fill(same, float("-inf"))
        kept = torch.where(
            torch.eye(len(labels), dtype=torch.bool, device=new.device), scores, kept
        )
    return (torch.logsumexp(kept, dim=1) - own).mean()


def logits(z: Tensor, rows: Tensor, scale: float | None) -> Tensor:
    """(B, K) class scores of raw features (B, D) against classifier rows (K, D).

    ``scale`` null: ``z . w``, as in the papers. Else ``scale * cosine(z, w)``.
    """
    if scale is None:
        return z @ rows.T
    return scale * functional.normalize(z) @ functional.normalize(rows).T


def anchor_loss(new: Tensor, stored: Tensor, own: Tensor, scale: float) -> Tensor:
    """Cross-entropy in which every anchor is its own class and its stored vector the frozen row.

    Args:
        new: (B, D) unit rows: the anchors as the trained network sees them.
        stored: (R, D) unit rows of the deployed gallery, theirs among them.
        own: (B,) int64: which row of ``stored`` is whose.
        scale: of the softmax over cosines, > 0.

    Returns:
        A scalar in [0, log R + 2 scale].
    """
    return functional.cross_entropy(scale * new @ stored.T, own)


def total_loss(
    *,
    z: Tensor,
    labels: Tensor,
    rows: Tensor,
    old: Tensor | None,
    weight: float,
    mu: float,
    form: Contrast,
    scale: float | None,
) -> Tensor:
    """``weight * CE + (1 - weight) * NCE``; ``weight`` is lambda, and 1 is the cross-entropy alone.

    ``z`` (B, D) raw outputs of the junction, ``labels`` (B,) int64 rows of ``rows`` (K, D), ``old``
    (B, D) unit rows, needed unless ``weight`` is 1.
    """
    entropy = functional.cross_entropy(logits(z, rows, scale), labels)
    if weight == 1.0 or old is None:
        return entropy
    nce = contrastive_loss(functional.normalize(z), old, labels, mu, form)
    return weight * entropy + (1.0 - weight) * nce
