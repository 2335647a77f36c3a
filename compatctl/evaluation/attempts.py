"""Count verifications of a candidate on the same data: each attempt makes the gate stricter."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compatctl.core.policy import Policy
from compatctl.errors import CompatError, GateError, InputError
from compatctl.files import canonical_json, sha256_bytes
from compatctl.manifest import Operation
from compatctl.report import (
    Attempts,
    DataId,
    EarlierAttempt,
    ModelId,
    Report,
    StoreId,
    policy_sha256,
    read_report,
)
from compatctl.store import Attempt, Store, read_attempts, record_attempt

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class VerifyInputs:
    """What a report depends on; ``models``: the old one and the candidate. ``kept``: of
    ``RescoredToday.decisive``."""

    models: tuple[ModelId, ModelId]
    data: DataId
    store: StoreId | None
    policy: Policy
    options: Mapping[str, Any]
    training_record_sha256: str | None
    kept: int | None = None

    @classmethod
    def of(cls, report: Report) -> VerifyInputs:
        """The inputs of a report."""
        return cls(
            models=(report.old, report.new),
            data=report.data,
            store=report.store,
            policy=report.policy,
            options=report.options,
            training_record_sha256=report.training_record_sha256,
            kept=report.rescored_today.decisive if report.rescored_today else None,
        )

    def entries(self) -> dict[str, Any]:
        """The report's entries for these, except the policy."""
        return {
            "old": self.models[0],
            "new": self.models[1],
            "data": self.data,
            "store": self.store,
            "options": dict(self.options),
            "training_record_sha256": self.training_record_sha256,
        }

    @property
    def attempt(self) -> Attempt:
        """The attempt as the store records it."""
        settings = {
            "seed": self.options.get("seed") or 0,
            "policy": self.policy.name,
            "policy_sha256": policy_sha256(self.policy),
            "index_sha256": self.store.index_sha256 if self.store else "",
            "options": dict(self.options),
        }
        context = {
            "old": self.models[0].sha256,
            "catalog": self.store.catalog_sha256 if self.store else "",
            "data": self.data.sha256,
            "training_record": self.training_record_sha256,
        }
        if self.kept is not None:
            context["kept"] = str(self.kept)
        key = sha256_bytes(canonical_json({"settings": settings, "context": context}))
        return Attempt(key=key, settings=settings)


def current_attempt(root: Path, inputs: VerifyInputs, *, write: bool) -> Attempts | None:
    """The number of this attempt and the earlier ones; with ``write`` it is recorded in the store.

    None if there is no store, or it cannot be written to.

    Raises:
        ConflictError: another process holds the file of attempts for too long.
        DamagedError: the store's file of attempts is damaged.
    """
    if inputs.store is None:
        return None
    if not write:
        return _numbered(_known_attempts(root, inputs))
    candidate, data = inputs.models[1].sha256, inputs.data.evaluation_set_sha256
    try:
        restore_attempts(Store.open(root), candidate)
        return _numbered(record_attempt(root, candidate, data, inputs.attempt))
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _DENIED:
            return None
        raise


def uncounted_note(attempt: Attempts | None, store: bool) -> tuple[str, ...]:
    """A sentence if the attempt could not be counted."""
    if attempt is not None:
        return ()
    why = "the store cannot be written to" if store else "there is no store to count them in"
    return (f"attempts: {why}",)


def require_counted_attempt(root: Path, report: Report, *, write: bool) -> None:
    """Raise if the store counts more attempts than the report was judged as.

    With ``write`` an attempt that the store does not know is recorded: verify could not write it.

    Raises:
        GateError: the store knows of earlier attempts that the report does not.
        ConflictError, DamagedError: as ``current_attempt``.
    """
    inputs = VerifyInputs.of(report)
    stated = report.attempt.number if report.attempt else 1
    counted = len(_known_attempts(root, inputs))
    if stated < counted:
        raise GateError(
            f"the report was judged as attempt {stated}; by the store it is attempt {counted} of "
            "this candidate on these data",
            tip="compatctl verify old.onnx new.onnx, where the store can be written",
        )
    if write:
        current_attempt(root, inputs, write=True)


def _numbered(attempts: tuple[Attempt, ...]) -> Attempts:
    earlier = tuple(EarlierAttempt(**attempt.settings) for attempt in attempts[:-1])
    return Attempts(number=len(attempts), earlier=earlier)


def _known_attempts(root: Path, inputs: VerifyInputs) -> tuple[Attempt, ...]:
    """The attempts up to this one, which is last; nothing is written."""
    candidate, evaluation_set = inputs.models[1].sha256, inputs.data.evaluation_set_sha256
    known = {attempt.key: attempt for attempt in read_attempts(root, candidate, evaluation_set)}
    for _, reported, lost in missing_attempts(Store.open(root), candidate):
        if reported.data.evaluation_set_sha256 == evaluation_set:
            known.update((attempt.key, attempt) for attempt in lost)
    known.setdefault(inputs.attempt.key, inputs.attempt)
    return tuple(known.values())[: list(known).index(inputs.attempt.key) + 1]


def missing_attempts(
    store: Store, candidate: str | None = None
) -> Iterator[tuple[int, VerifyInputs, tuple[Attempt, ...]]]:
    """Attempts that deployed reports name and the store's files of attempts lack, because these
    were deleted or replaced by an older copy: the generation, the report's inputs, the attempts.

    ``candidate``: only those of this model (sha256). A report names the settings of earlier
    attempts, not their keys; a key is derived from the settings.

    Raises:
        DamagedError: a file of attempts or the history is damaged.
    """
    for state in store.history():
        judged = state.operation == Operation.DEPLOY and state.forced_reason is None
        if not judged or state.report is None or candidate not in (None, state.query_model):
            continue
        path = store.local_path("reports", state.report)
        try:
            report = read_report(path, earlier=True).report
        except CompatError:  # deleted by gc; check finds damage by the digest
            continue
        inputs = VerifyInputs.of(report)
        known = read_attempts(store.path, report.new.sha256, report.data.evaluation_set_sha256)
        if inputs.attempt.key in {attempt.key for attempt in known}:
            continue
        earlier = [asdict(entry) for entry in (report.attempt.earlier if report.attempt else ())]
        lost = [
            Attempt(key=sha256_bytes(canonical_json([number, settings])), settings=settings)
            for number, settings in enumerate(earlier, 1)
            if settings not in [attempt.settings for attempt in known]
        ]
        yield state.generation, inputs, (*lost, inputs.attempt)


def restore_attempts(store: Store, candidate: str | None = None) -> None:
    """Record what ``missing_attempts`` finds.

    Raises:
        ConflictError, DamagedError, InputError: as ``store.record_attempt``.
    """
    for _, inputs, lost in missing_attempts(store, candidate):
        model, evaluation_set = inputs.models[1].sha256, inputs.data.evaluation_set_sha256
        for attempt in lost:
            record_attempt(store.path, model, evaluation_set, attempt)
