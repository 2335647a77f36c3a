"""What a generation says, and what a row of the gallery is: two strict formats, no files' layout.

Nothing here imports numpy before a catalogue is opened: status and rollback read manifests only.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from compatctl._version import __version__
from compatctl.errors import DamagedError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
"""The newest manifest format that this version reads, and the one that it writes."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """An ANN index: what must be known before its file may be opened.

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
    """A model and the number of gallery rows that it embedded; ``name`` is for people only."""

    sha256: str
    dim: int
    rows: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One immutable generation of a store; every file is named by its sha256.

    ``parent`` is the digest of the previous generation's manifest, ``policy`` that of the policy
    which judged the query model, ``restores`` the generation that a rollback brought back whole,
    ``created_at`` ISO 8601 in UTC.
    """

    format: int = FORMAT
    generation: int
    parent: str | None
    operation: str
    created_at: str
    query_model: str
    index: IndexInfo
    catalog: str
    models: tuple[ModelShare, ...]
    registry: str | None = None
    report: str | None = None
    policy: str | None = None
    forced_reason: str | None = None
    restores: int | None = None
    tool_version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: object, where: str) -> Self:
        """The manifest in the JSON value ``raw``; ``where`` is its place, for the message.

        Raises:
            InputError: it is of a newer format than this version reads.
            DamagedError: an entry is unknown, missing, of a wrong type, or contradicts another.
        """
        if not isinstance(raw, dict):
            raise DamagedError(f"{where}: a manifest is a JSON object, got {type(raw).__name__}")
        version = raw.get("format")
        if type(version) is int and version > FORMAT:
            raise InputError(
                f"{where}: manifest format {version}; compatctl {__version__} reads up to {FORMAT}",
                tip=f"install compatctl {raw.get('tool_version', 'of a newer version')}",
            )
        _check(raw, _MANIFEST, cls, where)
        _check(raw["index"], _INDEX, IndexInfo, f"{where}: index")
        for at, model in enumerate(raw["models"]):
            _check(model, _MODEL, ModelShare, f"{where}: models[{at}]")
        found = cls(
            **{
                **raw,
                "index": IndexInfo(**raw["index"]),
                "models": tuple(ModelShare(**model) for model in raw["models"]),
            }
        )
        if problems := found.contradictions():
            raise DamagedError(f"{where}: {'; '.join(problems)}")
        return found

    def contradictions(self) -> tuple[str, ...]:
        """What in this manifest contradicts itself; empty when nothing does."""
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
        if (self.parent is None) != (self.generation == 1):
            found.append("generation 1, and only it, has no parent")
        return tuple(found)

    def blobs(self) -> tuple[tuple[str, str], ...]:
        """(kind, sha256) of every file that this generation needs; the kind is the folder."""
        models = tuple(("models", model.sha256) for model in self.models)
        single = (("registries", self.registry), ("reports", self.report))
        return (
            *models,
            ("indexes", self.index.sha256),
            ("catalogs", self.catalog),
            *((kind, digest) for kind, digest in single if digest is not None),
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
_SPACE: _Rule = ("'ip', 'cosine' or 'l2'", lambda value: value in ("ip", "cosine", "l2"))
_WHEN: _Rule = (
    "a time like 2026-01-31T12:00:00Z",
    lambda value: isinstance(value, str) and _TIME.fullmatch(value) is not None,
)
_MODEL: dict[str, _Rule] = {"sha256": _SHA256, "dim": _whole(1), "rows": _whole(0), "name": _TEXT}
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
    **dict.fromkeys(("parent", "registry", "report", "policy"), _or_null(_SHA256)),
    **dict.fromkeys(("operation", "tool_version"), _TEXT),
    "created_at": _WHEN,
    "forced_reason": _or_null(_TEXT),
    "restores": _or_null(_whole(1)),
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """The gallery's rows.

    ``ids`` and ``labels`` (N,); ``keys`` (N,) uint64, each row's key in the index; ``model_of``
    (N,) int32, the position in ``models`` (digests) of the model that embedded the row.

    Raises:
        InputError: an id is empty or there twice, a key is there twice, or the lengths differ.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    keys: NDArray[np.uint64]
    model_of: NDArray[np.int32]
    models: tuple[str, ...]

    def __post_init__(self) -> None:
        import numpy as np

        for name, wanted in (("keys", np.uint64), ("model_of", np.int32)):
            column = np.array(getattr(self, name), wanted, ndmin=1)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        lengths = {len(self.ids), len(self.labels), len(self.keys), len(self.model_of)}
        if len(lengths) > 1:
            raise InputError(f"a catalogue's columns must be equally long, got {sorted(lengths)}")
        if len(set(self.ids)) < len(self.ids):
            item, times = Counter(self.ids).most_common(1)[0]
            raise InputError(
                f"the item id {item!r} is there {times} times", tip="ids must be unique"
            )
        if "" in self.ids:
            raise InputError(f"row {self.ids.index('')} has an empty item id")
        if len(np.unique(self.keys)) < len(self.keys):
            raise InputError("two rows of the catalogue have the same key in the index")
        if ((self.model_of < 0) | (self.model_of >= len(self.models))).any():
            raise InputError("a row of the catalogue names a model that is not listed")

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self) -> dict[str, int]:
        """How many rows each listed model embedded, by the model's digest."""
        found = Counter(self.model_of.tolist())
        return {model: found[at] for at, model in enumerate(self.models)}

    def extended(self, ids: Sequence[str], labels: Sequence[str], model: str) -> Catalog:
        """This catalogue and new rows that ``model`` (a digest) embedded, under unused keys.

        The new rows are the last ``len(ids)``; their keys count on from the largest key.

        Raises:
            InputError: an id is already there.
        """
        import numpy as np

        models = self.models if model in self.models else (*self.models, model)
        first = int(self.keys.max()) + 1 if len(self) else 0
        new_keys = np.arange(first, first + len(ids), dtype=np.uint64)
        new_models = np.full(len(ids), models.index(model), np.int32)
        return Catalog(
            ids=(*self.ids, *ids),
            labels=(*self.labels, *labels),
            keys=np.concatenate([self.keys, new_keys]),
            model_of=np.concatenate([self.model_of, new_models]),
            models=models,
        )

    def reassigned(self, rows: NDArray[np.int64], model: str) -> Catalog:
        """The same items and keys, with ``rows`` (n,) now embedded by ``model`` (a digest)."""
        models = self.models if model in self.models else (*self.models, model)
        model_of = self.model_of.copy()
        model_of[rows] = models.index(model)
        return replace(self, model_of=model_of, models=models)

    def write(self, path: Path) -> None:
        """Write an npz to a new file; its bytes depend on the catalogue only."""
        import numpy as np

        columns: dict[str, Any] = {"keys": self.keys, "model_of": self.model_of}
        for name in ("ids", "labels", "models"):
            texts = [text.encode("utf-8", "surrogatepass") for text in getattr(self, name)]
            columns[name] = np.frombuffer(b"".join(texts), np.uint8)
            columns[f"{name}_end"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
        with path.open("xb") as file:
            np.savez(file, **columns)

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Read what ``write`` wrote; nothing in the file is ever executed.

        Raises:
            DamagedError: it is missing, not a catalogue, or of inconsistent columns.
        """
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            return _catalog(columns)
        except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DamagedError(f"{path}: not a catalogue that can be read: {error}") from None
        except InputError as error:
            raise DamagedError(f"{path}: {error.message}") from None


def _catalog(columns: dict[str, NDArray[Any]]) -> Catalog:
    kinds = {"keys": "uint64", "model_of": "int32"}
    for name in ("ids", "labels", "models"):
        kinds |= {name: "uint8", f"{name}_end": "int64"}
    found = {name: str(column.dtype) for name, column in columns.items() if column.ndim == 1}
    if found != kinds:
        raise ValueError(f"expected the columns {sorted(kinds)}, got {sorted(columns)}")
    return Catalog(
        ids=_texts(columns["ids"], columns["ids_end"]),
        labels=_texts(columns["labels"], columns["labels_end"]),
        keys=columns["keys"],
        model_of=columns["model_of"],
        models=_texts(columns["models"], columns["models_end"]),
    )


def _texts(data: NDArray[Any], ends: NDArray[Any]) -> tuple[str, ...]:
    raw, bounds = data.tobytes(), [0, *ends.tolist()]
    if bounds != sorted(bounds) or bounds[-1] != len(raw):
        raise ValueError("the texts' ends do not fit the texts")
    return tuple(
        raw[start:stop].decode("utf-8", "surrogatepass") for start, stop in pairwise(bounds)
    )
