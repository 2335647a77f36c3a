"""One sheet for each result that is more than a list of fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compatctl.files import json_safe
from compatctl.render._basics import cell, fields, table
from compatctl.render._report import checks_table

if TYPE_CHECKING:
    from rich.console import Console


def matrix_sheet(console: Console, matrix: Any) -> None:
    columns = ("query \\ gallery", *map(cell, matrix.versions))
    size = len(matrix.versions)
    rows = [
        (name, *row, *([""] * (size - len(row))))
        for name, row in zip(matrix.versions, matrix.values, strict=True)
    ]
    table(console, columns, rows)
    for name in ("ac", "aa", "aca"):
        ends = getattr(matrix, f"{name}_interval")
        between = "" if ends is None else f" ({ends[0]:.4f} to {ends[1]:.4f})"
        console.print(f"{name.upper():<4} {cell(getattr(matrix, name))}{between}")
    console.print(
        f"recall@1 of {matrix.n_queries} queries of {matrix.n_classes} classes on the "
        f"{matrix.gallery_rows} gallery items of the data; 95% intervals"
    )
    if matrix.on_store:
        found = zip(matrix.versions, matrix.on_store, strict=True)
        console.print(
            f"on all {matrix.stored_rows} rows of the store, as they are: "
            + ", ".join(f"{cell(name)} {value:.4f}" for name, value in found)
        )


def power_sheet(console: Console, found: Any) -> None:
    kinds = " and ".join(found.unit)
    console.print(
        f"{found.n_queries} held-out queries have something to find, of {found.n_classes} units "
        f"({cell(kinds)})\npolicy {cell(found.policy)}: the gain in recall@{found.recall_at} must "
        f"be more than {found.limit:g}; shown with power {found.power:g}"
    )
    gains = [one.gain for one in found.rows[0].needed]
    rows = [
        (
            f"{row.changed:.3f}",
            ", ".join(f"{value:.2f}" for value in row.icc.values()),
            "none" if row.least_gain is None else f"{row.least_gain:.4f}",
            *(
                "-" if one.classes is None else f"{one.classes} ({one.queries})"
                for one in row.needed
            ),
        )
        for row in found.rows
    ]
    columns = ("share that changes", "correlation", "least gain shown")
    table(console, (*columns, *(f"units (queries) for {gain:g}" for gain in gains)), rows)
    if found.too_few:
        console.print(f"the gate cannot tell anything here: {cell(found.too_few)}")
    if not found.measured:
        console.print(
            "shares and correlations are assumed; two feature tables, or --report of an earlier "
            "verification, measure them"
        )


def history_sheet(console: Console, history: Any) -> None:
    rows = [
        (
            entry.generation,
            entry.operation,
            entry.created_at,
            entry.query_model[:12],
            entry.rows,
            entry.note,
        )
        for entry in history.generations
    ]
    table(console, ("generation", "operation", "at", "query model", "rows", "note"), rows)


def found_sheet(console: Console, found: Any) -> None:
    for query in found.queries:
        console.print(cell(query.image))
        scores = ("cosine", "score") if found.calibrated else ("cosine",)
        rows = [(hit.id, hit.label, *(getattr(hit, name) for name in scores)) for hit in query.hits]
        table(console, ("item", "label", *scores), rows)


def backfilled_sheet(console: Console, done: Any) -> None:
    if (trial := done.measured) is not None:
        curve = [(point.share, point.recall) for point in trial.curve]
        table(console, ("share of the query model", f"recall@{trial.recall_at}"), curve)
        checks_table(console, [trial.check])
        console.print(f"rank bias towards rows of the query model: {trial.rank_bias:+.4f}\n")
    for why, ids in (("have no image in the data", done.missing), ("do not decode", done.skipped)):
        if ids:
            more = " ..." if len(ids) > 8 else ""
            console.print(f"{len(ids)} items {why}: {cell(', '.join(ids[:8]))}{more}")
    console.print(cell(done.summary))
    if done.next_step:
        console.print(f"next: {cell(done.next_step)}")


def lifted_sheet(console: Console, done: Any) -> None:
    if (chosen := done.map) is not None:
        rows = [(trial.kind, trial.setting, trial.recall) for trial in chosen.trials]
        table(console, ("map", "setting", "recall@1"), rows)
        kept = " ".join(one for one in (chosen.kind, chosen.setting) if one)
        console.print(
            f"kept: {kept}; recall@1 of {chosen.validation_queries} validation queries "
            f"{chosen.recall:.4f}, of the deployed model's {chosen.old_recall:.4f}"
        )
        console.print(
            f"fitted on {chosen.pairs['gallery']} of {done.rows} rows and on "
            f"{chosen.pairs['encoder']} items outside the gallery"
        )
    for model in done.models:
        against = "their mapped vectors" if model.stored else "the map of its own features"
        console.print(
            f"{model.rows} rows of {model.of[:12]} become rows of {model.sha256[:12]}, which "
            f"differs from {against} by {model.difference:.2g} at most ({model.images} images)"
        )
    if (trial := done.measured) is not None:
        checks_table(console, trial.verdict.checks)
        console.print(
            f"for information: recall@{trial.recall_at} of the mean of the lifted old and the new "
            f"feature {trial.fused_recall:.4f} (compatctl fuse)"
        )
    if done.skipped:
        console.print(f"{len(done.skipped)} items do not decode")
    console.print(cell(done.summary))
    if done.next_step:
        console.print(f"next: {cell(done.next_step)}")


def demo_sheet(console: Console, demo: Any) -> None:
    routes = [
        (route.name, route.new_old, route.new_old - demo.old_old, route.new_new, route.verdict)
        for route in demo.routes
    ]
    console.print(
        f"recall@1 on {demo.classes} classes that no model was trained on, {demo.queries} queries; "
        f"today: {demo.old_old:.4f}"
    )
    table(console, ("route", "new on old gallery", "gain", "new on new gallery", "verdict"), routes)
    for line in demo.story:
        console.print(cell(line))
    console.print(
        f"\nverdict: {demo.verdict}; deployed: {cell(demo.deployed_route)}; {demo.seconds:.0f} s"
    )


def bridged_sheet(console: Console, done: Any) -> None:
    rows = [(trial.kind, trial.setting, trial.recall) for trial in done.trials]
    table(console, ("map", "setting", "recall@1"), rows)
    fields(console, {key: entry for key, entry in json_safe(done).items() if key != "trials"})


def _preflight(console: Console, facts: Any) -> None:
    born = "on a simplex" if facts.born_on_simplex else "not on a simplex, as far as is known"
    console.print(
        f"gallery: {facts.gallery_rows} rows of {facts.gallery_classes} classes, {facts.dim} "
        f"numbers each, born {born}; cosines of class means {facts.cosine_mean:.3f} +- "
        f"{facts.cosine_spread:.3f} (random directions: 0 +- {facts.random_spread:.3f})"
    )
    if facts.vertices is not None:
        left = facts.vertices
        alarm = ": THEY RUN OUT" if left.alarm else ""
        console.print(f"vertices: {left.used} of {left.total} used, {left.new} wanted{alarm}")
    console.print(
        f"training: {facts.training_classes} classes, {facts.training_classes_in_gallery} of them "
        f"in the gallery; planning: {facts.planning_queries} queries of {facts.planning_classes} "
        "validation classes"
    )


def plan_sheet(console: Console, plan: Any) -> None:
    """The gallery, the routes, the recommendation and what to run next."""
    _preflight(console, plan.preflight)
    rows = [
        (
            one.name,
            one.recall,
            f"{one.gain:+.4f} ({one.low:+.4f} to {one.high:+.4f})",
            None if one.gain_retained is None else f"{one.gain_retained:.0%}",
            one.negative_flips,
            one.verdict,
            f"{one.query_ms:.1f}",
            f"{one.one_time_s:.0f}",
            f"{one.rewritten_bytes / 1e6:.1f}",
        )
        for one in plan.routes
        if one.name != "keep"
    ]
    keep = next(one for one in plan.routes if one.name == "keep")
    console.print(f"recall@1 today: {keep.recall:.4f}, {keep.query_ms:.1f} ms a query")
    names = (
        "route",
        "recall@1",
        "gain",
        "kept",
        "neg. flips",
        "gate",
        "ms/query",
        "s once",
        "MB new",
    )
    table(console, names, rows)
    for setting in dict.fromkeys(one.setting for one in plan.routes if one.setting):
        alike = ", ".join(one.name for one in plan.routes if one.setting == setting)
        console.print(f"{alike}: {cell(setting)}")
    console.print(f"recommended: {plan.recommended}: {plan.reason}")
    for line in plan.commands:
        console.print(f"  {line}")
