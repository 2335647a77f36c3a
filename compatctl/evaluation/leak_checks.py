"""Leak checks: is there a training record, and are held-out queries near-copies of its items?"""

from __future__ import annotations

from compatctl.core.gate import Measurement
from compatctl.data import Dataset, warn_of_near_known
from compatctl.deployment.training_record import TrainingRecord
from compatctl.evaluation.groups import Groups
from compatctl.evaluation.options import VerifyOptions

GROUP = "training"
_MEANS = (
    "it is unknown whether held-out items or classes were trained on: a model that was trained on "
    "the queries passes"
)


def warn_of_nearly_trained(
    record: TrainingRecord | None, data: Dataset, options: VerifyOptions
) -> None:
    """A notice of ids and classes of ``--training``, which people write, that nearly are those of
    the data: they are found neither as trained items nor as seen classes."""
    if record is None or options.training is None:
        return
    ids = {item.id for item in (*record.items, *record.unlabelled)}
    for kind, trained, known in (
        ("ids", ids.difference(data.row_of), data.ids),
        ("labels", {*record.labels}.difference(data.labels), tuple(sorted({*data.labels}))),
    ):
        told = ("trained", "the data")
        warn_of_near_known(options.training, kind, sorted(trained), known, told=told)


def leak_measurements(
    record: TrainingRecord | None, groups: Groups, data: Dataset, options: VerifyOptions
) -> list[Measurement]:
    """Whether the training items are known, and the share of queries that are near-copies."""
    why = _unknown(record, options)
    check = Measurement(
        name="training_record",
        group=GROUP,
        estimate=0.0 if why else 1.0,
        n=1,
        n_queries=1,
        may_decide=True,
        detail=f"{why[0].upper()}{why[1:]}, so {_MEANS}" if why else _known(record),
    )
    if record is None:
        return [check]
    near = Measurement(
        name="near_copies",
        group=GROUP,
        estimate=len(groups.near) / max(1, groups.held_out),
        n=groups.held_out,
        n_queries=groups.held_out,
        may_decide=True,
        detail=_near(groups, data),
    )
    return [check, near]


def leak_warnings(
    record: TrainingRecord | None, groups: Groups, data: Dataset, options: VerifyOptions
) -> tuple[str, ...]:
    """The same as warnings, where there is something to warn of."""
    why = _unknown(record, options)
    notes = [f"{why}: {_MEANS}"] if why else []
    if len(groups.near):
        notes.append(_near(groups, data))
    return tuple(notes)


def leaks_unchecked(record: TrainingRecord | None, data: Dataset) -> tuple[str, ...]:
    """What could not be checked, for ``not_checked``."""
    notes = []
    if data.modality == "text":
        notes.append("near copies of texts: only equal texts and near vectors are looked for")
    if record is None:
        notes.append("leaks: the candidate has no training record")
    elif not record.whole:
        notes.append("leaks of the model behind the map: it has no training record")
    if (
        record is not None
        and data.modality == "image"
        and len(record.ids) + len(record.unlabelled_ids)
        and not len(record.looks)
    ):
        notes.append(
            "near-copies that only a look shows: the training record has no looks of its images"
        )
    if record is None or record.parity is None:
        notes.append("parity: no record of what was trained")
    return tuple(notes)


def _unknown(record: TrainingRecord | None, options: VerifyOptions) -> str:
    """Why the training items are unknown; empty if they are known."""
    if record is None:
        return "the new model carries no training record"
    if not record.whole:
        return "the new model was made of one that carries no training record"
    if not record.carried and options.training is None:
        return "the new model carries no training record, and the file beside it was not named"
    return ""


def _known(record: TrainingRecord | None) -> str:
    assert record is not None
    origin = "The model carries its record" if record.carried else "A named file is its record"
    return (
        f"{origin}: {len(record.ids)} items of {len(record.classes)} classes trained, "
        f"{len(record.unlabelled_ids)} items passed without their label"
    )


def _near(groups: Groups, data: Dataset) -> str:
    n = len(groups.near)
    if not n and data.modality != "image":
        return "No held-out query has a vector near that of an item that went through the new model"
    if not n:
        return "No held-out query looks like an item that went through the new model"
    names = ", ".join(data.items[int(row)].id for row in groups.near[:3])
    by = groups.near_by_vector
    only = f", {by} of them by the old model's vectors alone" if by else ""
    return (
        f"{n} of {groups.held_out} held-out queries look like items that went through the new "
        f"model ({names}{' ...' if n > 3 else ''}){only}, and do not decide"
    )
