"""Checkpoints: read without running code, matched to the backbone, and written.

``torch.load`` runs code from a pickle without ``weights_only``, and ``load_state_dict`` with
``strict=False`` accepts a checkpoint that matches almost nothing. Both are errors here.
"""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.files import sha256_bytes, sha256_file
from compatctl.files.npz import PARSE_ERRORS, default_limit, open_regular, zip_entries
from compatctl.notices import MAX_NAMES, notice
from compatctl.printable import listed
from compatctl.train.network import Network

WRAPPINGS = ("state_dict", "model_state_dict", "net", "model", "module")
MAX_WRAPPINGS = 3
MAX_SHARDS = 10_000
SHOWN = 3
LISTED = 20
"""Most names in a message"""

_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{1,5})-of-(?P<count>[0-9]{1,5})(?P<ending>\.\w+)"
)

MAX_DIRECTORY = 64 << 20
MAX_GROWTH = 64 << 20
"""Most bytes by which unpacked parts may exceed the file; torch does not compress."""

MAX_RECORD = 64 << 20
"""Most characters of a record in a file of weights: safetensors allows 100 MB of header."""

_RECORD = "training_record"

StateDict = dict[str, Tensor]

UNREADABLE = (*PARSE_ERRORS, AssertionError, ImportError, pickle.PickleError, tarfile.TarError)
"""What torch raises on a damaged or disguised file."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMatch:
    """Which of the backbone's tensors a base file has, by name."""

    sha256: str | None = None
    matched: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    prefix: str = ""
    """What the file puts before each name, such as ``module.``"""
    junction: bool = False
    """Whether the junction came from the file, too (a base that an earlier run wrote)"""


def load_base(
    backbone: nn.Module, path: Path, *, part: str | None = None, least_share: float = 0.9
) -> tuple[CheckpointMatch, StateDict]:
    """Load the file's weights into ``backbone``; also return all tensors of the file.

    ``path`` may be one of several shards; the others are read from the same folder. ``part`` is the
    name prefix of the wanted network; ``least_share``, in 0 .. 1, is the minimum share of the
    backbone's tensors, and of their values, that the file must have.

    Raises:
        InputError: the file or a shard is missing, is no checkpoint, holds a pickle that could run
            code, has a tensor of another shape or with values that are not finite, holds two
            networks, or has less than ``least_share`` of the backbone.
    """
    shards = shards_of(path)
    tensors = _read_shards(shards)
    expected = backbone.state_dict()
    prefix, state = _find_backbone(path, tensors, expected, part)
    wrong_shape = [
        f"{key}: {tuple(value.shape)}, the backbone has {tuple(expected[key].shape)}"
        for key, value in state.items()
        if value.shape != expected[key].shape
    ]
    if wrong_shape:
        raise InputError(
            f"{path}: another architecture: {len(wrong_shape)} tensors of another shape "
            f"({'; '.join(wrong_shape[:SHOWN])})",
            tip="check backbone.factory and backbone.args in the recipe",
        )
    _check_coverage(path, state, expected, tensors, least_share)
    _refuse_codes(path, state, expected)
    broken = [key for key, value in state.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise InputError(
            f"{path}: {len(broken)} tensors have values that are not finite: "
            f"{', '.join(broken[:LISTED])}",
            tip="its training diverged: use an earlier checkpoint",
        )
    backbone.load_state_dict(state, strict=False)
    loaded = {prefix + key for key in state}
    match = CheckpointMatch(
        sha256=files_digest(shards),
        matched=len(state),
        missing=tuple(key for key in expected if key not in state),
        unexpected=tuple(name for name in tensors if name not in loaded),
        prefix=prefix,
    )
    _warn_of_differences(path, match, expected)
    return match, tensors


def _refuse_codes(path: Path, state: StateDict, expected: StateDict) -> None:
    """Refuse whole numbers in the place of weights: a quantised file has their scales elsewhere."""
    codes = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in state.items()
        if expected[key].is_floating_point() and not value.is_floating_point()
    ]
    if codes:
        raise InputError(
            f"{path}: {len(codes)} tensors are no floating point numbers: {listed(codes, SHOWN)}",
            tip="a quantised checkpoint cannot be trained or exported: use the one before it",
        )


def _warn_of_differences(path: Path, match: CheckpointMatch, expected: StateDict) -> None:
    """Warn of weights that the file lacks, and of tensors in it that are none of the backbone."""
    missing = [name for name in match.missing if expected[name].is_floating_point()]
    if missing:
        result = "they keep their initial values"
        notice("missing-weights", path, "weights of the backbone that it lacks", missing, result)
    if match.unexpected:
        what = "tensors that are not read, as the backbone has none of their names"
        notice("unread-weights", path, what, list(match.unexpected[:MAX_NAMES]),
               count=len(match.unexpected))  # fmt: skip


def shards_of(path: Path) -> tuple[Path, ...]:
    """All files of a checkpoint ``NAME-00001-of-00002.ENDING``, or the one file itself.

    Raises:
        InputError: a shard is missing, or the file is the index of the shards.
    """
    if path.name.endswith(".index.json"):
        raise InputError(
            f"{path} lists the files of a checkpoint and holds none of its tensors",
            tip="pass the first of them, such as model-00001-of-00002.safetensors",
        )
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return (path,)
    stem, count, ending = shard["stem"], int(shard["count"]), shard["ending"]
    if not 1 <= int(shard["number"]) <= count <= MAX_SHARDS:
        raise InputError(f"{path} is shard {shard['number']} of {count}: there is no such shard")
    digits = len(shard["count"])
    names = [f"{stem}-{i:0{digits}}-of-{shard['count']}{ending}" for i in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{path} is one of {count} files of a checkpoint, and {', '.join(missing[:LISTED])} "
            "is not beside it",
            tip="put all of them into one folder",
        )
    return tuple(path.parent / name for name in names)


def _read_shards(shards: tuple[Path, ...]) -> StateDict:
    tensors: StateDict = {}
    for shard in shards:
        for key, value in read_tensors(shard).items():
            if key in tensors and not _equal(tensors[key], value):
                raise InputError(f"{shard}: {key} is in another shard too, with other values")
            tensors[key] = value
    return tensors


def _find_backbone(
    path: Path, tensors: StateDict, expected: StateDict, part: str | None
) -> tuple[str, StateDict]:
    """The prefix of the backbone's tensors in the file, and these tensors without it.

    Raises:
        InputError: two networks could be the backbone, or no name begins with ``part``.
    """
    networks: dict[str, StateDict] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        for i in range(len(words)):
            key = ".".join(words[i:])
            if key in expected:
                networks.setdefault("".join(f"{word}." for word in words[:i]), {})[key] = tensor
    if part is not None:
        start = f"{part.rstrip('.')}." if part else ""
        below = {prefix: state for prefix, state in networks.items() if prefix.startswith(start)}
        networks = {start: networks[start]} if start in networks else below
        if not networks:
            raise InputError(f"{path}: no tensor of the backbone has a name that begins {start!r}")
    if not networks:
        return "", {}
    best = min(networks, key=lambda prefix: (-len(networks[prefix]), len(prefix), prefix))
    rivals = [
        prefix
        for prefix, state in networks.items()
        if prefix != best and _is_rival(networks[best], state, expected)
    ]
    if rivals:
        names = " and ".join(repr(prefix) for prefix in sorted([best, *rivals])[:LISTED])
        raise InputError(
            f"{path}: holds {1 + len(rivals)} networks that could be the backbone: their tensors' "
            f"names have the prefix {names}",
            tip=f'name one under backbone in the recipe: part: "{best}", for example',
        )
    return best, networks[best]


def _is_rival(best: StateDict, other: StateDict, expected: StateDict) -> bool:
    """Whether ``other`` has half of the backbone's tensors or more, with other values."""
    fits = [key for key, value in other.items() if value.shape == expected[key].shape]
    differs = any(key not in best or not _equal(best[key], other[key]) for key in fits)
    return 2 * len(fits) >= len(expected) and differs


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _check_coverage(
    path: Path, state: StateDict, expected: StateDict, tensors: StateDict, least_share: float
) -> None:
    """Refuse a file with too little of the backbone, integer tensors (batch counters) apart."""
    sizes = {key: value.numel() for key, value in expected.items() if value.is_floating_point()}
    missing = [key for key in sizes if key not in state]
    share = 1.0 - len(missing) / max(1, len(sizes))
    values = 1.0 - sum(sizes[key] for key in missing) / max(1, sum(sizes.values()))
    if min(share, values) >= least_share - 1e-9:
        return
    raise InputError(
        f"{path}: has {len(state)} of the backbone's {len(expected)} tensors, {share:.0%} of its "
        f"weights and {values:.0%} of their values; {least_share:.0%} are required. Missing: "
        f"{listed(missing, LISTED)}; the file has {', '.join(list(tensors)[:SHOWN])}",
        tip="check backbone.factory and backbone.args in the recipe, and that this is the whole "
        "checkpoint; a lower backbone.least_share accepts it",
    )


def read_tensors(path: Path) -> StateDict:
    """Name -> tensor of a safetensors or torch file; code never runs.

    The usual wrappings, such as ``state_dict``, are removed from the names. Tensors in other
    mappings of the file, such as an average of the weights, keep the mappings' keys as prefix.
    """
    try:
        check_file(path)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds objects other than tensors, which could run code: refused",
            tip="save a state dict, or a .safetensors file",
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, *UNREADABLE) as error:
        raise InputError(f"{path}: is not a checkpoint: {error}") from error
    tensors = _tensors_by_name(value)
    if not tensors:
        raise InputError(f"{path}: holds no tensors by name", tip="save a state dict")
    expanded = [key for key, tensor in tensors.items() if not _is_stored_in_full(tensor)]
    if expanded:
        raise InputError(f"{path}: {expanded[0]} is larger than what the file has of it")
    return tensors


def check_file(path: Path) -> None:
    """Refuse a checkpoint that would not fit in memory: torch unpacks whatever a zip claims.

    Raises:
        OSError: it is missing, unreadable, or not a regular file.
        ValueError: it is larger than ``MEMORY_SHARE`` of ``usable_memory``, or its parts are
            larger than the file by more than ``MAX_GROWTH``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > default_limit():
            raise ValueError(f"it has {size} bytes; at most {default_limit()} are read")
        if not zipfile.is_zipfile(file):
            return
        entries, _ = zip_entries(file, MAX_DIRECTORY)
        total = sum(entry.file_size for entry in entries)
        if total > size + MAX_GROWTH:
            raise ValueError(f"its parts have {total} bytes, the file {size}: save it uncompressed")


def _is_stored_in_full(tensor: Tensor) -> bool:
    """Whether each element is in the file: a view of one value can claim any shape."""
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def load_junction(network: Network, tensors: StateDict) -> bool:
    """Load the junction from a file that ``save_weights`` wrote; False if it does not fit."""
    expected = network.junction.state_dict()
    state = {key: tensors[f"junction.{key}"] for key in expected if f"junction.{key}" in tensors}
    fits = len(state) == len(expected) and all(
        value.shape == expected[key].shape for key, value in state.items()
    )
    if fits and expected:
        network.junction.load_state_dict(state)
    return fits and bool(expected)


def files_digest(files: Sequence[Path]) -> str:
    """The sha256 of a file; of several, that over their digests."""
    digests = [sha256_file(file) for file in files]
    return digests[0] if len(digests) == 1 else sha256_bytes("\n".join(digests).encode())


def folder_files(folder: Path) -> list[Path]:
    """The files of weights in a model's folder, in the order of their names."""
    return sorted(folder.glob("*.safetensors"))


def carried_record(path: Path) -> str | None:
    """The text of the training record that ``save_weights`` put into a file; None without one.

    Raises:
        InputError: the file is no safetensors file, although its name says so.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(_RECORD)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a checkpoint: {error}") from error


def save_weights(network: Network, path: Path, record: str | None = None) -> None:
    """Backbone and junction as safetensors: a base for the next fine-tuning.

    ``record``: the text of the training record; one above ``MAX_RECORD`` is left out.
    """
    state = {
        key: value.contiguous().cpu()
        for key, value in network.state_dict().items()
        if not key.startswith("free.")
    }
    fits = record is not None and len(record) <= MAX_RECORD
    save_file(state, path, {_RECORD: record} if record is not None and fits else None)


def _tensors_by_name(value: Any) -> StateDict:
    """Every tensor inside nested mappings, those in the usual wrappings first."""
    main = value
    for _ in range(MAX_WRAPPINGS):
        keys = [key for key in WRAPPINGS if isinstance(main, dict) and _has_tensors(main.get(key))]
        main = main[keys[0]] if keys else main
    tensors: StateDict = {}
    queue, visited = [("", main), ("", value)], set()
    while queue:
        prefix, mapping = queue.pop(0)
        if not isinstance(mapping, dict) or id(mapping) in visited:
            continue
        visited.add(id(mapping))
        for key, entry in mapping.items():
            name = f"{prefix}{key}"
            if isinstance(entry, Tensor):
                tensors.setdefault(name, entry)
            elif isinstance(key, str):
                queue.append((f"{name}.", entry))
    return tensors


def _has_tensors(value: Any) -> bool:
    """Whether a value is a mapping with a tensor or another mapping in it."""
    return isinstance(value, dict) and any(isinstance(v, Tensor | dict) for v in value.values())
