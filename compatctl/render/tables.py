"""One table for each result that is more than a list of fields; a command passes its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from compatctl.files import json_safe
from compatctl.printable import quantity
from compatctl.render.console import cell, fields_table, print_table
from compatctl.render.report_table import checks_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from compatctl.commands.backfill import BackfillForecast
    from compatctl.commands.bridge import Bridged
    from compatctl.commands.demo import DemoResult
    from compatctl.commands.doctor import Diagnosis
    from compatctl.commands.finetune import FinetunePlan
    from compatctl.commands.fuse import Fused
    from compatctl.commands.lift import Lifted
    from compatctl.commands.matrix import CompatibilityMatrix
    from compatctl.commands.plan import Plan
    from compatctl.commands.power import Power
    from compatctl.commands.promote import Promoted
    from compatctl.commands.search import SearchResult
    from compatctl.core.gallery_pass import GalleryPass
    from compatctl.core.power_law import Range
    from compatctl.deployment.query_model_pass import QueryModelPass
    from compatctl.migration.backfill_result import Backfilled
    from compatctl.migration.candidate import FinetuneResult
    from compatctl.migration.forecast import Forecast
    from compatctl.migration.preflight import Preflight
    from compatctl.migration.recommendation import RouteEstimate


def matrix_table(console: Console, matrix: CompatibilityMatrix) -> None:
    columns = ("query \\ gallery", *map(cell, matrix.versions))
    size = len(matrix.versions)
    rows = [
        (name, *row, *([""] * (size - len(row))))
        for name, row in zip(matrix.versions, matrix.values, strict=True)
    ]
    print_table(console, columns, rows)
    for name in ("ac", "aa", "aca"):
        ends = getattr(matrix, f"{name}_interval")
        between = "" if ends is None else f" ({ends[0]:.4f} to {ends[1]:.4f})"
        console.print(f"{name.upper():<4} {cell(getattr(matrix, name))}{between}")
    console.print(
        f"hit@1 of {_queries(matrix.n_queries)} of {_classes(matrix.n_classes)} on the "
        f"{quantity(matrix.gallery_rows, 'gallery item')} of the data; 95% intervals"
    )
    if matrix.on_store:
        pairs = zip(matrix.versions, matrix.on_store, strict=True)
        console.print(
            f"on all {matrix.stored_rows} rows of the store, as they are: "
            + ", ".join(f"{cell(name)} {value:.4f}" for name, value in pairs)
        )


def power_table(console: Console, power: Power) -> None:
    kinds = " and ".join(power.unit)
    console.print(
        f"{power.n_queries} held-out queries have something to find, of {power.n_classes} units "
        f"({cell(kinds)})\npolicy {cell(power.policy)}: the gain in hit@{power.hit_at} must "
        f"be more than {power.limit:g}; shown with power {power.power:g}"
    )
    gains = [size.gain for size in power.rows[0].needed]
    rows = [
        (
            f"{row.changed:.3f}",
            ", ".join(
                f"{cell(kind)} {value:.2f}" if len(row.icc) > 1 else f"{value:.2f}"
                for kind, value in row.icc.items()
            ),
            "none" if row.least_gain is None else f"{row.least_gain:.4f}",
            *(
                "-" if size.classes is None else f"{size.classes} ({size.queries})"
                for size in row.needed
            ),
        )
        for row in power.rows
    ]
    columns = ("share that changes", "correlation", "least gain shown")
    needed = [f"units (queries) for {gain:g}" for gain in gains]
    print_table(console, (*columns, *needed), rows, keys=2)
    if power.too_few:
        console.print(f"the gate cannot tell anything here: {cell(power.too_few)}")
    if not power.measured:
        console.print(
            "shares and correlations are assumed; two feature tables, or --report of an earlier "
            "verification, measure them"
        )


def doctor_table(console: Console, diagnosis: Diagnosis) -> None:
    """A line for each finding, and what to do."""
    rows = [
        (
            item.name,
            item.status,
            item.found,
            "; next: ".join(filter(None, (item.problem, item.tip))),
        )
        for item in diagnosis.findings
    ]
    print_table(console, ("what", "status", "found", "problem"), rows)
    console.print(f"{diagnosis.url} can{'' if diagnosis.usable else 'not'} be adopted")


def search_table(console: Console, result: SearchResult) -> None:
    for query in result.queries:
        console.print(cell(query.query))
        has_scores = result.calibrated or result.similarity is not None
        scores = ("cosine", "score") if has_scores else ("cosine",)
        rows = [(hit.id, hit.label, *(getattr(hit, name) for name in scores)) for hit in query.hits]
        if result.rescoring is None:
            print_table(console, ("item", "label", *scores), rows)
            continue
        marks = ["yes" if hit.rescored else "" for hit in query.hits]
        marked = [(*row, mark) for row, mark in zip(rows, marks, strict=True)]
        print_table(console, ("item", "label", *scores, "re-scored"), marked)
    if (part := result.rescoring) is not None:
        left = part.over_budget + part.at_limit
        console.print(
            f"re-scored: the first {quantity(part.candidates, 'answer')}; "
            f"{quantity(part.passed, 'item')} embedded, "
            f"{quantity(part.cached, 'vector')} from the cache, {left} left by the limits"
        )


def _queries(number: int) -> str:
    return quantity(number, "query", "queries")


def _classes(number: int) -> str:
    return quantity(number, "class", "classes")


def _pass_line(console: Console, passed: GalleryPass | QueryModelPass | None) -> None:
    """What of the gallery went through the new model, before everything else."""
    if passed is not None:
        console.print(passed.text)


def finetune_table(console: Console, result: FinetuneResult) -> None:
    """The share passed, then every other field."""
    _pass_line(console, result.gallery_pass)
    hidden = {"gallery_pass", "warnings"}
    fields = json_safe(result)
    fields_table(console, {key: entry for key, entry in fields.items() if key not in hidden})


def finetune_plan_table(console: Console, plan: FinetunePlan) -> None:
    """Every field, then what the unlabelled images cost."""
    hidden = {"unlabelled", "warnings"}
    fields = json_safe(plan)
    fields_table(console, {key: entry for key, entry in fields.items() if key not in hidden})
    if (cost := plan.unlabelled) is not None:
        console.print(
            f"{cost.items} unlabelled images, {cost.gallery_rows} of them gallery rows; about "
            f"{cost.old_model_s:.0f} s of the old model ({cost.known} features are kept), "
            f"{cost.new_model_s:.0f} s of the new backbone, {cost.memory_bytes / 1e6:.0f} MB of "
            "features"
        )


def backfill_table(console: Console, result: Backfilled) -> None:
    _pass_line(console, result.gallery_pass)
    if (trial := result.measured) is not None:
        curve = [(f"{point.share:.2%}", point.hit_rate) for point in trial.curve]
        print_table(console, ("share of the query model", f"hit@{trial.hit_at}"), curve)
        checks_table(console, [trial.check])
        console.print(f"rank bias towards rows of the query model: {trial.rank_bias:+.4f}\n")
        if (part := trial.rescored) is not None:
            console.print(
                f"answers are re-scored as served: {part.kept} free vectors are kept, "
                + (
                    f"and a query embeds up to {part.passes}; "
                    if part.room is None
                    else f"and {part.room_after} of the {part.room} more that may pass today; "
                )
                + f"the index alone has hit@{trial.hit_at} {part.first_stage:.4f} today"
            )
    for why, ids, count in (
        ("not in the data", result.missing, max(len(result.missing), result.unreachable)),
        ("cannot be decoded", result.skipped, len(result.skipped)),
    ):
        if ids:
            more = " ..." if count > 8 else ""
            console.print(f"{why}: {quantity(count, 'item')}: {cell(', '.join(ids[:8]))}{more}")
    if len(result.steps) > 1:
        steps = [
            (step.generation, step.embedded, f"{step.share:.2%}", step.hit_rate)
            for step in result.steps
        ]
        print_table(console, ("generation", "re-embedded", "share", "hit rate"), steps)
    if result.passed:
        again = ", those before the interruption included" if result.resumed else ""
        console.print(f"passed: {quantity(result.passed, 'item')} through the query model{again}")
    console.print(cell(result.summary))
    if result.next_step:
        console.print(f"next: {cell(result.next_step)}")


def promote_table(console: Console, result: Promoted) -> None:
    _pass_line(console, result.gallery_pass)
    if (trial := result.measured) is not None:
        checks_table(console, [trial.check])
        console.print(
            f"hit@{trial.hit_at} of {trial.n_queries} held-out queries: "
            f"{trial.hit_rate_today:.4f} re-scored with every free vector, "
            f"{trial.hit_rate:.4f} promoted"
        )
    console.print(cell(result.summary))
    if result.next_step:
        console.print(f"next: {cell(result.next_step)}")


def forecast_table(console: Console, result: BackfillForecast) -> None:
    if (forecast := result.forecast) is None:
        console.print("nothing to forecast: no row is left that the query model could embed")
        return
    curve = [
        (
            f"{point.share:.1%}",
            point.hit_rate,
            f"{point.gain:+.4f} ({point.low:+.4f} to {point.high:+.4f})",
        )
        for point in forecast.curve
    ]
    columns = ("share of the query model", f"hit@{forecast.hit_at}", "gain over the start")
    print_table(console, columns, curve)
    least = "none" if forecast.gains_from is None else f"{forecast.gains_from:.0%}"
    console.print(
        f"least share from which it gains: {least}\n"
        f"forecast from {forecast.passes} of {quantity(result.rows, 'row')}, embedded for it; "
        f"{quantity(forecast.n_queries, 'held-out query', 'held-out queries')} of "
        f"{_classes(forecast.n_classes)}"
    )
    if result.skipped:
        console.print(f"cannot be decoded: {quantity(len(result.skipped), 'item')}")


def lift_table(console: Console, result: Lifted) -> None:
    _pass_line(console, result.gallery_pass)
    if (adapter := result.map) is not None:
        rows = [(trial.kind, trial.setting, trial.hit_rate) for trial in adapter.trials]
        print_table(console, ("adapter", "setting", "hit@1"), rows)
        chosen = " ".join(part for part in (adapter.kind, adapter.setting) if part)
        console.print(
            f"chosen: {chosen}; hit@1 of {adapter.validation_queries} validation queries "
            f"{adapter.hit_rate:.4f}, of the deployed model's {cell(adapter.old_hit_rate)}"
        )
        console.print(
            f"fitted on {adapter.pairs['gallery']} of {result.rows} rows and on "
            f"{adapter.pairs['encoder']} items outside the gallery"
        )
    for model in result.models:
        against = "their mapped vectors" if model.stored else "the map of its own features"
        console.print(
            f"{quantity(model.rows, 'row')} of {model.source_sha256[:12]}, then of "
            f"{model.sha256[:12]}, which differs from {against} by {model.difference:.2g} at most "
            f"({quantity(model.images, 'item')})"
        )
    if (trial := result.measured) is not None:
        checks_table(console, trial.verdict.checks)
        console.print(
            f"for information: hit@{trial.hit_at} of the mean of the lifted old and the new "
            f"feature {trial.fused_hit_rate:.4f} (compatctl fuse)"
        )
    if result.skipped:
        console.print(f"cannot be decoded: {quantity(len(result.skipped), 'item')}")
    console.print(cell(result.summary))
    if result.next_step:
        console.print(f"next: {cell(result.next_step)}")


def demo_table(console: Console, demo: DemoResult) -> None:
    routes = [
        (
            "?" if route.passed is None else f"{route.passed:.0%}",
            route.name,
            route.new_old,
            route.new_old - demo.old_old,
            route.new_new,
            route.verdict,
        )
        for route in demo.routes
    ]
    console.print(
        f"\nhit@1 on {demo.classes} held-out classes, {demo.queries} queries; "
        f"today: {demo.old_old:.4f}"
    )
    print_table(
        console,
        ("passed", "route", "new on old gallery", "gain", "new on new gallery", "verdict"),
        routes,
        keys=2,
    )
    for line in demo.story:
        console.print(cell(line))
    console.print(
        f"\nverdict: {demo.verdict}; deployed: {cell(demo.deployed_route)}; {demo.seconds:.0f} s"
    )
    if demo.page is not None:
        console.print(f"report: {cell(_beneath(demo.page))}")
    console.print("\nwith data of your own:")
    for line in demo.next_steps:
        console.print(f"    {cell(line)}")


def _beneath(path: str) -> str:
    """A path as one types it in the working folder, if it lies there."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def bridge_table(console: Console, result: Bridged) -> None:
    _pass_line(console, result.gallery_pass)
    rows = [(trial.kind, trial.setting, trial.hit_rate) for trial in result.trials]
    print_table(console, ("adapter", "setting", "hit@1"), rows)
    hidden = {"trials", "gallery_pass"}
    fields = json_safe(result)
    fields_table(console, {key: entry for key, entry in fields.items() if key not in hidden})


def fuse_table(console: Console, result: Fused) -> None:
    _pass_line(console, result.gallery_pass)
    if (search := result.search) is not None:
        rows = [(f"{t.weight:g}", t.hit_rate, f"{t.gain:+.4f}") for t in search.trials]
        print_table(console, ("weight of the new feature", "hit@1", "gain"), rows)
        console.print(
            f"chosen: {search.weight:g}; 95% of resamplings choose {search.weight_low:g} to "
            f"{search.weight_high:g}\n"
            f"gain over the old model's {search.old_hit_rate:.4f}, each half of the classes with "
            f"the weight that the other half chose: {search.gain:+.4f} ({search.low:+.4f} to "
            f"{search.high:+.4f}); {_queries(search.queries)} of "
            f"{quantity(search.classes, 'validation class', 'validation classes')}"
        )
    fields = json_safe(result)
    hidden = {"search", "gallery_pass"}
    fields_table(console, {key: entry for key, entry in fields.items() if key not in hidden})


def _preflight(console: Console, facts: Preflight) -> None:
    on_simplex = "trained" if facts.born_on_simplex else "not known to be trained"
    rows = quantity(facts.unknown_rows, "row")
    unknown = f" and {rows} of unknown class" if facts.unknown_rows else ""
    cosines = (
        "too few classes to compare their means"
        if math.isnan(facts.cosine_mean)
        else f"cosines of class means {facts.cosine_mean:.3f} +- {facts.cosine_spread:.3f} (random "
        f"directions: 0 +- {facts.random_spread:.3f})"
    )
    console.print(
        f"gallery: {quantity(facts.gallery_rows, 'row')} of {_classes(facts.gallery_classes)}"
        f"{unknown}, {facts.dim} values each, {on_simplex} on a simplex; {cosines}"
    )
    if facts.vertices is not None:
        vertices = facts.vertices
        alarm = ": too few" if vertices.alarm else ""
        console.print(
            f"vertices: {vertices.used} of {vertices.total} used, {vertices.new} wanted{alarm}"
        )
    console.print(
        f"training: {facts.training_classes} classes, {facts.training_classes_in_gallery} of them "
        f"in the gallery; planning: {facts.planning_queries} queries of {facts.planning_classes} "
        "validation classes"
    )
    more = f", and {facts.lazy_images} more to try lazy" if facts.lazy_images else ""
    console.print(
        f"this plan passed {facts.gallery_images} of {facts.gallery_rows} gallery rows through the "
        f"new backbone to measure the routes{more}; what each route itself passes is its first "
        "column"
    )


def _forecast(console: Console, forecast: Forecast) -> None:
    """Hit rate by amount of training data, and how much of it each goal needs."""
    console.print(
        f"forecast for one encoder with nothing passed ({forecast.level:.0%} intervals, "
        f"{forecast.runs} runs of training):"
    )
    curves = (("labelled classes", forecast.classes), ("images a class", forecast.images))
    for name, curve in curves:
        if curve is None:
            console.print(f"  {name}: too few to train on parts")
            continue
        amounts = ", ".join(f"{amount:,.4g}" for amount in curve.amounts)
        hit_rates = ", ".join(f"{hit_rate:.4f}" for hit_rate in curve.hit_rates)
        console.print(
            f"  {name} {amounts}: hit@1 {hit_rates}; misses fall by the exponent "
            f"{_range(curve.exponent, '.3f')}; twice as many: {_range(curve.doubled, '.4f')}"
        )
    goals = (
        ("pass", forecast.to_pass),
        ("keep half of re-embedding's gain", forecast.to_keep_half),
    )
    for name, goal in goals:
        if goal is not None:
            classes = "cannot tell" if goal.classes is None else _range(goal.classes, ",.0f")
            console.print(f"  labelled classes to {name} (hit@1 {goal.hit_rate:.4f}): {classes}")
    console.print(f"  doubling helps more with: {_MORE[forecast.more]}")


_MORE = {"classes": "classes", "images": "images a class", "cannot tell": "cannot tell"}


def _range(value: Range, form: str) -> str:
    if value.high is None:
        return f"{value.value:{form}} (at least {value.low:{form}}, no upper end)"
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"


def _plan_routes(console: Console, routes: Sequence[RouteEstimate]) -> None:
    """What each route gives, and what it costs."""
    gains = [
        (
            f"{route.gallery_passed:.0%}",
            route.name,
            route.hit_rate,
            f"{route.gain:+.4f} ({route.low:+.4f} to {route.high:+.4f})" if route.queries else None,
            None if route.gain_retained is None else f"{route.gain_retained:.0%}",
            route.verdict,
        )
        for route in routes
    ]
    print_table(console, ("passed", "route", "hit@1", "gain", "kept", "gate"), gains, keys=2)
    costs = [
        (
            f"{route.gallery_passed:.0%}",
            route.name,
            route.negative_flips,
            f"{route.query_ms:.1f}",
            f"{route.passes:,}",
            f"{route.one_time_s:,.0f}",
            f"{route.rewritten_bytes / 1e6:,.1f}",
        )
        for route in routes
    ]
    columns = ("passed", "route", "neg. flips", "ms a query", "passes", "s once", "MB new")
    print_table(console, columns, costs, keys=2)


def plan_table(console: Console, plan: Plan) -> None:
    """The gallery, the routes, what they cost, the recommendation and what to run next."""
    _preflight(console, plan.preflight)
    keep = next(route for route in plan.routes if route.name == "keep")
    console.print(f"hit@1 today: {keep.hit_rate:.4f}, {keep.query_ms:.1f} ms a query")
    if (today := plan.rescored_today) is not None:
        console.print(
            f"gains are over the answers of today, which the store re-scores: the first "
            f"{today.candidates}, with {today.kept_share:.2%} of the rows kept and at most "
            f"{today.passes} items embedded for a query; hit@1 without it "
            f"{today.first_stage['1']:.4f}"
        )
    _plan_routes(console, [route for route in plan.routes if route.name != "keep"])
    for setting in dict.fromkeys(route.setting for route in plan.routes if route.setting):
        alike = ", ".join(route.name for route in plan.routes if route.setting == setting)
        console.print(f"{alike}: {cell(setting)}")
    for route in plan.routes:
        if route.share_rescored is not None and route.share_rescored < 1.0:
            console.print(
                f"{route.name}: {route.share_rescored:.1%} of the first answers are in the data "
                "and are re-scored; the others keep the score that is expected of them"
            )
    if plan.forecast is not None:
        _forecast(console, plan.forecast)
    console.print(f"recommended: {plan.recommended}: {plan.reason}")
    for line in plan.commands:
        console.print(f"  {line}")
