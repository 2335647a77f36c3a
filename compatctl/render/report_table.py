"""The table of verify: the verdict, and the measurements behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compatctl.printable import quantity
from compatctl.render.console import cell, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from compatctl.core.gate import Check
    from compatctl.core.policy import Policy
    from compatctl.evaluation.logged_answers import LogResult
    from compatctl.report import (
        ErrorRates,
        Group,
        OperatingPoint,
        PairsResult,
        Report,
        RescoredToday,
        RescoringEntry,
        SearchedGallery,
    )

_TESTS = {
    "old_old": "old / old",
    "new_old": "new / old",
    "first_stage": "new / old, first stage",
    "half_warm": "new / old, half-warm",
    "warm": "new / old, warm",
    "new_new": "new / new",
    "old_new": "old / new",
    "old_mixed": "old / mixed",
    "new_mixed": "new / mixed",
    "old_old_subset": "old / old, subset",
    "new_old_subset": "new / old, subset",
}


def report_table(console: Console, report: Report, *, verbose: bool = False) -> None:
    """The verdict and what to do, what decides it, and what was not checked; ``verbose``: every
    group, table and check too."""
    console.print(f"verdict: {report.verdict.outcome}. {cell(report.summary)}")
    console.print(f"next: {cell(report.next_step)}\n")
    if report.gallery_pass is not None:
        console.print(report.gallery_pass.text)
    if report.searched is not None:
        console.print(f"{_searched(report.searched)}\n")
    if verbose:
        for group in report.groups:
            _group(console, group, report.policy)
    else:
        _first_group(console, report.groups[0], report.policy)
    _rescored_today(console, report.rescored_today)
    if report.rescoring is not None:
        _rescoring(console, report.rescoring)
    _checks(console, report, verbose=verbose)
    if verbose:
        _measured(console, report)
    if report.attempt is not None and report.attempt.number > 1:
        from compatctl.report import attempt_sentence

        console.print(cell(attempt_sentence(report.attempt)))
    console.print(f"not checked: {cell('; '.join(report.not_checked) or 'nothing')}")
    if not verbose:
        console.print("-v shows everything that was measured")


def _checks(console: Console, report: Report, *, verbose: bool) -> None:
    """What decides; a check that did not pass says why. ``verbose``: also what was measured."""
    checks = [check for check in report.verdict.checks if check.decides]
    if checks:
        checks_table(console, checks, sizes=verbose)
    _why(console, checks)
    first = report.groups[0].name
    others = [
        check
        for check in report.verdict.checks
        if not check.decides and check.group.startswith((first, "pairs"))
    ]
    if others and verbose:
        console.print("measured; these do not decide, by the policy or for lack of queries:")
        checks_table(console, others)


def _why(console: Console, checks: Sequence[Check]) -> None:
    """A sentence for each check that did not pass."""
    for check in checks:
        if check.outcome != "pass":
            console.print(f"{cell(_named(check))}: {cell(check.detail)}")


def _measured(console: Console, report: Report) -> None:
    """Pairs, ANN recall and latency."""
    if report.pairs is not None:
        _pairs(console, report.pairs)
    if report.ann is not None:
        console.print(
            f"ANN recall@{report.ann.k} of the new queries: {report.ann.recall_current:.4f} at ef "
            f"{report.ann.ef_current}; ef for {report.ann.target}: {report.ann.ef_needed}"
        )
    if report.latency is not None:
        console.print(
            f"a batch of {report.latency.batch}: {report.latency.old_ms:.3g} ms old, "
            f"{report.latency.new_ms:.3g} ms new"
        )


_SHOWN = ("old_old", "new_old", "new_new")
"""Today's answers, the candidate's on the gallery as it is, and its own on a gallery of its own."""


def _first_group(console: Console, group: Group, policy: Policy) -> None:
    """The deciding queries: hit rates and nDCG of what matters."""
    console.print(_heading(group))
    ks = sorted(group.hit_rate["old_old"], key=int)
    ndcg = f"nDCG@{policy.ndcg_at}"
    rows = [
        (
            _TESTS[pair],
            *(group.hit_rate[pair][k] for k in ks),
            group.ndcg[pair].get(str(policy.ndcg_at)),
        )
        for pair in _SHOWN
        if pair in group.hit_rate
    ]
    print_table(console, ("query / gallery", *(f"hit@{k}" for k in ks), ndcg), rows)
    if group.error_rates is not None:
        _error_rates(console, group.error_rates)


def _heading(group: Group) -> str:
    return (
        f"{cell(group.name)}: {quantity(group.n_queries, 'query', 'queries')} of {_units(group)}"
        f"{_left_out(group.n_without_match)}"
    )


def _rescored_today(console: Console, today: RescoredToday | None) -> None:
    """How old answers are re-scored, as the store serves them."""
    if today is None:
        return
    first = ", ".join(f"hit@{k} {value:.4f}" for k, value in today.first_stage.items())
    console.print(
        f"old answers are re-scored, as the store serves them today: the first "
        f"{today.candidates}, with {today.kept_share:.2%} of the rows kept and at most "
        f"{today.passes} items embedded for a query; without it {first}\n"
    )


def _rescoring(console: Console, entry: RescoringEntry) -> None:
    """The states of the cache, with the share of the gallery that each passes."""
    console.print(
        f"re-scored: the first {entry.candidates} answers, at most {entry.passes} items embedded "
        f"for a query; free cosine + {entry.weight:g} x first cosine, or {entry.intercept:.3f} + "
        f"{entry.slope:.3f} x first cosine without a free vector"
    )
    if entry.unavailable:
        console.print(
            f"not in the data, and not to be re-scored: {quantity(entry.unavailable, 'row')}"
        )
    ks = sorted(entry.first_stage, key=int)
    rows: list[tuple[object, ...]] = [
        ("not re-scored", "0.00%", *(entry.first_stage[k] for k in ks)),
        *(
            (state.name, f"{state.passed_share:.2%}", *(state.hit_rate[k] for k in ks))
            for state in entry.states
        ),
    ]
    columns = ("free vectors", "gallery passed", *(f"hit@{k}" for k in ks))
    print_table(console, columns, rows)
    name = entry.states[0].name if entry.states else "cold"
    console.print(f"the {name} state decides; half-warm and warm must not fail\n")


def _units(group: Group) -> str:
    from compatctl.core.gate import describe_units

    return cell(describe_units(group.n_classes, group.unit))


def _searched(gallery: SearchedGallery) -> str:
    text = f"searched: {quantity(gallery.rows, 'row')}"
    if gallery.stored:
        text += f", {gallery.stored} of the store and {gallery.embedded} embedded for this test"
    if gallery.unlabelled:
        text += f"; the class of {gallery.unlabelled} of them is unknown"
    return text


def _group(console: Console, group: Group, policy: Policy) -> None:
    from compatctl.report import ranking_columns

    console.print(_heading(group))
    ks, others = sorted(group.hit_rate["old_old"], key=int), ranking_columns(group, policy)
    rows = [
        (
            _TESTS[pair],
            *(hit_rate[k] for k in ks),
            *(of_pair.get(pair) for of_pair in others.values()),
            group.cos_same.get(pair),
            group.cos_diff.get(pair),
        )
        for pair, hit_rate in group.hit_rate.items()
    ]
    columns = (
        "query / gallery",
        *(f"hit@{k}" for k in ks),
        *others,
        "same",
        "diff",
    )
    print_table(console, columns, rows)
    line = f"queries that turn wrong {group.negative_flips:.4f}, right {group.positive_flips:.4f}"
    if group.rank_bias:
        line += (
            f"; rank bias towards re-embedded items: {group.rank_bias['old']:+.4f} of old, "
            f"{group.rank_bias['new']:+.4f} of new queries"
        )
    console.print(line)
    if group.error_rates is not None:
        _error_rates(console, group.error_rates)
    _scope(console, group)
    _operating_points(console, group.operating_points)
    console.print("")


def _scope(console: Console, group: Group) -> None:
    """Unknown relevance, rows that training used, and queries that are left out."""
    if group.unjudged:
        shares = ", ".join(
            f"{side} {share['1']:.2%}" for side, share in sorted(group.unjudged.items())
        )
        console.print(f"first answers of unknown relevance: {shares}")
    if group.training_overlap is not None:
        rows = group.training_overlap
        console.print(
            f"training used {rows.of_gallery:.2%} of the gallery's rows of these classes, and "
            f"{rows.of_queries:.2%} of the rows that are correct answers; "
            f"for {rows.untouched_queries} queries it used none of them"
        )
    if group.n_same_image:
        console.print(
            f"left out, as they are in the gallery under another id: "
            f"{quantity(group.n_same_image, 'query', 'queries')}"
        )


def _error_rates(console: Console, rates: ErrorRates) -> None:
    console.print(
        f"accepted at {rates.old_threshold:g} by old, {rates.new_threshold:g} by new queries: "
        f"FAR {rates.far['old']:.3g}, {rates.far['new']:.3g}; FRR {rates.frr['old']:.4f}, "
        f"{rates.frr['new']:.4f}; threshold that keeps the FAR: {rates.same_far_threshold:.4f} "
        f"(FRR {rates.same_far_frr:.4f})"
    )
    if rates.calibrated:
        console.print(
            "these are scores on the callers' scale: "
            f"cosines {rates.cosines['old']:.4f} of old and {rates.cosines['new']:.4f} of new "
            "queries"
        )


def _operating_points(console: Console, points: Sequence[OperatingPoint]) -> None:
    if not points:
        return
    rows = [
        (
            f"{point.far:g}",
            *(part[model] for part in (point.threshold, point.frr) for model in ("old", "new")),
        )
        for point in points
    ]
    columns = ("at a FAR of", "threshold, old", "threshold, new", "FRR, old", "FRR, new")
    print_table(console, columns, rows)


def _named(check: Check) -> str:
    part = check.group.removeprefix("unseen").removeprefix(", ")
    return f"{check.name} ({part})" if part else str(check.name)


def checks_table(console: Console, checks: Sequence[Check], *, sizes: bool = True) -> None:
    """A line for each check; ``sizes``: with the number of queries or pairs behind it."""
    rows = [
        (
            _named(check),
            check.estimate,
            None if check.low is None else f"{check.low:.4f} .. {check.high:.4f}",
            None if check.threshold is None else f"{check.threshold - (check.margin or 0.0):g}",
            *((check.n,) if sizes else ()),
            check.outcome if check.threshold is not None else "",
        )
        for check in checks
    ]
    columns = ("check", "estimate", "interval", "limit", *(("n",) if sizes else ()), "outcome")
    print_table(console, columns, rows)


def log_table(console: Console, result: LogResult) -> None:
    console.print(
        f"{result.queries} logged queries, {result.judged} of them judged by {result.judged_by}, "
        f"{result.k} answers each; {result.current[:12]} served, {result.candidate[:12]} beside it"
    )
    checks = result.verdict.checks
    deciding = [check for check in checks if check.decides]
    checks_table(console, deciding)
    _why(console, deciding)
    if others := [check for check in checks if not check.decides]:
        console.print("measured; these do not decide, by the policy or for lack of queries:")
        checks_table(console, others)
    console.print(f"{result.verdict.outcome}, by the policy {result.policy}; deploy needs verify")


def _pairs(console: Console, pairs: PairsResult) -> None:
    console.print(
        f"given pairs: {pairs.n_same} of the same class, {pairs.n_diff} of different classes"
    )
    fars = list(pairs.tar["old"])
    rows = [
        (
            name,
            pairs.accuracy[name],
            pairs.equal_error_rate[name],
            *(pairs.tar[name][far] for far in fars),
        )
        for name in ("old", "new")
    ]
    columns = ("query model", "accuracy", "EER", *(f"TAR@{far}" for far in fars))
    print_table(console, columns, rows)


def _left_out(count: int) -> str:
    has = "has" if count == 1 else "have"
    return f" ({count} more {has} no match in the gallery)" if count else ""
