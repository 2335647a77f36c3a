"""What one run consists of: recipe, training set, reference, network, device."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compatctl._version import __version__
from compatctl.data import Reference
from compatctl.errors import InputError
from compatctl.processes import ALONE, Processes
from compatctl.recipe import Recipe
from compatctl.train.factory import make_backbone
from compatctl.train.images import ImageReader
from compatctl.train.items import Reader
from compatctl.train.layers import prepare_layers
from compatctl.train.network import ImageNetwork, Junction, Network, backbone_taps
from compatctl.train.ready import ReadyModel, ReadyNetwork, ReadyReader
from compatctl.train.texts import TextModel, TextNetwork, TextReader
from compatctl.train.training_set import TrainingSet, data_digest
from compatctl.train.weights import (
    CheckpointMatch,
    files_digest,
    folder_files,
    load_base,
    load_junction,
)

Base = Path | ReadyModel | TextModel | None
"""A checkpoint of the recipe's backbone, or its folder; an encoder; a text model; None: random
weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """One run before its first step."""

    recipe: Recipe
    training_set: TrainingSet
    reference: Reference | None
    network: Network
    base_match: CheckpointMatch
    """Which weights came from the base"""
    device: torch.device
    dim: int
    """D of the embedding"""
    processes: Processes = ALONE

    @property
    def amp(self) -> bool:
        """Whether steps use bfloat16 autocast: ``bf16``, or ``auto`` on a GPU that supports it."""
        if self.recipe.amp == "auto":
            return self.device.type == "cuda" and has_bfloat16(self.device)
        return self.recipe.amp == "bf16"

    @property
    def key(self) -> str:
        """sha256 over everything that decides the result; a checkpoint belongs to one key."""
        parts = [
            __version__,
            torch.__version__,
            self.recipe.digest,
            self.base_match.sha256,
            data_digest(self.training_set),
            self.reference.digest if self.reference else None,
            self.device.type,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def embedding_dim(recipe: Recipe, reference: Reference | None) -> int:
    """D of the gallery, else of the recipe; ``InputError`` if neither has it, or they differ."""
    dim = recipe.objective.dim
    if reference is None:
        if dim is None:
            raise InputError("no gallery and no objective.dim", tip="write dim: 128, for example")
        return dim
    if dim not in (None, reference.dim):
        raise InputError(
            f"objective.dim is {dim}, the deployed gallery has {reference.dim} dimensions",
            tip="leave dim out: a gallery keeps its dimension",
        )
    return reference.dim


def make_network(recipe: Recipe, base: Base, dim: int) -> tuple[Network, CheckpointMatch]:
    """The backbone with the base's weights, and its junction, or one drawn by the recipe's seed.

    This seeds torch's global generator: call it inside ``isolated_rng``.
    """
    torch.manual_seed(recipe.seed)
    if isinstance(base, ReadyModel):
        head = Junction(recipe.junction, base.width, dim)
        return ReadyNetwork(head).eval(), CheckpointMatch(sha256=base.sha256)
    if isinstance(base, TextModel):
        head = Junction(recipe.junction, base.width, dim)
        prepare_layers(base.model, recipe)
        match = CheckpointMatch(sha256=base.sha256, matched=len(base.model.state_dict()))
        return TextNetwork(base.model, base.pooling, head).eval(), match
    given = recipe.image_backbone
    backbone = make_backbone(given)
    match = CheckpointMatch()
    tensors: dict[str, torch.Tensor] = {}
    if base is not None and base.is_dir():  # whose weights make_backbone has loaded
        match = CheckpointMatch(
            sha256=files_digest(folder_files(base)), matched=len(backbone.state_dict())
        )
    elif base is not None:
        match, tensors = load_base(backbone, base, part=given.part, least_share=given.least_share)
    taps, width = backbone_taps(backbone, given.method, given.input, given.taps)
    torch.manual_seed(recipe.seed)
    head = Junction(recipe.junction, width, dim)
    network = ImageNetwork(backbone, given.method, head, given.input, taps).eval()
    match = replace(match, junction=load_junction(network, tensors))
    prepare_layers(backbone, recipe)
    return network, match


@contextlib.contextmanager
def open_reader(recipe: Recipe, base: Base) -> Iterator[Reader]:
    """Makes the input of the base's backbone of items."""
    if isinstance(base, ReadyModel):
        yield ReadyReader(base, recipe.augmentation)
        return
    if isinstance(base, TextModel):
        yield TextReader(base, recipe.augmentation)
        return
    with ImageReader(recipe.image_backbone.input, recipe.augmentation) as reader:
        yield reader


def default_device() -> torch.device:
    """The GPU if there is one, that of this process's number among several; else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; CPUs do, if slowly where they have no instruction."""
    return device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def refuse_precision(recipe: Recipe, device: torch.device) -> None:
    """Refuse bfloat16 where the device has none.

    Raises:
        InputError: ``amp: bf16``, and this is such a device.
    """
    if recipe.amp == "bf16" and not has_bfloat16(device):
        raise InputError(
            f"amp: bf16, and {torch.cuda.get_device_name()} does not compute in bfloat16",
            tip="write amp: auto, which takes float32 there",
        )


@contextlib.contextmanager
def isolated_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global random generators on exit."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
