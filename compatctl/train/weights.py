"""The backbone's module and its weights, neither of which may surprise anyone.

``torch.load`` runs whatever a pickle says unless told ``weights_only``; a checkpoint that matches
almost nothing loads in silence with ``strict=False``. Both are errors here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import pickle
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.npz import BROKEN, default_limit, open_regular, zip_entries
from compatctl.recipe import Backbone
from compatctl.train.network import Network

WRAPPINGS = ("state_dict", "model_state_dict", "net", "model", "module")
SHOWN = 3

MAX_GROWTH = 64 << 20
"""By how many bytes the parts of a checkpoint may exceed the file; torch does not compress."""

MAX_DIRECTORY = 64 << 20
"""The most bytes of the zip's directory of a checkpoint."""

UNREADABLE = (*BROKEN, AssertionError, ImportError, pickle.PickleError, tarfile.TarError)
"""What torch raises on a file that is not what it seems."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a base file gave the backbone, by name of tensor."""

    sha256: str | None
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    prefix: str
    """What the file puts before each name, such as ``module.``."""
    junction: bool
    """Whether the junction came from the file as well (a base that an earlier run wrote)."""


def make_backbone(recipe: Backbone) -> nn.Module:
    """The module that ``factory`` gives for ``args``; modules of the working folder are found too.

    Raises:
        InputError: no such module or callable, the call fails, or what it gives is no torch module
            with the recipe's ``method``.
    """
    name, _, attribute = recipe.factory.partition(":")
    if name.split(".", maxsplit=1)[0] in sys.stdlib_module_names:
        raise _no_network(recipe.factory)
    try:
        with _working_folder():
            factory: Any = importlib.import_module(name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"backbone.factory {recipe.factory}: {error}",
            tip='write "module:callable" of an installed package or of a file in this folder',
        ) from error
    _refuse_foreign(recipe.factory, factory)
    try:
        made = factory(**recipe.args)
    except Exception as error:
        raise InputError(f"backbone.factory {recipe.factory} failed: {error!r}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"backbone.factory gave {type(made).__name__}, not a torch module")
    if not callable(getattr(made, recipe.method, None)):
        raise InputError(f"backbone: {type(made).__name__} has no method {recipe.method}")
    return made


def _refuse_foreign(name: str, factory: Any) -> None:
    """Refuse what is no network for sure: Python's own functions, and torch's beside torch.nn.

    This is no sandbox: a recipe names the code that makes the backbone, and that code runs.
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    home = f"{getattr(factory, '__module__', None) or ''}."
    if home.split(".", maxsplit=1)[0] in sys.stdlib_module_names or (
        home.startswith("torch.") and not home.startswith("torch.nn.")
    ):
        raise _no_network(name)


def _no_network(name: str) -> InputError:
    return InputError(
        f"backbone.factory {name} makes no network",
        tip="name a class or function that gives a torch module",
    )


def load_base(backbone: nn.Module, path: Path) -> tuple[Loaded, dict[str, Tensor]]:
    """Put the file's weights into ``backbone``; also give the file's tensors for a junction.

    Raises:
        InputError: the file is missing, no checkpoint, holds a pickle that would run code, has a
            tensor of another shape, or has less than half of the backbone's tensors.
    """
    tensors = read_tensors(path)
    wanted = backbone.state_dict()
    prefix = _prefix(set(wanted), set(tensors))
    found = {key: tensors[prefix + key] for key in wanted if prefix + key in tensors}
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
    if 2 * len(found) < len(wanted):
        raise InputError(
            f"{path}: has {len(found)} of the backbone's {len(wanted)} tensors: another "
            f"architecture (the backbone wants {', '.join(list(wanted)[:SHOWN])}; the file has "
            f"{', '.join(list(tensors)[:SHOWN])})",
            tip="check backbone.factory and backbone.args in the recipe",
        )
    backbone.load_state_dict(found, strict=False)
    loaded = Loaded(
        sha256=sha256_of(path),
        matched=len(found),
        missing=tuple(key for key in wanted if key not in found),
        unexpected=tuple(key for key in tensors if key not in {prefix + one for one in found}),
        prefix=prefix,
        junction=False,
    )
    return loaded, tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors or torch file, its wrappings taken off; code never runs."""
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
    for _ in range(SHOWN):
        inner = [key for key in WRAPPINGS if isinstance(value, dict) and _holds(value.get(key))]
        value = value[inner[0]] if inner else value
    tensors = {}
    if isinstance(value, dict):
        tensors = {str(key): one for key, one in value.items() if isinstance(one, Tensor)}
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


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(value: Any) -> bool:
    """Whether a value is a mapping with tensors in it, or one that wraps such a mapping."""
    return isinstance(value, dict) and any(isinstance(one, Tensor | dict) for one in value.values())


def _prefix(wanted: set[str], names: set[str]) -> str:
    """What most of the file's names have before a name of the backbone; the shortest of equals."""
    votes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                votes["".join(f"{part}." for part in parts[:i])] += 1
    return max(sorted(votes, key=len), key=lambda prefix: votes[prefix], default="")


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """The working folder at the END of the import path: it never shadows a package."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
