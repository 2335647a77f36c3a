"""The backbone's module and its weights, neither of which may surprise anyone.

``torch.load`` runs whatever a pickle says unless told ``weights_only``; a checkpoint that matches
almost nothing loads in silence with ``strict=False``. Both are errors here.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.files.npz import PARSE_ERRORS, default_limit, open_regular, zip_entries
from compatctl.train.network import Network

WRAPPINGS = ("state_dict", "model_state_dict", "net", "model", "module")
SHOWN = 3
LISTED = 20
"""The most names in a message."""

MAX_SHARDS = 10_000
_SHARD = re.compile(r"(?P<stem>.+)-(?P<at>[0-9]{1,5})-of-(?P<count>[0-9]{1,5})(?P<ending>\.\w+)")

MAX_GROWTH = 64 << 20
"""By how many bytes the parts of a checkpoint may exceed the file; torch does not compress."""

MAX_DIRECTORY = 64 << 20
"""The most bytes of the zip's directory of a checkpoint."""

UNREADABLE = (*PARSE_ERRORS, AssertionError, ImportError, pickle.PickleError, tarfile.TarError)
"""What torch raises on a file that is not what it seems."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMatch:
    """What a base file gave the backbone, by name of tensor."""

    sha256: str | None
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    prefix: str
    """What the file puts before each name, such as ``module.``."""
    junction: bool
    """Whether the junction came from the file as well (a base that an earlier run wrote)."""


def load_base(
    backbone: nn.Module, path: Path, *, part: str | None = None, least_share: float = 0.9
) -> tuple[CheckpointMatch, dict[str, Tensor]]:
    """Put the file's weights into ``backbone``; also give the file's tensors for a junction.

    ``path`` may be one shard of several: the others are read from beside it. ``part``: what the
    names of the wanted network begin with, where the file holds several; ``least_share``: of the
    backbone's tensors, and of their numbers, in 0 .. 1, that the file must have.

    Raises:
        InputError: the file or a shard is missing, no checkpoint, holds a pickle that would run
            code, has a tensor of another shape or with numbers that are not finite, holds two
            networks, or has less than ``least_share`` of the backbone.
    """
    shards = shards_of(path)
    tensors = _together(shards)
    wanted = backbone.state_dict()
    prefix, found = _network_in(path, tensors, wanted, part)
    clash = [
        f"{key}: {tuple(found[key].shape)}, the backbone has {tuple(wanted[key].shape)}"
        for key in found
        if found[key].shape != wanted[key].shape
    ]
    if clash:
        raise InputError(
            f"{path}: another architecture: {len(clash)} tensors of another shape "
            f"({'; '.join(clash[:SHOWN])})",
            tip="check backbone.factory and backbone.args in the recipe",
        )
    _refuse_little(path, found, wanted, tensors, least_share)
    broken = [key for key, one in found.items() if not torch.isfinite(one).all()]
    if broken:
        raise InputError(
            f"{path}: {len(broken)} tensors hold numbers that are not finite: "
            f"{', '.join(broken[:LISTED])}",
            tip="its training went astray: take an earlier checkpoint",
        )
    backbone.load_state_dict(found, strict=False)
    taken = {prefix + one for one in found}
    match = CheckpointMatch(
        sha256=sha256_of(*shards),
        matched=len(found),
        missing=tuple(key for key in wanted if key not in found),
        unexpected=tuple(key for key in tensors if key not in taken),
        prefix=prefix,
        junction=False,
    )
    return match, tensors


def shards_of(path: Path) -> tuple[Path, ...]:
    """Every file of a checkpoint that is in several, ``NAME-00001-of-00002.ENDING``; else itself.

    Raises:
        InputError: one of them is not beside it, or it is the list of the shards.
    """
    if path.name.endswith(".index.json"):
        raise InputError(
            f"{path} lists the files of a checkpoint and holds none of its tensors",
            tip="pass the first of them, such as model-00001-of-00002.safetensors",
        )
    named = _SHARD.fullmatch(path.name)
    if named is None:
        return (path,)
    stem, count, ending = named["stem"], int(named["count"]), named["ending"]
    if not 1 <= int(named["at"]) <= count <= MAX_SHARDS:
        raise InputError(f"{path} is shard {named['at']} of {count}: there is no such shard")
    digits = len(named["count"])
    names = [f"{stem}-{at:0{digits}}-of-{named['count']}{ending}" for at in range(1, count + 1)]
    lacking = [name for name in names if not (path.parent / name).is_file()]
    if lacking:
        raise InputError(
            f"{path} is one of {count} files of a checkpoint, and {', '.join(lacking[:LISTED])} "
            "is not beside it",
            tip="put all of them into one folder",
        )
    return tuple(path.parent / name for name in names)


def _together(shards: tuple[Path, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for shard in shards:
        more = read_tensors(shard)
        twice = [key for key in more if key in found and not _equal(found[key], more[key])]
        if twice:
            raise InputError(f"{shard}: {twice[0]} is in another shard too, with other numbers")
        found |= more
    return found


def _network_in(
    path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor], part: str | None
) -> tuple[str, dict[str, Tensor]]:
    """What the names of the backbone's tensors begin with in the file, and these tensors.

    Raises:
        InputError: there are two networks of which each could be the backbone, or none that
            ``part`` names.
    """
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        for at in range(len(words)):
            rest = ".".join(words[at:])
            if rest in wanted:
                held.setdefault("".join(f"{one}." for one in words[:at]), {})[rest] = tensor
    if part is not None:
        asked = f"{part.rstrip('.')}." if part else ""
        inside = {one: found for one, found in held.items() if one.startswith(asked)}
        held = {asked: held[asked]} if asked in held else inside
        if not held:
            raise InputError(f"{path}: no tensor of the backbone has a name that begins {asked!r}")
    if not held:
        return "", {}
    best = min(held, key=lambda one: (-len(held[one]), len(one), one))
    rivals = [one for one in held if one != best and _rivals(held[best], held[one], wanted)]
    if rivals:
        names = " and ".join(repr(one) for one in sorted([best, *rivals])[:LISTED])
        raise InputError(
            f"{path}: holds {1 + len(rivals)} networks that could be the backbone: their tensors' "
            f"names have the prefix {names}",
            tip=f'say which: write part: "{best}", for example, under backbone in the recipe',
        )
    return best, held[best]


def _rivals(best: dict[str, Tensor], other: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether ``other`` is a backbone as well, of half of its tensors or more, and another one."""
    fits = [key for key, one in other.items() if one.shape == wanted[key].shape]
    differs = any(key not in best or not _equal(best[key], other[key]) for key in fits)
    return 2 * len(fits) >= len(wanted) and differs


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _refuse_little(
    path: Path,
    found: dict[str, Tensor],
    wanted: dict[str, Tensor],
    tensors: dict[str, Tensor],
    least: float,
) -> None:
    """Counters of batches, which are whole numbers, are no weights and do not count."""
    weights = {key: one.numel() for key, one in wanted.items() if one.is_floating_point()}
    lacking = [key for key in weights if key not in found]
    share = 1.0 - len(lacking) / max(1, len(weights))
    numbers = 1.0 - sum(weights[key] for key in lacking) / max(1, sum(weights.values()))
    if min(share, numbers) >= least - 1e-9:
        return
    more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
    raise InputError(
        f"{path}: has {len(found)} of the backbone's {len(wanted)} tensors, {share:.0%} of its "
        f"weights and {numbers:.0%} of their numbers; {least:.0%} are asked for. Random would be "
        f"{', '.join(lacking[:LISTED])}{more}; the file has {', '.join(list(tensors)[:SHOWN])}",
        tip="check backbone.factory and backbone.args in the recipe, and that this is the whole "
        "checkpoint; backbone.least_share takes less",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors or torch file; code never runs.

    Names inside the usual wrappings stand for themselves; those of other mappings in the file, such
    as an average of the weights, have the mappings' keys before them.
    """
    try:
        check_file(path)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds something else than tensors, which could run code: refused",
            tip="save a state dict, or a .safetensors file",
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, *UNREADABLE) as error:
        raise InputError(f"{path}: is not a checkpoint: {error}") from error
    tensors = _named(value)
    if not tensors:
        raise InputError(f"{path}: holds no tensors by name", tip="save a state dict")
    unheld = [key for key, one in tensors.items() if not _held(one)]
    if unheld:
        raise InputError(f"{path}: {unheld[0]} is larger than what the file has of it")
    return tensors


def check_file(path: Path) -> None:
    """Refuse a checkpoint whose tensors would not fit: torch unpacks whatever a zip says.

    Raises:
        OSError: it is missing, must not be read, or is no regular file.
        ValueError: it is larger than ``MEMORY_SHARE`` of the machine's memory, or its parts are
            larger than the file by more than ``MAX_GROWTH``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > default_limit():
            raise ValueError(f"it has {size} bytes; at most {default_limit()} are read")
        if not zipfile.is_zipfile(file):
            return
        entries, _ = zip_entries(file, MAX_DIRECTORY)
        total = sum(one.file_size for one in entries)
        if total > size + MAX_GROWTH:
            raise ValueError(f"its parts have {total} bytes, the file {size}: save it uncompressed")


def _held(tensor: Tensor) -> bool:
    """Whether each element has a place of its own: a view of one number can claim any shape."""
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def load_junction(network: Network, tensors: dict[str, Tensor]) -> bool:
    """Take the junction from a file that ``save_weights`` wrote; False where it does not fit."""
    wanted = network.junction.state_dict()
    found = {key: tensors.get(f"junction.{key}") for key in wanted}
    fits = all(one is not None and one.shape == wanted[key].shape for key, one in found.items())
    if fits and wanted:
        network.junction.load_state_dict({k: v for k, v in found.items() if v is not None})
    return fits and bool(wanted)


def save_weights(network: Network, path: Path) -> None:
    """Backbone and junction as safetensors: a base for the next fine-tuning."""
    kept = {
        key: one.contiguous().cpu()
        for key, one in network.state_dict().items()
        if not key.startswith("attention.")
    }
    save_file(kept, path)


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file's bytes, or of several files' digests."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _named(value: Any) -> dict[str, Tensor]:
    """Every tensor inside nested mappings, those of the usual wrapping first."""
    main = value
    for _ in range(SHOWN):
        inner = [key for key in WRAPPINGS if isinstance(main, dict) and _holds(main.get(key))]
        main = main[inner[0]] if inner else main
    found: dict[str, Tensor] = {}
    waiting, known = [("", main), ("", value)], set()
    while waiting:
        before, one = waiting.pop(0)
        if not isinstance(one, dict) or id(one) in known:
            continue
        known.add(id(one))
        for key, inside in one.items():
            name = f"{before}{key}"
            if isinstance(inside, Tensor):
                found.setdefault(name, inside)
            elif isinstance(key, str):
                waiting.append((f"{name}.", inside))
    return found


def _holds(value: Any) -> bool:
    """Whether a value is a mapping with tensors in it, or one that wraps such a mapping."""
    return isinstance(value, dict) and any(isinstance(one, Tensor | dict) for one in value.values())
