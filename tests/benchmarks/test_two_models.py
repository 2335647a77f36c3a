"""Losses over the features of both models."""

from __future__ import annotations

import pytest
import torch

from benchmarks.common import two_models


def test_supcon_is_the_mean_over_class_mates() -> None:
    """Against a loop over anchors and their mates."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(6, 4))
    classes = torch.tensor([0, 0, 1, 1, 1, 0])
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = {j: float(two_models.SUPCON_SCALE * rows[i] @ rows[j]) for j in others}
        norm = float(torch.tensor(list(scores.values())).logsumexp(0))
        mates = [j for j in others if classes[j] == classes[i]]
        total += sum(norm - scores[j] for j in mates) / len(mates)
    assert float(two_models.supcon(rows, classes)) == pytest.approx(total / 6, rel=1e-4)


def test_class_mates_are_found_among_the_other_items() -> None:
    """Against a loop over the items that have a mate."""
    torch.manual_seed(0)
    scores, classes = torch.randn(5, 5), torch.tensor([0, 1, 0, 2, 0])
    total = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        mates = [j for j in others if classes[j] == classes[i]]
        if mates:
            total.append(float(scores[i, others].logsumexp(0) - scores[i, mates].logsumexp(0)))
    assert len(total) == 3
    found = two_models.class_mates(scores, classes)
    assert float(found) == pytest.approx(sum(total) / 3, rel=1e-5)
