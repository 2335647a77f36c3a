"""The catalogue: for each gallery row its item, class, key in the index, model and image digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.errors import DamagedError, InputError
from compatctl.files import DIGEST_BYTES
from compatctl.files.npz import read_npz
from compatctl.pauses import pause

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TEXTS = 10_000
"""Texts that are decoded at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """The gallery's rows.

    ``ids`` and ``labels`` (N,); ``keys`` (N,) uint64, each row's key in the index; ``model_of``
    (N,) int32, the position in ``models`` (digests) of the model that embedded the row; ``digests``
    (N, 32) uint8, the sha256 of the image's bytes, all zero if unknown, as in an index imported
    without images. Default: all are unknown.

    Raises:
        InputError: an id is empty or repeated, a key is repeated, or the lengths differ.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    keys: NDArray[np.uint64]
    model_of: NDArray[np.int32]
    models: tuple[str, ...]
    digests: NDArray[np.uint8] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        import numpy as np

        if vars(self)["digests"] is None:
            object.__setattr__(self, "digests", unknown_digests(len(self.ids)))
        for name, dtype in (("keys", np.uint64), ("model_of", np.int32), ("digests", np.uint8)):
            column = np.array(getattr(self, name), dtype, ndmin=1)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        if self.digests.shape[1:] != (DIGEST_BYTES,):
            raise InputError(f"digests must be (N, {DIGEST_BYTES}), got {self.digests.shape}")
        lengths = set(map(len, (self.ids, self.labels, self.keys, self.model_of, self.digests)))
        if len(lengths) > 1:
            raise InputError(f"a catalogue's columns must be equally long, got {sorted(lengths)}")
        if len(set(self.ids)) < len(self.ids):
            item, count = Counter(self.ids).most_common(1)[0]
            raise InputError(f"the item id {item!r} occurs {count} times", tip="ids must be unique")
        if "" in self.ids:
            raise InputError(f"row {self.ids.index('')} has an empty item id")
        if len(np.unique(self.keys)) < len(self.keys):
            raise InputError("two rows of the catalogue have the same key in the index")
        if ((self.model_of < 0) | (self.model_of >= len(self.models))).any():
            raise InputError("a row of the catalogue names a model that is not listed")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row."""
        return {item: row for row, item in enumerate(self.ids)}

    def counts(self) -> dict[str, int]:
        """The number of rows that each listed model embedded, by its digest."""
        counts = Counter(self.model_of.tolist())
        return {model: counts[position] for position, model in enumerate(self.models)}

    def rows_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of each key, in the shape of ``keys``.

        Raises:
            DamagedError: a key is not in the catalogue.
        """
        import numpy as np

        order, ordered = self._key_order
        positions = np.minimum(np.searchsorted(ordered, keys), len(self) - 1)
        if (unknown := ordered[positions] != keys).any():
            raise DamagedError(
                f"the index has a row under the key {keys[unknown][0]}, the catalogue has none",
                tip="compatctl check lists every problem; restore the store from a backup",
            )
        return positions if order is None else order[positions]

    @cached_property
    def _key_order(self) -> tuple[NDArray[np.int64] | None, NDArray[np.uint64]]:
        """The rows in the order of their keys, None if that is their own, and the keys so."""
        import numpy as np

        if bool((self.keys[1:] > self.keys[:-1]).all()):
            return None, self.keys
        order = np.argsort(self.keys, kind="stable")
        return order, self.keys[order]

    @property
    def next_key(self) -> int:
        """The key of the next new row: the largest key plus one."""
        return int(self.keys.max()) + 1 if len(self) else 0

    @property
    def digest_known(self) -> NDArray[np.bool_]:
        """(N,): whether the digest of a row's image is known."""
        import numpy as np

        return np.asarray(self.digests.any(axis=1), bool)

    def may_have_images(
        self, rows: NDArray[np.int64], digests: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """(n,): whether the images with ``digests`` (n, 32) are those from which ``rows`` (n,) were
        embedded, as far as that is known."""
        import numpy as np

        indexed = self.digests[rows]
        return np.asarray((indexed == digests).all(axis=1) | ~indexed.any(axis=1), bool)

    def extended(
        self,
        ids: Sequence[str],
        labels: Sequence[str],
        model: str,
        digests: NDArray[np.uint8] | None = None,
    ) -> Catalog:
        """This catalogue with new rows at the end that ``model`` (a digest) embedded.

        Their keys follow the largest key. ``digests`` (n, 32) uint8 are those of the images.
        Default: unknown.

        Raises:
            InputError: an id is already there, or no key is left.
        """
        import numpy as np

        models = self.models if model in self.models else (*self.models, model)
        if self.next_key + len(ids) > 1 << 64:
            raise InputError(f"there is no room for {len(ids)} keys after {self.next_key - 1}")
        keys = np.arange(len(ids), dtype=np.uint64) + np.uint64(self.next_key)
        model_of = np.full(len(ids), models.index(model), np.int32)
        digests = unknown_digests(len(ids)) if digests is None else digests
        return Catalog(
            ids=(*self.ids, *ids),
            labels=(*self.labels, *labels),
            keys=np.concatenate([self.keys, keys]),
            model_of=np.concatenate([self.model_of, model_of]),
            models=models,
            digests=np.concatenate([self.digests, digests]),
        )

    def reassigned(
        self, rows: NDArray[np.int64], model: str, digests: NDArray[np.uint8] | None = None
    ) -> Catalog:
        """The same items and keys, with ``rows`` (n,) now embedded by ``model`` (a digest) from
        images with these ``digests`` (n, 32). Default: the digests are unchanged."""
        models = self.models if model in self.models else (*self.models, model)
        model_of, all_digests = self.model_of.copy(), self.digests.copy()
        model_of[rows] = models.index(model)
        if digests is not None:
            all_digests[rows] = digests
        return replace(self, model_of=model_of, models=models, digests=all_digests)

    def drop_rows(self, rows: NDArray[np.int64]) -> Catalog:
        """The other rows, in order; models with no remaining rows are not listed."""
        import numpy as np

        kept = np.setdiff1d(np.arange(len(self)), rows)
        used, model_of = np.unique(self.model_of[kept], return_inverse=True)
        return Catalog(
            ids=tuple(self.ids[row] for row in kept.tolist()),
            labels=tuple(self.labels[row] for row in kept.tolist()),
            keys=self.keys[kept],
            model_of=model_of.astype(np.int32),
            models=tuple(self.models[position] for position in used),
            digests=self.digests[kept],
        )

    def relabelled(self, rows: NDArray[np.int64], labels: Sequence[str]) -> Catalog:
        """The same rows, with new ``labels`` (n,) for ``rows`` (n,)."""
        all_labels = list(self.labels)
        for row, label in zip(rows.tolist(), labels, strict=True):
            all_labels[row] = label
        return replace(self, labels=tuple(all_labels))

    def with_models(self, models: Mapping[str, str]) -> Catalog:
        """The same items and keys, with each model replaced by another; ``models`` maps digest to
        digest, one to one, for every model that has a row."""
        import numpy as np

        used, model_of = np.unique(self.model_of, return_inverse=True)
        replaced = tuple(models[self.models[position]] for position in used)
        return replace(self, model_of=model_of.astype(np.int32), models=replaced)

    def write(self, path: Path) -> None:
        """Write an npz to a new file; its bytes depend on the catalogue only."""
        import numpy as np

        columns: dict[str, Any] = {
            "keys": self.keys,
            "model_of": self.model_of,
            "digests": self.digests.reshape(-1),
        }
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
            DamagedError: it is missing, not a catalogue, or its columns are inconsistent.
        """
        try:
            return _catalog(read_npz(path, error=DamagedError))
        except (ValueError, InputError) as error:
            raise DamagedError(f"{path}: not a readable catalogue: {error}") from None


def unknown_digests(n: int) -> NDArray[np.uint8]:
    """(n, 32) digests of rows with unknown images."""
    import numpy as np

    return np.zeros((n, DIGEST_BYTES), np.uint8)


def _catalog(columns: dict[str, NDArray[Any]]) -> Catalog:
    dtypes = {"keys": "uint64", "model_of": "int32", "digests": "uint8"}
    for name in ("ids", "labels", "models"):
        dtypes |= {name: "uint8", f"{name}_end": "int64"}
    if dtypes != {name: str(column.dtype) for name, column in columns.items() if column.ndim == 1}:
        raise ValueError(f"expected the columns {sorted(dtypes)}, got {sorted(columns)}")
    return Catalog(
        ids=_texts(columns["ids"], columns["ids_end"]),
        labels=_texts(columns["labels"], columns["labels_end"]),
        keys=columns["keys"],
        model_of=columns["model_of"],
        models=_texts(columns["models"], columns["models_end"]),
        digests=columns["digests"].reshape(-1, DIGEST_BYTES),
    )


def _texts(data: NDArray[Any], ends: NDArray[Any]) -> tuple[str, ...]:
    raw, bounds = data.tobytes(), [0, *ends.tolist()]
    if bounds != sorted(bounds) or bounds[-1] != len(raw):
        raise ValueError("the ends of the texts do not match the texts")
    texts: list[str] = []
    for first in range(0, len(ends), _TEXTS):
        part = pairwise(bounds[first : first + _TEXTS + 1])
        texts += [raw[start:stop].decode("utf-8", "surrogatepass") for start, stop in part]
        pause()
    return tuple(texts)
