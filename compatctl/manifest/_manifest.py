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

_EMPTY: dict[str, Any] = {"erased_models": [], "stand_ins": []}
"""Entries of format 4 that are always empty: nothing uses them any more."""

ENGINES = {"hnswlib": "indexes", "pgvector": "tables", "milvus": "tables"}
"""An engine -> the folder of its files in a store."""

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
    PROMOTE = "promote"
    REMOVE = "remove"
    ROLLBACK = "rollback"
    GC = "gc"


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """An ANN index: the parameters needed to open its file.

    ``engine`` is hnswlib, or pgvector or milvus: then the file only names what holds the rows.
    ``dim`` is the dimension of a row, ``count`` the number of rows, ``sha256`` the file's digest.
    M, ef_construction, ef_search (the size of the candidate list) and seed are hnswlib's; the first
    three are the others' too.
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

    @property
    def kind(self) -> str:
        """The folder of its file in a store."""
        return ENGINES[self.engine]


@dataclass(frozen=True, kw_only=True)
class ModelShare:
    """A model and the number of gallery rows that it embedded; ``name`` is for people only.

    ``canary`` is the digest of a few images and the model's embeddings of them at admission.
    ``proven`` is false if the rows were imported and never compared with embeddings of the images.
    """

    sha256: str
    dim: int
    rows: int
    name: str
    canary: str
    proven: bool = True


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """How the query model's answers are re-scored.

    Attributes:
        candidates: the first answers that are ranked again.
        passes: images that a query may embed at most.
        max_ms: milliseconds after which a query embeds no more; None: no limit.
        weight, slope, intercept: the merge rule, as ``core.rescoring.MergeRule``.
    """

    candidates: int
    passes: int
    max_ms: float | None
    weight: float
    slope: float
    intercept: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One immutable generation of a store; every file is named by its sha256.

    Attributes:
        parent: the digest of the previous generation's manifest.
        created_at: ISO 8601, UTC.
        memory: the digest of the rehearsal memory.
        calibration: the knots of the map from the query model's scores to those callers know.
        rescoring: how its answers are re-scored; None: they are not. Optional in the file.
        policy: the digest of the policy that judged the query model.
        again_reason: why a model that was rolled back serves again.
        restores: the generation that a rollback restored; its gallery may keep added items.
        oldest_restorable: the first generation whose files are kept.
        erasures: the digest of the list of erased ids.
        oldest_gallery: the generation of the last erasure, 1 if there was none. Of earlier
            generations only the files that a rollback of the query model needs are kept.
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
    rescoring: Rescoring | None = None
    report: str | None = None
    policy: str | None = None
    forced_reason: str | None = None
    again_reason: str | None = None
    restores: int | None = None
    oldest_restorable: int = 1
    erasures: str | None = None
    oldest_gallery: int = 1
    tool_version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, without ``rescoring`` if there is none."""
        entries = asdict(self) | _EMPTY
        if self.rescoring is None:
            del entries["rescoring"]
        return entries

    @classmethod
    def from_json(cls, raw: object, where: str) -> Self:
        """The manifest of the JSON value ``raw``; ``where`` names its place in messages.

        Raises:
            InputError: it is of another format.
            DamagedError: an entry is unknown, missing, of a wrong type, or contradicts another.
        """
        if not isinstance(raw, dict):
            raise DamagedError(f"{where}: a manifest is a JSON object, got {type(raw).__name__}")
        refuse_other_format(raw, FORMAT, f"{where}: manifest")
        raw = {"rescoring": None, **{k: v for k, v in raw.items() if k not in _EMPTY or v}}
        _check(raw, _MANIFEST, cls, where)
        _check(raw["index"], _INDEX, IndexInfo, f"{where}: index")
        for i, model in enumerate(raw["models"]):
            _check(model, _MODEL, ModelShare, f"{where}: models[{i}]")
        if raw["rescoring"] is not None:
            _check(raw["rescoring"], _RESCORING, Rescoring, f"{where}: rescoring")
        manifest = cls(
            **{
                **raw,
                "operation": Operation(raw["operation"]),
                "index": IndexInfo(**raw["index"]),
                "models": tuple(ModelShare(**model) for model in raw["models"]),
                "calibration": raw["calibration"] and tuple(map(tuple, raw["calibration"])),
                "rescoring": raw["rescoring"] and Rescoring(**raw["rescoring"]),
            }
        )
        if problems := manifest.contradictions():
            raise DamagedError(f"{where}: {'; '.join(problems)}")
        return manifest

    def contradictions(self) -> tuple[str, ...]:
        """The contradictions in this manifest; empty if there are none."""
        problems = []
        digests = [model.sha256 for model in self.models]
        rows = sum(model.rows for model in self.models)
        if len(set(digests)) < len(digests):
            problems.append("a model is listed twice")
        if self.query_model not in digests:
            problems.append(f"the query model {self.query_model[:12]} is not among its models")
        if rows != self.index.count:
            problems.append(f"models have {rows} rows, the index {self.index.count}")
        for model in self.models:
            if model.dim != self.index.dim:
                dims = f"{model.dim} dimensions, not {self.index.dim}"
                problems.append(f"model {model.name} has {dims}")
        if self.restores is not None and self.restores >= self.generation:
            problems.append(f"generation {self.generation} restores {self.restores}, a later one")
        if self.oldest_restorable > self.generation:
            problems.append(f"keeps files from {self.oldest_restorable} on, a later generation")
        if self.oldest_gallery > self.generation:
            problems.append(f"keeps galleries from {self.oldest_gallery} on, a later generation")
        if (self.erasures is None) != (self.oldest_gallery == 1):
            problems.append("it has a list of erasures without an erasure, or the reverse")
        if (self.parent is None) != (self.generation == 1):
            problems.append("generation 1, and only it, has no parent")
        return tuple(problems)

    def blobs(self) -> tuple[tuple[str, str], ...]:
        """(kind, sha256) of every file that this generation needs; the kind is its folder."""
        return _present(
            *(("models", share.sha256) for share in self.models),
            *(("canaries", share.canary) for share in self.models),
            (self.index.kind, self.index.sha256),
            ("catalogs", self.catalog),
            ("registries", self.registry),
            ("memories", self.memory),
            ("reports", self.report),
            ("erasures", self.erasures),
        )

    @property
    def query_share(self) -> ModelShare:
        """The entry of the query model."""
        return next(share for share in self.models if share.sha256 == self.query_model)

    def model_blobs(self) -> tuple[tuple[str, str], ...]:
        """The ``blobs`` that a rollback of the query model alone needs."""
        return _present(
            ("models", self.query_model),
            ("canaries", self.query_share.canary),
            ("registries", self.registry),
            ("reports", self.report),
        )


def _present(*blobs: tuple[str, str | None]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((kind, digest) for kind, digest in blobs if digest is not None))


def refuse_other_format(raw: Mapping[str, Any], known: int, what: str) -> None:
    """Raise InputError for another format than ``known``; ``what`` names the file in messages."""
    version = raw.get("format")
    if type(version) is int and version > known:
        tool = raw.get("tool_version")
        raise InputError(
            f"{what} format {version}; compatctl {__version__} reads up to {known}",
            tip=f"install compatctl {tool}" if tool else "install a newer version of compatctl",
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


def _or_null(rule: _Rule) -> _Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


_SHA256: _Rule = ("a sha256 digest", is_digest)
_TEXT: _Rule = ("a text", lambda value: isinstance(value, str))
_WHEN: _Rule = (
    "a time like 2026-01-31T12:00:00Z",
    lambda value: isinstance(value, str) and _TIME.fullmatch(value) is not None,
)
_OBJECT: _Rule = ("an object", lambda value: isinstance(value, dict))
_LIST: _Rule = ("a list", lambda value: isinstance(value, list))

_MODEL: dict[str, _Rule] = {
    "sha256": _SHA256,
    "dim": _whole(1),
    "rows": _whole(0),
    "name": _TEXT,
    "canary": _SHA256,
    "proven": ("true or false", lambda value: type(value) is bool),
}
_INDEX: dict[str, _Rule] = {
    "engine": ("'hnswlib', 'pgvector' or 'milvus'", lambda value: value in list(ENGINES)),
    "space": ("'ip', 'cosine' or 'l2'", lambda value: value in ("ip", "cosine", "l2")),
    **dict.fromkeys(("dim", "ef_construction", "ef_search", "count"), _whole(1)),
    "M": _whole(2),
    "seed": _whole(0),
    "sha256": _SHA256,
}


def _number(value: Any, least: float = float("-inf")) -> bool:
    return type(value) in {int, float} and least <= value < float("inf")


_AT_LEAST_0: _Rule = ("a number >= 0", lambda value: _number(value, 0.0))
_RESCORING: dict[str, _Rule] = {
    "candidates": _whole(1),
    "passes": _whole(0),
    "max_ms": _or_null(_AT_LEAST_0),
    **dict.fromkeys(("weight", "slope"), _AT_LEAST_0),
    "intercept": ("a number", _number),
}
_MANIFEST: dict[str, _Rule] = {
    "format": (f"{FORMAT}", lambda value: type(value) is int and value == FORMAT),
    "generation": _whole(1),
    "index": _OBJECT,
    "models": _LIST,
    **dict.fromkeys(("query_model", "catalog"), _SHA256),
    **dict.fromkeys(
        ("parent", "registry", "memory", "report", "policy", "erasures"), _or_null(_SHA256)
    ),
    "operation": (", ".join(Operation), lambda value: value in list(Operation)),
    "tool_version": _TEXT,
    "created_at": _WHEN,
    "calibration": _or_null(("the knots of a score map", lambda value: not knots_problem(value))),
    "rescoring": _or_null(_OBJECT),
    **dict.fromkeys(("forced_reason", "again_reason"), _or_null(_TEXT)),
    "restores": _or_null(_whole(1)),
    **dict.fromkeys(("oldest_restorable", "oldest_gallery"), _whole(1)),
}


def _check(raw: object, rules: Mapping[str, _Rule], cls: type, where: str) -> None:
    if not isinstance(raw, dict):
        raise DamagedError(f"{where}: expected an object, got {type(raw).__name__}")
    names = {field.name for field in fields(cls)}
    if unknown := sorted(raw.keys() - names):
        raise DamagedError(f"{where}: unknown entry {unknown[0]!r} for compatctl {__version__}")
    if missing := sorted(names - raw.keys()):
        raise DamagedError(f"{where}: the entry {missing[0]!r} is missing")
    for name, (expected, holds) in rules.items():
        if not holds(raw[name]):
            raise DamagedError(f"{where}: {name} must be {expected}, got {raw[name]!r:.80}")
