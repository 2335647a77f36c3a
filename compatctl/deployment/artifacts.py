"""Class registry and rehearsal memory: finetune writes them with a model, the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compatctl.data import memory_bytes, read_memory
from compatctl.deployment.record_files import find_record
from compatctl.deployment.training_record import MEMORY_FILE
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.files import sha256_file
from compatctl.manifest import Erasures, Manifest
from compatctl.recipe import Project
from compatctl.report import VerifiedReport
from compatctl.store import Transaction


@dataclass(frozen=True, kw_only=True)
class ModelArtifacts:
    """The class registry (JSON text) and the rehearsal memory (file) of a model, if it has them."""

    registry: str | None
    memory: Path | None

    def put(
        self, tx: Transaction, before: Manifest | None, erased: Erasures | None = None
    ) -> dict[str, str | None]:
        """Write them into the store and return the manifest's entries.

        The entries of ``before`` stay if the model has none. Items that were ``erased`` from the
        store since the memory was written are left out.
        """
        registry = before.registry if before else None
        memory = before.memory if before else None
        return {
            "registry": _put_registry(tx, self.registry) if self.registry else registry,
            "memory": _put_memory(tx, self.memory, erased) if self.memory else memory,
        }


def _put_registry(tx: Transaction, registry: str) -> str:
    return tx.put("registries", lambda path: path.write_bytes(registry.encode()))


def _put_memory(tx: Transaction, memory: Path, erased: Erasures | None) -> str | None:
    """Store the memory without erased items; None if nothing remains."""
    items = read_memory(memory)
    erased_ids = set(erased.matching(items.ids)) if erased is not None else set()
    if not erased_ids:
        return tx.put("memories", memory)
    data = memory_bytes(items.without(erased_ids.__contains__))
    return tx.put("memories", lambda path: path.write_bytes(data)) if data else None


def find_artifacts(
    project: Project, model: Path, encoder: Encoder, verified: VerifiedReport | None = None
) -> ModelArtifacts:
    """Find the class registry that the model carries, and the memory that its record names.

    Raises:
        InputError: the memory is missing, has another digest, or is no memory; or the report is of
            a model with another registry.
    """
    record = find_record(model, encoder, named=None, candidate=project.candidate)
    if verified is not None and verified.new_sha256 == encoder.sha256:
        own = record.registry_sha256 if record else None
        if verified.registry_sha256 != own:
            raise InputError(
                f"the report is of a model with the class registry {verified.registry_sha256}, and "
                f"this model has {own}",
                tip="keep the candidate's folder as finetune wrote it until it is deployed",
            )
    memory = record.memory_sha256 if record else None
    folder = record.path.parent if record and record.path else model.parent
    artifacts = ModelArtifacts(
        registry=record.registry if record else None,
        memory=_memory(project, folder, memory),
    )
    if artifacts.memory is not None:
        read_memory(artifacts.memory)
    return artifacts


def _memory(project: Project, beside: Path, sha256: str | None) -> Path | None:
    if sha256 is None:
        return None
    for folder in (beside, project.candidate):
        path = folder / MEMORY_FILE
        if path.is_file() and sha256_file(path) == sha256:
            return path
    raise InputError(
        f"{project.candidate / MEMORY_FILE} is not the rehearsal memory {sha256[:12]} that was "
        "written with the candidate",
        tip="keep the candidate's folder as finetune wrote it until it is deployed",
    )
