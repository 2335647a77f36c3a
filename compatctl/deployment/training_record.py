"""What a model was trained on, as its file carries it and as training.json lists it.

The model's file carries eight bytes of each id, digest and class name (``core.digest_prefixes``),
and a look of each image (``core.perceptual_hash``). The model's digest covers them. training.json
has the full names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from compatctl._version import __version__
from compatctl.core.arrays import Bools, PerceptualHashes, Rows
from compatctl.core.digest_prefixes import DigestPrefixes, digest_prefix, name_prefix
from compatctl.core.perceptual_hash import WIDTH
from compatctl.core.simplex import Registry
from compatctl.data import Dataset, pack, unpack
from compatctl.errors import InputError
from compatctl.files import parse_json, sha256_bytes

FORMAT = 1
MEMORY_FILE = "memory.npz"
REGISTRY_FILE = "registry.json"

SETS = ("ids", "digests", "unlabelled_ids", "unlabelled_digests", "classes", "measured_ids")
_ELSEWHERE = ("elsewhere_ids", "elsewhere_digests")
_CARRIED_SETS = (*SETS, *_ELSEWHERE)
_OPTIONAL_KEYS = {"measured_ids", *_ELSEWHERE}
"""Records of earlier versions lack them."""
_EARLIER_NAMES = {"anchor_ids": "unlabelled_ids", "anchor_digests": "unlabelled_digests"}
_CARRIED_KEYS = {
    *("format", "tool", "parity", "memory_sha256", "registry", "looks", "whole", *_CARRIED_SETS)
}
_FILE_KEYS = {
    *("format", "tool", "items", "unlabelled", "classes", "models", "parity", "memory_sha256"),
    *("registry_sha256", "whole", "partial", "measured"),
}


def _no_looks() -> PerceptualHashes:
    return np.zeros((0, WIDTH), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedItem:
    """An item that passed through the model: its id, the sha256 and the look (hex) of its image.

    It trained with its label, or it is *unlabelled*: an image of the recipe's folder, or a pair of
    an adapter.
    """

    id: str
    sha256: str
    look: str | None = None

    def to_json(self) -> dict[str, str]:
        """The entry of training.json."""
        entry = {"id": self.id, "sha256": self.sha256}
        return entry if self.look is None else {**entry, "look": self.look}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRecord:
    """Training items, unlabelled items and trained classes of a model.

    Attributes:
        ids, digests, unlabelled_ids, unlabelled_digests, classes: eight bytes of each name and
            digest.
        measured_ids: the same of items that the model embedded only to measure or to choose.
        elsewhere_ids, elsewhere_digests: those of all items that only the deployed encoder of a
            fused file saw; they did not go through the new backbone.
        looks: (n, 24), of the images.
        items, unlabelled, labels, measured: the full names, where training.json is at hand.
        partial: the full names are incomplete.
        details: how the model was made: the other entries of training.json.
        parity: largest absolute difference between an embedding of the ONNX file and of the
            trained network.
        registry: JSON text that assigns each class its vertex; None without a simplex.
        memory_sha256: digest of the rehearsal memory that finetune wrote beside the model.
        whole: False for a model that was made of a model without a record.
        path: the training.json; None without one.
        sha256: digest of the carried record, or else of training.json.
        carried: whether the model's file carries the record.
    """

    ids: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    digests: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    unlabelled_ids: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    unlabelled_digests: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    classes: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    measured_ids: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    elsewhere_ids: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    elsewhere_digests: DigestPrefixes = field(default_factory=DigestPrefixes.from_ints)
    looks: PerceptualHashes = field(default_factory=_no_looks)
    items: tuple[RecordedItem, ...] = ()
    unlabelled: tuple[RecordedItem, ...] = ()
    labels: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    partial: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    parity: float | None = None
    registry: str | None = None
    memory_sha256: str | None = None
    whole: bool = True
    path: Path | None = None
    sha256: str = ""
    carried: bool = False

    @classmethod
    def of(
        cls,
        *,
        items: Sequence[RecordedItem] = (),
        unlabelled: Sequence[RecordedItem] = (),
        labels: Sequence[str] = (),
        measured: Sequence[str] = (),
        **fields: Any,
    ) -> Self:
        """The record of items and class labels that are known by name.

        Raises:
            ValueError: a digest is no sha256, or a look has another length.
        """
        return cls(
            ids=DigestPrefixes.from_ints(name_prefix(item.id) for item in items),
            digests=DigestPrefixes.from_ints(digest_prefix(item.sha256) for item in items),
            unlabelled_ids=DigestPrefixes.from_ints(name_prefix(item.id) for item in unlabelled),
            unlabelled_digests=DigestPrefixes.from_ints(
                digest_prefix(item.sha256) for item in unlabelled
            ),
            classes=DigestPrefixes.from_ints(map(name_prefix, labels)),
            measured_ids=DigestPrefixes.from_ints(map(name_prefix, measured)),
            looks=_looks((*items, *unlabelled)),
            items=tuple(items),
            unlabelled=tuple(unlabelled),
            labels=tuple(labels),
            measured=tuple(measured),
            **fields,
        )

    @classmethod
    def of_pairs(cls, data: Dataset, rows: Rows) -> Self:
        """The record of the rows (n,) that an adapter was fitted on, with their looks.

        Training items are items, and their classes were seen. Gallery items of other splits are
        unlabelled: their label was not used.
        """
        items: list[RecordedItem] = []
        unlabelled: list[RecordedItem] = []
        for row in rows:
            item = data.items[row]
            entry = RecordedItem(id=item.id, sha256=data.digest(int(row)))
            (items if item.split == "train" else unlabelled).append(entry)
        labels = {data.items[row].label for row in rows if data.items[row].split == "train"}
        return cls.of(items=items, unlabelled=unlabelled, labels=sorted(labels)).with_looks(data)

    @property
    def registry_sha256(self) -> str | None:
        """The digest of the class registry's file."""
        return None if self.registry is None else sha256_bytes(self.registry.encode())

    def trained_on(self, item_id: str, digest: str) -> bool:
        """Whether the item trained, or its image passed with or without its label: no held-out
        query."""
        image = digest_prefix(digest)
        return (
            name_prefix(item_id) in self.ids
            or image in self.digests
            or image in self.unlabelled_digests
        )

    def passed_unlabelled(self, item_id: str) -> bool:
        """Whether the item passed without its label."""
        return name_prefix(item_id) in self.unlabelled_ids

    def knows_class(self, label: str) -> bool:
        """Whether an item of this class trained."""
        return name_prefix(label) in self.classes

    def has_seen(self, ids: Sequence[str]) -> Bools:
        """(n,) whether each item passed, with or without its label."""
        names = np.fromiter(map(name_prefix, ids), np.uint64, len(ids))
        return self.ids.contains(names) | self.unlabelled_ids.contains(names)

    def with_classes(self, labels: Iterable[str]) -> Self:
        """The record with more trained classes."""
        return replace(
            self, classes=self.classes | DigestPrefixes.from_ints(map(name_prefix, labels))
        )

    def with_measured(self, ids: Iterable[str]) -> Self:
        """The record with more items that were embedded only to measure or to choose."""
        added = {*ids}
        prefixes = DigestPrefixes.from_ints(map(name_prefix, added))
        return replace(
            self,
            measured_ids=self.measured_ids | prefixes,
            measured=tuple(sorted({*self.measured, *added})),
        )

    def with_looks(self, *sources: Dataset | None) -> Self:
        """The record with the look of each item whose image decodes.

        The image comes from the first source that has the item's id.
        """
        looks: dict[str, str] = {}
        ids = {item.id for item in (*self.items, *self.unlabelled)}
        for data in sources:
            if data is not None:
                rows = [r for r, item in enumerate(data.ids) if item in ids and item not in looks]
                computed, decoded = data.looks(rows)
                for position, look in zip(decoded, computed, strict=True):
                    looks[data.ids[rows[position]]] = look.tobytes().hex()
        items, unlabelled = (
            tuple(replace(item, look=looks.get(item.id, item.look)) for item in entries)
            for entries in (self.items, self.unlabelled)
        )
        return replace(
            self, items=items, unlabelled=unlabelled, looks=_looks((*items, *unlabelled))
        )

    def own(self, kind: str) -> DigestPrefixes:
        """The ``ids`` or ``digests`` of all items that went through the new backbone."""
        every: DigestPrefixes = getattr(self, kind) | getattr(self, f"unlabelled_{kind}")
        elsewhere: DigestPrefixes = getattr(self, f"elsewhere_{kind}")
        return every - elsewhere

    def of_the_old_encoder(self) -> Self:
        """The record as part of a fused file: nothing of it went through the new backbone."""
        return replace(
            self,
            measured=(),
            measured_ids=DigestPrefixes.from_ints(),
            elsewhere_ids=self.ids | self.unlabelled_ids,
            elsewhere_digests=self.digests | self.unlabelled_digests,
        )

    def including(self, other: Self) -> Self:
        """Everything that either record has. Details, memory, registry and path are this one's."""
        prefixes = {name: getattr(self, name) | getattr(other, name) for name in _CARRIED_SETS}
        for kind in ("ids", "digests"):
            prefixes[f"elsewhere_{kind}"] -= self.own(kind) | other.own(kind)
        parities = [parity for parity in (self.parity, other.parity) if parity is not None]
        return replace(
            self,
            **prefixes,
            looks=np.unique(np.concatenate([self.looks, other.looks]), axis=0),
            items=_unique((*self.items, *other.items)),
            unlabelled=_unique((*self.unlabelled, *other.unlabelled)),
            labels=tuple(sorted({*self.labels, *other.labels})),
            measured=tuple(sorted({*self.measured, *other.measured})),
            partial=self.partial or other.partial,
            whole=self.whole and other.whole,
            parity=max(parities) if parities else None,
        )

    def to_text(self) -> str:
        """The text that a model carries. Equal records give equal texts."""
        sets = {name: getattr(self, name) for name in _CARRIED_SETS}
        value: dict[str, Any] = {name: [len(s), pack(s.deltas())] for name, s in sets.items()}
        value |= {
            "format": FORMAT,
            "tool": f"compatctl {__version__}",
            "parity": self.parity,
            "memory_sha256": self.memory_sha256,
            "registry": self.registry,
            "whole": self.whole,
            "looks": [len(self.looks), pack(self.looks)],
        }
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, path: Path) -> Self:
        """Read the record that the model at ``path`` carries. It has no full names.

        Raises:
            InputError: it has another format, or is damaged.
        """
        data = text.encode("utf-8", "surrogatepass")
        try:
            raw = parse_json(data, path)
            if not isinstance(raw, dict) or raw.get("format") != FORMAT:
                raise InputError("it has another format")
            raw = {_EARLIER_NAMES.get(key, key): value for key, value in raw.items()}
            if not _CARRIED_KEYS - _OPTIONAL_KEYS <= set(raw) <= _CARRIED_KEYS:
                raise InputError("it has other entries")
            sets: dict[str, Any] = {
                name: DigestPrefixes.from_deltas(_rows(raw[name], 8))
                for name in _CARRIED_SETS
                if name in raw
            }
            if raw["registry"] is not None:
                Registry.from_json(raw["registry"])
            return cls(
                **sets,
                looks=_rows(raw["looks"], WIDTH),
                partial=True,
                parity=_parity(raw["parity"]),
                registry=raw["registry"],
                whole=raw["whole"] is True,
                memory_sha256=digest_or_none(raw["memory_sha256"]),
                sha256=sha256_bytes(data),
                carried=True,
            )
        except (InputError, TypeError, ValueError) as error:
            reason = error.message if isinstance(error, InputError) else error
            raise InputError(
                f"{path}: the training record that it carries cannot be read: {reason}",
                tip="use the version of compatctl that made the model, or make it again",
            ) from None

    def to_json(self, model_sha256: str) -> dict[str, Any]:
        """The content of the training.json of a model."""
        value = {
            **self.details,
            "format": FORMAT,
            "tool": f"compatctl {__version__}",
            "models": [model_sha256],
            "items": [item.to_json() for item in self.items],
            "unlabelled": [item.to_json() for item in self.unlabelled],
            "classes": list(self.labels),
            "measured": list(self.measured),
            "whole": self.whole,
            "parity": self.parity,
            "registry_sha256": self.registry_sha256,
            "memory_sha256": self.memory_sha256,
        }
        return value | {"partial": True} if self.partial else value

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], registry: str | None = None) -> Self:
        """Read the content of a training.json; ``registry``: the text of the class registry.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing, or has another type.
        """
        return cls.of(
            items=_entries(raw, "items"),
            unlabelled=_entries(raw, "unlabelled"),
            labels=_labels(raw, "classes"),
            measured=_labels(raw, "measured") if "measured" in raw else (),
            partial=bool(raw.get("partial")),
            details={key: value for key, value in raw.items() if key not in _FILE_KEYS},
            parity=_parity(raw.get("parity")),
            registry=registry,
            memory_sha256=digest_or_none(raw.get("memory_sha256")),
            whole=raw.get("whole", True) is True,
        )


def _unique(items: Sequence[RecordedItem]) -> tuple[RecordedItem, ...]:
    """Each item once, by id and digest."""
    return tuple({(item.id, item.sha256): item for item in items}.values())


def _looks(items: Sequence[RecordedItem]) -> PerceptualHashes:
    looks = [bytes.fromhex(item.look) for item in items if item.look is not None]
    if any(len(look) != WIDTH for look in looks):
        raise ValueError("a look has another length")
    return np.unique(np.frombuffer(b"".join(looks), np.uint8).reshape(-1, WIDTH), axis=0)


def _rows(value: Any, width: int) -> PerceptualHashes:
    n, packed = value
    return unpack(packed, n, width)


def _entries(raw: Mapping[str, Any], name: str) -> list[RecordedItem]:
    return [
        RecordedItem(id=entry["id"], sha256=entry["sha256"], look=entry.get("look"))
        for entry in _checked_list(raw, name, lambda entry: (entry["id"], entry["sha256"]))
    ]


def _labels(raw: Mapping[str, Any], name: str) -> list[str]:
    return _checked_list(raw, name, lambda label: (label,))


def _checked_list(
    raw: Mapping[str, Any], name: str, texts_of: Callable[[Any], tuple[Any, ...]]
) -> list[Any]:
    """A list of the record. A string in its place would pass as a list of one-letter classes."""
    entries = raw[name]
    if not isinstance(entries, list):
        raise TypeError(f"{name} is no list")
    for texts in map(texts_of, entries):
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{name} has an entry that is no text: {texts}")
    return entries


def _parity(value: Any) -> float | None:
    """A difference >= 0; None if it was not measured."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the parity {value!r} is no difference")
    return float(value)


def digest_or_none(value: Any) -> str | None:
    """A sha256, or None.

    Raises:
        ValueError: the value is neither.
    """
    if value is None:
        return None
    digest_prefix(str(value))
    return str(value)
