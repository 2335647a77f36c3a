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
from compatctl.recipe import Recipe
from compatctl.train.factory import make_backbone
from compatctl.train.network import Junction, Network, backbone_taps
from compatctl.train.training_set import TrainingSet, data_digest
from compatctl.train.weights import CheckpointMatch, load_base, load_junction


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

    @property
    def amp(self) -> bool:
        """Whether steps use bfloat16 autocast: ``amp: auto`` on a GPU that supports it."""
        auto = self.recipe.amp == "auto" and self.device.type == "cuda"
        return auto and torch.cuda.is_bf16_supported()

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


def make_network(recipe: Recipe, base: Path | None, dim: int) -> tuple[Network, CheckpointMatch]:
    """The backbone with the base's weights, and its junction, or one drawn by the recipe's seed.

    This seeds torch's global generator: call it inside ``isolated_rng``.
    """
    torch.manual_seed(recipe.seed)
    backbone = make_backbone(recipe.backbone)
    spec = recipe.backbone.input
    match = CheckpointMatch()
    tensors: dict[str, torch.Tensor] = {}
    if base is not None:
        part, least_share = recipe.backbone.part, recipe.backbone.least_share
        match, tensors = load_base(backbone, base, part=part, least_share=least_share)
    method = recipe.backbone.method
    taps, width = backbone_taps(backbone, method, spec, recipe.backbone.taps)
    torch.manual_seed(recipe.seed)
    network = Network(backbone, method, Junction(recipe.junction, width, dim), spec, taps).eval()
    return network, replace(match, junction=load_junction(network, tensors))


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def isolated_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global random generators on exit."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
