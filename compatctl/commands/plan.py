"""plan: estimate which route gains most, before anything is trained for deployment.

Every route is tried on classes held out for planning, with the gate's own checks. The estimates are
for classes that no model has seen; verify then judges the real candidate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from compatctl.core.arrays import Rows, as_rows
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratios, hit_change
from compatctl.core.rescoring import KnownVectors
from compatctl.core.retrieval import Retrieval, flips
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store
from compatctl.deployment.training_inputs import (
    TrainingInputs,
    head_recipe,
    is_checkpoint,
    is_encoder,
    load_inputs,
)
from compatctl.encoder import check_steady
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.adaptive_resampling import Sampling, adaptive_verdict, sampling
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.protocol import query_rows
from compatctl.evaluation.served_today import TodayAnswers
from compatctl.evaluation.verdict import OLD_MODEL_GONE
from compatctl.migration import routes
from compatctl.migration.adapters import AUTO, NO_TORCH, available_kinds
from compatctl.migration.forecast import Forecast, Measure, forecast_more_data
from compatctl.migration.lazy_passes import embed_free, embed_ready
from compatctl.migration.plan_warnings import plan_warnings
from compatctl.migration.planning_gallery import PlanningGallery
from compatctl.migration.preflight import PlanningSplit, Preflight, planning_split, preflight
from compatctl.migration.ready_model import deployed_fields, embeddable_items, ready_inputs
from compatctl.migration.ready_routes import measure_ready_routes
from compatctl.migration.recommendation import (
    COMMANDS,
    READY_COMMANDS,
    UNTRAINED_COMMANDS,
    RouteEstimate,
    recommend,
)
from compatctl.migration.route_cost import Milliseconds, RouteCost
from compatctl.migration.routes import PlanningInputs, Route, RouteInputs
from compatctl.migration.selection import (
    Fold,
    RouteResult,
    class_halves,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import PROJECT_FILE, Project, Recipe, load_policy
from compatctl.report import RescoredToday

LIMIT = 20_000
"""The largest number of gallery items, and of training items, in a plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The estimates and the ``recommended`` route. ``recipe`` is what finetune runs for it (None
    for ``keep``); ``commands`` make and judge the candidate. ``rescored_today`` says how the store
    re-scores the answers that gains are over; None if it does not. ``forecast`` says what more
    labelled data would give ``finetune``; None where it was left out."""

    preflight: Preflight
    routes: tuple[RouteEstimate, ...]
    recommended: str
    reason: str
    commands: tuple[str, ...]
    recipe: dict[str, Any] | None
    rescored_today: RescoredToday | None = None
    forecast: Forecast | None = None
    seconds: float
    warnings: tuple[str, ...] = ()


def plan(
    project: Project,
    *,
    base: Path,
    seed: int | None = None,
    limit: int = LIMIT,
    skip_bad: bool = False,
    forecast: bool = True,
    progress: Progress = silent,
) -> Plan:
    """Try every route on planning classes; nothing is written.

    ``forecast``: also train on parts of the data, and say what more of it would give.

    Raises:
        InputError: as ``finetune``; a recipe without a gallery or one that trains the backbone; too
            few classes to plan with.
    """
    start = time.monotonic()
    _refuse_encoder(project, base)
    training = load_inputs(project, base, seed)
    recipe, data, deployed = training.recipe, training.data, _against(training)
    from compatctl.train import make_trials

    if skip_bad:
        data, _ = data.readable()
    judged = judgments_for(project.gate.qrels, data, query_rows(data, "validation"))
    choosing = len(make_trials(recipe)) > 1
    split = planning_split(data, deployed.catalog.ids, limit, choosing=choosing, judged=judged)
    inputs, milliseconds = _inputs(split, deployed, (recipe, base), project, progress)
    inputs = replace(inputs, judged=judged)
    facts = preflight(deployed, split, inputs.trained_against)
    galleries = _galleries(inputs, data, deployed, progress)
    free = routes.train_free_models(inputs, _folds(inputs), progress)
    results = routes.measure_routes(inputs, free, progress)
    embed = partial(embed_free, inputs, free.own, data, deployed, limit, progress)
    tried = _Tried(
        project=project,
        deployed=deployed,
        inputs=inputs,
        galleries=galleries,
        results=results,
        facts=facts,
        cost=RouteCost.measure(inputs, facts, data, deployed, milliseconds),
    ).with_lazy(embed)
    policy, estimates = tried.policy, tried.estimates
    return tried.plan(
        COMMANDS,
        base,
        forecast=_forecast(inputs, tried.galleries[0], results, estimates, policy)
        if forecast
        else None,
        seconds=round(time.monotonic() - start, 1),
        warnings=plan_warnings(project, recipe, policy, tried.facts, estimates),
    )


def plan_ready(
    project: Project,
    *,
    new: Path,
    kind: str = AUTO,
    limit: int = LIMIT,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Try the routes of a model that exists: a file, or a space of vectors. Only heads train.

    Adapters are those of ``kind``, and so are the recommended commands' own.

    Raises:
        UsageError: an unknown kind.
        InputError: bad data or model, no store, no validation query, or no gallery item with what
            the model takes.
    """
    start, kinds = time.monotonic(), available_kinds(kind)
    without_mlp = kind == AUTO and "mlp" not in kinds
    encoder = ModelFile.named(project, new).encoder
    data, deployed = load_data(project), DeployedGallery.open(open_store(project))
    check_steady(encoder, data)
    if skip_bad:
        data, _ = data.readable()
    judged = judgments_for(project.gate.qrels, data, query_rows(data, "validation"))
    data = embeddable_items(data, deployed.encoder, encoder, set(deployed.catalog.ids))
    split = planning_split(
        data, deployed.catalog.ids, limit, choosing=False, judged=judged, must_train=False
    )
    recipe, why_not = head_recipe(project, new, split.data)
    inputs, milliseconds = ready_inputs(
        split, deployed, encoder, project, judged, kinds, recipe, progress
    )
    facts = preflight(deployed, split, inputs.trained_against)
    galleries = _galleries(inputs, data, deployed, progress)
    results = measure_ready_routes(inputs, _folds(inputs), progress)
    tried = _Tried(
        project=project,
        deployed=deployed,
        inputs=inputs,
        galleries=galleries,
        results=results,
        facts=facts,
        cost=RouteCost.measure(inputs, facts, data, deployed, milliseconds),
    ).with_lazy(partial(embed_ready, encoder, data, deployed, limit, progress))
    return tried.plan(
        READY_COMMANDS if recipe else UNTRAINED_COMMANDS,
        new,
        kind="" if kind == AUTO else f" --kind {kind}",
        seconds=round(time.monotonic() - start, 1),
        warnings=(
            *plan_warnings(project, None, tried.policy, tried.facts, tried.estimates),
            *_left_out_warnings(why_not, without_mlp=without_mlp),
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tried:
    """The routes that were tried, on the whole gallery and on the rows at hand."""

    project: Project
    deployed: DeployedGallery
    inputs: PlanningInputs
    galleries: tuple[PlanningGallery, PlanningGallery]
    results: Sequence[RouteResult]
    facts: Preflight
    cost: RouteCost

    def with_lazy(self, embed: Callable[[Rows], KnownVectors]) -> _Tried:
        """The same with re-scoring on the whole gallery, for which ``embed`` makes the passes."""
        whole, part = self.galleries
        whole = whole.with_lazy(self.results, embed)
        facts = replace(self.facts, lazy_images=whole.embedded)
        return replace(self, galleries=(whole, part), facts=facts)

    @cached_property
    def policy(self) -> Policy:
        """The project's policy, which judges each route."""
        return load_policy(self.project.policy)

    @cached_property
    def estimates(self) -> tuple[RouteEstimate, ...]:
        """Each route's gain, verdict and cost."""
        return _estimates(self.inputs, self.galleries, self.results, self.policy, self.cost)

    def plan(
        self, commands: Mapping[Route, tuple[str, ...]], base: Path, *, kind: str = "", **more: Any
    ) -> Plan:
        """The recommendation; ``base`` is the checkpoint, or the model that exists, ``kind`` the
        option that bridge and lift need, and ``more`` are further fields of the plan."""
        refused = REFUSED_ROUTES[self.deployed.manifest.index.engine]
        chosen, reason = recommend(
            self.estimates, classes=self.facts.planning_classes, refused=refused
        )
        recipe = next(result.variant.recipe for result in self.results if result.name == chosen)
        files = {
            "base": base,
            "old": self.deployed.model_path,
            "new": self.project.output,
            "kind": kind,
        }
        return Plan(
            preflight=self.facts,
            routes=self.estimates,
            recommended=chosen,
            reason=reason
            + _budget_note(self.estimates, chosen, self.project)
            + _engine_note(refused),
            commands=tuple(command.format(**files) for command in commands.get(chosen, ())),
            recipe=recipe.to_json() if recipe else None,
            rescored_today=self.galleries[0].today_entry(self.inputs.old_queries.queries),
            **more,
        )


def _left_out_warnings(why_no_head: str, *, without_mlp: bool) -> tuple[str, ...]:
    """What is not tried with a model that exists; an empty reason: a head is."""
    return (
        *((f"finetune and fuse are left out: {why_no_head}",) if why_no_head else ()),
        *((f"{NO_TORCH}: the other adapters are tried",) if without_mlp else ()),
    )


def _refuse_encoder(project: Project, base: Path) -> None:
    """Refuse a base that is planned with as a model that exists."""
    if is_encoder(project, base):
        raise UsageError(
            f"{base} is an encoder, and no checkpoint", tip=f"compatctl plan --new {base}"
        )
    if not is_checkpoint(project, base):
        raise UsageError(
            f"{base} is a text model's folder, and no checkpoint",
            tip=f"compatctl export sentence-transformers:{base} -o new.onnx makes an encoder, and "
            "compatctl plan --new new.onnx plans with it",
        )


def _against(training: TrainingInputs) -> DeployedGallery:
    """The gallery that heads are trained against."""
    deployed, layers = training.gallery, training.recipe.train
    if deployed is None or layers != "head":
        raise InputError(
            "a plan trains heads against a gallery; the recipe has "
            + ("frame: free" if deployed is None else f"train: {layers}"),
            tip="plan with train: head; compatctl verify judges what trains more layers",
        )
    return deployed


REFUSED_ROUTES = {
    "hnswlib": (),
    "pgvector": (Route.LAZY, Route.REEMBED),
    "milvus": (Route.LIFT, Route.LAZY, Route.REEMBED),
}
"""An engine -> routes that would make a store of its own, or vectors that the engine does not take,
or search otherwise than the application does."""


def _engine_note(refused: Sequence[Route]) -> str:
    """Which routes are tried for comparison only; empty: every one may be recommended."""
    if not refused:
        return ""
    named = ", ".join(refused)
    return f"; {named} are for comparison only: an application owns the rows and searches them"


def _budget_note(estimates: Sequence[RouteEstimate], chosen: Route, project: Project) -> str:
    """What the project must allow before the route's commands run, or what is left where it cannot
    keep the old model; empty: nothing."""
    if chosen == Route.KEEP and project.old_model_gone:
        return f"; new queries cannot run the old model, which is gone: {OLD_MODEL_GONE}"
    passed = next(estimate.gallery_passed for estimate in estimates if estimate.name == chosen)
    needed = {Route.LAZY: 1.0, Route.REEMBED: 0.0}.get(chosen, passed)
    if needed <= project.max_gallery_pass:
        return ""
    return f"; its commands need max_gallery_pass: {needed:.4g} in {PROJECT_FILE}"


def _galleries(
    inputs: PlanningInputs, data: Dataset, deployed: DeployedGallery, progress: Progress
) -> tuple[PlanningGallery, PlanningGallery]:
    """Every row of the store, and the rows whose images the plan has; ``data`` are all items.

    Raises:
        InputError: no query has an item of its class in the store.
    """
    row_of = deployed.catalog.row_of
    at_hand = as_rows(row_of[item] for item in inputs.reference.gallery_ids)
    queries = as_rows(data.row_of[inputs.data.ids[int(row)]] for row in inputs.query_rows)
    today = TodayAnswers.of(deployed, data, queries, progress)
    whole = part = PlanningGallery.available(inputs, today and today.among(at_hand))
    if inputs.whole is not None:
        whole = PlanningGallery.whole(inputs, deployed.catalog, at_hand, today)
    if not whole.truth.has_match().any():
        raise InputError(
            f"nothing to plan with: none of the {len(queries)} planning queries has an item of its "
            "class in the gallery",
            tip="name the classes of the gallery's items in the data, by their ids, or in the "
            "--items of compatctl import; without labels name judgments in compatctl.yaml: "
            "gate: {qrels: FILE}",
        )
    return whole, part


def _inputs(
    split: PlanningSplit,
    deployed: DeployedGallery,
    new: tuple[Recipe, Path],
    project: Project,
    progress: Progress,
) -> tuple[RouteInputs, Milliseconds]:
    """Both models' features of every item of the plan, and each model's milliseconds an image."""
    from compatctl.train import Features

    (recipe, base), data = new, split.data
    shared, old_ms = deployed_fields(split, deployed, project, progress)
    start = time.monotonic()
    training = [row for row, item in enumerate(data.items) if item.split == "train"]
    features = Features.extract(recipe, base, data, range(len(data)), progress, training=training)
    passes = len(data) + (recipe.augmentation.views - 1) * len(training)
    new_s = time.monotonic() - start
    inputs = RouteInputs(**shared, recipe=recipe, base=base, features=features)
    return inputs, Milliseconds(old=old_ms, new=1000 * new_s / max(1, passes))


def _folds(inputs: PlanningInputs) -> list[Fold]:
    """The planning classes in two halves: each chooses for the other."""
    return class_halves([inputs.data.labels[int(row)] for row in inputs.query_rows])


def _estimates(
    inputs: PlanningInputs,
    galleries: tuple[PlanningGallery, PlanningGallery],
    results: Sequence[RouteResult],
    policy: Policy,
    cost: RouteCost,
) -> tuple[RouteEstimate, ...]:
    """Routes that keep the gallery search all of it, the others the rows with an image.

    ``galleries``: both, in this order.
    """
    (whole, part), keep, judged = galleries, results[0], [*filter(_is_judged, results)]
    strict = replace(policy, alpha=policy.alpha / max(1, len(judged)))
    resampling = sampling(strict, 0, 0, 0)
    before_whole, before_part = whole.retrieval(keep), part.retrieval(keep)
    part_results = {result.name: part.retrieval(result) for result in results}
    hit_rates = {name: result.hit_rate[1] for name, result in part_results.items()}
    ceiling = hit_rates[Route.REEMBED] - hit_rates[Route.KEEP]
    estimates = []
    for result in results:
        tried, after, gallery, before = result, part_results[result.name], part, before_part
        if (on_whole := whole.tries(result)) is not None:
            tried, gallery, before = on_whole, whole, before_whole
            after = whole.retrieval(tried)
        low, high = _interval(gallery.truth, before, after, strict, resampling)
        gain_at_hand = hit_rates[result.name] - hit_rates[Route.KEEP]
        estimates.append(
            RouteEstimate(
                name=Route(result.name),
                setting=result.variant.setting,
                gallery_passed=cost.gallery_passed(result),
                rows=len(gallery.stored),
                queries=before.n_with_match,
                hit_rate=after.hit_rate[1],
                gain=after.hit_rate[1] - before.hit_rate[1],
                low=low,
                high=high,
                gain_retained=gain_at_hand / ceiling if ceiling > 0.0 else None,
                negative_flips=flips(before.hit1, after.hit1, before.has_match).negative,
                verdict=_verdict(inputs, gallery, tried, strict, resampling)
                if result in judged
                else None,
                share_rescored=gallery.share_rescored(tried),
                encoders=len(result.variant.encoders),
                query_ms=cost.query_ms(result),
                passes=cost.passes(result),
                one_time_s=cost.one_time_s(result),
                rewritten_bytes=cost.rewritten_bytes(result),
            )
        )
    return _in_order(estimates)


def _in_order(estimates: Sequence[RouteEstimate]) -> tuple[RouteEstimate, ...]:
    """By the share of the gallery passed, without shares of a gain that is not shown."""
    ordered = sorted(
        estimates, key=lambda estimate: (estimate.name != Route.KEEP, estimate.gallery_passed)
    )
    if next(estimate for estimate in ordered if estimate.name == Route.REEMBED).low > 0.0:
        return tuple(ordered)
    return tuple(replace(estimate, gain_retained=None) for estimate in ordered)


def _forecast(
    inputs: RouteInputs,
    whole: PlanningGallery,
    results: Sequence[RouteResult],
    estimates: Sequence[RouteEstimate],
    policy: Policy,
) -> Forecast:
    """What more labelled data would give ``finetune``, with the margins of this plan."""
    by_name = {estimate.name: estimate for estimate in estimates}
    tuned, ceiling = by_name[Route.FINETUNE], by_name[Route.REEMBED]
    measure = Measure(
        truth=whole.truth,
        stored=whole.stored,
        old_hits=whole.retrieval(results[0]).hit1,
        margin=(policy.min_hit_gain or 0.0) + tuned.gain - tuned.low,
        ceiling=ceiling.gain if ceiling.low > 0.0 else None,
    )
    variant = next(result.variant for result in results if result.name == Route.FINETUNE)
    return forecast_more_data(inputs, variant, measure)


def _is_judged(result: RouteResult) -> bool:
    if result.name in {Route.LIFT, Route.REEMBED}:
        return True
    return result.rewritten == 0.0 and result.name != Route.KEEP


def _verdict(
    inputs: PlanningInputs,
    gallery: PlanningGallery,
    result: RouteResult,
    policy: Policy,
    resampling: Sampling,
) -> str:
    """The gate's verdict on the planning queries; a rewritten gallery is judged as by ``lift``."""
    group = gallery.compare(result, inputs.old_queries.queries, policy)
    return adaptive_verdict(policy, [group], [], [], resampling).outcome


def _interval(
    truth: GroundTruth, old: Retrieval, new: Retrieval, policy: Policy, resampling: Sampling
) -> tuple[float, float]:
    """The interval of the gain in hit@1, at the policy's level."""
    gain = hit_change(truth.classes, old.hit1, new.hit1, old.has_match)
    estimate = estimate_ratios([gain], resampling.replicates, resampling.draw())[0]
    return estimate.interval(1 - policy.alpha)
