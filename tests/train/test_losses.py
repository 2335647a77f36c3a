"""Both forms of the contrastive loss, the pair loss and the total, against explicit loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compatctl.train import losses


def _unit(rng: np.random.Generator, n: int, d: int) -> torch.Tensor:
    rows = rng.standard_normal((n, d))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


def _loop(new: torch.Tensor, old: torch.Tensor, labels: list[int], mu: float, form: str) -> float:
    """The two formulas, term by term, in float64."""
    n, o = new.double().numpy(), old.double().numpy()
    total = 0.0
    for i, label in enumerate(labels):
        own = mu * float(o[i] @ n[i])
        others = sum(
            math.exp(mu * float(o[i] @ n[j])) for j, other in enumerate(labels) if other != label
        )
        same = sum(other == label for other in labels)
        start = same if form == "hoc" else math.exp(own)
        total += -own + math.log(start + others)
    return total / len(labels)


@pytest.mark.parametrize("form", ["hoc", "infonce"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6], [4] * 7])
def test_the_contrastive_loss_is_the_formula(form: losses.Contrast, labels: list[int]) -> None:
    """It equals the double loop for mixed classes, classes of one item, and a single class."""
    rng = np.random.default_rng(0)
    new, old = _unit(rng, 7, 5), _unit(rng, 7, 5)
    loss = losses.contrastive_loss(new, old, torch.tensor(labels), 10.0, form)
    assert float(loss) == pytest.approx(_loop(new, old, labels, 10.0, form), rel=1e-5, abs=1e-5)


def test_hoc_may_be_negative_and_infonce_not() -> None:
    """For features equal to the old ones hoc is near log(B) - mu, infonce above 0."""
    labels = torch.arange(16)
    old = torch.eye(16)
    assert float(losses.contrastive_loss(old, old, labels, 10.0, "hoc")) == pytest.approx(
        math.log(16) - 10.0, abs=1e-4
    )
    assert float(losses.contrastive_loss(old, old, labels, 10.0, "infonce")) > 0.0


def test_the_gradient_is_finite_in_a_batch_of_one_class() -> None:
    """Such a batch has no negatives, so every entry is masked."""
    new = torch.randn(4, 3, requires_grad=True)
    rows = new / new.norm(dim=1, keepdim=True)
    for form in ("hoc", "infonce"):
        torch.autograd.backward(
            losses.contrastive_loss(
                rows, _unit(np.random.default_rng(1), 4, 3), torch.zeros(4), 10.0, form
            ),
            retain_graph=True,
        )
        assert new.grad is not None
        assert torch.isfinite(new.grad).all()


@pytest.mark.parametrize("scale", [None, 16.0])
def test_lambda_weighs_the_cross_entropy(scale: float | None) -> None:
    """lambda CE + (1 - lambda) NCE, with CE written out; lambda 1 is CE alone."""
    rng = np.random.default_rng(2)
    z = torch.from_numpy(rng.standard_normal((6, 4))).float() * 3
    rows, old = _unit(rng, 5, 4), _unit(rng, 6, 4)
    labels = torch.tensor([0, 1, 1, 4, 2, 0])
    normed = z / z.norm(dim=1, keepdim=True)
    entropy = 0.0
    for i, label in enumerate(labels.tolist()):
        raw = z[i] if scale is None else normed[i] * scale
        scores = [float(raw @ row) for row in rows]
        entropy += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    entropy /= len(labels)
    nce = _loop(normed, old, labels.tolist(), 7.0, "hoc")
    for weight in (0.1, 1.0):
        loss = losses.total_loss(
            z=z,
            labels=labels,
            targets=labels,
            rows=rows,
            old=old,
            weight=weight,
            mu=7.0,
            form="hoc",
            scale=scale,
        )
        expected = weight * entropy + (1 - weight) * nce
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_items_without_a_row_train_by_the_contrast_alone() -> None:
    """The cross-entropy is the mean over the items that have a row; the NCE is over all."""
    rng = np.random.default_rng(4)
    z, rows, old = _unit(rng, 5, 4), _unit(rng, 3, 4), _unit(rng, 5, 4)
    labels, targets = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, -1, 2, -1, -1])
    settings = {"rows": rows, "mu": 7.0, "form": "infonce", "scale": 8.0}
    alone = losses.total_loss(
        z=z[[0, 2]],
        labels=labels[[0, 2]],
        targets=targets[[0, 2]],
        old=None,
        weight=1.0,
        **settings,
    )
    total = losses.total_loss(z=z, labels=labels, targets=targets, old=old, weight=0.25, **settings)
    nce = _loop(z, old, labels.tolist(), 7.0, "infonce")
    assert float(total) == pytest.approx(0.25 * float(alone) + 0.75 * nce, rel=1e-5)
    none = losses.total_loss(
        z=z, labels=labels, targets=torch.full((5,), -1), old=old, weight=0.25, **settings
    )
    assert float(none) == pytest.approx(0.75 * nce, rel=1e-5)


def test_each_pair_is_a_class_of_its_own() -> None:
    """The pair loss equals a loop over each item's softmax against all old features."""
    rng = np.random.default_rng(3)
    new, old = _unit(rng, 4, 5), _unit(rng, 4, 5)
    expected = 0.0
    for i in range(4):
        scores = [16.0 * float(new[i] @ row) for row in old]
        expected += math.log(sum(math.exp(score) for score in scores)) - scores[i]
    assert float(losses.pair_loss(new, old, 16.0)) == pytest.approx(expected / 4, rel=1e-5)
