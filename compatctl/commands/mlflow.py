"""mlflow: log a report, and move a model's alias to the version that the gate passed."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compatctl.errors import ConflictError, GateError, InputError
from compatctl.evaluation.verified_candidate import checked_signature, refuse_other_policy
from compatctl.files import sha256_file
from compatctl.libraries import require_library
from compatctl.recipe import Project
from compatctl.report import (
    ModelId,
    Report,
    VerifiedReport,
    junit,
    markdown,
    model_name,
    openmetrics,
    read_report,
)

TAG = "compatctl."
"""Begins the name of every tag."""


@dataclass(frozen=True, kw_only=True)
class MlflowTarget:
    """Where a report goes. ``run``: a run that exists; None: a new one of ``experiment``. With
    ``model`` and ``version``, ``alias`` moves to that version if the report passes."""

    tracking_uri: str | None = None
    experiment: str = "compatctl"
    run: str | None = None
    model: str | None = None
    version: str | None = None
    alias: str = "champion"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was logged. ``moved``: whether the alias moved; ``before``: the version that had it."""

    outcome: str
    run: str
    model: str | None
    version: str | None
    alias: str | None
    moved: bool
    before: str | None


def publish(project: Project, target: MlflowTarget) -> Published:
    """Log the project's report to MLflow; move the alias if it passes, and only then.

    The version must have a file that is the report's candidate, byte for byte. Where the alias
    names a version already, one of its files must be the report's old model.

    Raises:
        GateError: there is no report; or it is of another policy or candidate.
        ConflictError: the alias names a model that the report did not compare with.
        InputError: MLflow does not answer, has no such run or version, or is not installed.
        DamagedError: the report's signature is wrong.
    """
    require_library("mlflow", extra="mlflow", subject="logging to MLflow")
    verified = read_report(project.report)
    checked_signature(project, verified, forced=False)
    refuse_other_policy(project, verified)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _answers(target):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=target.tracking_uri, registry_uri=target.tracking_uri)
        before = None
        if target.model is not None:
            _require_candidate(client, target, verified)
            before = _alias_of(client, target)
            if before not in {None, target.version}:
                _require_old(client, target, verified, str(before))
        run = _log(client, target, verified)
        moved = _settle(client, target, verified, before)
    return Published(
        outcome=verified.outcome,
        run=run,
        model=target.model,
        version=target.version,
        alias=None if target.model is None else target.alias,
        moved=moved,
        before=before,
    )


@contextmanager
def _answers(target: MlflowTarget) -> Iterator[None]:
    """Errors of MLflow and of its connection as ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        where = target.tracking_uri or "MLFLOW_TRACKING_URI"
        raise InputError(
            f"MLflow ({where}): {' '.join(str(error).split())[:500]}",
            tip="name the server with --tracking-uri, and a run, model and version that it has",
        ) from error


def _require_candidate(client: Any, target: MlflowTarget, verified: VerifiedReport) -> None:
    if verified.new_sha256 not in _digests(client, target, str(target.version)):
        raise GateError(
            f"no file of {target.model} version {target.version} is the candidate of the report, "
            f"{_named(verified.report, verified.report.new)} ({verified.new_sha256[:12]})",
            tip="log the ONNX file itself as an artifact of the version, or verify what it has",
        )


def _require_old(client: Any, target: MlflowTarget, verified: VerifiedReport, before: str) -> None:
    if verified.old_sha256 not in _digests(client, target, before):
        raise ConflictError(
            f"{target.alias} is version {before} of {target.model}, and the report compares with "
            f"another model, {_named(verified.report, verified.report.old)} "
            f"({verified.old_sha256[:12]})",
            tip=f"verify the candidate against the model of version {before}",
        )


def _named(report: Report, model: ModelId) -> str:
    return model_name(model.name, model.sha256, report.details)


def _digests(client: Any, target: MlflowTarget, version: str) -> set[str]:
    """The sha256 of every file of a version."""
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(target.model, version)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(
            download_artifacts(
                artifact_uri=source, dst_path=scratch, tracking_uri=target.tracking_uri
            )
        )
        files = [folder] if folder.is_file() else folder.rglob("*")
        return {sha256_file(path) for path in files if path.is_file()}


def _alias_of(client: Any, target: MlflowTarget) -> str | None:
    """The version that has the alias now."""
    version = client.get_registered_model(target.model).aliases.get(target.alias)
    return None if version is None else str(version)


def _log(client: Any, target: MlflowTarget, verified: VerifiedReport) -> str:
    """Log figures, digests and files; the run's id. A run that this makes is ended."""
    report = verified.report
    run = target.run
    if run is None:
        found = client.get_experiment_by_name(target.experiment)
        experiment = found.experiment_id if found else client.create_experiment(target.experiment)
        run_name = f"verify {_named(report, report.new)}"
        run = str(client.create_run(experiment, run_name=run_name).info.run_id)
    for name, value in _figures(report):
        client.log_metric(run, name, value)
    for name, text in _tags(verified).items():
        client.set_tag(run, name, text)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        verified.write(folder / "report.json")
        (folder / "summary.md").write_bytes(markdown(report))
        (folder / "verify.xml").write_bytes(junit(report))
        (folder / "verify.prom").write_bytes(openmetrics(report))
        client.log_artifacts(run, scratch, "compatctl")
    if target.run is None:
        client.set_terminated(run)
    return run


def _figures(report: Report) -> Iterator[tuple[str, float]]:
    """Name and value of each defined figure of the deciding group."""
    group = report.groups[0]
    for pair, by_k in group.hit_rate.items():
        for k, value in by_k.items():
            if not math.isnan(value):
                yield f"compatctl/hit_rate/{pair}/{k}", value
    for check in report.verdict.checks:
        bounds = {"estimate": check.estimate, "low": check.low, "high": check.high}
        for bound, number in bounds.items():
            if check.group == group.name and number is not None:
                yield f"compatctl/{check.name}/{bound}", float(number)


def _tags(verified: VerifiedReport) -> dict[str, str]:
    entries = {
        "verdict": verified.outcome,
        "summary": verified.report.summary,
        "old": verified.old_sha256,
        "new": verified.new_sha256,
        "policy": verified.policy_sha256,
        "report": verified.sha256,
    }
    return {f"{TAG}{name}": text for name, text in entries.items()}


def _settle(
    client: Any, target: MlflowTarget, verified: VerifiedReport, before: str | None
) -> bool:
    """Write the verdict to the version, then move the alias if it passes; whether it moved.

    MLflow cannot compare and set at once: who else moves the alias in between is overwritten.
    """
    if target.model is None:
        return False
    for name, text in _tags(verified).items():
        client.set_model_version_tag(target.model, target.version, name, text)
    if verified.outcome != "pass" or before == target.version:
        return False
    client.set_registered_model_alias(target.model, target.alias, target.version)
    return True
