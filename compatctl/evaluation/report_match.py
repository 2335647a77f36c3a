"""Whether a report was made with the project's options and data; deploy compares both.

A report holds every option that can change a verdict, and a digest of the evaluation set. Both are
computed again from the project, and a difference is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.project import open_store
from compatctl.errors import CompatError, GateError, InputError
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import resolve_pairs
from compatctl.evaluation.protocol import query_rows
from compatctl.recipe import Project
from compatctl.report import Report
from compatctl.store import rolled_back_models

_FLAGS = {"slices": "--slice", "self_test": "--no-self-test"}
"""Options whose flag has another name."""
_RESCORING = ("rescore", "passes")


def evaluation_set_sha256(data: Dataset, options: VerifyOptions) -> str:
    """sha256 (hex) of every item's description, and of the images of held-out queries and pairs.

    Raises:
        InputError: the pairs cannot be read, or name items that the data do not have.
    """
    rows = query_rows(data, "test")
    if options.pairs is not None:
        first, second, _ = resolve_pairs(options.pairs, data.row_of)
        rows = np.union1d(rows, np.union1d(first, second))
    images = {int(row): _image(data, int(row)) for row in rows}
    lines = sorted(
        json.dumps([i.id, i.label, i.split, i.role, i.slices, images.get(row)], sort_keys=True)
        for row, i in enumerate(data.items)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _image(data: Dataset, row: int) -> str:
    """The digest of an image, empty if it cannot be read: verify skips it, or stops there."""
    try:
        return data.digest(row)
    except InputError:
        return ""


def require_matching_report(report: Report, project: Project) -> None:
    """Raise unless the report was made with the project's options and data.

    Raises:
        GateError: an option or the data differ, or there are no data to compare with.
        InputError: a file that the project names, or its data, cannot be read.
    """
    options = VerifyOptions().within(project)
    expected, stated = options.bound(), report.options
    for name in _differing(stated, expected):
        raise GateError(
            f"the report was made with {name} {_shown(stated.get(name))}, the project says "
            f"{_shown(expected.get(name))}",
            tip=f"verify again without {_flag(name)}, or set it in compatctl.yaml",
        )
    _refuse_other_data(report, project, options)


def refusals(report: Report, project: Project) -> tuple[str, ...]:
    """Warnings, where ``deploy`` would refuse a passing report: for options that the project does
    not say (those of re-scoring are options of ``deploy`` too), or as its candidate was rolled
    back."""
    if report.verdict.outcome != "pass" or report.store is None:
        return ()
    return (*_refused_options(report, project), *_refused_candidate(report, project))


def _refused_options(report: Report, project: Project) -> Iterator[str]:
    expected = VerifyOptions().within(project).bound()
    flags = [_flag(n) for n in _differing(report.options, expected) if n not in _RESCORING]
    if flags:
        told = f"made with {' and '.join(flags)}, which the project does not say"
        remedy = "write it into compatctl.yaml, or verify again without it"
        yield f"deploy refuses this report: it was {told}; {remedy}"


def _refused_candidate(report: Report, project: Project) -> Iterator[str]:
    try:
        number = rolled_back_models(open_store(project)).get(report.new.sha256)
    except CompatError:  # a damaged history, which deploy refuses anyway
        return
    if number is not None:
        yield (
            f"deploy refuses this candidate, as generation {number} rolled it back; compatctl "
            "deploy --again --reason '...' brings it back"
        )


def _differing(stated: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The options that differ, by name; one that is missing differs from one that is null."""
    names = sorted(expected.keys() | stated.keys())
    return [n for n in names if (n in stated, stated.get(n)) != (n in expected, expected.get(n))]


def _flag(option: str) -> str:
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def _refuse_other_data(report: Report, project: Project, options: VerifyOptions) -> None:
    stated = report.data.evaluation_set_sha256
    pinned = project.gate.data_sha256
    if pinned is None and (project.source is None or not project.source.exists()):
        raise GateError(
            "the project names no data to compare the report with"
            if project.source is None
            else f"there are no data at {project.source} to compare the report with",
            tip="pass --data, as to verify, or pin them: write gate: {data_sha256: "
            f"'{stated}'}} into compatctl.yaml",
        )
    current = pinned or evaluation_set_sha256(load_data(project), options)
    if current != stated:
        source = "the project pins" if pinned else f"{project.source} has"
        raise GateError(
            f"the report is for other data: it says {stated[:12]}, {source} {current[:12]}",
            tip="compatctl verify old.onnx new.onnx, with the project's own data",
        )


def _shown(value: Any) -> str:
    """A value of an option, to read."""
    if value in (None, []):
        return "nothing"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:40]
