"""OpenMetrics 1.0 text, for a dashboard: gauges with escaped labels, and an end mark."""

from __future__ import annotations

from collections.abc import Iterator

from compatctl.report._report import Report

_OUTCOMES = {"pass": 1, "inconclusive": 0, "fail": -1}


def openmetrics(report: Report) -> bytes:
    """The verdict, each check's estimate, interval and outcome, and each group's recall."""
    return ("\n".join(_lines(report)) + "\n").encode(errors="replace")


def _lines(report: Report) -> Iterator[str]:
    yield from _head("compatctl_verdict", "1 pass, 0 inconclusive, -1 fail")
    models = {"old": report.old.sha256, "new": report.new.sha256, "policy": report.policy_sha256}
    yield _sample("compatctl_verdict", models, _OUTCOMES[report.verdict.outcome])
    yield from _head("compatctl_check_outcome", "1 pass, 0 inconclusive, -1 fail")
    for check in report.verdict.checks:
        labels = {"check": check.name, "group": check.group, "decides": str(check.decides).lower()}
        yield _sample("compatctl_check_outcome", labels, _OUTCOMES[check.outcome])
    yield from _head("compatctl_check", "estimate and ends of the confidence interval")
    for check in report.verdict.checks:
        bounds = {"estimate": check.estimate, "low": check.low, "high": check.high}
        for bound, value in bounds.items():
            if value is not None and value - value == 0.0:
                labels = {"check": check.name, "group": check.group, "bound": bound}
                yield _sample("compatctl_check", labels, value)
    yield from _head("compatctl_recall", "recall of query model and gallery")
    for group in report.groups:
        for pair, recall in group.recall.items():
            for k, value in recall.items():
                if value - value == 0.0:
                    labels = {"group": group.name, "pair": pair, "k": k}
                    yield _sample("compatctl_recall", labels, value)
    yield "# EOF"


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# TYPE {name} gauge"
    yield f"# HELP {name} {text}"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
