"""A model on its way into a store: its bytes, read once, and its canary."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from compatctl.data import load_vectors
from compatctl.deployment.project import require_old_model
from compatctl.encoder import (
    Canary,
    Encoder,
    check_steady,
    read_model_bytes,
    space_encoder,
)
from compatctl.errors import UsageError
from compatctl.manifest import ModelShare
from compatctl.recipe import Project
from compatctl.store import Transaction

_NAME = re.compile(r"[^\s/\\](?:[^/\\\x00-\x1f\x7f]{0,98}[^\s/\\])?")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFile:
    """A model's sealed bytes, and the file that they were read from.

    ``name`` is what people call it in the store; None: as its file.
    """

    path: Path
    data: bytes
    name: str | None = None

    @classmethod
    def read(cls, path: Path, preprocessing: Path | None = None) -> Self:
        """The model in a file.

        Raises:
            InputError: no such file, not ONNX, or not sealed and without a preprocessing file.
        """
        return cls(path=path, data=read_model_bytes(path, preprocessing))

    @classmethod
    def named(cls, project: Project, name: Path, preprocessing: Path | None = None) -> Self:
        """The model in a file; or the model behind an API, by the name of its space.

        Raises:
            InputError: as ``read``, or as ``load_vectors`` for the table of the space.
        """
        table = project.vectors.get(str(name))
        if table is None or name.exists():
            return cls.read(name, preprocessing)
        dim = load_vectors(Path(table)).dim
        return cls(path=Path(f"{name}.onnx"), data=space_encoder(str(name), dim))

    @classmethod
    def deployed(
        cls,
        project: Project,
        model: Path | None,
        preprocessing: Path | None = None,
        *,
        name: str | None = None,
    ) -> Self:
        """The model that filled a gallery: the given one, or that of the only space of vectors.

        Raises:
            UsageError: no model is given, and the project's vectors are not of one space; or the
                name is no name.
            InputError: as ``named``.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise UsageError(
                f"--name {name!r}: a name has 1 to 100 characters, and no blank at an end, no "
                "slash and no control character"
            )
        if model is not None:
            return replace(cls.named(project, model, preprocessing), name=name)
        if len(project.vectors) != 1:
            raise UsageError(
                "no model is given",
                tip="pass --model FILE; or, for a model behind an API, --vectors SPACE=FILE, or "
                f"--model with one of its spaces ({', '.join(project.vectors) or 'none'})",
            )
        return replace(cls.named(project, Path(*project.vectors), preprocessing), name=name)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, checked and ready to run.

        Raises:
            InputError: it does not match its metadata.
        """
        return Encoder.from_bytes(self.data, self.path)

    @cached_property
    def dim(self) -> int:
        """The dimension of its embedding; errors as ``encoder``."""
        return self.encoder.dim

    @cached_property
    def canary(self) -> Canary:
        """The model's embeddings of a few images, computed here and now.

        Raises:
            InputError: it gives different embeddings for the same image.
        """
        check_steady(self.encoder)
        return Canary.from_encoder(self.encoder)

    def release(self) -> None:
        """Compute what ``put`` needs, and unload the model."""
        _ = self.dim, self.canary
        self.__dict__.pop("encoder", None)

    def put(self, tx: Transaction, rows: int) -> ModelShare:
        """Write model and canary into the store and return the manifest's entry.

        Raises:
            InputError: as ``canary``; nothing is written then.
        """
        canary = self.canary
        return ModelShare(
            sha256=tx.put("models", lambda path: path.write_bytes(self.data)),
            dim=self.dim,
            rows=rows,
            name=self.name or self.path.name,
            canary=tx.put("canaries", canary.write),
        )


def refuse_fused(project: Project, candidate: Encoder) -> None:
    """Refuse a fused candidate where the project says that its old model is gone.

    Raises:
        UsageError: it is fused, and ``old_model_gone`` is set.
    """
    if candidate.is_fused:
        require_old_model(project, candidate.name)
