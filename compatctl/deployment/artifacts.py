"""What finetune writes with a model and the store keeps: class registry and rehearsal memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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

        The entries of ``before`` stay where the model has none. Items that were ``erased`` from the
        store since the memory was written are left out of it.
        """
        registry = before.registry if before else None
        memory = before.memory if before else None
        return {
            "registry": tx.put("registries", self._registry) if self.registry else registry,
            "memory": self._memory(tx, erased) if self.memory else memory,
        }

    def _registry(self, path: Path) -> None:
        _write((self.registry or "").encode(), path)

    def _memory(self, tx: Transaction, erased: Erasures | None) -> str | None:
        assert self.memory is not None
        items = read_memory(self.memory) if erased is not None else None
        if items is None or erased is None or not (gone := set(erased.matching(items.ids))):
            return tx.put("memories", self.memory)
        kept = items.take([row for row, item in enumerate(items.ids) if item not in gone])
        if not len(kept):
            return None
        return tx.put("memories", partial(_write, memory_bytes(kept)))


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


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
