"""Which route a plan recommends, why, and the commands that run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compatctl.migration.routes import Route

COMMANDS = {
    Route.FINETUNE: ("compatctl finetune --base {base}", "compatctl verify {old} {new}"),
    Route.FUSE: (
        "compatctl finetune --base {base}",
        "compatctl fuse {old} {new} -o fused.onnx",
        "compatctl verify {old} fused.onnx",
    ),
    Route.BRIDGE: (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl bridge free.onnx -o bridged.onnx",
        "compatctl verify {old} bridged.onnx",
    ),
    Route.BRIDGE_FUSE: (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl bridge free.onnx -o bridged.onnx",
        "compatctl fuse {old} bridged.onnx -o fused.onnx",
        "compatctl verify {old} fused.onnx",
    ),
    Route.LIFT: (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl lift free.onnx --dry-run",
        "compatctl lift free.onnx",
    ),
}
"""The commands that make and judge a route's candidate; lift judges itself before it writes."""


@dataclass(frozen=True, kw_only=True)
class RouteEstimate:
    """One route on the planning classes. ``gain`` is in recall@1 over the old queries.

    ``rows`` is the number of gallery rows searched: all of the store's for a route that keeps the
    gallery, otherwise those whose images are at hand. ``gain_retained`` is the share of
    re-embedding's gain, on the latter rows; None where re-embedding is not shown to gain.
    ``verdict`` is the gate's, for lift and the routes that keep the gallery, at a level corrected
    for their number. ``query_ms`` is the encoders' time for one image, ``one_time_s`` the one-off
    computation for the whole gallery.
    """

    name: Route
    setting: str
    rows: int
    recall: float
    gain: float
    low: float
    high: float
    gain_retained: float | None
    negative_flips: float
    verdict: str | None
    encoders: int
    query_ms: float
    one_time_s: float
    rewritten_bytes: int


def recommend(estimates: Sequence[RouteEstimate]) -> tuple[Route, str]:
    """The passing route with the largest gain, otherwise ``KEEP``, and why.

    Lift is recommended only if no route that keeps the gallery passes. Of equal gains the first
    route wins.
    """
    judged = [estimate for estimate in estimates if estimate.verdict is not None]
    unwritten = [estimate for estimate in judged if estimate.name != Route.LIFT]
    for candidates in (unwritten, judged):
        passing = [estimate for estimate in candidates if estimate.verdict == "pass"]
        if passing:
            return _explain(max(passing, key=lambda estimate: estimate.gain))
    ceiling = next(estimate for estimate in estimates if estimate.name == Route.REEMBED)
    why = f"no route passes with the gallery as it is; re-embedding all of it: {_gain(ceiling)}"
    for candidates in (unwritten, judged):
        undecided = [
            estimate
            for estimate in candidates
            if estimate.verdict == "inconclusive" and estimate.gain > 0.0
        ]
        if undecided:
            best = max(undecided, key=lambda estimate: estimate.gain)
            nearest = f"nearest is {best.name}: {_gain(best)}"
            return Route.KEEP, f"{why}; {nearest}, more validation classes would settle it"
    return Route.KEEP, why


def _explain(best: RouteEstimate) -> tuple[Route, str]:
    why = f"it gains {_gain(best)}"
    if best.gain_retained:
        why += f", {best.gain_retained:.0%} of what re-embedding would give"
    if best.name == Route.LIFT:
        why = (
            f"no route passes with the gallery as it is; {why}. It rewrites the whole index, all "
            f"{best.rewritten_bytes:,} bytes of its vectors; compatctl rollback undoes it"
        )
    return best.name, why


def _gain(estimate: RouteEstimate) -> str:
    return f"{estimate.gain:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"
