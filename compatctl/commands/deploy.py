"""deploy: the verified candidate becomes the query model; the index is not touched.

Nothing here reads the gallery, so its time does not depend on the gallery's size. The report has
to agree with itself, with the store, and with what the project says of how verify is asked; of the
data the descriptions are read, and the images of held-out queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.commands.admission import Candidate
from compatctl.commands.binding import refuse_other_question
from compatctl.commands.context import now, open_store
from compatctl.commands.gallery import serves_alike
from compatctl.commands.rehearsal import papers_of
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError, GateError, InputError
from compatctl.files import sha256_bytes
from compatctl.manifest import Manifest, ModelShare
from compatctl.recipe import Project, load_policy
from compatctl.report import Bound, policy_sha256, read_bound
from compatctl.store import Store


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
        GateError: no report, a failing one, one for other models, index, policy or data, or one
            that was asked otherwise than the project says.
        EvidenceError: the report is inconclusive.
        InputError: the model's dimension is not the gallery's, or the class registry or the memory
            that was written with it is not there.
        ConflictError: the store is locked or moved on meanwhile.
    """
    store = open_store(project)
    manifest = store.manifest
    bound = _report(project, required=forced_reason is None)
    chosen = _candidate(project, model, bound)
    encoder = _of_dimension(chosen, manifest.index.dim)
    policy = load_policy(project.policy)
    done = _is_deployed(store, chosen, bound, forced_reason)
    if forced_reason is None and not done:
        assert bound is not None
        refuse_unless_bound(bound, manifest, encoder.sha256, policy_sha256(policy))
        refuse_other_question(bound.report, project)
    papers = None if done else papers_of(project, chosen.path, encoder.sha256, bound)
    ef_search = max(manifest.index.ef_search, (bound.ef_search if bound else None) or 0)
    result = Deployed(
        generation=manifest.generation + (not done),
        query_model_before=manifest.query_model,
        query_model=encoder.sha256,
        index_sha256=manifest.index.sha256,
        ef_search=ef_search,
        report=bound.sha256 if bound else None,
        forced_reason=forced_reason,
        written=not dry_run and not done,
    )
    if result.written and papers is not None:
        with store.transaction(manifest, operation="deploy") as tx:
            tx.commit(
                operation="deploy",
                created_at=now(),
                query_model=encoder.sha256,
                index=replace(manifest.index, ef_search=ef_search),
                models=with_model(manifest, chosen.put(tx, rows=0)),
                report=tx.put("reports", project.report) if bound else None,
                policy=policy_sha256(policy),
                forced_reason=forced_reason,
                **papers.put(tx, manifest),
            )
    return result


def _is_deployed(
    store: Store, model: Candidate, bound: Bound | None, forced_reason: str | None
) -> bool:
    """Whether this very deploy was committed already, by a run that was killed before it said so.

    A model whose canary comes out otherwise today is a new deploy, which takes a new canary.
    """
    now = store.manifest
    report = bound.sha256 if bound else None
    if (now.query_model, now.report, now.forced_reason) != (
        model.encoder.sha256,
        report,
        forced_reason,
    ):
        return False
    return serves_alike(store, now, model.encoder)


def refuse_unless_bound(
    bound: Bound, manifest: Manifest, new_sha256: str, policy_digest: str
) -> None:
    """Raise unless the report passes and is for exactly this store, candidate and policy."""
    again = "compatctl verify old.onnx new.onnx"
    if bound.outcome == "inconclusive":
        raise EvidenceError("the report is inconclusive: the gate could not tell", tip=again)
    if bound.outcome != "pass":
        raise GateError(
            f"the report's verdict is {bound.outcome!r}",
            tip="keep the old model, or --force --reason '...', which is recorded",
        )
    for name, found, wanted in (
        ("old model", bound.old_sha256, manifest.query_model),
        ("new model", bound.new_sha256, new_sha256),
        ("policy", bound.policy_sha256, policy_digest),
        ("index", bound.index_sha256, manifest.index.sha256),
        ("catalogue", bound.catalog_sha256, manifest.catalog),
    ):
        if found != wanted:
            raise GateError(
                f"the report is for another {name}: it says {str(found)[:12]}, here is "
                f"{wanted[:12]}",
                tip=f"{again}, against this store",
            )


def with_model(manifest: Manifest, new: ModelShare) -> tuple[ModelShare, ...]:
    """The manifest's models and ``new``, with the rows that it embedded; idle models are let go."""
    known = [one for one in manifest.models if one.rows > 0 and one.sha256 != new.sha256]
    rows = sum(one.rows for one in manifest.models if one.sha256 == new.sha256)
    return (*known, replace(new, rows=rows))


def _of_dimension(model: Candidate, dim: int) -> Encoder:
    if model.encoder.dim != dim:
        raise InputError(
            f"{model.path} ends in {model.encoder.dim} numbers; the gallery has {dim}",
            tip="compatctl finetune makes an encoder of the gallery's dimension",
        )
    return model.encoder


def _report(project: Project, *, required: bool) -> Bound | None:
    if not required and not project.report.is_file():
        return None
    return read_bound(project.report)


def _candidate(project: Project, model: Path | None, bound: Bound | None) -> Candidate:
    """The model to deploy: the one named, else the verified one where it lies."""
    if model is not None:
        return Candidate.read(model)
    if bound is None:
        raise InputError("there is no report to say which model to deploy", tip="pass --model")
    folder = project.report.parent
    for path in (folder / bound.new_name, project.output, project.candidate / "model.onnx"):
        if path.is_file():
            found = Candidate.read(path)
            if sha256_bytes(found.data) == bound.new_sha256:
                return found
    raise GateError(
        f"no file holds the verified model {bound.new_sha256[:12]} ({bound.new_name})",
        tip="pass --model, or verify again",
    )
