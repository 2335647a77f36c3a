"""Reports of format 4, in which the hit rate is called recall: read as reports of today.

``deploy`` takes only reports of today. The store keeps those of earlier deployments, and its count
of attempts reads them.
"""

from __future__ import annotations

import re
from typing import Any

from compatctl.core.policy import NEW_KEYS, RENAMED, Policy, upgrade_policy
from compatctl.files import canonical_json, sha256_bytes
from compatctl.report._report import CHECKSUM

EARLIER = 4

_CHECKS = {
    "recall_gain": "hit_gain",
    "wide_recall_gain": "wide_hit_gain",
    "old_recall": "old_hit_rate",
}
_KEYS = {"recall": "hit_rate", "untouched_recall": "untouched_hit_rate", **_CHECKS, **RENAMED}
_USERS = ("options", "slices")
"""Entries whose keys are the user's."""
_NEW_KEYS = {key: getattr(Policy(), key) for key in NEW_KEYS}
_SENTENCE = {"the recall gain is": "the gain in hits is"}
_NAMES = re.compile("|".join(rf"\b{name}\b" for name in _CHECKS))


def problem_of(raw: dict[str, Any], data: bytes) -> str:
    """What contradicts that ``data`` are the bytes that verify wrote of the entries ``raw``; empty
    if nothing does."""
    entries = {name: entry for name, entry in raw.items() if name != CHECKSUM}
    if canonical_json(raw) != data:
        return "its bytes are not in the form that verify writes"
    if sha256_bytes(canonical_json({**entries, "signature": None})) != raw.get(CHECKSUM):
        return "its checksum does not match its content"
    if sha256_bytes(canonical_json(raw["policy"])) != raw["policy_sha256"]:
        return "its policy does not have the digest that it names"
    return ""


def upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries of a report of format 4 with the names of today."""
    report: dict[str, Any] = {key: _renamed(key, value) for key, value in raw.items()}
    report["policy"] = {**_NEW_KEYS, **upgrade_policy(raw["policy"])}
    for check in report["verdict"]["checks"]:
        check["name"] = _CHECKS.get(check["name"], check["name"])
    summary = _NAMES.sub(lambda found: _CHECKS[found[0]], report["summary"])
    for before, now in _SENTENCE.items():
        summary = summary.replace(before, now)
    for group in report["groups"]:
        group |= {name: {} for name in ("recall", "ndcg", "mrr")}
    return {**report, "summary": summary}


def _renamed(key: str, value: Any) -> Any:
    """The value with the keys of today at every depth."""
    if isinstance(value, list):
        return [_renamed("", entry) for entry in value]
    if not isinstance(value, dict) or key in _USERS:
        return value
    return {_KEYS.get(name, name): _renamed(name, entry) for name, entry in value.items()}
