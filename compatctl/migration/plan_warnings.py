"""What a plan leaves out, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence

from compatctl.core.policy import Policy
from compatctl.migration.preflight import Preflight
from compatctl.migration.recommendation import RouteEstimate
from compatctl.migration.routes import NEEDS_OLD_MODEL, Route
from compatctl.recipe import Project, Recipe


def plan_warnings(
    project: Project,
    recipe: Recipe | None,
    policy: Policy,
    facts: Preflight,
    estimates: Sequence[RouteEstimate],
) -> tuple[str, ...]:
    """What the plan leaves out, and what limits it."""
    return (
        *_sample_warning(facts, estimates),
        *_few_warning(facts, policy),
        *_unknown_warning(facts, estimates),
        *_gone_warning(project),
        *_rescored_warning(estimates),
        *(_unlabelled_warning(recipe) if recipe else ()),
    )


def _unknown_warning(facts: Preflight, estimates: Sequence[RouteEstimate]) -> tuple[str, ...]:
    """A warning if the classes of gallery rows are unknown: nothing can be found in these."""
    if not facts.unknown_rows:
        return ()
    return (
        f"the class of {facts.unknown_rows} of {facts.gallery_rows} gallery rows is unknown: "
        f"{estimates[0].queries} of {facts.planning_queries} queries have something to find. Name "
        "the classes in the data, by the items' ids, or in the --items of compatctl import",
    )


def _gone_warning(project: Project) -> tuple[str, ...]:
    """What is left out where no query can run the old model."""
    if not project.old_model_gone:
        return ()
    return (
        f"{' and '.join(NEEDS_OLD_MODEL)} are left out, and so is backfill by fuse: queries "
        "can no longer run the old model (old_model_gone: true); here it measures the hit rate of "
        "today",
    )


def _rescored_warning(estimates: Sequence[RouteEstimate]) -> tuple[str, ...]:
    """What is left out in a store that re-scores, whose answers lift does not know."""
    if any(estimate.name == Route.LIFT for estimate in estimates):
        return ()
    return (
        "lift is left out: the store re-scores its answers, and lift compares with the index alone",
    )


def _unlabelled_warning(recipe: Recipe) -> tuple[str, ...]:
    """What no route is tried with, and finetune would train on."""
    if recipe.unlabelled is None:
        return ()
    return (
        f"the unlabelled images of {recipe.unlabelled} are left out: no route is tried with them; "
        "finetune trains on them",
    )


def _sample_warning(facts: Preflight, estimates: Sequence[RouteEstimate]) -> tuple[str, ...]:
    """A warning if some routes were tried on less than the store."""
    if facts.gallery_images >= facts.gallery_rows:
        return ()
    part = [estimate for estimate in estimates if estimate.rows < facts.gallery_rows]
    names = [estimate.name for estimate in part if not estimate.name.startswith("backfill")]
    return (
        f"{', '.join(names)} and backfill are tried on the {facts.gallery_images} of "
        f"{facts.gallery_rows} gallery rows whose items this plan has, and so is the share kept: "
        f"{part[0].queries} of {facts.planning_queries} queries have something to find there; the "
        "other routes search all rows. More gallery items in the data, or a larger "
        "--limit, would tell more",
    )


def _few_warning(facts: Preflight, policy: Policy) -> tuple[str, ...]:
    """A warning if the gate can pass nothing on so little."""
    classes, queries = facts.planning_classes, facts.planning_queries
    if classes >= policy.min_classes and queries >= policy.min_queries:
        return ()
    return (
        f"{queries} planning queries of {classes} validation classes; the policy requires "
        f"{policy.min_queries} of {policy.min_classes}, so that no route can pass here",
    )
