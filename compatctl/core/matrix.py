"""Compatibility over many versions: AC, AA and ACA of a matrix.

``M[i][j]``, i >= j, is the retrieval quality of queries of version i on the gallery of version j:
self-tests on the diagonal, cross-tests below it.

Sources: TPAMI 2026 (arXiv 2606.12488) and the repository miccunifi/iamcl2r. Deviations: a tie is
not compatible (as in iamcl2r; CoReS and CL2R accept it), and a measured 0 counts in AA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats
from compatctl.errors import InputError

_ROUNDING = 1e-12
"""Equal rates may differ in their last bit; a smaller gain counts as none."""


@dataclass(frozen=True, kw_only=True)
class MatrixSummary:
    """AC, AA and ACA of one matrix, in its unit (shares or percent)."""

    ac: float | None
    """Share of cross-tests that beat their gallery's self-test, in [0, 1]; None for one version."""
    aa: float
    """Mean of the lower triangle with its diagonal."""
    aca: float | None
    """Mean of the cross-tests with incompatible ones as 0; None for one version."""


def summarise(values: AnyFloats) -> MatrixSummary:
    """Summarise M (T, T), T >= 1; only the lower triangle, i >= j, is read.

    AC = 2 / (T (T - 1)) * #{i > j : M[i][j] > M[j][j]}; AA is the mean of the lower triangle with
    its diagonal; ACA = 2 / (T (T - 1)) * sum over i > j of M[i][j] where M[i][j] > M[j][j].

    Raises:
        InputError: M is not square, empty, not numeric, or not finite in its lower triangle.
    """
    M = np.asarray(values)
    if M.ndim != 2 or M.shape[0] != M.shape[1] or not len(M):
        raise InputError(f"a compatibility matrix is (T, T) with T at least 1, got {M.shape}")
    if not (np.issubdtype(M.dtype, np.floating) or np.issubdtype(M.dtype, np.integer)):
        raise InputError(f"a compatibility matrix holds numbers, got {M.dtype}")
    M = M.astype(np.float64)
    T = len(M)
    for i, j in np.argwhere(~np.isfinite(np.tril(M))):
        raise InputError(f"version {i + 1} on gallery {j + 1} has no finite result: {M[i, j]}")
    samples = summarise_samples(M[None])
    return MatrixSummary(
        ac=float(samples.ac[0]) if T > 1 else None,
        aa=float(samples.aa[0]),
        aca=float(samples.aca[0]) if T > 1 else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixSamples:
    """(B,) AC, AA and ACA of B matrices. With one version AC and ACA are NaN."""

    ac: Floats
    aa: Floats
    aca: Floats


def summarise_samples(values: AnyFloats) -> MatrixSamples:
    """``summarise`` of (B, T, T) matrices, such as the replicates of a resampling."""
    M = values.astype(np.float64)
    T = M.shape[1]
    new, old = np.tril_indices(T, -1)
    rows, columns = np.tril_indices(T)
    cross, self_test = M[:, new, old], M[:, old, old]
    better = cross > self_test + _ROUNDING
    none = np.full(len(M), np.nan)
    return MatrixSamples(
        ac=better.mean(axis=1) if T > 1 else none,
        aa=M[:, rows, columns].mean(axis=1),
        aca=(cross * better).mean(axis=1) if T > 1 else none,
    )
