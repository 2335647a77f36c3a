"""The manifest of a generation: one strict format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from compatctl._version import __version__
from compatctl.core.knots import knots_problem
from compatctl.errors import DamagedError, InputError

FORMAT = 4
"""The manifest format that this version reads and writes."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class Operation(StrEnum):
    """The operation that made a generation."""

    INIT = "init"
    IMPORT = "import"
    ADD = "add"
    DEPLOY = "deploy"
    BACKFILL = "backfill"
    LIFT = "lift"
    REMOVE = "remove"
    ROLLBACK = "rollback"
    GC = "gc"


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """An ANN index: the parameters needed to open its file.

    ``dim`` is the length of a row, ``count`` the number of rows, ``sha256`` the file's digest; M,
    ef_construction, ef_search (the size of the search's candidate list) and seed are hnswlib's.
    """

    engine: str
    space: str
    dim: int
    M: int
    ef_construction: int
    ef_search: int
    count: int
    sha256: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ModelShare:
    """A model and the number of gallery rows that it embedded; ``name`` is for people only.

    ``canary`` is the digest of a few images and the model's embeddings of them at admission.
    ``proven`` is false if the rows were imported and never compared with the model's embeddings of
    the items' images.
    """

    sha256: str
    dim: int
    rows: int
    name: str
    canary: str
    proven: bool = True


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """The model that stands in for the erased model with the digest ``replaces``."""

    replaces: str
    model: ModelShare


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One immutable generation of a store; every file is named by its sha256.

    Attributes:
        parent: the digest of the previous generation's manifest.
        created_at: ISO 8601, UTC.
        memory: the digest of the rehearsal memory.
        calibration: the knots of the map from the query model's scores to the scale that callers
            know (core/calibration.py).
        policy: the digest of the policy that judged the query model.
        again_reason: why a model that was rolled back serves again.
        restores: the generation that a rollback restored. This generation repeats what that one
            says of the model, and of the gallery except for items added since and kept.
        oldest_restorable: the first generation whose files are kept. Files that only earlier
            generations name may have been deleted.
        erasures: the digest of the list of erased ids and vectors.
        oldest_gallery: the generation of the last erasure, 1 if there was none. Index, catalogue
            and memory of earlier generations held erased items: only what a rollback of the query
            model needs is kept of them.
        erased_models: the digests of models whose files held vectors of erased items. They are
            deleted.
        stand_ins: the erased models without these vectors, where they could be taken out. A
            rollback to a generation before ``oldest_gallery`` that queried with an erased model
            restores its stand-in, and is refused if there is none.
    """

    format: int = FORMAT
    generation: int
    parent: str | None
    operation: Operation
    created_at: str
    query_model: str
    index: IndexInfo
    catalog: str
    models: tuple[ModelShare, ...]
    registry: str | None = None
    memory: str | None = None
    calibration: tuple[tuple[float, float], ...] | None = None
    report: str | None = None
    policy: str | None = None
    forced_reason: str | None = None
    again_reason: str | None = None
    restores: int | None = None
    oldest_restorable: int = 1
    erasures: str | None = None
    oldest_gallery: int = 1
    erased_models: tuple[str, ...] = ()
    stand_ins: tuple[StandIn, ...] = ()
    tool_version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: object, where: str) -> Self:
        """Read the manifest from the JSON value ``raw``; ``where`` names its place in messages.

        Raises:
            InputError: it is of a newer format than this version reads.
            DamagedError: an entry is unknown, missing, of a wrong type, or contradicts another.
        """
        if not isinstance(raw, dict):
            raise DamagedError(f"{where}: a manifest is a JSON object, got {type(raw).__name__}")
        refuse_other_format(raw, FORMAT, f"{where}: manifest")
        _check(raw, _MANIFEST, cls, where)
        _check(raw["index"], _INDEX, IndexInfo, f"{where}: index")
        for at, model in enumerate(raw["models"]):
            _check(model, _MODEL, ModelShare, f"{where}: models[{at}]")
        for at, one in enumerate(raw["stand_ins"]):
            _check(one, _STAND_IN, StandIn, f"{where}: stand_ins[{at}]")
            _check(one["model"], _MODEL, ModelShare, f"{where}: stand_ins[{at}].model")
        found = cls(
            **{
                **raw,
                "operation": Operation(raw["operation"]),
                "index": IndexInfo(**raw["index"]),
                "models": tuple(ModelShare(**model) for model in raw["models"]),
                "erased_models": tuple(raw["erased_models"]),
                "calibration": raw["calibration"] and tuple(map(tuple, raw["calibration"])),
                "stand_ins": tuple(
                    StandIn(replaces=one["replaces"], model=ModelShare(**one["model"]))
                    for one in raw["stand_ins"]
                ),
            }
        )
        if problems := found.contradictions():
            raise DamagedError(f"{where}: {'; '.join(problems)}")
        return found

    def contradictions(self) -> tuple[str, ...]:
        """The contradictions in this manifest; empty if there are none."""
        found = []
        names = [model.sha256 for model in self.models]
        rows = sum(model.rows for model in self.models)
        if len(set(names)) < len(names):
            found.append("a model is listed twice")
        if self.query_model not in names:
            found.append(f"the query model {self.query_model[:12]} is not among its models")
        if rows != self.index.count:
            found.append(f"models have {rows} rows, the index {self.index.count}")
        for model in self.models:
            if model.dim != self.index.dim:
                found.append(f"model {model.name} has {model.dim} dimensions, not {self.index.dim}")
        if self.restores is not None and self.restores >= self.generation:
            found.append(f"generation {self.generation} restores {self.restores}, a later one")
        if self.oldest_restorable > self.generation:
            found.append(f"keeps files from {self.oldest_restorable} on, a later generation")
        if self.oldest_gallery > self.generation:
            found.append(f"keeps galleries from {self.oldest_gallery} on, a later generation")
        if (self.erasures is None) != (self.oldest_gallery == 1):
            found.append("it has a list of erasures without an erasure, or the reverse")
        held = {*names, *(one.model.sha256 for one in self.stand_ins)}
        if held & set(self.erased_models):
            found.append("it has a model whose file held what was erased")
        if not {one.replaces for one in self.stand_ins} <= set(self.erased_models):
            found.append("a model stands in for one that was not erased")
        if (self.parent is None) != (self.generation == 1):
            found.append("generation 1, and only it, has no parent")
        return tuple(found)

    def blobs(self) -> tuple[tuple[str, str], ...]:
        """(kind, sha256) of every file that this generation needs; the kind is its folder."""
        shares = (*self.models, *(one.model for one in self.stand_ins))
        models = tuple(dict.fromkeys(("models", model.sha256) for model in shares))
        canaries = tuple(("canaries", model.canary) for model in shares)
        single = (
            ("registries", self.registry),
            ("memories", self.memory),
            ("reports", self.report),
            ("erasures", self.erasures),
        )
        return (
            *models,
            *dict.fromkeys(canaries),
            ("indexes", self.index.sha256),
            ("catalogs", self.catalog),
            *((kind, digest) for kind, digest in single if digest is not None),
        )

    def restorable_model(self, earlier: Manifest) -> ModelShare | None:
        """The model that a rollback from here to ``earlier`` restores for queries: its query model,
        the stand-in if that was erased, or None if there is none."""
        if earlier.query_model not in self.erased_models:
            return next(one for one in earlier.models if one.sha256 == earlier.query_model)
        found = (one.model for one in self.stand_ins if one.replaces == earlier.query_model)
        return next(found, None)

    def model_blobs(self, earlier: Manifest) -> tuple[tuple[str, str], ...]:
        """The ``blobs`` of ``earlier`` that a rollback to its query model alone needs; none if it
        cannot be restored."""
        share = self.restorable_model(earlier)
        if share is None:
            return ()
        single = (("registries", earlier.registry), ("reports", earlier.report))
        return (
            ("models", share.sha256),
            ("canaries", share.canary),
            *((kind, digest) for kind, digest in single if digest is not None),
        )


def refuse_other_format(raw: Mapping[str, Any], known: int, what: str) -> None:
    """Refuse a file of another format than ``known``; ``what`` names file and kind in messages.

    Raises:
        InputError: its format is a newer one, or one that was never released.
    """
    version = raw.get("format")
    if type(version) is int and version > known:
        raise InputError(
            f"{what} format {version}; compatctl {__version__} reads up to {known}",
            tip=f"install compatctl {raw.get('tool_version', 'of a newer version')}",
        )
    if type(version) is int and 0 < version < known:
        raise InputError(
            f"{what} format {version}, of a version that was never released",
            tip="create the store again: compatctl init (or import)",
        )


_Rule = tuple[str, Callable[[object], bool]]


def is_digest(value: object) -> bool:
    """Whether ``value`` is a sha256: 64 lower-case hex digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _whole(least: int) -> _Rule:
    return f"a whole number >= {least}", lambda value: type(value) is int and value >= least


def _is_calibration(value: object) -> bool:
    return value is None or not knots_problem(value)


def _or_null(rule: _Rule) -> _Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


_SHA256: _Rule = ("a sha256 digest", is_digest)
_TEXT: _Rule = ("a text", lambda value: isinstance(value, str))
_SPACE: _Rule = ("'ip', 'cosine' or 'l2'", lambda value: value in ("ip", "cosine", "l2"))
_WHEN: _Rule = (
    "a time like 2026-01-31T12:00:00Z",
    lambda value: isinstance(value, str) and _TIME.fullmatch(value) is not None,
)

_MODEL: dict[str, _Rule] = {
    "sha256": _SHA256,
    "dim": _whole(1),
    "rows": _whole(0),
    "name": _TEXT,
    "canary": _SHA256,
    "proven": ("true or false", lambda value: type(value) is bool),
}
_STAND_IN: dict[str, _Rule] = {
    "replaces": _SHA256,
    "model": ("an object", lambda value: isinstance(value, dict)),
}
_INDEX: dict[str, _Rule] = {
    "engine": ("'hnswlib'", lambda value: value == "hnswlib"),
    "space": _SPACE,
    **dict.fromkeys(("dim", "ef_construction", "ef_search", "count"), _whole(1)),
    "M": _whole(2),
    "seed": _whole(0),
    "sha256": _SHA256,
}
_MANIFEST: dict[str, _Rule] = {
    "format": (f"{FORMAT}", lambda value: type(value) is int and value == FORMAT),
    "generation": _whole(1),
    "index": ("an object", lambda value: isinstance(value, dict)),
    "models": ("a list", lambda value: isinstance(value, list)),
    **dict.fromkeys(("query_model", "catalog"), _SHA256),
    **dict.fromkeys(
        ("parent", "registry", "memory", "report", "policy", "erasures"), _or_null(_SHA256)
    ),
    "operation": (", ".join(Operation), lambda value: value in list(Operation)),
    "tool_version": _TEXT,
    "created_at": _WHEN,
    "calibration": ("the knots of a score map, or null", _is_calibration),
    "forced_reason": _or_null(_TEXT),
    "again_reason": _or_null(_TEXT),
    "restores": _or_null(_whole(1)),
    "oldest_restorable": _whole(1),
    "oldest_gallery": _whole(1),
    "stand_ins": ("a list", lambda value: isinstance(value, list)),
    "erased_models": (
        "a list of sha256",
        lambda value: isinstance(value, list) and all(is_digest(one) for one in value),
    ),
}


def _check(raw: object, rules: Mapping[str, _Rule], cls: type, where: str) -> None:
    if not isinstance(raw, dict):
        raise DamagedError(f"{where}: expected an object, got {type(raw).__name__}")
    names = {field.name for field in fields(cls)}
    if unknown := sorted(raw.keys() - names):
        raise DamagedError(
            f"{where}: unknown entry {unknown[0]!r}; compatctl {__version__} does not know it"
        )
    if missing := sorted(names - raw.keys()):
        raise DamagedError(f"{where}: the entry {missing[0]!r} is missing")
    for name, (expected, holds) in rules.items():
        if not holds(raw[name]):
            raise DamagedError(f"{where}: {name} must be {expected}, got {raw[name]!r:.80}")
