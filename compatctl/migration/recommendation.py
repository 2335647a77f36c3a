"""Which route a plan names, why, and what is run for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KEEP = "keep"
CEILING = "re-embed"
LIFT = "lift"
NEXT = {
    "finetune": ("compatctl finetune --base {base}", "compatctl verify {old} {new}"),
    "fuse": (
        "compatctl finetune --base {base}",
        "compatctl fuse {old} {new} -o fused.onnx",
        "compatctl verify {old} fused.onnx",
    ),
    "bridge": (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl bridge free.onnx -o bridged.onnx",
        "compatctl verify {old} bridged.onnx",
    ),
    "bridge + fuse": (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl bridge free.onnx -o bridged.onnx",
        "compatctl fuse {old} bridged.onnx -o fused.onnx",
        "compatctl verify {old} fused.onnx",
    ),
    "lift": (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl lift free.onnx --dry-run",
        "compatctl lift free.onnx",
    ),
}
"""What makes the candidate of a route and judges it; lift judges itself before it writes."""


@dataclass(frozen=True, kw_only=True)
class RouteEstimate:
    """One route on the planning classes; recall is recall@1, whose gain is over the old queries.

    ``rows``: gallery rows that are searched: all of the store's where the route leaves them as they
    are, else those whose images are at hand. ``gain_retained``: share of the gain that re-embedding
    everything would give, on the latter; None where that is not shown to gain. ``verdict``: the
    gate's, for lift and the routes that leave the gallery as it is, at a level that allows for the
    number of them. ``query_ms``: the encoders' time, one image; ``one_time_s``: all that is
    computed once, for the whole gallery.
    """

    name: str
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


def recommend(sheet: Sequence[RouteEstimate]) -> tuple[str, str]:
    """The passing route that gains most, else ``keep``, and why; lift only where no route that
    leaves the gallery as it is passes.

    Of two routes whose gains are equal the one that is named first.
    """
    judged = [one for one in sheet if one.verdict is not None]
    untouched = [one for one in judged if one.name != LIFT]
    for routes in (untouched, judged):
        passing = [one for one in routes if one.verdict == "pass"]
        if passing:
            return _named(max(passing, key=lambda one: one.gain))
    ceiling = next(one for one in sheet if one.name == CEILING)
    why = f"no route passes with the gallery as it is; re-embedding all of it: {_gain(ceiling)}"
    for routes in (untouched, judged):
        undecided = [one for one in routes if one.verdict == "inconclusive" and one.gain > 0.0]
        if undecided:
            best = max(undecided, key=lambda one: one.gain)
            near = f"nearest is {best.name}: {_gain(best)}"
            return KEEP, f"{why}; {near}, more validation classes would settle it"
    return KEEP, why


def _named(best: RouteEstimate) -> tuple[str, str]:
    again = (
        f", {best.gain_retained:.0%} of what re-embedding would give" if best.gain_retained else ""
    )
    why = f"it gains {_gain(best)}{again}"
    if best.name == LIFT:
        why = (
            f"no route passes with the gallery as it is; {why}. It rewrites the whole index, all "
            f"{best.rewritten_bytes:,} bytes of its vectors; compatctl rollback undoes it"
        )
    return best.name, why


def _gain(route: RouteEstimate) -> str:
    return f"{route.gain:+.4f} ({route.low:+.4f} to {route.high:+.4f})"
