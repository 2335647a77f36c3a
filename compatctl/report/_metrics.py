"""OpenMetrics 1.0 text, for a dashboard: state sets, gauges with escaped labels, an end mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compatctl.report._report import Group, Report

_OUTCOMES = ("pass", "inconclusive", "fail")


def openmetrics(report: Report) -> bytes:
    """The verdict, each check's estimate, interval and outcome, and each group's measures."""
    return ("\n".join(_lines(report)) + "\n").encode(errors="replace")


def _lines(report: Report) -> Iterator[str]:
    yield from _head("compatctl_verdict", "1 for the verdict, 0 for the others", "stateset")
    models = {"old": report.old.sha256, "new": report.new.sha256, "policy": report.policy_sha256}
    yield from _states("compatctl_verdict", models, report.verdict.outcome)
    yield from _head(
        "compatctl_check_outcome",
        "1 for the outcome, 0 for the others; decides: whether the verdict depends on it",
        "stateset",
    )
    for check in report.verdict.checks:
        if check.threshold is not None:  # without a limit it is measured, and has no outcome
            decides = str(check.decides).lower()
            labels = {"check": check.name, "group": check.group, "decides": decides}
            yield from _states("compatctl_check_outcome", labels, check.outcome)
    yield from _head("compatctl_check", "estimate and ends of the confidence interval")
    for check in report.verdict.checks:
        bounds = {"estimate": check.estimate, "low": check.low, "high": check.high}
        for bound, value in bounds.items():
            if value is not None and value - value == 0.0:
                labels = {"check": check.name, "group": check.group, "bound": bound}
                yield _sample("compatctl_check", labels, value)
    for name in ("hit_rate", "ndcg", "mrr", "recall"):
        yield from _measure(name, report.groups)
    yield "# EOF"


def _measure(name: str, groups: Sequence[Group]) -> Iterator[str]:
    """A measure at each k of query model and gallery; undefined ones are left out."""
    yield from _head(f"compatctl_{name}", f"{name} at k of query model and gallery")
    for group in groups:
        by_pair: dict[str, dict[str, float]] = getattr(group, name)
        for pair, values in by_pair.items():
            for k, value in values.items():
                if value - value == 0.0:
                    labels = {"group": group.name, "pair": pair, "k": k}
                    yield _sample(f"compatctl_{name}", labels, value)


def _states(name: str, labels: dict[str, str], outcome: str) -> Iterator[str]:
    """A state set: a sample for each outcome there is, of which one is 1."""
    for state in _OUTCOMES:
        yield _sample(name, {**labels, name: state}, int(state == outcome))


def _head(name: str, text: str, kind: str = "gauge") -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"# HELP {name} {text}"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
