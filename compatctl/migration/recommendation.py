"""Which route a plan recommends, why, and the commands that run it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from compatctl.migration.routes import Route
from compatctl.migration.selection import RESCORED

COMMANDS = {
    Route.FINETUNE: ("compatctl finetune --base {base}", "compatctl verify {old} {new}"),
    Route.FUSE: (
        "compatctl finetune --base {base}",
        "compatctl fuse {old} {new} -o fused.onnx",
        "compatctl verify {old} fused.onnx",
    ),
    Route.LAZY: (
        "compatctl finetune --base {base}",
        f"compatctl verify {{old}} {{new}} --rescore {RESCORED}",
        f"compatctl deploy --rescore {RESCORED}",
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
    Route.REEMBED: (
        "compatctl finetune --base {base} --recipe free.yaml --output free.onnx",
        "compatctl init --model free.onnx --store store-of-new",
    ),
}
"""The commands that make and judge a route's candidate; lift judges itself before it writes.
Re-embedding makes another store, and leaves the deployed one as it is."""

READY_COMMANDS = {
    Route.FINETUNE: (
        "compatctl finetune --base {base} --output tuned.onnx",
        "compatctl verify tuned.onnx",
    ),
    Route.FUSE: (
        "compatctl finetune --base {base} --output tuned.onnx",
        "compatctl fuse {old} tuned.onnx -o fused.onnx",
        "compatctl verify fused.onnx",
    ),
    Route.LAZY: (
        "compatctl finetune --base {base} --output tuned.onnx",
        f"compatctl verify tuned.onnx --rescore {RESCORED}",
        f"compatctl deploy --rescore {RESCORED}",
    ),
    Route.BRIDGE: (
        "compatctl bridge {base} -o bridged.onnx{kind}",
        "compatctl verify bridged.onnx",
    ),
    Route.BRIDGE_FUSE: (
        "compatctl bridge {base} -o bridged.onnx{kind}",
        "compatctl fuse {old} bridged.onnx -o fused.onnx",
        "compatctl verify fused.onnx",
    ),
    Route.LIFT: ("compatctl lift {base}{kind} --dry-run", "compatctl lift {base}{kind}"),
    Route.REEMBED: ("compatctl init --model {base} --store store-of-new",),
}
"""The same for a model that exists; ``kind`` is an option, or empty."""

UNTRAINED_COMMANDS = {
    **READY_COMMANDS,
    Route.LAZY: (
        "compatctl bridge {base} -o bridged.onnx{kind}",
        f"compatctl verify bridged.onnx --rescore {RESCORED}",
        f"compatctl deploy --rescore {RESCORED}",
    ),
}
"""The same where no head is trained."""


@dataclass(frozen=True, kw_only=True)
class RouteEstimate:
    """One route on the planning classes. ``gain`` is in hit@1 over the old queries.

    ``gallery_passed`` is the share, 0 to 1, of the store's gallery that goes through the new
    backbone, beside labelled training items. ``rows`` is the number of gallery rows searched: all
    of the store's for a route that keeps the gallery, otherwise those that are in the data.
    ``queries`` is how many of the planning queries have something to find in them.
    ``gain_retained`` is the share of re-embedding's gain, on the latter rows; None where
    re-embedding is not shown to gain.
    ``verdict`` is the gate's, for lift, re-embedding and the routes that keep the gallery, at a
    level corrected for their number. ``query_ms`` is the encoders' time for one image. ``passes``
    (images through the new backbone), ``one_time_s`` (the one-off computation) and
    ``rewritten_bytes`` (of vectors) are those of the whole store. ``share_rescored``, of lazy
    re-scoring, is the share of the first answers whose image is at hand; the others keep the score
    that is expected of them.
    """

    name: Route
    setting: str
    gallery_passed: float
    rows: int
    queries: int
    hit_rate: float
    gain: float
    low: float
    high: float
    gain_retained: float | None
    negative_flips: float
    verdict: str | None
    encoders: int
    query_ms: float
    passes: int
    one_time_s: float
    rewritten_bytes: int
    share_rescored: float | None = None


NOTHING = "no route is shown to gain with the gallery as it is"
MOST_CLASSES = 20
"""Times the planning classes: where more would be needed to show a gain, no gain is in sight."""


def recommend(
    estimates: Sequence[RouteEstimate], *, classes: int, refused: Collection[Route] = ()
) -> tuple[Route, str]:
    """The passing route with the largest gain, otherwise ``KEEP``, and why.

    A route that passes nothing of the gallery through the new model comes first, then lazy
    re-scoring, then one that keeps the gallery, then lift, then re-embedding. Of equal gains the
    first route wins. The reason names lazy re-scoring where it passes with a larger gain, and the
    routes that cost less and are neither shown to gain nor shown to fail.

    Args:
        classes: the number of planning classes.
        refused: routes that the store's engine cannot take; they are not recommended.
    """
    judged = [
        estimate
        for estimate in estimates
        if estimate.verdict is not None and estimate.name not in refused
    ]
    for kind in range(5):
        passing = [
            estimate
            for estimate in judged
            if estimate.verdict == "pass" and _sacrifice(estimate) == kind
        ]
        if passing:
            best = max(passing, key=lambda estimate: estimate.gain)
            return best.name, _explain(best, judged) + _undecided(judged, kind, classes)
    ceiling = next(estimate for estimate in estimates if estimate.name == Route.REEMBED)
    keep = next(estimate for estimate in estimates if estimate.name == Route.KEEP)
    why = f"{NOTHING}; re-embedding all of it: {_gain(ceiling)}"
    if not ceiling.queries:
        why = f"{NOTHING}; re-embedding cannot be tried: no query finds something among the rows "
        why += "that are in the data"
    elif ceiling.queries < keep.queries:
        why += f", of the {ceiling.queries} queries that find something among the rows at hand"
    return Route.KEEP, why + _undecided(judged, _sacrifice(ceiling), classes)


def _undecided(judged: Sequence[RouteEstimate], kind: int, classes: int) -> str:
    """The routes that cost less than ``kind`` and may gain, and what would settle the nearest."""
    open_routes = [
        (needed, estimate)
        for estimate in judged
        if estimate.verdict == "inconclusive"
        and _sacrifice(estimate) < kind
        and (needed := _classes_needed(estimate, classes)) <= MOST_CLASSES * classes
    ]
    if not open_routes:
        return ""
    open_routes.sort(key=lambda entry: (_sacrifice(entry[1]), entry[0]))
    named = ", ".join(f"{estimate.name} {_gain(estimate)}" for _, estimate in open_routes)
    fewest = min(needed for needed, _ in open_routes)
    return (
        f". Undecided here: {named}. compatctl verify judges them on the held-out classes; for "
        f"a plan to settle the nearest takes about {fewest:,} validation classes, not {classes:,}"
    )


def _classes_needed(estimate: RouteEstimate, classes: int) -> float:
    """At how many classes the interval of a gain like this one would lie above 0."""
    if not estimate.gain > 0.0:  # or it is NaN: there was nothing to measure it with
        return float("inf")
    half = max(estimate.gain - estimate.low, 1e-9)
    return math.ceil(classes * max(1.0, (half / estimate.gain) ** 2))


def _sacrifice(estimate: RouteEstimate) -> int:
    """What a route costs the gallery: 0 nothing, 1 passes of what is asked for, 2 passes, 3 the
    index, 4 everything."""
    kinds = {Route.LAZY: 1, Route.LIFT: 3, Route.REEMBED: 4}
    return kinds.get(estimate.name, 2 if estimate.gallery_passed > 0.0 else 0)


def _explain(best: RouteEstimate, judged: Sequence[RouteEstimate]) -> str:
    why = f"it gains {_gain(best)}"
    if best.name == Route.REEMBED:
        return (
            f"{NOTHING}; {why}. It costs {best.passes:,} passes of the new model, "
            f"{best.one_time_s:,.0f} s here, and {best.rewritten_bytes:,} bytes of "
            "vectors in a store of its own"
        )
    if best.gain_retained:
        why += f", {best.gain_retained:.0%} of what re-embedding would give"
    if best.name == Route.LAZY:
        why += f". A query embeds up to {RESCORED} of its answers that are not known yet"
    for lazy in judged:
        if lazy.name == Route.LAZY and lazy.verdict == "pass" and lazy.gain > best.gain:
            why += f"; {Route.LAZY} gains {_gain(lazy)}, at up to {RESCORED} items a query"
    if best.name == Route.LIFT:
        why = (
            f"{NOTHING}; {why}. It rewrites the whole index, all "
            f"{best.rewritten_bytes:,} bytes of its vectors; compatctl rollback undoes it"
        )
    return why


def _gain(estimate: RouteEstimate) -> str:
    return f"{estimate.gain:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"
