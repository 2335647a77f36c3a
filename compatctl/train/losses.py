"""The loss, on torch tensors: B items of a batch, D dimensions, K classes; float32.

Sources: CVPR 2024 (arXiv 2405.02581); TPAMI 2026 (arXiv 2606.12488); the authors' code (repository
miccunifi/iamcl2r, ``src/iamcl2r/methods/hoc.py`` and ``er.py``).
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
    exp(0)); it may be negative, down to about ``log(B) - mu``. ``infonce`` is the equation of the
    paper and is never negative.

    Args:
        new: (B, D) unit rows that are trained.
        old: (B, D) unit rows of the same items, frozen.
        labels: (B,) int64 class codes.
        mu: inverse temperature, > 0 (10 in the papers).
        form: ``hoc`` or ``infonce``.

    Returns:
        A scalar, differentiable in ``new``.
    """
    scores = mu * old @ new.T
    own = scores.diagonal()
    same = labels[:, None] == labels[None, :]
    if form == "hoc":
        negatives = torch.where(same, torch.zeros_like(scores), scores)
    else:
        is_own = torch.eye(len(labels), dtype=torch.bool, device=new.device)
        negatives = scores.masked_fill(same & ~is_own, float("-inf"))
    return (torch.logsumexp(negatives, dim=1) - own).mean()


def logits(z: Tensor, rows: Tensor, scale: float | None) -> Tensor:
    """(B, K) class scores of raw features (B, D) against classifier rows (K, D).

    ``scale * cosine(z, w)``, or ``z . w`` as in the papers if ``scale`` is None.
    """
    if scale is None:
        return z @ rows.T
    return scale * functional.normalize(z) @ functional.normalize(rows).T


def pair_loss(new: Tensor, old: Tensor, scale: float) -> Tensor:
    """Cross-entropy in which each item is a class of its own, with its old feature as the row.

    Args:
        new: (B, D) unit rows that are trained.
        old: (B, D) unit rows of the same items, frozen.
        scale: scale of the softmax over cosines, > 0.

    Returns:
        A scalar in [0, log B + 2 scale].
    """
    return functional.cross_entropy(scale * new @ old.T, torch.arange(len(new), device=new.device))


def total_loss(
    *,
    z: Tensor,
    labels: Tensor,
    targets: Tensor,
    rows: Tensor,
    old: Tensor | None,
    weight: float,
    mu: float,
    form: Contrast,
    scale: float | None,
) -> Tensor:
    """``weight * CE + (1 - weight) * NCE``; ``weight`` is lambda, 1 for the cross-entropy alone.

    Args:
        z: (B, D) raw outputs of the junction.
        labels: (B,) int64 class codes, for the NCE.
        targets: (B,) int64 rows of ``rows``, for the CE; -1: the item has none and is left out.
        rows: (K, D) classifier rows.
        old: (B, D) unit rows, required unless ``weight`` is 1.
        weight, mu, form, scale: the recipe's lambda, mu, contrast and scale.
    """
    each = functional.cross_entropy(
        logits(z, rows, scale), targets, ignore_index=-1, reduction="sum"
    )
    entropy = each / (targets >= 0).sum().clamp_min(1)
    if weight == 1.0 or old is None:
        return entropy
    nce = contrastive_loss(functional.normalize(z), old, labels, mu, form)
    return weight * entropy + (1.0 - weight) * nce
