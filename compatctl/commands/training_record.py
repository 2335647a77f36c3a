"""The candidate's training record: which items and classes it has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compatctl.errors import InputError
from compatctl.files import read_json, sha256_file

MAX_BYTES = 1 << 30
FILE = "training.json"
REGISTRY_FILE = "registry.json"
MEMORY_FILE = "memory.npz"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Ids and input digests of trained items and of gallery anchors, and the trained classes."""

    ids: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    anchor_ids: frozenset[str] = frozenset()
    anchor_digests: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    parity: float | None = None
    """Largest difference of any number between the ONNX file and what was trained."""
    registry_sha256: str | None = None
    memory_sha256: str | None = None
    """The rehearsal memory that finetune wrote beside the candidate; null: none."""
    path: Path
    sha256: str

    def trained_on(self, item_id: str, digest: str) -> bool:
        """Whether a query must not be this item: it trained, or its bytes trained or anchored."""
        return item_id in self.ids or digest in self.digests or digest in self.anchor_digests

    def anchored(self, item_id: str) -> bool:
        """Whether the item of the gallery was an anchor, or a pair of a bridge."""
        return item_id in self.anchor_ids

    def knows_class(self, label: str) -> bool:
        """Whether an item of this class trained."""
        return label in self.classes

    def passed(self, item_id: str) -> bool:
        """Whether the item went through the new model before it was judged: it trained, anchored,
        or was a pair of a map."""
        return item_id in self.ids or item_id in self.anchor_ids

    def knowing(self, labels: Iterable[str]) -> Seen:
        """The same, and these classes besides."""
        return replace(self, classes=self.classes | frozenset(labels))


def find(model: Path, sha256: str, *, named: Path | None, candidate: Path) -> Seen | None:
    """The record of the model with this digest: the named one, or one beside it or the candidate.

    Raises:
        InputError: the named record is missing, unreadable or another model's.
    """
    beside = (record_of(model), model.with_name(FILE), candidate / FILE)
    for path in (named,) if named else beside:
        if path.is_file():
            raw = read_json(path, MAX_BYTES)
            models = raw.get("models", []) if isinstance(raw, dict) else []
            if not isinstance(models, list):
                raise InputError(f"{path} is not a training record: models is no list")
            if sha256 in models:
                return _seen(path, raw)
            if named:
                raise InputError(
                    f"{named} is not the training record of {model}",
                    tip="pass the record that finetune wrote with this model",
                )
        elif named:
            raise InputError(f"no training record at {named}")
    return None


def record_of(model: Path) -> Path:
    """Where the record of a model outside the candidate's folder lies: beside it, by its name."""
    return model.with_suffix(".training.json")


def _seen(path: Path, raw: Any) -> Seen:
    try:
        items, anchors = raw["items"], raw["anchors"]
        return Seen(
            ids=frozenset(item["id"] for item in items),
            digests=frozenset(item["sha256"] for item in items),
            anchor_ids=frozenset(item["id"] for item in anchors),
            anchor_digests=frozenset(item["sha256"] for item in anchors),
            classes=frozenset(raw["classes"]),
            parity=None if raw.get("parity") is None else float(raw["parity"]),
            registry_sha256=raw.get("registry_sha256"),
            memory_sha256=raw.get("memory_sha256"),
            path=path,
            sha256=sha256_file(path),
        )
    except (KeyError, TypeError, ValueError) as missing:
        raise InputError(f"{path} is not a training record: {missing}") from None
