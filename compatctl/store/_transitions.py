"""Check that each generation is a valid transition from the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compatctl.manifest import Manifest, Operation
from compatctl.store._lineage import MODEL_FIELDS


def transition_problems(generations: Sequence[Manifest]) -> list[str]:
    """The problems of the generations (oldest first) that no operation can have made."""
    by_number = {state.generation: state for state in generations}
    problems = []
    for state in generations:
        before = by_number.get(state.generation - 1)
        if before is not None:
            invalid = _retention_problems(before, state)
            invalid += _change_problems(before, state, by_number)
            problems += [f"generation {state.generation} {problem}" for problem in invalid]
    return problems


def _retention_problems(before: Manifest, state: Manifest) -> list[str]:
    """Invalid changes of which files are kept and of what was erased."""
    problems = []
    if state.oldest_restorable < before.oldest_restorable:
        problems.append(
            f"keeps files from {state.oldest_restorable} on, which {before.generation} dropped"
        )
    removal = state.operation == Operation.REMOVE
    if not removal and state.oldest_gallery != before.oldest_gallery:
        problems.append(f"erased by '{state.operation}'")
    if not removal and state.operation != Operation.ADD and state.erasures != before.erasures:
        problems.append(f"changed the list of what was erased by '{state.operation}'")
    return problems


def _change_problems(
    before: Manifest, state: Manifest, by_number: Mapping[int, Manifest]
) -> list[str]:
    if state.operation == Operation.REMOVE:
        return [] if _is_removal(before, state) else ["is a removal, but did more than erase"]
    problems = []
    if state.restores is not None:
        target = by_number.get(state.restores, state)  # a missing one is reported elsewhere
        if target.generation < state.oldest_gallery:  # its memory was erased
            target = replace(target, memory=before.memory)
        names = [name for name in MODEL_FIELDS if getattr(state, name) != getattr(target, name)]
        if names:
            problems.append(f"went back to {state.restores}, but has another {names[0]}")
    elif state.operation == Operation.DEPLOY:
        if not _same_index(before, state, "ef_search") or state.catalog != before.catalog:
            problems.append("is a deploy, but has another index or catalogue than the one before")
    elif state.operation in _OF_SPACE:
        is_valid, problem = _OF_SPACE[state.operation]
        if not is_valid(before, state):
            problems.append(problem)
    elif state.query_model != before.query_model:
        problems.append(f"changed the query model by '{state.operation}'")
    elif state.memory != before.memory:
        problems.append(f"changed the rehearsal memory by '{state.operation}'")
    elif changed := [name for name in _OF_SCORES if _differs(before, state, name)]:
        problems.append(f"changed the {_OF_SCORES[changed[0]]} by '{state.operation}'")
    elif state.operation == Operation.BACKFILL and not _is_backfill(before, state):
        problems.append("is a backfill, but did more than give rows to the query model")
    return problems


_OF_SCORES = {"calibration": "calibration of scores", "rescoring": "re-scoring of answers"}


def _differs(before: Manifest, state: Manifest, name: str) -> bool:
    return bool(getattr(before, name) != getattr(state, name))


def _is_lift(before: Manifest, state: Manifest) -> bool:
    """Whether a generation is a lift: the same row counts under new models, in the same kind of
    index; registry, calibration, re-scoring and report are dropped, the memory is kept."""
    used = {model.sha256 for model in before.models if model.rows}
    return (
        _same_index(before, state, "dim", "sha256", "ef_search")
        and _row_counts(before) == _row_counts(state)
        and not used & {model.sha256 for model in state.models}
        and (state.registry, state.calibration, state.report) == (None, None, None)
        and state.rescoring is None
        and state.memory == before.memory
    )


def _is_promotion(before: Manifest, state: Manifest) -> bool:
    """Whether a generation is a promotion: of a state that re-scores, the same number of rows, all
    of one new query model, in the same kind of index; what a lift drops is dropped."""
    return (
        before.rescoring is not None
        and _same_index(before, state, "dim", "sha256", "ef_search")
        and [(model.sha256, model.rows) for model in state.models]
        == [(state.query_model, before.index.count)]
        and state.query_model not in {model.sha256 for model in before.models}
        and (state.registry, state.calibration, state.report) == (None, None, None)
        and state.rescoring is None
        and state.memory == before.memory
    )


_OF_SPACE = {
    Operation.LIFT: (_is_lift, "is a lift, but did more than map every row"),
    Operation.PROMOTE: (
        _is_promotion,
        "is a promotion, but did more than replace every row by a free vector",
    ),
}


def _is_backfill(before: Manifest, state: Manifest) -> bool:
    """Whether a generation is a backfill: no model but the query model has more rows."""
    rows = {model.sha256: model.rows for model in before.models}
    names = ("registry", "memory", "report", "policy")
    return (
        _same_index(before, state, "sha256", "ef_search")
        and all(getattr(state, name) == getattr(before, name) for name in names)
        and all(
            model.rows <= rows.get(model.sha256, 0)
            for model in state.models
            if model.sha256 != state.query_model
        )
    )


def _is_removal(before: Manifest, state: Manifest) -> bool:
    """Whether a generation is a removal: no model has more rows, the index is of the same kind, and
    all else but the memory is as before."""
    rows = {model.sha256: model.rows for model in before.models}
    same = set(MODEL_FIELDS) - {"memory"}
    return (
        _same_index(before, state, "count", "sha256")
        and state.index.count <= before.index.count
        and all(model.rows <= rows.get(model.sha256, -1) for model in state.models)
        and all(getattr(state, name) == getattr(before, name) for name in same)
        and state.restores is None
        and state.oldest_gallery == state.generation
        and state.oldest_restorable == before.oldest_restorable
        and state.erasures is not None
    )


def _same_index(before: Manifest, state: Manifest, *but: str) -> bool:
    """Whether the indexes of two generations agree in all fields ``but`` these."""
    same = {name: getattr(before.index, name) for name in but}
    return replace(state.index, **same) == before.index


def _row_counts(state: Manifest) -> list[int]:
    return sorted(model.rows for model in state.models if model.rows)
