"""deploy: the verified candidate becomes the query model; the index is not touched.

Nothing here reads the gallery, so its time does not depend on the gallery's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.commands.context import now, open_store
from compatctl.commands.report import policy_sha256
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.recipe import Project, load_policy


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The new generation. ``index_sha256`` is the same before and after."""

    generation: int
    query_model_before: str
    query_model: str
    index_sha256: str
    ef_search: int
    report: str | None
    forced_reason: str | None
    written: bool


def deploy(
    project: Project,
    *,
    model: Path | None = None,
    forced_reason: str | None = None,
    dry_run: bool = False,
) -> Deployed:
    """Switch the store's query model to the one that the report verified.

    Raises:
        GateError: no report, a failing one, or one for other models, index or policy.
        EvidenceError: the report is inconclusive.
        InputError: the model's dimension is not the gallery's.
        ConflictError: the store is locked or moved on meanwhile.
    """
    store = open_store(project)
    manifest = store.manifest
    bound = _report(project, required=forced_reason is None)
    chosen = _model(project, model, bound)
    encoder = Encoder.load(chosen)
    if encoder.dim != manifest.index.dim:
        raise InputError(
            f"{chosen} ends in {encoder.dim} numbers; the gallery has {manifest.index.dim}",
            tip="compatctl finetune makes an encoder of the gallery's dimension",
        )
    policy = load_policy(project.policy)
    if forced_reason is None:
        assert bound is not None
        refuse_unless_bound(bound, manifest, encoder.sha256, policy_sha256(policy))
    ef_search = max(manifest.index.ef_search, (bound and bound.ef_search) or 0)
    result = Deployed(
        generation=manifest.generation + 1,
        query_model_before=manifest.query_model,
        query_model=encoder.sha256,
        index_sha256=manifest.index.sha256,
        ef_search=ef_search,
        report=bound and bound.sha256,
        forced_reason=forced_reason,
        written=not dry_run,
    )
    if dry_run:
        return result
    registry = _registry(project, bound)
    with store.transaction(manifest, operation="deploy") as tx:
        tx.put("models", chosen)
        if bound is not None:
            tx.put("reports", project.report)
        tx.commit(
            operation="deploy",
            created_at=now(),
            query_model=encoder.sha256,
            index=replace(manifest.index, ef_search=ef_search),
            models=with_model(manifest, encoder, chosen.name),
            registry=tx.put("registries", registry) if registry else manifest.registry,
            report=bound and bound.sha256,
            policy=policy_sha256(policy),
            forced_reason=forced_reason,
        )
    return result
