"""Check that each generation is a valid transition from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compatctl.manifest import Manifest, Operation
from compatctl.store._lineage import MODEL_FIELDS


def transition_problems(generations: Sequence[Manifest]) -> list[str]:
    """The problems of the generations (oldest first) that no operation can have made."""
    known = {one.generation: one for one in generations}
    found = []
    for one in generations:
        before = known.get(one.generation - 1)
        if before is not None:
            wrong = (*_retention_problems(before, one), *_change_problems(before, one, known))
            found += [f"generation {one.generation} {what}" for what in wrong]
    return found


def _retention_problems(before: Manifest, one: Manifest) -> list[str]:
    """Invalid changes of what is kept and of what was erased."""
    found = []
    if one.oldest_restorable < before.oldest_restorable:
        found.append(
            f"keeps files from {one.oldest_restorable} on, which {before.generation} dropped"
        )
    if one.operation != Operation.REMOVE and one.oldest_gallery != before.oldest_gallery:
        found.append(f"erased by '{one.operation}'")
    models = [(state.erased_models, state.stand_ins) for state in (before, one)]
    if one.operation != Operation.REMOVE and models[0] != models[1]:
        found.append(f"changed the models that were erased by '{one.operation}'")
    if one.operation not in (Operation.REMOVE, Operation.ADD) and one.erasures != before.erasures:
        found.append(f"changed the list of what was erased by '{one.operation}'")
    return found


def _change_problems(before: Manifest, one: Manifest, known: dict[int, Manifest]) -> list[str]:
    if one.operation == Operation.REMOVE:
        return [] if _is_removal(before, one) else ["is a removal, but did more than erase"]
    found = []
    if one.restores is not None:
        target = known.get(one.restores, one)  # a missing one is reported elsewhere
        if target.generation < one.oldest_gallery:  # its memory, and maybe its model, was erased
            share = before.restorable_model(target)
            model = share.sha256 if share else target.query_model
            target = replace(target, memory=before.memory, query_model=model)
        names = [name for name in MODEL_FIELDS if getattr(one, name) != getattr(target, name)]
        if names:
            found.append(f"went back to {one.restores}, but has another {names[0]}")
    elif one.operation == Operation.DEPLOY:
        same = replace(one.index, ef_search=before.index.ef_search) == before.index
        if not same or one.catalog != before.catalog:
            found.append("is a deploy, but has another index or catalogue than the one before")
    elif one.operation == Operation.LIFT:
        found += ["is a lift, but did more than map every row"] if not _is_lift(before, one) else []
    elif one.query_model != before.query_model:
        found.append(f"changed the query model by '{one.operation}'")
    elif one.memory != before.memory:
        found.append(f"changed the rehearsal memory by '{one.operation}'")
    elif one.calibration != before.calibration:
        found.append(f"changed the calibration of scores by '{one.operation}'")
    elif one.operation == Operation.BACKFILL and not _is_backfill(before, one):
        found.append("is a backfill, but did more than give rows to the query model")
    return found


def _is_lift(before: Manifest, one: Manifest) -> bool:
    """Whether a generation is a lift: as many rows of as many new models in the same kind of index;
    registry, calibration and report are dropped, the rehearsal memory is kept."""
    index = replace(
        one.index,
        dim=before.index.dim,
        sha256=before.index.sha256,
        ef_search=before.index.ef_search,
    )
    had = {model.sha256 for model in before.models if model.rows}
    rows = [sorted(model.rows for model in state.models if model.rows) for state in (before, one)]
    return (
        index == before.index
        and rows[0] == rows[1]
        and not had & {model.sha256 for model in one.models}
        and (one.registry, one.calibration, one.report) == (None, None, None)
        and one.memory == before.memory
    )


def _is_backfill(before: Manifest, one: Manifest) -> bool:
    """Whether a generation is a backfill: no model but the query model has more rows."""
    had = {model.sha256: model.rows for model in before.models}
    others = [model for model in one.models if model.sha256 != one.query_model]
    return (
        replace(one.index, sha256=before.index.sha256, ef_search=before.index.ef_search)
        == before.index
        and (one.registry, one.memory, one.report, one.policy)
        == (before.registry, before.memory, before.report, before.policy)
        and all(model.rows <= had.get(model.sha256, 0) for model in others)
    )


def _is_removal(before: Manifest, one: Manifest) -> bool:
    """Whether a generation is a removal: no model has more rows, the index is of the same kind, and
    the query model is the same or replaces one that is gone."""
    index = replace(one.index, count=before.index.count, sha256=before.index.sha256)
    gone = before.query_model not in {model.sha256 for model in one.models}
    rows = [sorted(model.rows for model in state.models) for state in (before, one)]
    same = set(MODEL_FIELDS) - {"query_model", "memory"}
    return (
        index == before.index
        and one.index.count <= before.index.count
        and all(a <= b for a, b in zip(reversed(rows[1]), reversed(rows[0]), strict=False))
        and len(rows[1]) <= len(rows[0])
        and (one.query_model == before.query_model or gone)
        and all(getattr(one, name) == getattr(before, name) for name in same)
        and one.restores is None
        and one.oldest_gallery == one.generation
        and one.oldest_restorable == before.oldest_restorable
        and set(before.erased_models) <= set(one.erased_models)
        and one.erasures is not None
    )
