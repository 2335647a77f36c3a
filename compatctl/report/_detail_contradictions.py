"""Check that what a report shows beside its figures agrees with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compatctl.report._details import (
    BINS,
    MAX_ANSWERS,
    MAX_LOST,
    MAX_WON,
    Changes,
    ScoreDistributions,
    SliceRates,
)

if TYPE_CHECKING:
    from compatctl.report._report import Group, Report

ROUNDING = 1e-6


def detail_contradictions(report: Report) -> Iterator[str]:
    """Each contradiction between the details and the figures; none without details."""
    details = report.details
    if details is None or not report.groups:
        return
    group = report.groups[0]
    yield from _changed(details.changes, group)
    yield from _slices(details.slices, report)
    if details.scores is not None:
        yield from _scores(details.scores)
    rows = sum(model.rows for model in details.gallery_models)
    if details.gallery_models and (report.store is None or rows != report.store.stored_vectors):
        yield "the models of its gallery do not have the rows of its store"
    owned = sum(version.rows for version in details.versions)
    if details.versions and (report.store is None or owned != report.store.stored_vectors):
        yield "its versions do not own the rows of its store"


def _changed(changes: Changes, group: Group) -> Iterator[str]:
    """Compare the queries that changed with the group's shares of them, and with the bounds."""
    for name, count, share in (
        ("lost", changes.lost, group.negative_flips),
        ("won", changes.won, group.positive_flips),
    ):
        expected = 0.0 if math.isnan(share) else share * group.n_queries
        if abs(count - expected) > ROUNDING * max(1, group.n_queries):
            yield f"its number of {name} queries is not that of the group"
        listed = sum(query.outcome == name for query in changes.listed)
        if listed != min(count, MAX_LOST if name == "lost" else MAX_WON):
            yield f"it lists {listed} of {count} {name} queries"
    for query in changes.listed:
        right = [answers[0].relevant for answers in (query.old, query.new) if answers]
        if max(len(query.old), len(query.new)) > MAX_ANSWERS:
            yield f"it lists more than {MAX_ANSWERS} answers of a query"
        if len(right) == 2 and right != [query.outcome == "lost", query.outcome == "won"]:
            yield "the first answers of a changed query do not fit its outcome"


def _slices(slices: tuple[SliceRates, ...], report: Report) -> Iterator[str]:
    """Compare the slices with the group's sizes and with the checks of their gains."""
    if {part.name: part.n_queries for part in slices} != report.groups[0].slices:
        yield "the slices that it shows are not those of the group"
        return
    name = report.groups[0].name
    gains = {check.group: check for check in report.verdict.checks if check.name == "slice_gain"}
    for part in slices:
        check = gains.get(f"{name}, {part.name}")
        gain = part.hit_rate.get("new", math.nan) - part.hit_rate.get("old", math.nan)
        stated = math.nan if check is None or check.estimate is None else check.estimate
        if abs(gain - stated) > ROUNDING:
            yield f"the hit rates of {part.name} do not give its gain"


def _scores(scores: ScoreDistributions) -> Iterator[str]:
    """Check the bins: as many for each model and kind, and the same pairs for both models."""
    for counts in (scores.same, scores.different):
        if set(counts) != {"old", "new"} or {len(bins) for bins in counts.values()} != {BINS}:
            yield f"its scores are not in {BINS} bins of old and new queries"
        elif min(min(bins) for bins in counts.values()) < 0:
            yield "a number of pairs is below 0"
        elif sum(counts["old"]) != sum(counts["new"]):
            yield "its scores of old and of new queries are not of the same pairs"
    if not (math.isfinite(scores.low) and scores.width > 0):
        yield "its bins have no place"
