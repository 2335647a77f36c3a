"""Compatibility over many versions: AC, AA, ACA, and the gain of an upgrade.

Sources: TPAMI 2026 (arXiv 2606.12488) and repository miccunifi/iamcl2r. Stated deviation: a tie is
not compatible (as in iamcl2r; CoReS and CL2R let it pass), and a true 0 counts in AA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MatrixSummary:
    """``ac`` and ``aca`` are None for one version; ``gains[i-1]`` is M[i][i-1] - M[i-1][i-1]."""

    ac: float | None
    aa: float
    aca: float | None
    gains: tuple[float, ...]


def summarise(values: NDArray[np.float64]) -> MatrixSummary:
    """Summary of M (T, T); only the lower triangle, i >= j, is read.

    AC = 2 / (T (T - 1)) * #{i > j : M[i][j] > M[j][j]}; AA is the mean of the lower triangle with
    its diagonal; ACA = 2 / (T (T - 1)) * sum over i > j of M[i][j] where M[i][j] > M[j][j].

    Raises:
        InputError: M is not square, empty, or not finite below its diagonal.
    """
    M = np.asarray(values, np.float64)
    if M.ndim != 2 or M.shape[0] != M.shape[1] or not len(M):
        raise InputError(f"a compatibility matrix is square, got {M.shape}")
    T = len(M)
    lower = np.tril_indices(T)
    if not np.isfinite(M[lower]).all():
        raise InputError("the compatibility matrix is not finite below its diagonal")
    aa = float(M[lower].mean())
    i, j = np.tril_indices(T, -1)
    cross, own = M[i, j], M[j, j]
    better = cross > own
    return MatrixSummary(
        ac=float(better.mean()) if T > 1 else None,
        aa=aa,
        aca=float((cross * better).mean()) if T > 1 else None,
        gains=tuple(float(M[t, t - 1] - M[t - 1, t - 1]) for t in range(1, T)),
    )


def share_kept(new_old: float, old_old: float, free_free: float) -> float | None:
    """Share of the re-embedding gain kept: (M(new,old) - M(old,old)) / (M(free,free) - M(old,old)).

    None where full re-embedding gains nothing, so that there is nothing to share.
    """
    whole = free_free - old_old
    return (new_old - old_old) / whole if whole > 0.0 else None
