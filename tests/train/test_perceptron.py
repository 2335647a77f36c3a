"""The mlp adapter: what it learns, and which pairs it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compatctl.core.adapters import Moments, Perceptron, ridge
from compatctl.errors import InputError
from compatctl.train import fit_perceptron

torch.set_num_threads(1)
Rows = NDArray[Any]


def pairs(n: int = 400, F: int = 10, D: int = 6) -> tuple[Rows, Rows]:
    """Features of two models: the second's are products of the first's, which no matrix gives."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, F))
    y = x[:, :D] * x[:, 1 : D + 1]
    return tuple((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
                 for rows in (x, y))  # type: ignore[return-value]  # fmt: skip


def cosine(adapter: Any, x: Rows, y: Rows) -> float:
    """Mean cosine of adapted rows and targets, by a loop."""
    return float(np.mean([a @ b for a, b in zip(adapter(x), y, strict=True)]))


def test_it_learns_what_no_linear_map_can() -> None:
    """On held-out pairs it is much nearer to the target than any ridge adapter."""
    x, y = pairs()
    fitted = fit_perceptron(
        x[:300], y[:300], judge=lambda adapter: cosine(adapter, x[300:], y[300:]), hidden=128
    )
    linear = max(
        cosine(adapter, x[300:], y[300:]) for adapter in ridge(Moments.from_pairs(x[:300], y[:300]))
    )
    assert fitted.hit_rate == pytest.approx(cosine(fitted.adapter, x[300:], y[300:]))
    assert fitted.hit_rate > linear + 0.2
    assert fitted.adapter.hidden.shape == (10, 128)
    assert fitted.adapter.matrix.shape == (128, 6)


def test_the_first_best_epoch_is_kept() -> None:
    """Every epoch's adapter is judged once; the first of the best is returned."""
    x, y = pairs(n=40)
    hit_rates, adapted = iter([0.1, 0.5, 0.2, 0.5, 0.4]), []

    def judge(adapter: Perceptron) -> float:
        adapted.append(adapter(x))
        return next(hit_rates)

    fitted = fit_perceptron(x, y, judge=judge, hidden=8, epochs=5)
    assert (len(adapted), fitted.epoch, fitted.hit_rate) == (5, 2, 0.5)
    np.testing.assert_array_equal(fitted.adapter(x), adapted[1])
    assert not np.array_equal(adapted[1], adapted[3])


def test_the_seed_decides_and_torchs_global_generator_is_not_used() -> None:
    """Equal seeds give equal adapters whatever was drawn before; another seed another one."""
    x, y = pairs(n=50)
    fitted = []
    for seed in (1, 1, 2):
        torch.rand(3)
        before = torch.get_rng_state()
        fitted.append(fit_perceptron(x, y, judge=lambda _: 0.0, hidden=8, epochs=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(fitted[0].adapter.matrix, fitted[1].adapter.matrix)
    assert not np.array_equal(fitted[0].adapter.matrix, fitted[2].adapter.matrix)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_few_pairs_suffice(n: int) -> None:
    """One pair, two pairs and a smaller last batch give unit rows."""
    x, y = pairs(n=n)
    fitted = fit_perceptron(x, y, judge=lambda _: 0.0, hidden=8, epochs=2)
    np.testing.assert_allclose(np.linalg.norm(fitted.adapter(x), axis=1), 1.0, atol=1e-5)


def test_arrays_that_are_no_pairs_are_refused() -> None:
    """No pairs, different lengths, and values that are not finite."""
    x, y = pairs(n=5)
    for source, target in ((x[:0], y[:0]), (x[:4], y), (x * np.nan, y), (x, y * np.inf)):
        with pytest.raises(InputError, match="an adapter needs"):
            fit_perceptron(source, target, judge=lambda _: 0.0)
