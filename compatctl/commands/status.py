"""status: which model answers, over which gallery, and how much of it went through that model."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.deployment.engines import EngineStatus, engine_status
from compatctl.deployment.project import open_store
from compatctl.deployment.promotion_advice import promotion_advice
from compatctl.deployment.query_model_pass import QueryModelPass
from compatctl.deployment.rescoring_limit import RescoringLimit
from compatctl.manifest import Manifest, Rescoring
from compatctl.recipe import Project
from compatctl.store import manifest_digest, shown_path, side_size


@dataclass(frozen=True, kw_only=True)
class FreeVectors:
    """The query model's side file: records, their share of the gallery's rows, and bytes.

    An item that has vectors of two images counts twice until gc or a removal deletes the older.
    ``advice``: what to do where they are most of the gallery; else empty.
    """

    count: int
    share: float
    bytes: int
    advice: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """The current generation.

    Attributes:
        gallery_pass: what of the gallery went through the query model.
        shares: digest of a model -> its share of the gallery's rows, in [0, 1]; ``names``: digest
            -> the model's name, for people.
        registry, memory: digests of the class registry and of the rehearsal memory.
        proven: false if adopted rows were never compared with their model's embeddings.
        calibrated: ``search`` maps the query model's scores to the scale of an earlier model.
        rescoring: how ``search`` ranks the first answers again; None: it does not.
        rescoring_limit: how many rows it may pass, and has passed; None: it does not.
        head: digest of the generation; it pins every earlier one.
        oldest_restorable: the first generation that can be restored.
        free_vectors: how many free vectors the query model's side file has, their share of the
            gallery's rows, and the bytes of the file; None without one.
        engine: the table that has the rows, as it is now; None where a file of the store has them.
        oldest_gallery: the first generation whose gallery can be restored. Items were erased after
            the generations before it.
    """

    gallery_pass: QueryModelPass
    store: str
    generation: int
    operation: str
    created_at: str
    query_model: str
    rows: int
    dim: int
    shares: dict[str, float]
    names: dict[str, str]
    index_sha256: str
    ef_search: int
    report: str | None
    forced_reason: str | None
    again_reason: str | None
    registry: str | None
    memory: str | None
    proven: bool
    calibrated: bool
    rescoring: Rescoring | None
    rescoring_limit: RescoringLimit | None
    head: str
    oldest_restorable: int
    oldest_gallery: int
    free_vectors: FreeVectors | None
    engine: EngineStatus | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        unproven = (
            "the index was adopted and never compared with what its model makes: compatctl verify "
            "compares them"
        )
        limited = self.rescoring_limit.warnings if self.rescoring_limit else ()
        engine = self.engine.warnings if self.engine else ()
        return (*(unproven,) * (not self.proven), *limited, *engine)


def status(project: Project) -> Status:
    """Read the current generation from the manifest.

    Raises:
        InputError: there is no store.
        DamagedError: the manifest or its report cannot be read.
    """
    opened = open_store(project)
    manifest = opened.manifest
    rows = max(1, manifest.index.count)
    passed = QueryModelPass.of(opened, manifest)
    return Status(
        gallery_pass=passed,
        store=shown_path(project.store),
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        rows=manifest.index.count,
        dim=manifest.index.dim,
        shares={model.sha256: model.rows / rows for model in manifest.models},
        names={model.sha256: model.name for model in manifest.models},
        index_sha256=manifest.index.sha256,
        ef_search=manifest.index.ef_search,
        report=manifest.report,
        forced_reason=manifest.forced_reason,
        again_reason=manifest.again_reason,
        registry=manifest.registry,
        memory=manifest.memory,
        proven=all(model.proven for model in manifest.models if model.rows),
        calibrated=manifest.calibration is not None,
        rescoring=manifest.rescoring,
        rescoring_limit=RescoringLimit.of(project, opened, manifest, passed),
        head=manifest_digest(manifest),
        oldest_restorable=manifest.oldest_restorable,
        oldest_gallery=manifest.oldest_gallery,
        free_vectors=_free_vectors(project, manifest),
        engine=engine_status(opened),
    )


def _free_vectors(project: Project, manifest: Manifest) -> FreeVectors | None:
    size = side_size(project.store, manifest.query_model)
    if size is None:
        return None
    rows = manifest.index.count
    advice = promotion_advice(min(rows, size.records), rows) if manifest.rescoring else ""
    share = min(1.0, size.records / max(1, rows))
    return FreeVectors(count=size.records, share=share, bytes=size.bytes, advice=advice)
