"""JUnit XML: a test case for each check, so that a pipeline shows which one failed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from compatctl.core.gate import Check
from compatctl.report._report import Report


def junit(report: Report) -> bytes:
    """One test suite. A deciding check that fails is a failure, an inconclusive one an error (the
    pipeline must stop), and a check that does not decide is skipped."""
    checks = report.verdict.checks
    deciding = [check for check in checks if check.decides]
    counts = {
        "tests": len(checks),
        "failures": sum(check.outcome == "fail" for check in deciding),
        "errors": sum(check.outcome == "inconclusive" for check in deciding),
        "skipped": len(checks) - len(deciding),
    }
    red = any(check.outcome != "pass" for check in deciding)
    unexplained = not deciding or (not red and report.verdict.outcome != "pass")
    if unexplained:  # a verdict that no check explains is never a green suite
        counts["tests"] += 1
        counts["errors"] += 1
    attributes = {key: str(value) for key, value in counts.items()}
    suite = ET.Element("testsuite", {"name": "compatctl verify", **attributes})
    _properties(suite, report)
    for check in checks:
        _case(suite, check)
    if unexplained:
        case = ET.SubElement(suite, "testcase", classname="compatctl", name="verdict")
        ET.SubElement(case, "error", message=_clean(report.summary), type="inconclusive")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _properties(suite: ET.Element, report: Report) -> None:
    properties = ET.SubElement(suite, "properties")
    entries = {
        "verdict": report.verdict.outcome,
        "summary": report.summary,
        "old": report.old.sha256,
        "new": report.new.sha256,
        "data": report.data.sha256,
        "policy": f"{report.policy.name} {report.policy_sha256}",
    }
    for name, value in entries.items():
        ET.SubElement(properties, "property", name=name, value=_clean(value))


def _case(suite: ET.Element, check: Check) -> None:
    name = check.name if check.decides else f"{check.name} (measured)"
    case = ET.SubElement(suite, "testcase", classname=_clean(f"compatctl.{check.group}"), name=name)
    detail = _clean(check.detail)
    if not check.decides:
        ET.SubElement(case, "skipped", message="the policy does not let this check decide")
    elif check.outcome == "fail":
        ET.SubElement(case, "failure", message=detail, type=check.name)
    elif check.outcome == "inconclusive":
        ET.SubElement(case, "error", message=detail, type="inconclusive")
    numbers = f"estimate={check.estimate} low={check.low} high={check.high} n={check.n}"
    ET.SubElement(case, "system-out").text = f"{detail}\n{numbers}"


def _clean(text: str) -> str:
    """Replace characters that XML 1.0 does not allow; names come from the user's data."""
    return "".join(
        character if character in "\t\n" or _is_xml(ord(character)) else "?" for character in text
    )


def _is_xml(code: int) -> bool:
    return code >= 32 and not 0xD800 <= code <= 0xDFFF and code not in {0xFFFE, 0xFFFF}
