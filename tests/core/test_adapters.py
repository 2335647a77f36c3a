"""Adapters between two models' features, against lstsq, explicit loops and known rotations."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.adapters import (
    STRENGTHS,
    Affine,
    Moments,
    Perceptron,
    low_rank,
    orthogonal,
    ridge,
)
from compatctl.errors import InputError


def unit_rows(rng, n, d):
    """(n, d) random unit rows around a common direction, as features are."""
    rows = rng.standard_normal((n, d)) + np.linspace(0.0, 2.0, d)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def turn(rng, F, D):
    """(F, D) random with orthonormal columns (F >= D) or rows."""
    full = np.linalg.qr(rng.standard_normal((max(F, D), max(F, D))))[0]
    return full[:F, :D]


def noisy_pairs(seed=0, n=200, F=7, D=5):
    """Pairs of which no map makes one out of the other."""
    rng = np.random.default_rng(seed)
    x = unit_rows(rng, n, F)
    y = x @ rng.standard_normal((F, D)) + 0.3 * rng.standard_normal((n, D))
    return x, y.astype(np.float32)


def by_lstsq(x, y, penalty):
    """Ridge with a free bias: least squares with a row of sqrt(penalty) for each number."""
    F = x.shape[1]
    ones = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
    rows = np.vstack([ones, np.hstack([np.sqrt(penalty) * np.eye(F), np.zeros((F, 1))])])
    expected = np.vstack([y.astype(np.float64), np.zeros((F, y.shape[1]))])
    result = np.linalg.lstsq(rows, expected, rcond=None)[0]
    return result[:F], result[F]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_moments_equal_loops_whatever_the_block(block):
    """The sums equal those of a loop over pairs, for any block size."""
    x, y = noisy_pairs(n=50)
    result = Moments.from_pairs(x, y, block=block)
    inner, cross = np.zeros((7, 7)), np.zeros((7, 5))
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        inner += np.outer(a, a)
        cross += np.outer(a, b)
    assert result.n == 50
    np.testing.assert_allclose(result.inner, inner, rtol=1e-12)
    np.testing.assert_allclose(result.cross, cross, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.source_mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(result.target_mean, y.mean(axis=0, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((0, 3)), np.ones((0, 2))),
        (np.ones((4, 3)), np.ones((3, 2))),
        (np.ones(3), np.ones((3, 2))),
        (np.ones((3, 0)), np.ones((3, 2))),
        (np.full((3, 2), np.nan), np.ones((3, 2))),
        (np.ones((3, 2)), np.full((3, 2), np.nan)),
    ],
)
def test_arrays_that_are_not_pairs_are_refused(x, y):
    """Empty input, different lengths, other shapes and NaN are refused."""
    with pytest.raises(InputError, match="a map needs"):
        Moments.from_pairs(x.astype(np.float32), y.astype(np.float32))


@pytest.mark.parametrize(("F", "D"), [(6, 6), (4, 6)])
def test_a_known_rotation_is_recovered(F, D):
    """The rotation is recovered between equal dimensions and into more dimensions."""
    rng = np.random.default_rng(1)
    x, rotation = unit_rows(rng, 100, F), turn(rng, F, D)
    result = orthogonal(Moments.from_pairs(x, x @ rotation))
    np.testing.assert_allclose(result.matrix, rotation, atol=1e-5)
    assert not result.bias.any()
    np.testing.assert_allclose(result(x), x @ rotation, atol=1e-5)


@pytest.mark.parametrize(("F", "D"), [(6, 6), (4, 6), (6, 4)])
def test_the_orthogonal_map_is_the_best_orthogonal_one(F, D):
    """No other of 300 orthogonal maps has a larger sum of x A . y; if lengths are kept, none has a
    smaller squared error."""
    rng = np.random.default_rng(2)
    x, y = noisy_pairs(F=F, D=D)
    A = orthogonal(Moments.from_pairs(x, y)).matrix.astype(np.float64)
    small = A.T @ A if F >= D else A @ A.T
    np.testing.assert_allclose(small, np.eye(min(F, D)), atol=1e-6)

    def product(A):
        return sum(float(a @ A @ b) for a, b in zip(x, y, strict=True))

    def error(A):
        return float(((x @ A - y) ** 2).sum())

    for size in (1e-2, 1e-1, 10.0):
        for _ in range(100):
            left, _, right = np.linalg.svd(
                A + size * rng.standard_normal((F, D)), full_matrices=False
            )
            assert product(left @ right) <= product(A) + 1e-5
            if F <= D:
                assert error(left @ right) >= error(A) - 1e-5


@pytest.mark.parametrize(("n", "F", "D"), [(200, 7, 5), (200, 4, 9), (6, 12, 3)])
def test_ridge_equals_lstsq(n, F, D):
    """Every strength equals least squares with penalty rows, also with fewer pairs than dimensions;
    the bias is not penalised."""
    x, y = noisy_pairs(n=n, F=F, D=D)
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    unit = sum(float(row @ row) for row in centred) / F
    for strength, result in zip(STRENGTHS, ridge(Moments.from_pairs(x, y)), strict=True):
        matrix, bias = by_lstsq(x, y, strength * unit)
        np.testing.assert_allclose(result.matrix, matrix, atol=1e-5)
        np.testing.assert_allclose(result.bias, bias, atol=1e-5)
        raw = x @ matrix + bias
        unit_raw = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(result(x), unit_raw, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 50])
def test_sources_that_do_not_vary_give_the_mean_target(n):
    """With one pair, or pairs of one source, the map returns the mean target."""
    rng = np.random.default_rng(3)
    x, y = np.repeat(unit_rows(rng, 1, 6), n, axis=0), unit_rows(rng, n, 4)
    mean = y.mean(axis=0) / np.linalg.norm(y.mean(axis=0))
    for result in ridge(Moments.from_pairs(x, y)):
        np.testing.assert_allclose(result(x), np.tile(mean, (n, 1)), atol=1e-4)


def test_a_low_rank_map_has_its_rank_and_the_least_error():
    """A map of rank r has r singular values, keeps the mean, and is the closest of its rank to the
    full map."""
    rng = np.random.default_rng(4)
    x, y = noisy_pairs(F=8, D=6)
    moments = Moments.from_pairs(x, y)
    (full,) = ridge(moments, (0.1,))
    answers = x @ full.matrix + full.bias
    for rank, cut in zip((1, 2, 5, 6), low_rank(moments, full, (1, 2, 5, 6)), strict=True):
        values = np.linalg.svd(cut.matrix.astype(np.float64), compute_uv=False)
        assert (values > 1e-5).sum() == rank
        actual = x @ cut.matrix + cut.bias
        np.testing.assert_allclose(actual.mean(axis=0), y.mean(axis=0), atol=1e-5)
        lost = float(((actual - answers) ** 2).sum())
        spread = np.linalg.svd(answers - answers.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(lost, float((spread[rank:] ** 2).sum()), rtol=1e-2, atol=1e-6)
        for _ in range(50):
            kept = turn(rng, 6, rank)
            other = (answers - answers.mean(axis=0)) @ kept @ kept.T + answers.mean(axis=0)
            assert ((other - answers) ** 2).sum() >= lost - 1e-4


def test_the_true_rank_loses_nothing():
    """Targets of two directions are recovered at rank 2, and not at rank 1."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 7)).astype(np.float32)
    y = x @ rng.normal(size=(7, 2)) @ rng.normal(size=(2, 5))
    moments = Moments.from_pairs(x, y)
    (full,) = ridge(moments, (1e-6,))
    first, two = low_rank(moments, full, (1, 2))
    np.testing.assert_allclose(two(x), full(x), atol=1e-3)
    assert np.abs(first(x) - full(x)).max() > 0.1


def test_invalid_strengths_and_ranks_are_refused():
    """Strengths of at most 0, ranks out of range and empty sequences are refused."""
    moments = Moments.from_pairs(*noisy_pairs(F=7, D=5))
    (full,) = ridge(moments, (1.0,))
    for strengths in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(InputError, match="above 0"):
            ridge(moments, strengths)
    for ranks in ((), (0,), (2, 6)):
        with pytest.raises(InputError, match="between 1 and 5"):
            low_rank(moments, full, ranks)


def test_maps_equal_a_loop_over_rows_and_layers():
    """An affine map and a perceptron equal their formulas row by row; a zero row stays zero."""
    rng = np.random.default_rng(5)
    x = unit_rows(rng, 20, 4)
    first = Affine(matrix=_random(rng, 4, 3), bias=_random(rng, 3))
    two = Perceptron(
        hidden=_random(rng, 4, 6),
        hidden_bias=_random(rng, 6),
        matrix=_random(rng, 6, 3),
        bias=_random(rng, 3),
    )
    for row, affine, deep in zip(x, first(x), two(x), strict=True):
        raw = row @ first.matrix + first.bias
        np.testing.assert_allclose(affine, raw / np.linalg.norm(raw), atol=1e-6)
        inner = np.array([max(0.0, value) for value in row @ two.hidden + two.hidden_bias])
        raw = inner @ two.matrix + two.bias
        np.testing.assert_allclose(deep, raw / np.linalg.norm(raw), atol=1e-6)
    nothing = Affine(matrix=np.zeros((4, 3), np.float32), bias=np.zeros(3, np.float32))
    assert not nothing(x).any()


def test_blocks_of_rows_do_not_change_the_map():
    """Rows at the edges of a block are mapped as alone."""
    rng = np.random.default_rng(6)
    x = unit_rows(rng, 2 * 4096 + 3, 4)
    first = Affine(matrix=_random(rng, 4, 3), bias=_random(rng, 3))
    result = first(x)
    assert result.shape == (len(x), 3)
    for at in (0, 4095, 4096, 8191, 8192, len(x) - 1):
        np.testing.assert_allclose(result[at], first(x[at : at + 1])[0], atol=1e-6)
    assert first(x[:0]).shape == (0, 3)


def _random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)
