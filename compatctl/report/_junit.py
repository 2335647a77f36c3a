"""JUnit XML: a test case for each check that decides, so that a pipeline shows which one failed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from compatctl.core.gate import Check
from compatctl.report._report import Report


def junit(report: Report, *, seconds: float | None = None) -> bytes:
    """One test suite. A check that fails is a failure, an inconclusive one an error (the pipeline
    must stop). Checks that do not decide are properties of the suite, with their figures.

    ``seconds``: what the verification took, the suite's time; the checks are computed together, so
    none has a time of its own.
    """
    checks = report.verdict.checks
    deciding = [check for check in checks if check.decides]
    counts = {
        "tests": len(deciding),
        "failures": sum(check.outcome == "fail" for check in deciding),
        "errors": sum(check.outcome == "inconclusive" for check in deciding),
        "skipped": 0,
    }
    red = any(check.outcome != "pass" for check in deciding)
    unexplained = not deciding or (not red and report.verdict.outcome != "pass")
    if unexplained:  # a verdict that no check explains is never a green suite
        counts["tests"] += 1
        counts["errors"] += 1
    attributes = {key: str(value) for key, value in counts.items()}
    if seconds is not None:
        attributes["time"] = f"{seconds:.3f}"
    suite = ET.Element("testsuite", {"name": "compatctl verify", **attributes})
    _properties(suite, report)
    for check in deciding:
        _case(suite, check)
    if unexplained:
        case = ET.SubElement(suite, "testcase", classname="compatctl", name="verdict")
        ET.SubElement(case, "error", message=_clean(report.summary), type="inconclusive")
    root = ET.Element("testsuites", attributes)
    root.append(suite)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _properties(suite: ET.Element, report: Report) -> None:
    properties = ET.SubElement(suite, "properties")
    entries = [
        ("verdict", report.verdict.outcome),
        ("summary", report.summary),
        ("next_step", report.next_step),
        ("old", report.old.sha256),
        ("new", report.new.sha256),
        ("data", report.data.sha256),
        ("policy", f"{report.policy.name} {report.policy_sha256}"),
    ]
    for check in report.verdict.checks:
        if not check.decides:
            entries.append((f"measured.{check.group}.{check.name}", _numbers(check)))
    for name, value in entries:
        ET.SubElement(properties, "property", name=_clean(name), value=_clean(value))


def _numbers(check: Check) -> str:
    return f"estimate={check.estimate} low={check.low} high={check.high} n={check.n}"


def _case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=_clean(f"compatctl.{check.group}"), name=check.name
    )
    detail = _clean(check.detail)
    if check.outcome == "fail":
        ET.SubElement(case, "failure", message=detail, type=check.name)
    elif check.outcome == "inconclusive":
        ET.SubElement(case, "error", message=detail, type="inconclusive")
    ET.SubElement(case, "system-out").text = f"{detail}\n{_numbers(check)}"


def _clean(text: str) -> str:
    """Replace characters that XML 1.0 does not allow; names come from the user's data."""
    return "".join(
        character if character in "\t\n" or _is_xml(ord(character)) else "?" for character in text
    )


def _is_xml(code: int) -> bool:
    return code >= 32 and not 0xD800 <= code <= 0xDFFF and code not in {0xFFFE, 0xFFFF}
