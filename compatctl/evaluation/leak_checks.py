"""What the gate makes of a training record: is there one, and are held-out queries nearly in it?"""

from __future__ import annotations

from compatctl.core.gate import Measurement
from compatctl.data import Dataset
from compatctl.deployment.training_record import TrainingRecord
from compatctl.evaluation.groups import Groups
from compatctl.evaluation.options import VerifyOptions

GROUP = "training"
_MEANS = (
    "whether held-out items or classes were trained on, nobody can tell: a model that was trained "
    "on the queries passes"
)


def leak_measurements(
    seen: TrainingRecord | None, groups: Groups, data: Dataset, options: VerifyOptions
) -> list[Measurement]:
    """Whether what the model has seen is known, and how many queries look like some of it."""
    why = _unknown(seen, options)
    record = Measurement(
        name="training_record",
        group=GROUP,
        estimate=0.0 if why else 1.0,
        n=1,
        n_queries=1,
        may_decide=True,
        detail=f"{why[0].upper()}{why[1:]}, so {_MEANS}" if why else _known(seen),
    )
    if seen is None:
        return [record]
    near = Measurement(
        name="near_copies",
        group=GROUP,
        estimate=len(groups.near) / max(1, groups.held_out),
        n=groups.held_out,
        n_queries=groups.held_out,
        may_decide=True,
        detail=_near(groups, data),
    )
    return [record, near]


def leak_warnings(
    seen: TrainingRecord | None, groups: Groups, data: Dataset, options: VerifyOptions
) -> tuple[str, ...]:
    """What a person must know of it, in sentences."""
    why = _unknown(seen, options)
    found = [f"{why}: {_MEANS}"] if why else []
    if len(groups.near):
        found.append(_near(groups, data))
    return tuple(found)


def leaks_unchecked(seen: TrainingRecord | None) -> tuple[str, ...]:
    """What could not be looked for, for ``not_checked``."""
    found = []
    if seen is None:
        found.append("leaks: the candidate has no training record")
    elif not seen.whole:
        found.append("leaks of the model behind the map: it has no training record")
    if seen is not None and len(seen.ids) + len(seen.anchor_ids) and not len(seen.looks):
        found.append(
            "near-copies that only a look shows: the training record has no looks of its images"
        )
    if seen is None or seen.parity is None:
        found.append("parity: no record of what was trained")
    return tuple(found)


def _unknown(seen: TrainingRecord | None, options: VerifyOptions) -> str:
    """Why it is not known what the model has seen; empty where it is."""
    if seen is None:
        return "the new model carries no training record"
    if not seen.whole:
        return "the new model was made of one that carries no training record"
    if not seen.carried and options.training is None:
        return "the new model carries no training record, and the file beside it was not named"
    return ""


def _known(seen: TrainingRecord | None) -> str:
    assert seen is not None
    truth = "the model carries its record" if seen.carried else "a named file is its record"
    return (
        f"{truth[0].upper()}{truth[1:]}: {len(seen.ids)} items of {len(seen.classes)} classes "
        f"trained, {len(seen.anchor_ids)} items anchored"
    )


def _near(groups: Groups, data: Dataset) -> str:
    n = len(groups.near)
    if not n:
        return "No held-out query looks like an item that went through the new model"
    names = ", ".join(data.items[int(row)].id for row in groups.near[:3])
    by = groups.near_by_vector
    only = f", {by} of them by the old model's vectors alone" if by else ""
    return (
        f"{n} of {groups.held_out} held-out queries look like items that went through the new "
        f"model ({names}{' ...' if n > 3 else ''}){only}, and do not decide"
    )
