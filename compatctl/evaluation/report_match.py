"""Deploy is bound to how verify was asked: by the project's words, not by a report's.

A report holds its question: every option that can change a verdict, and a digest of what the data
ask. Both are made again here from the project, and what differs is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from compatctl.data import Dataset, read_pairs
from compatctl.deployment.data import load_data
from compatctl.errors import GateError, InputError
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import resolve_pairs
from compatctl.evaluation.protocol import query_rows
from compatctl.recipe import Project
from compatctl.report import Report

_FLAGS = {"slices": "--slice", "self_test": "--no-self-test"}
"""Options whose flag is not called as they are."""


def evaluation_set_sha256(data: Dataset, options: VerifyOptions) -> str:
    """sha256 (hex) of what the data ask: every item's description, and the images that query.

    Those are of the held-out queries and of the items in pairs; no other image is read.

    Raises:
        InputError: the pairs cannot be read, or name items that the data do not have.
    """
    rows = query_rows(data, "test")
    if options.pairs is not None:
        first, second, _ = resolve_pairs(read_pairs(options.pairs), data.row_of)
        rows = np.union1d(rows, np.union1d(first, second))
    images = {int(row): _image(data, int(row)) for row in rows}
    lines = sorted(
        json.dumps([i.id, i.label, i.split, i.role, i.slices, images.get(row)], sort_keys=True)
        for row, i in enumerate(data.items)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _image(data: Dataset, row: int) -> str:
    """The digest of an image, empty where it cannot be read: verify skips it, or ends there."""
    try:
        return data.digest(row)
    except InputError:
        return ""


def require_matching_report(report: Report, project: Project) -> None:
    """Raise unless the report was made as the project says.

    Raises:
        GateError: an option or the data differ, or there are no data here to compare.
        InputError: a file that the project names, or its data, cannot be read.
    """
    options = VerifyOptions().within(project)
    wanted, found = options.bound(), report.options
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name) or (name in found) != (name in wanted):
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise GateError(
                f"the report was made with {name} {_shown(found.get(name))}, the project says "
                f"{_shown(wanted.get(name))}",
                tip=f"verify again without {flag}, or write into compatctl.yaml what is meant",
            )
    _refuse_other_data(report, project, options)


def _refuse_other_data(report: Report, project: Project, options: VerifyOptions) -> None:
    stated = report.data.evaluation_set_sha256
    pinned = project.gate.data_sha256
    if pinned is None and (project.data is None or not project.data.exists()):
        raise GateError(
            "the project names no data to compare the report with"
            if project.data is None
            else f"there are no data at {project.data} to compare the report with",
            tip="pass --data, as to verify, or pin them: write gate: {data_sha256: "
            f"'{stated}'}} into compatctl.yaml",
        )
    here = pinned or evaluation_set_sha256(load_data(project), options)
    if here != stated:
        whose = "the project pins" if pinned else f"{project.data} has"
        raise GateError(
            f"the report is for other data: it says {stated[:12]}, {whose} {here[:12]}",
            tip="compatctl verify old.onnx new.onnx, with the project's own data",
        )


def _shown(value: Any) -> str:
    """A value of an option, for people."""
    if value in (None, []):
        return "nothing"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:40]
