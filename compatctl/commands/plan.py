"""plan: which route would gain most here, before anything is trained for good.

Every route is tried on classes that are held out for planning, with the gate's own checks. What it
promises is an estimate for classes that no model has seen; verify then judges the real candidate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.core.hash_order import hash_fraction
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratios, hit_change
from compatctl.core.retrieval import Retrieval, flips
from compatctl.deployment.training_inputs import build_reference, load_inputs
from compatctl.errors import InputError
from compatctl.evaluation.adaptive_resampling import Sampling, adaptive_verdict, sampling
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration import routes
from compatctl.migration.preflight import Preflight, Split, planning_split, preflight
from compatctl.migration.recommendation import CEILING, KEEP, LIFT, NEXT, RouteEstimate, recommend
from compatctl.migration.rewrite_gate import HeldOutQueries
from compatctl.migration.routes import RouteInputs
from compatctl.migration.selection import Fold, RouteResult
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, Recipe, load_policy

if TYPE_CHECKING:
    from compatctl.deployment.gallery import DeployedGallery

LIMIT = 20_000
"""Gallery items, and training items, that a plan looks at."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sheet. ``recommended`` is the name of a route, or ``keep``; ``recipe`` is what finetune
    would run for it (None for ``keep``); ``commands`` make and judge the candidate."""

    preflight: Preflight
    routes: tuple[RouteEstimate, ...]
    recommended: str
    reason: str
    commands: tuple[str, ...]
    recipe: dict[str, Any] | None
    seconds: float
    warnings: tuple[str, ...] = ()


def plan(
    project: Project,
    *,
    base: Path,
    seed: int | None = None,
    limit: int = LIMIT,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Try every route on planning classes; nothing is written.

    Raises:
        InputError: as ``finetune``; a recipe that knows no gallery or trains the backbone; too few
            classes to plan with.
    """
    began = time.monotonic()
    inputs = load_inputs(project, base, seed)
    recipe, data, deployed = inputs.recipe, inputs.data, inputs.gallery
    from compatctl.train import make_trials

    if deployed is None or recipe.train != "head":
        raise InputError(
            "a plan trains heads against a gallery; the recipe has "
            + ("frame: free" if deployed is None else f"train: {recipe.train}"),
            tip="plan with train: head; what trains more layers is judged by compatctl verify",
        )
    if skip_bad:
        data, _ = data.readable()
    choosing = len(make_trials(recipe)) > 1
    split = planning_split(data, deployed.catalog.ids, limit, choosing=choosing)
    ground, old_ms, new_ms = _ground(split, deployed, (recipe, base), project.ignore_same, progress)
    ground = replace(ground, cluster=project.cluster)
    facts = preflight(deployed, split, ground.reference.gallery_features, ground.reference.registry)
    found = routes.measure(ground, _halves(ground), progress)
    policy = load_policy(project.policy)
    cost = _Cost(
        old_ms=old_ms,
        new_ms=new_ms,
        rows=facts.gallery_rows,
        training=sum(item.split == "train" for item in data.items),
    )
    whole = _Gallery.whole(ground, deployed, facts)
    sheet = _sheet(ground, whole, found, policy, cost)
    chosen, reason = recommend(sheet)
    runs = next(one.recipe for one in found if one.name == chosen)
    return Plan(
        preflight=facts,
        routes=sheet,
        recommended=chosen,
        reason=reason,
        commands=_commands(chosen, base=base, old=deployed.model_path, new=project.output),
        recipe=runs.to_json() if runs else None,
        seconds=round(time.monotonic() - began, 1),
        warnings=_sampled(facts),
    )


def _commands(route: str, **files: Path) -> tuple[str, ...]:
    return tuple(one.format(**files) for one in NEXT.get(route, ()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Gallery:
    """What the planning queries search: what is relevant, and the stored vectors (N, D)."""

    truth: GroundTruth
    stored: Vectors

    @classmethod
    def at_hand(cls, ground: RouteInputs) -> _Gallery:
        """The rows whose images the plan has: any route can be tried on them."""
        return cls(truth=ground.truth, stored=ground.reference.gallery_features)

    @classmethod
    def whole(cls, ground: RouteInputs, deployed: DeployedGallery, facts: Preflight) -> _Gallery:
        """Every row of the store: what serves the routes that leave the gallery as it is."""
        if facts.gallery_images >= facts.gallery_rows:
            return cls.at_hand(ground)
        data = ground.data
        asking = HeldOutQueries.from_features(
            data,
            ground.asked,
            ground.old(ground.asked),
            cluster=ground.cluster,
            ignore_same=ground.ignore_same,
        )
        return cls(truth=asking.ground_truth(deployed.catalog), stored=deployed.vectors())

    def test(self, route: RouteResult) -> Retrieval:
        """The first answers of a route that leaves these rows as they are."""
        return retrieval(self.truth, route.queries, self.stored, (1,), map_k=1)


def _sampled(facts: Preflight) -> tuple[str, ...]:
    """A sentence where the routes that rewrite the gallery were tried on less than the store."""
    if facts.gallery_images >= facts.gallery_rows:
        return ()
    return (
        f"{CEILING}, {LIFT} and backfill are tried on the {facts.gallery_images} of "
        f"{facts.gallery_rows} gallery rows whose images are at hand, and so is the share kept; "
        "the other routes search all rows",
    )


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """Milliseconds an image of each encoder, and how many there are of what."""

    old_ms: float
    new_ms: float
    rows: int
    training: int

    def query_ms(self, route: RouteResult) -> float:
        return sum(self.old_ms if one == "old" else self.new_ms for one in route.encoders)

    def one_time_s(self, route: RouteResult) -> float:
        if route.name == KEEP:
            return 0.0
        passes = self.training + (self.rows if route.name != CEILING else 0)
        again = route.rewritten * self.rows if route.name != LIFT else 0.0
        return route.seconds + (passes * self.new_ms + again * self.query_ms(route)) / 1000

    def rewritten_bytes(self, route: RouteResult) -> int:
        dim: int = route.queries.shape[1]
        return round(route.rewritten * self.rows) * 4 * dim


def _ground(
    split: Split,
    deployed: DeployedGallery,
    new: tuple[Recipe, Path],
    ignore_same: tuple[str, ...],
    progress: Progress,
) -> tuple[RouteInputs, float, float]:
    """Both models' features of everything that takes part, and each one's milliseconds an image."""
    from compatctl.train import Features

    (recipe, base), data, catalog = new, split.data, deployed.catalog
    places = np.array([catalog.row_of[data.ids[int(row)]] for row in split.gallery])
    others = np.setdiff1d(np.arange(len(data)), split.gallery)
    began = time.monotonic()
    encoded = deployed.encoder.embed(data.take(others), progress=progress).features
    old_s = time.monotonic() - began
    encoded_ids = tuple(data.ids[int(row)] for row in others)
    reference = build_reference(deployed, encoded_ids, encoded, places)
    began = time.monotonic()
    features = Features.extract(recipe, base, data, range(len(data)), progress)
    new_s = time.monotonic() - began
    ground = RouteInputs(
        data=data,
        reference=reference,
        recipe=_anchored(recipe, split),
        base=base,
        features=features,
        asked=split.asked,
        ignore_same=ignore_same,
    )
    return ground, 1000 * old_s / max(1, len(others)), 1000 * new_s / max(1, len(data))


def _anchored(recipe: Recipe, split: Split) -> Recipe:
    """The recipe, no item of whose anchors asks; an order names what the plan looks at only."""
    anchors = recipe.objective.anchors
    asked = {split.data.ids[int(row)] for row in split.asked}
    here = {split.data.ids[int(row)] for row in split.gallery}
    if anchors is None or not (anchors.ids or asked & here):
        return recipe
    order = anchors.ids or tuple(sorted(here, key=hash_fraction))
    ids = tuple(one for one in order if one in here - asked)
    return replace(recipe, objective=replace(recipe.objective, anchors=replace(anchors, ids=ids)))


def _halves(ground: RouteInputs) -> list[Fold]:
    """The planning classes in two halves, by hash: what one chooses, the other is judged by."""
    labels = [ground.data.labels[int(row)] for row in ground.asked]
    first = np.array([hash_fraction(f"half {label}") < 0.5 for label in labels], bool)
    return [(first, ~first), (~first, first)]


def _sheet(
    ground: RouteInputs, whole: _Gallery, found: Sequence[RouteResult], policy: Policy, cost: _Cost
) -> tuple[RouteEstimate, ...]:
    """The routes that leave the gallery as it is search ``whole``, the others what is at hand."""
    part, keep = _Gallery.at_hand(ground), found[0]
    judged = [
        one.name for one in found if one.name == LIFT or (one.rewritten == 0.0 and one.name != KEEP)
    ]
    strict = replace(policy, alpha=policy.alpha / max(1, len(judged)))
    how = sampling(strict, 0, 0, 0)
    old = {True: whole.test(keep), False: part.test(keep)}
    at_hand = {one.name: one.retrieval(part.truth, (1,), map_k=1).recall[1] for one in found}
    ceiling = at_hand[CEILING] - at_hand[KEEP]
    sheet = []
    for one in found:
        as_it_is = one.rewritten == 0.0
        gallery, before = whole if as_it_is else part, old[as_it_is]
        test = gallery.test(one) if as_it_is else one.retrieval(part.truth, (1,), map_k=1)
        low, high = _interval(gallery.truth, before, test, strict, how)
        sheet.append(
            RouteEstimate(
                name=one.name,
                setting=one.setting,
                rows=len(gallery.stored),
                recall=test.recall[1],
                gain=test.recall[1] - before.recall[1],
                low=low,
                high=high,
                gain_retained=(at_hand[one.name] - at_hand[KEEP]) / ceiling
                if ceiling > 0.0
                else None,
                negative_flips=flips(before.hit1, test.hit1, before.has_match).negative,
                verdict=_verdict(ground, gallery, one, strict, how) if one.name in judged else None,
                encoders=len(one.encoders),
                query_ms=cost.query_ms(one),
                one_time_s=cost.one_time_s(one),
                rewritten_bytes=cost.rewritten_bytes(one),
            )
        )
    shown = next(one for one in sheet if one.name == CEILING).low > 0.0
    return tuple(one if shown else replace(one, gain_retained=None) for one in sheet)


def _verdict(
    ground: RouteInputs, gallery: _Gallery, route: RouteResult, policy: Policy, how: Sampling
) -> str:
    """The gate's word on the planning queries; of lift, as ``lift`` itself is judged."""
    trial = route.trial(gallery.truth, ground.old(ground.asked), gallery.stored, policy)
    return adaptive_verdict(policy, [trial], [], [], how).outcome


def _interval(
    truth: GroundTruth, old: Retrieval, new: Retrieval, policy: Policy, how: Sampling
) -> tuple[float, float]:
    """Of the gain in recall@1, at the policy's level."""
    gain = hit_change(truth.classes, old.hit1, new.hit1, old.has_match)
    estimate = estimate_ratios([gain], how.replicates, how.draw())[0]
    return estimate.interval(1 - policy.alpha)
