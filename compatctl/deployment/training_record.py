"""What a model has seen: a record that its file carries, and a file for people beside it.

The record in the model's file holds eight bytes of every id, digest and class, and a look of every
image (``core.prefixes``, ``core.looks``); the model's digest covers it. training.json has the whole
names and names the model by its digest. Where both are there they must agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compatctl._version import __version__
from compatctl.core.arrays import Looks
from compatctl.core.looks import WIDTH
from compatctl.core.prefixes import Prefixes, prefix_of, prefix_of_digest
from compatctl.core.simplex import Registry
from compatctl.data import pack, unpack
from compatctl.errors import InputError
from compatctl.files import parse_json, read_json, sha256_bytes, sha256_file

FORMAT = 1
MAX_BYTES = 1 << 30
FILE = "training.json"
MEMORY_FILE = "memory.npz"
REGISTRY_FILE = "registry.json"
PARTIAL = "partial"
"""An entry of the file for people: it lacks names that the model's record has a part of."""

_SETS = ("ids", "digests", "anchor_ids", "anchor_digests", "classes")
_KEYS = {"format", "tool", "parity", "memory_sha256", "registry", "looks", "whole", *_SETS}


def _no_looks() -> Looks:
    return np.zeros((0, WIDTH), np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRecord:
    """Trained items, gallery anchors and trained classes, eight bytes of each name and digest.

    ``parity``: largest difference of any number between the ONNX file and what was trained.
    ``memory_sha256``: the rehearsal memory that finetune wrote beside the candidate. ``registry``:
    which vertex each class has, as JSON; null: no simplex. ``looks`` (n, 24): of the images.
    ``path``: the file for people; null: there is none. ``sha256``: of the record that the model
    carries, or else of that file; ``carried``: which of the two.
    """

    ids: Prefixes = field(default_factory=Prefixes.of)
    digests: Prefixes = field(default_factory=Prefixes.of)
    anchor_ids: Prefixes = field(default_factory=Prefixes.of)
    anchor_digests: Prefixes = field(default_factory=Prefixes.of)
    classes: Prefixes = field(default_factory=Prefixes.of)
    looks: Looks = field(default_factory=_no_looks)
    parity: float | None = None
    registry: str | None = None
    memory_sha256: str | None = None
    path: Path | None = None
    sha256: str = ""
    carried: bool = False
    whole: bool = True
    """False for what was made of a model of which nobody says what it has seen"""

    @property
    def registry_sha256(self) -> str | None:
        """Of the class registry's file."""
        return None if self.registry is None else sha256_bytes(self.registry.encode())

    def trained_on(self, item_id: str, digest: str) -> bool:
        """Whether a query must not be this item: it trained, or its bytes trained or anchored."""
        bytes_of = prefix_of_digest(digest)
        return (
            prefix_of(item_id) in self.ids
            or bytes_of in self.digests
            or bytes_of in self.anchor_digests
        )

    def anchored(self, item_id: str) -> bool:
        """Whether the item of the gallery was an anchor, or a pair of a bridge."""
        return prefix_of(item_id) in self.anchor_ids

    def knows_class(self, label: str) -> bool:
        """Whether an item of this class trained."""
        return prefix_of(label) in self.classes

    def passed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each item went through the new model before it was judged: it trained,
        anchored, or was a pair of a map."""
        names = np.fromiter(map(prefix_of, ids), np.uint64, len(ids))
        return self.ids.hold(names) | self.anchor_ids.hold(names)

    def knowing(self, labels: Iterable[str]) -> TrainingRecord:
        """The same, and these classes besides."""
        return replace(self, classes=self.classes | Prefixes.of(map(prefix_of, labels)))

    def together(self, other: TrainingRecord) -> TrainingRecord:
        """What either has seen; memory and registry are this one's, as is where it is from."""
        found = {name: getattr(self, name) | getattr(other, name) for name in _SETS}
        parities = [one for one in (self.parity, other.parity) if one is not None]
        return replace(
            self,
            **found,
            looks=np.unique(np.concatenate([self.looks, other.looks]), axis=0),
            whole=self.whole and other.whole,
            parity=max(parities) if parities else None,
        )

    def text(self) -> str:
        """What a model carries: the same record gives the same text."""
        sets = {name: getattr(self, name) for name in _SETS}
        value: dict[str, Any] = {name: [len(one), pack(one.steps())] for name, one in sets.items()}
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


def seen_of(raw: Mapping[str, Any], registry: str | None = None) -> TrainingRecord:
    """What the entries of a training.json say; ``registry``: the class registry's text.

    Raises:
        KeyError, TypeError, ValueError: an entry is missing, or of another kind.
    """
    items, anchors, classes = (_listed(raw, name) for name in ("items", "anchors", "classes"))
    looks = [bytes.fromhex(one["look"]) for one in (*items, *anchors) if "look" in one]
    if any(len(one) != WIDTH for one in looks):
        raise ValueError("a look is of another length")
    rows = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, WIDTH)
    return TrainingRecord(
        ids=Prefixes.of(prefix_of(one["id"]) for one in items),
        digests=Prefixes.of(prefix_of_digest(one["sha256"]) for one in items),
        anchor_ids=Prefixes.of(prefix_of(one["id"]) for one in anchors),
        anchor_digests=Prefixes.of(prefix_of_digest(one["sha256"]) for one in anchors),
        classes=Prefixes.of(map(prefix_of, classes)),
        looks=np.unique(rows, axis=0),
        parity=_parity(raw.get("parity")),
        registry=registry,
        memory_sha256=_digest(raw.get("memory_sha256")),
        whole=raw.get("whole", True) is True,
    )


def names_of(*parts: TrainingRecord | None) -> dict[str, Any]:
    """``items``, ``anchors`` and ``classes`` by their names, of the parts that have a file for
    people; ``partial`` where one has none. ``first``: the whole of the first one's file."""
    files = [read_json(one.path, MAX_BYTES) if one and one.path else None for one in parts]
    found: dict[str, Any] = {
        name: list(
            {
                (one["id"], one["sha256"]): one
                for raw in files
                if isinstance(raw, dict)
                for one in raw[name]
            }.values()
        )
        for name in ("items", "anchors")
    }
    found["classes"] = sorted(
        {one for raw in files if isinstance(raw, dict) for one in raw["classes"]}
    )
    if any(raw is None and one is not None for raw, one in zip(files, parts, strict=True)):
        found[PARTIAL] = True
    return found | {"first": files[0] if isinstance(files[0], dict) else {}}


def read_carried(text: str, path: Path) -> TrainingRecord:
    """The record that the model at ``path`` carries.

    Raises:
        InputError: it is of another format, or damaged.
    """
    try:
        raw = parse_json(text.encode("utf-8", "surrogatepass"), path)
        if not isinstance(raw, dict) or set(raw) != _KEYS or raw["format"] != FORMAT:
            raise InputError("it has other entries, or is of another format")
        sets: dict[str, Any] = {name: Prefixes.of_steps(_rows(raw[name], 8)) for name in _SETS}
        if raw["registry"] is not None:
            Registry.from_json(raw["registry"])
        return TrainingRecord(
            **sets,
            looks=_rows(raw["looks"], WIDTH),
            parity=_parity(raw["parity"]),
            registry=raw["registry"],
            whole=raw["whole"] is True,
            memory_sha256=_digest(raw["memory_sha256"]),
            sha256=sha256_bytes(text.encode("utf-8", "surrogatepass")),
            carried=True,
        )
    except (InputError, TypeError, ValueError) as error:
        why = error.message if isinstance(error, InputError) else error
        raise InputError(
            f"{path}: the training record that it carries cannot be read: {why}",
            tip="use the version of compatctl that made the model, or make it again",
        ) from None


def _rows(value: Any, width: int) -> Looks:
    n, packed = value
    return unpack(packed, n, width)


def _listed(raw: Mapping[str, Any], name: str) -> list[Any]:
    """A list of the record: of texts the classes, of entries with id and sha256 the others. A text
    or a mapping in a list's place would be read as other classes, or as no item."""
    found = raw[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} is no list")
    for one in found:
        texts = (one,) if name == "classes" else (one["id"], one["sha256"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{name} has an entry that is no text: {texts}")
    return found


def _parity(value: Any) -> float | None:
    """A difference, which is not below 0; None: it was not measured."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the parity {value!r} is no difference")
    return float(value)


def _digest(value: Any) -> str | None:
    if value is None:
        return None
    prefix_of_digest(str(value))
    return str(value)


class Carrier(Protocol):
    """A model's digest, and the record that its file carries: an ``Encoder``."""

    @property
    def sha256(self) -> str: ...
    @property
    def record(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A model that need not run to say what it has seen."""

    sha256: str
    record: str | None


def find_record(
    path: Path, model: Carrier, *, named: Path | None, candidate: Path
) -> TrainingRecord | None:
    """What the model has seen: by the record that it carries, else by a file that names it.

    ``named``: a training.json; where it is not given one is looked for beside the model and in the
    ``candidate``'s folder.

    Raises:
        InputError: the named file is missing, unreadable or another model's; the file and the
            record that the model carries do not agree.
    """
    carried = read_carried(model.record, path) if model.record is not None else None
    beside = (record_path(path), path.with_name(FILE), candidate / FILE)
    for file in (named,) if named else beside:
        if file.is_file():
            raw = read_json(file, MAX_BYTES)
            models = raw.get("models", []) if isinstance(raw, dict) else []
            if not isinstance(models, list):
                raise InputError(f"{file} is not a training record: models is no list")
            if isinstance(raw, dict) and model.sha256 in models:
                return _agreed(carried, _beside(file, raw), partial=bool(raw.get(PARTIAL)))
            if named:
                raise InputError(
                    f"{named} is not the training record of {path}",
                    tip="pass the record that finetune wrote with this model",
                )
        elif named:
            raise InputError(f"no training record at {named}")
    return carried


def record_path(model: Path) -> Path:
    """Where the record of a model outside the candidate's folder lies: beside it, by its name."""
    return model.with_suffix(".training.json")


def _agreed(
    carried: TrainingRecord | None, beside: TrainingRecord, *, partial: bool
) -> TrainingRecord:
    """The record that the model carries, and where the file for people is.

    Which memory lies beside the model the file says: items can leave it (``compatctl remove``).
    """
    if carried is None:
        return beside
    for name in _SETS:
        held, told = getattr(carried, name), getattr(beside, name)
        if not (told <= held if partial else told == held):
            raise _differ(beside, f"{len(told)} and {len(held)} {name.replace('_', ' ')}")
    if not partial and beside.parity != carried.parity:
        raise _differ(beside, f"parity {beside.parity} and {carried.parity}")
    return replace(carried, path=beside.path, memory_sha256=beside.memory_sha256)


def _differ(beside: TrainingRecord, how: str) -> InputError:
    return InputError(
        f"{beside.path} and the record that the model carries differ: {how}",
        tip="the model's own record counts; take the file away, or restore it",
    )


def _registry_beside(path: Path, sha256: str | None) -> str | None:
    """The class registry that a file for people names by its digest."""
    if sha256 is None:
        return None
    registry = path.with_name(REGISTRY_FILE)
    if not registry.is_file() or sha256_file(registry) != sha256:
        raise InputError(
            f"{registry} is not the class registry {sha256[:12]} of the candidate",
            tip="keep the candidate's folder as finetune wrote it until it is deployed",
        )
    return registry.read_text(encoding="utf-8")


_FORM = "items and anchors are lists of {id, sha256}, and classes is a list of labels"


def _beside(path: Path, raw: Mapping[str, Any]) -> TrainingRecord:
    try:
        found = seen_of(raw, _registry_beside(path, _digest(raw.get("registry_sha256"))))
    except KeyError as missing:
        raise InputError(
            f"{path} is not a training record: it lacks {missing}", tip=_FORM
        ) from None
    except (TypeError, ValueError, AttributeError) as wrong:
        raise InputError(f"{path} is not a training record: {wrong}", tip=_FORM) from None
    return replace(found, path=path, sha256=sha256_file(path))
