"""False accepts and false rejects at the deployed thresholds, as statistics for the gate."""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Codes
from compatctl.core.resampling import Ratio, ratio_of
from compatctl.core.thresholds import Accepts


def threshold_statistics(
    classes: Codes, n_classes: int, before: Accepts, after: Accepts
) -> dict[tuple[str, str], tuple[Ratio, int, str]]:
    """(Check, "") -> statistic, number of pairs and a sentence.

    ``far_ratio`` is FAR(after) / FAR(before), ``frr_increase`` is FRR(after) - FRR(before), over
    the same pairs. ``classes`` is (Q,) or (Q, K); ``n_classes`` of them have a match.
    """
    detail = (
        "The false accept rate at the thresholds used moves from "
        f"{before.far:.3g} to {after.far:.3g}, the false reject rate from {before.frr:.4f} to "
        f"{after.frr:.4f}"
    )
    new, old = (side.diff_accepted.astype(np.float64) for side in (after, before))
    far = ratio_of(classes, new, old, (0.0, float("inf")), n_classes=n_classes)
    rejected = (before.same_accepted - after.same_accepted).astype(np.float64)
    same_pairs = before.same_pairs.astype(np.float64)
    class_bounds = (-before.frr, 1.0 - before.frr) if same_pairs.sum() else None
    frr = ratio_of(classes, rejected, same_pairs, (-1.0, 1.0), harm=1, class_bounds=class_bounds)
    undefined = "" if before.far > 0 else "; a ratio to no false accept is not defined"
    return {
        ("far_ratio", ""): (far, int(before.diff_pairs.sum()), detail + undefined),
        ("frr_increase", ""): (frr, int(before.same_pairs.sum()), detail),
    }
