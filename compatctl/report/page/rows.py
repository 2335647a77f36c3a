"""What the page's tables and figures show of a report, as texts and drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compatctl.core.gate import Check, describe_units
from compatctl.core.policy import Policy
from compatctl.report._details import Details, ScoreDistributions, model_name
from compatctl.report._report import AnnRecall, Group, ModelId, Report
from compatctl.report.page import figures

Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
"""The headings of a table and its rows; the first cell of a row names it."""

OUTCOMES = {
    "pass": ("good", "✓", "passes"),
    "fail": ("bad", "✗", "fails"),
    "inconclusive": ("open", "?", "cannot tell"),
    "": ("plain", "·", "measured"),
}
"""Outcome -> its class, sign and words."""
PAIRS = {
    "old_old": ("old", "old gallery"),
    "new_old": ("new", "old gallery"),
    "old_old_subset": ("old", "old gallery, the same part"),
    "new_old_subset": ("new", "old gallery, the same part"),
    "old_mixed": ("old", "half re-embedded"),
    "new_mixed": ("new", "half re-embedded"),
    "old_new": ("old", "re-embedded"),
    "new_new": ("new", "re-embedded"),
}
"""Entry of a group's hit rates -> which queries search which gallery."""


def number(value: float | None, form: str = ".4g") -> str:
    """A number as text; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, form).replace("-", "−")


def percent(value: float) -> str:
    """A share as a percentage."""
    return number(value, ".1%")


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One check: its words, numbers as text, and its figure (SVG; empty without an estimate)."""

    name: str
    detail: str
    kind: str
    sign: str
    outcome: str
    estimate: str
    interval: str
    limit: str
    n: str
    needed: str
    figure: str


def check_rows(report: Report, *, decides: bool) -> tuple[CheckRow, ...]:
    """The checks that decide, or the others; of the deciding ones those that did not pass come
    first, and slices last of each kind."""
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    checks = [check for check in report.verdict.checks if check.decides == decides]
    if decides:
        checks.sort(key=lambda check: (order[check.outcome], check.name == "slice_gain"))
    return tuple(_check_row(check, report.policy) for check in checks)


def _check_row(check: Check, policy: Policy) -> CheckRow:
    kind, sign, outcome = OUTCOMES[check.outcome if check.threshold is not None else ""]
    rule = policy.rules.get(check.name) if check.threshold is not None else None
    limit = number(None if rule is None else rule.limit)
    interval = f"{number(check.low)} to {number(check.high)}" if check.n_classes else "–"
    figure = ""
    if check.estimate is not None:
        known = check.n_classes is not None
        words = f"{number(check.estimate)}, interval {interval}, limit {limit}: {outcome}"
        ends = (check.low, check.high) if known else (check.estimate, check.estimate)
        figure = figures.interval(check.estimate, *ends, rule, words)
    needed = ""
    if check.decides and check.outcome != "pass" and check.needed:
        needed = (
            f"About {describe_units(check.needed.classes, check.unit)} "
            f"({check.needed.queries} queries) would settle it, if the estimate is the truth."
        )
    return CheckRow(
        name=check.name if check.group == "unseen" else f"{check.name} ({check.group})",
        detail=check.detail if check.detail.endswith(".") else f"{check.detail}.",
        kind=kind,
        sign=sign,
        outcome=outcome,
        estimate=number(check.estimate),
        interval=interval,
        limit=limit,
        n=f"{check.n_queries:,}",
        needed=needed,
        figure=figure,
    )


def score_figure(scores: ScoreDistributions, group: Group) -> str:
    """Both models' distributions with their thresholds."""
    panels = []
    for model in ("old", "new"):
        same, different = (_as_shares(counts[model]) for counts in (scores.same, scores.different))
        rates = group.error_rates
        threshold = None if rates is None else rates.cosines.get(model)
        panels.append((f"{model} queries", same, different, threshold))
    label = "Distributions of cosines of pairs of one class and of two, old and new queries"
    return figures.distributions(scores.low, scores.width, panels, label)


def _as_shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def score_table(scores: ScoreDistributions) -> Table:
    """The bins that have pairs: the share of each kind of pair that lies in them."""
    kinds = [(model, kind) for model in ("old", "new") for kind in ("same", "different")]
    counts = {kind: getattr(scores, kind[1])[kind[0]] for kind in kinds}
    columns = [_as_shares(counts[kind]) for kind in kinds]
    rows = tuple(
        (f"{scores.low + scores.width * index:.3f}", *(percent(share) for share in bins))
        for index, bins in enumerate(zip(*columns, strict=True))
        if any(bins)
    )
    words = {"same": "same class", "different": "other classes"}
    return ("cosine from", *(f"{model}, {words[kind]}" for model, kind in kinds)), rows


def threshold_table(group: Group) -> Table:
    """What thresholds accept: those in use, the one that keeps the false accepts, and points."""
    rows: list[tuple[str, ...]] = []
    rates = group.error_rates
    for model in ("old", "new") if rates else ():
        assert rates is not None
        rows.append(
            (
                f"{model} queries, threshold in use",
                number(rates.cosines.get(model)),
                percent(rates.far[model]),
                percent(rates.frr[model]),
            )
        )
    if rates:
        rows.append(
            (
                "new queries, keeping the false accepts",
                number(rates.same_far_threshold),
                percent(rates.far["old"]),
                percent(rates.same_far_frr),
            )
        )
    rows += [
        (
            f"{model} queries, false accepts at most {point.far:g}",
            number(point.threshold[model]),
            f"≤ {point.far:.1%}",
            percent(point.frr[model]),
        )
        for point in group.operating_points
        for model in ("old", "new")
    ]
    return ("threshold of", "cosine", "false accepts", "false rejects"), tuple(rows)


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """One slice: its words and numbers as text, and its figure."""

    name: str
    n: str
    hit_rate: tuple[str, str]
    recall: tuple[str, str]
    gain: str
    kind: str
    sign: str
    outcome: str
    figure: str


def slice_rows(report: Report, details: Details) -> tuple[SliceRow, ...]:
    """The slices, those that lose most first."""
    name = report.groups[0].name
    checks = {check.group: check for check in report.verdict.checks if check.name == "slice_gain"}
    rows = []
    for part in details.slices:
        old, new = part.hit_rate["old"], part.hit_rate["new"]
        check = checks.get(f"{name}, {part.name}")
        outcome = check.outcome if check is not None and check.decides else ""
        kind, sign, words = OUTCOMES[outcome]
        known = math.isfinite(old) and math.isfinite(new)
        label = f"hit rate from {percent(old)} to {percent(new)}"
        row = SliceRow(
            name=part.name,
            n=f"{part.n_queries:,}",
            hit_rate=(percent(old), percent(new)),
            recall=(percent(part.recall["old"]), percent(part.recall["new"])),
            gain=number(100 * (new - old), "+.1f"),
            kind=kind,
            sign=sign,
            outcome=words,
            figure=figures.change(old, new, label) if known else "",
        )
        rows.append((new - old if known else math.inf, row))
    rows.sort(key=lambda entry: entry[0])
    return tuple(row for _, row in rows)


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table of shares: headings of the columns, and rows of (name, cells); a cell is its text and
    a level from 0 to 9, by its place between the least and the largest share."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


def heat_map(
    caption: str,
    corner: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
) -> HeatMap:
    """A heat map of values; a cell without one is empty."""
    known = [v for values in rows.values() for v in values if v is not None and math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)

    def cell(value: float | None) -> tuple[str, int]:
        if value is None or not math.isfinite(value):
            return "", 0
        share = (value - low) / (high - low) if high > low else 0.5
        return percent(value), round(9 * share)

    return HeatMap(
        caption=caption,
        corner=corner,
        columns=tuple(columns),
        rows=tuple((name, tuple(map(cell, values))) for name, values in rows.items()),
    )


def pair_map(group: Group, policy: Policy) -> HeatMap:
    """Hit rates of old and new queries on every gallery that was searched."""
    k = str(policy.hit_at)
    searched = {
        places: group.hit_rate[pair].get(k)
        for pair, places in PAIRS.items()
        if pair in group.hit_rate
    }
    columns = list(dict.fromkeys(gallery for _, gallery in searched))
    rows = {
        f"{queries} queries": [searched.get((queries, gallery)) for gallery in columns]
        for queries in ("old", "new")
    }
    return heat_map(f"hit@{k} by query model and gallery", "queries", columns, rows)


def version_map(details: Details, policy: Policy) -> HeatMap:
    """Hit rates on the rows of each earlier version: its own queries, and new ones."""
    names = {model.sha256: model.name for model in details.gallery_models}
    rows = {
        f"{model_name(names.get(version.sha256, ''), version.sha256) or 'model'} "
        f"{version.sha256[:12]} ({version.rows:,} rows)": [
            version.hit_rate["own"],
            version.hit_rate["new"],
        ]
        for version in details.versions
    }
    return heat_map(
        f"hit@{policy.hit_at} on the rows of each version",
        "rows of",
        ("its own queries", "new queries"),
        rows,
    )


def ann_figure(ann: AnnRecall) -> str:
    """The sweep of ef, on a scale of doublings."""
    points = [(math.log2(max(1, ef)), recall) for ef, recall in _recalls(ann)]
    return figures.chart(
        points,
        f"Recall at {ann.k} of the index by ef; target {ann.target:g}",
        axes=("ef", f"recall@{ann.k}"),
        level=figures.Mark(y=ann.target, words=f"target {ann.target:g}"),
        x_at=[x for x, _ in points[:: -(-len(points) // 6)]],
        x_format=lambda x: f"{2**x:.0f}",
    )


def ann_table(ann: AnnRecall) -> Table:
    """The sweep in numbers; today's ef and the one that is needed are named."""
    notes = {ann.ef_current: "today", ann.ef_needed: "needed"}
    if ann.ef_current == ann.ef_needed:
        notes = {ann.ef_current: "today, enough"}
    rows = tuple((str(ef), percent(recall), notes.get(ef, "")) for ef, recall in _recalls(ann))
    return ("ef", f"recall@{ann.k}", ""), rows


def _recalls(ann: AnnRecall) -> list[tuple[int, float]]:
    """Every ef that was measured with its recall, ascending."""
    measured = {**dict(ann.sweep), ann.ef_current: ann.recall_current}
    return sorted({**measured, ann.ef_needed: ann.recall_needed}.items())


def gallery_figure(details: Details) -> str:
    """Who embedded the gallery, as one bar."""
    total = sum(model.rows for model in details.gallery_models)
    parts = [model.rows / max(1, total) for model in details.gallery_models]
    words = ", ".join(f"{number} is {percent(share)}" for number, share in enumerate(parts, 1))
    return figures.shares(parts, f"Share of the gallery by model: {words}")


def gallery_table(details: Details) -> Table:
    """The same in numbers."""
    total = max(1, sum(model.rows for model in details.gallery_models))
    rows = tuple(
        (
            f"{position}. {model_name(model.name, model.sha256) or 'model'}",
            model.sha256[:12],
            f"{model.rows:,}",
            percent(model.rows / total),
        )
        for position, model in enumerate(details.gallery_models, 1)
    )
    return ("embedded by", "digest", "rows", "share"), rows


def judged_rows(report: Report) -> Table:
    """What of the gallery is of known class, and of the first answers of known relevance."""
    rows: list[tuple[str, ...]] = []
    searched, group = report.searched, report.groups[0]
    if searched is not None:
        known = searched.rows - searched.unlabelled
        rows += [
            ("rows searched", f"{searched.rows:,}"),
            ("of them the store's own", _share(searched.stored, searched.rows)),
            ("of them of known class", _share(known, searched.rows)),
        ]
        if searched.conflicts:
            rows.append(("labelled differently in data and store", f"{searched.conflicts:,}"))
    if group.unjudged:
        rows += [
            (f"first {k} answers of {model} queries, relevance known", percent(1 - share))
            for model, by_k in sorted(group.unjudged.items(), reverse=True)
            for k, share in sorted(by_k.items(), key=lambda entry: int(entry[0]))
        ]
    rows += [
        ("queries with something to find", f"{group.n_queries:,}"),
        ("queries with nothing to find", f"{group.n_without_match:,}"),
    ]
    if (passed := report.gallery_pass) is not None:
        rows += [
            ("rows that went through the new model", _share(passed.passed, passed.rows)),
            ("labelled training items among the rows", _share(passed.trained, passed.rows)),
        ]
    return ("gallery and queries", ""), tuple(rows)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({percent(part / max(1, whole))})"


def measure_table(group: Group, policy: Policy) -> Table:
    """Hit rates, nDCG, MRR, recall and mAP of every pair of queries and gallery."""
    from compatctl.report._report import ranking_columns

    ks = sorted(group.hit_rate["old_old"], key=int)
    others = ranking_columns(group, policy)
    pairs = [*(pair for pair in PAIRS if pair in group.hit_rate)]
    pairs += sorted(group.hit_rate.keys() - PAIRS.keys())
    rows = tuple(
        (
            " on ".join(PAIRS.get(pair, (pair.replace("_", " "), "old gallery"))),
            *(number(group.hit_rate[pair].get(k)) for k in ks),
            *(number(means.get(pair)) for means in others.values()),
        )
        for pair in pairs
    )
    return ("queries and gallery", *(f"hit@{k}" for k in ks), *others), rows


def other_rows(report: Report) -> Table:
    """Latency, pairs and re-scoring, where they were measured."""
    rows: list[tuple[str, ...]] = []
    if (latency := report.latency) is not None:
        rows.append(("milliseconds a batch", number(latency.old_ms), number(latency.new_ms)))
    if (pairs := report.pairs) is not None:
        rows += [
            ("accuracy on pairs", percent(pairs.accuracy["old"]), percent(pairs.accuracy["new"])),
            (
                "equal error rate on pairs",
                percent(pairs.equal_error_rate["old"]),
                percent(pairs.equal_error_rate["new"]),
            ),
        ]
    if (rescoring := report.rescoring) is not None:
        k = str(report.policy.hit_at)
        rows.append(("hit rate without re-scoring", "–", number(rescoring.first_stage.get(k))))
        rows += [
            (
                f"hit rate, re-scored, {state.name} "
                f"({percent(state.passed_share)} of the rows passed)",
                "–",
                number(state.hit_rate.get(k)),
            )
            for state in rescoring.states
        ]
    return ("measure", "old", "new"), tuple(rows)


def provenance_rows(report: Report) -> Table:
    """What the report is bound to: names, and digests in full."""
    rows: list[tuple[str, str, str]] = [
        ("old model", *_named(report, report.old)),
        ("new model", *_named(report, report.new)),
        ("data", f"{report.data.name} ({report.data.items:,} items)", report.data.sha256),
        ("evaluation set", "", report.data.evaluation_set_sha256),
        ("policy", report.policy.name, report.policy_sha256),
    ]
    if (store := report.store) is not None:
        rows += [
            ("index", f"generation {store.generation}", store.index_sha256),
            ("catalogue", f"{store.stored_vectors:,} rows", store.catalog_sha256),
        ]
    rows += [
        (name, "", digest)
        for name, digest in (
            ("training record", report.training_record_sha256),
            ("class registry", report.registry_sha256),
            ("report", report.checksum),
        )
        if digest
    ]
    if report.signature is not None:
        key = f"key {report.signature.key_id}"
        rows.append(("signature", key, report.signature.hmac_sha256))
    return ("what", "name", "sha256"), tuple(rows)


def _named(report: Report, model: ModelId) -> tuple[str, str]:
    return model_name(model.name, model.sha256, report.details), model.sha256


def setting_rows(report: Report) -> Table:
    """Options that can change a verdict, and how it was drawn."""
    rows = [("compatctl", report.tool_version), ("seed", str(report.seed))]
    rows.append(("replicates", f"{report.replicates:,}"))
    if report.attempt is not None:
        rows.append(("attempt", str(report.attempt.number)))
    rows += [
        (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        for name, value in sorted(report.options.items())
        if value not in (None, [], (), False) and name != "seed"
    ]
    return ("setting", "value"), tuple(rows)
