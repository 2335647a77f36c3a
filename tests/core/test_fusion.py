"""The fused feature of two models."""

import numpy as np
import pytest

from compatctl.core.adapters import fuse_rows


def test_half_weight_is_the_midpoint_of_the_arc():
    """Two unit rows fused half and half have the same cosine to both."""
    old, new = np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    fused = fuse_rows(old, new, 0.5)
    assert np.linalg.norm(fused) == pytest.approx(1.0)
    assert (fused @ old.T).item() == pytest.approx((fused @ new.T).item())


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [1.0, 0.0]), (1.0, [0.6, 0.8])])
def test_extreme_weights_are_the_models_themselves(weight, expected):
    """Weight 0 is the old model and weight 1 the new one."""
    old, new = np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    assert np.allclose(fuse_rows(old, new, weight), [expected])


def test_opposite_rows_stay_finite():
    """Two opposite rows have no mean direction; the result is zero, not NaN."""
    old = np.array([[1.0, 0.0]], np.float32)
    assert (fuse_rows(old, -old, 0.5) == 0.0).all()
