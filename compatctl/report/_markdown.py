"""Markdown for a pipeline's job page."""

from __future__ import annotations

from collections.abc import Iterator

from compatctl.core.gate import Check, describe_units
from compatctl.core.policy import Policy
from compatctl.printable import printable
from compatctl.report._details import Details, model_name
from compatctl.report._report import Group, ModelId, Report, ranking_columns
from compatctl.report._summary import attempt_sentence

_MARK = {"pass": "pass", "fail": "**FAIL**", "inconclusive": "*cannot tell*"}


def markdown(report: Report) -> bytes:
    """The verdict, the deciding checks, the other checks, and what was not checked."""
    return ("\n".join(_lines(report)) + "\n").encode(errors="replace")


def _lines(report: Report) -> Iterator[str]:
    yield f"## compatctl verify: {report.verdict.outcome}"
    yield ""
    yield f"{_text(report.summary)} Next: `{report.next_step}`."
    yield ""
    if report.gallery_pass is not None:
        yield f"{_sentence(report.gallery_pass.text)}."
        yield ""
    yield f"Old {_model(report.old, report.details)}, "
    yield f"new {_model(report.new, report.details)}, "
    yield f"policy {_text(report.policy.name)} ({report.policy_sha256[:12]})."
    yield ""
    if report.attempt is not None and report.attempt.number > 1:
        yield _text(attempt_sentence(report.attempt))
        yield ""
    for group in report.groups[:1]:
        yield from _retrieval(group, report.policy)
    yield from _checks("Deciding checks", [c for c in report.verdict.checks if c.decides])
    others = [c for c in report.verdict.checks if not c.decides]
    yield "<details><summary>What else was measured</summary>"
    yield ""
    yield from _checks("Measured", others)
    yield "</details>"
    yield ""
    for line in report.warnings:
        yield f"Warning: {_text(line)}."
        yield ""
    yield f"Not checked: {_text('; '.join(report.not_checked) or 'nothing')}."


def _model(model: ModelId, details: Details | None) -> str:
    """A model's name, and twelve characters of its digest."""
    name, digest = model_name(model.name, model.sha256, details), model.sha256[:12]
    return f"`{_code(name)}`" + ("" if name == digest else f" ({digest})")


def _sentence(text: str) -> str:
    return _text(text[0].upper() + text[1:])


def _retrieval(group: Group, policy: Policy) -> Iterator[str]:
    ks = sorted(group.hit_rate["old_old"], key=int)
    units = describe_units(group.n_classes, group.unit)
    yield f"{group.n_queries} queries of {_text(units)} ({_text(group.name)})"
    yield ""
    others = ranking_columns(group, policy)
    yield f"| query / gallery | {' | '.join([*(f'hit@{k}' for k in ks), *others])} |"
    yield "|---|" + "---|" * (len(ks) + len(others))
    for pair, hit_rate in group.hit_rate.items():
        values = [*(hit_rate[k] for k in ks), *(of_pair.get(pair) for of_pair in others.values())]
        yield f"| {pair.replace('_', ' / ')} | {' | '.join(map(_rate, values))} |"
    yield ""


def _checks(title: str, checks: list[Check]) -> Iterator[str]:
    yield f"| {title} | estimate | interval | limit | n | outcome |"
    yield "|---|---|---|---|---|---|"
    for check in checks:
        limit = None if check.threshold is None else check.threshold - (check.margin or 0.0)
        name = check.name if check.group == "unseen" else f"{check.name} ({check.group})"
        interval = "" if check.low is None else f"{_number(check.low)} to {_number(check.high)}"
        outcome = _MARK[check.outcome] if check.threshold is not None else "measured"
        yield (
            f"| {_text(name)} | {_number(check.estimate)} | {interval} | {_number(limit)} | "
            f"{check.n} | {outcome} |"
        )
    yield ""
    for check in checks:
        if check.decides and check.outcome != "pass":
            yield f"- {_text(check.name)}: {_text(check.detail)}"
            if check.needed:
                yield (
                    f"  About {_text(describe_units(check.needed.classes, check.unit))} "
                    f"({check.needed.queries} queries) would settle it, "
                    "if the estimate is the truth."
                )
    yield ""


def _number(value: float | None) -> str:
    return "-" if value is None or value - value != 0.0 else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "-" if value is None or value - value != 0.0 else f"{value:.4f}"


def _text(text: str) -> str:
    """Escape text from the user's data: it starts no table cell, tag, link or line."""
    for sign in "\\`*_[]<>|~&":
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("://", ":\\//").replace("www.", "www\\.")
    return printable(" ".join(text.split()))


def _code(text: str) -> str:
    return printable(" ".join(text.replace("`", "'").replace("|", "/").split()))
