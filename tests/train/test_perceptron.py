"""The small network from one model's features to another's: what it learns and what it refuses."""

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
    """Features of two models, of which the second sees what only products of the first tell."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, F))
    y = x[:, :D] * x[:, 1 : D + 1]
    return tuple((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32)
                 for one in (x, y))  # type: ignore[return-value]  # fmt: skip


def cosine(adapter: Any, x: Rows, y: Rows) -> float:
    """The mean cosine of answers and targets, by a loop."""
    return float(np.mean([a @ b for a, b in zip(adapter(x), y, strict=True)]))


def test_it_learns_what_no_linear_map_can() -> None:
    """On pairs that were not fitted it is far nearer to the target than any ridge map."""
    x, y = pairs()
    fitted = fit_perceptron(
        x[:300], y[:300], judge=lambda one: cosine(one, x[300:], y[300:]), hidden=128
    )
    linear = max(
        cosine(one, x[300:], y[300:]) for one in ridge(Moments.from_pairs(x[:300], y[:300]))
    )
    assert fitted.recall == pytest.approx(cosine(fitted.adapter, x[300:], y[300:]))
    assert fitted.recall > linear + 0.2
    assert fitted.adapter.hidden.shape == (10, 128)
    assert fitted.adapter.matrix.shape == (128, 6)


def test_the_first_best_epoch_is_kept() -> None:
    """The judge sees every epoch's map once; the map of the first best answer comes back."""
    x, y = pairs(n=40)
    answers, seen = iter([0.1, 0.5, 0.2, 0.5, 0.4]), []

    def judge(adapter: Perceptron) -> float:
        seen.append(adapter(x))
        return next(answers)

    fitted = fit_perceptron(x, y, judge=judge, hidden=8, epochs=5)
    assert (len(seen), fitted.epoch, fitted.recall) == (5, 2, 0.5)
    np.testing.assert_array_equal(fitted.adapter(x), seen[1])
    assert not np.array_equal(seen[1], seen[3])


def test_the_seed_decides_and_torchs_own_generator_is_left_alone() -> None:
    """Equal seeds give equal numbers whatever was drawn before; another seed gives others."""
    x, y = pairs(n=50)
    made = []
    for seed in (1, 1, 2):
        torch.rand(3)
        before = torch.get_rng_state()
        made.append(fit_perceptron(x, y, judge=lambda _: 0.0, hidden=8, epochs=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(made[0].adapter.matrix, made[1].adapter.matrix)
    assert not np.array_equal(made[0].adapter.matrix, made[2].adapter.matrix)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_few_pairs_are_fitted_too(n: int) -> None:
    """One pair, two, and a last batch that is smaller: finite unit answers."""
    x, y = pairs(n=n)
    fitted = fit_perceptron(x, y, judge=lambda _: 0.0, hidden=8, epochs=2)
    np.testing.assert_allclose(np.linalg.norm(fitted.adapter(x), axis=1), 1.0, atol=1e-5)


def test_what_is_no_pairs_is_refused() -> None:
    """No pair, other lengths, and values that are not finite."""
    x, y = pairs(n=5)
    for source, target in ((x[:0], y[:0]), (x[:4], y), (x * np.nan, y), (x, y * np.inf)):
        with pytest.raises(InputError, match="an adapter needs"):
            fit_perceptron(source, target, judge=lambda _: 0.0)
