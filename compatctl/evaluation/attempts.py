"""Which attempt a verification is: the gate is stricter with each one on the same data."""

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
    """All that can change a report; ``models``: the old one and the candidate."""

    models: tuple[ModelId, ModelId]
    data: DataId
    store: StoreId | None
    policy: Policy
    options: Mapping[str, Any]
    training_record_sha256: str | None

    @classmethod
    def of(cls, report: Report) -> VerifyInputs:
        """Those of a report."""
        return cls(
            models=(report.old, report.new),
            data=report.data,
            store=report.store,
            policy=report.policy,
            options=report.options,
            training_record_sha256=report.training_record_sha256,
        )

    def entries(self) -> dict[str, Any]:
        """The entries of a report that repeat these, but for the policy."""
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
        """These as the store keeps them."""
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
        key = sha256_bytes(canonical_json({"settings": settings, "context": context}))
        return Attempt(key=key, settings=settings)


def current_attempt(root: Path, inputs: VerifyInputs, *, write: bool) -> Attempts | None:
    """Which attempt this is in the store, and the earlier ones.

    Without ``write`` it is told and not counted. None where there is no store, or where it must not
    be written to.

    Raises:
        ConflictError: another process counts for long.
        DamagedError: the store's file of attempts is damaged.
    """
    if inputs.store is None:
        return None
    if not write:
        return _told(_peek(root, inputs))
    candidate, data = inputs.models[1].sha256, inputs.data.evaluation_set_sha256
    try:
        restore_attempts(Store.open(root), candidate)
        return _told(record_attempt(root, candidate, data, inputs.attempt))
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _DENIED:
            return None
        raise


def uncounted_note(attempt: Attempts | None, store: bool) -> tuple[str, ...]:
    """A sentence where an attempt could not be counted."""
    if attempt is not None:
        return ()
    why = "the store cannot be written to" if store else "there is no store to count them in"
    return (f"attempts: {why}",)


def require_counted_attempt(root: Path, report: Report, *, write: bool) -> None:
    """Raise unless the report was judged as the attempt that the store says it is, or a later one.

    With ``write`` one that the store does not know yet is counted: a report that could not be
    counted was judged as a first.

    Raises:
        GateError: the store knows of earlier attempts that the report does not.
        ConflictError, DamagedError: as ``current_attempt``.
    """
    inputs = VerifyInputs.of(report)
    stated = report.attempt.number if report.attempt else 1
    here = len(_peek(root, inputs))
    if stated < here:
        raise GateError(
            f"the report was judged as attempt {stated}; by the store it is attempt {here} of this "
            "candidate on these data",
            tip="compatctl verify old.onnx new.onnx, where the store can be written",
        )
    if write:
        current_attempt(root, inputs, write=True)


def _told(found: tuple[Attempt, ...]) -> Attempts:
    earlier = tuple(EarlierAttempt(**one.settings) for one in found[:-1])
    return Attempts(number=len(found), earlier=earlier)


def _peek(root: Path, inputs: VerifyInputs) -> tuple[Attempt, ...]:
    candidate, question = inputs.models[1].sha256, inputs.data.evaluation_set_sha256
    known = {one.key: one for one in read_attempts(root, candidate, question)}
    for _, told, lost in missing_attempts(Store.open(root), candidate):
        if told.data.evaluation_set_sha256 == question:
            known.update((one.key, one) for one in lost)
    found, mine = tuple(known.values()), inputs.attempt
    return found[: list(known).index(mine.key) + 1] if mine.key in known else (*found, mine)


def missing_attempts(
    store: Store, candidate: str | None = None
) -> Iterator[tuple[int, VerifyInputs, tuple[Attempt, ...]]]:
    """What deployed reports tell of attempts and the files of attempts do not know: they were
    deleted, or put back from an older copy. The generation, what was asked, and the attempts.

    ``candidate``: only those of this model (sha256). A report tells of earlier attempts what
    people read of them; their keys are made up of that.

    Raises:
        DamagedError: a file of attempts is damaged, or the history is.
    """
    for one in store.history():
        judged = one.operation == Operation.DEPLOY and one.forced_reason is None
        if not judged or one.report is None or candidate not in (None, one.query_model):
            continue
        try:
            report = read_report(store.blob_path("reports", one.report)).report
        except CompatError:  # gc deleted it; what is damaged is found by its digest
            continue
        inputs = VerifyInputs.of(report)
        found = read_attempts(store.path, report.new.sha256, report.data.evaluation_set_sha256)
        if inputs.attempt.key in {known.key for known in found}:
            continue
        earlier = [asdict(entry) for entry in (report.attempt.earlier if report.attempt else ())]
        lost = [
            Attempt(key=sha256_bytes(canonical_json([number, settings])), settings=settings)
            for number, settings in enumerate(earlier, 1)
            if settings not in [known.settings for known in found]
        ]
        yield one.generation, inputs, (*lost, inputs.attempt)


def restore_attempts(store: Store, candidate: str | None = None) -> None:
    """Count what ``lost_attempts`` finds.

    Raises:
        ConflictError, DamagedError, InputError: as ``store.record_attempt``.
    """
    for _, inputs, lost in missing_attempts(store, candidate):
        for one in lost:
            record_attempt(
                store.path, inputs.models[1].sha256, inputs.data.evaluation_set_sha256, one
            )
