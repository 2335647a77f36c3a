"""Writing, finding and editing training records.

A record is in the model's file, and with full names in a training.json that names the model by its
digest. If both exist, they must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from compatctl.deployment.training_record import (
    REGISTRY_FILE,
    SETS,
    TrainingRecord,
    digest_or_none,
)
from compatctl.errors import CompatError, InputError
from compatctl.files import canonical_json, read_json, sha256_bytes, sha256_file, write_atomic

FILE = "training.json"
MAX_BYTES = 1 << 30


class RecordedModel(Protocol):
    """A model's digest and the record that its file carries, such as an ``Encoder``."""

    @property
    def sha256(self) -> str: ...
    @property
    def record(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class ModelHeader:
    """A ``RecordedModel`` that was not loaded."""

    sha256: str
    record: str | None


def record_path(model: Path) -> Path:
    """The path of the training.json of a model outside the candidate's folder."""
    return model.with_suffix(".training.json")


def write_model(
    path: Path, model: bytes, record: TrainingRecord | None, *, record_file: Path | None = None
) -> None:
    """Write a model's record (to ``record_file``, else beside the model), and then the model.

    The record comes first: a model without its record would be verified as if it had seen nothing.

    Raises:
        CompatError: no space or no permission; both files are as they were.
    """
    files = {path: model}
    if record is not None:
        content = canonical_json(record.to_json(sha256_bytes(model)))
        files = {record_file or record_path(path): content, **files}
    earlier = {file: file.read_bytes() if file.is_file() else None for file in files}
    try:
        for file, data in files.items():
            write_atomic(file, data)
    except CompatError:
        for file, before in earlier.items():
            if before is None:
                if file.is_file():
                    file.unlink()
            elif file.read_bytes() != before:
                write_atomic(file, before)
        raise


def find_record(
    path: Path,
    model: RecordedModel,
    *,
    named: Path | None,
    candidate: Path,
    with_names: bool = False,
) -> TrainingRecord | None:
    """Find the record of a model: the one that it carries, else a training.json that names it.

    Args:
        named: a training.json. Default: one beside the model or in the ``candidate``'s folder.
        with_names: keep the full names and the details; they can be large.

    Raises:
        InputError: the named file is missing, unreadable or of another model; or the file and the
            carried record do not agree.
    """
    carried = TrainingRecord.from_text(model.record, path) if model.record is not None else None
    beside = (record_path(path), path.with_name(FILE), candidate / FILE)
    for file in (named,) if named else beside:
        if file.is_file():
            raw = read_json(file, MAX_BYTES)
            models = raw.get("models", []) if isinstance(raw, dict) else []
            if not isinstance(models, list):
                raise InputError(f"{file} is not a training record: models is no list")
            if isinstance(raw, dict) and model.sha256 in models:
                record = _agreed(carried, _read_file(file, raw))
                return record if with_names else _without_names(record)
            if named:
                raise InputError(
                    f"{named} is not the training record of {path}",
                    tip="pass the record that finetune wrote with this model",
                )
        elif named:
            raise InputError(f"no training record at {named}")
    return carried


def _without_names(record: TrainingRecord) -> TrainingRecord:
    return replace(
        record, items=(), unlabelled=(), labels=(), measured=(), details={}, partial=True
    )


def _agreed(carried: TrainingRecord | None, file: TrainingRecord) -> TrainingRecord:
    """The carried record with the names of training.json.

    The file says which memory belongs to the model: ``compatctl remove`` takes items out of it.
    """
    if carried is None:
        return file
    for name in SETS:
        held, listed = getattr(carried, name), getattr(file, name)
        if not (listed <= held if file.partial else listed == held):
            raise _differ(file, f"{len(listed)} and {len(held)} {name.replace('_', ' ')}")
    if not file.partial and file.parity != carried.parity:
        raise _differ(file, f"parity {file.parity} and {carried.parity}")
    names = (
        "path",
        "memory_sha256",
        "items",
        "unlabelled",
        "labels",
        "measured",
        "partial",
        "details",
    )
    return replace(carried, **{name: getattr(file, name) for name in names})


def _differ(file: TrainingRecord, difference: str) -> InputError:
    return InputError(
        f"{file.path} and the record that the model carries differ: {difference}",
        tip="the model's own record counts; move the file away, or restore it",
    )


def _registry_beside(path: Path, sha256: str | None) -> str | None:
    """The class registry that a training.json names by its digest."""
    if sha256 is None:
        return None
    registry = path.with_name(REGISTRY_FILE)
    if not registry.is_file() or sha256_file(registry) != sha256:
        raise InputError(
            f"{registry} is not the class registry {sha256[:12]} of the candidate",
            tip="keep the candidate's folder as finetune wrote it until it is deployed",
        )
    return registry.read_text(encoding="utf-8")


_EXPECTED = "items and unlabelled are lists of {id, sha256}, and classes is a list of labels"


def _read_file(path: Path, raw: Mapping[str, Any]) -> TrainingRecord:
    try:
        registry = _registry_beside(path, digest_or_none(raw.get("registry_sha256")))
        record = TrainingRecord.from_json(raw, registry)
    except KeyError as missing:
        raise InputError(
            f"{path} is not a training record: it lacks {missing}", tip=_EXPECTED
        ) from None
    except (TypeError, ValueError, AttributeError) as wrong:
        raise InputError(f"{path} is not a training record: {wrong}", tip=_EXPECTED) from None
    return replace(record, path=path, sha256=sha256_file(path))


def without_erased_items(
    path: Path,
    is_erased: Callable[[str], bool],
    *,
    memory_sha256: str | None,
) -> bytes | None:
    """The content of a training.json without erased items; None if nothing in it changes.

    Entries of other versions of compatctl stay as they are.

    ``memory_sha256``: digest of the rewritten rehearsal memory, if it was rewritten.
    """
    raw = read_json(path, MAX_BYTES) if path.is_file() else None
    if not isinstance(raw, dict):
        return None
    new: dict[str, Any] = dict(raw)
    for name in ("items", "unlabelled"):
        if isinstance(entries := raw.get(name), list):
            new[name] = [
                entry
                for entry in entries
                if not (isinstance(entry, dict) and is_erased(str(entry.get("id"))))
            ]
    if isinstance(measured := raw.get("measured"), list):
        new["measured"] = [item for item in measured if not is_erased(str(item))]
    if new != raw:
        new["partial"] = True
    if memory_sha256 is not None:
        new["memory_sha256"] = memory_sha256
    return canonical_json(new) if new != raw else None
