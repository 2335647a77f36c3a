"""What stays the same through a run: recipe, items, gallery, network, device."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compatctl._version import __version__
from compatctl.errors import InputError
from compatctl.recipe import Recipe
from compatctl.train.factory import make_backbone
from compatctl.train.network import Network, feature_width, make_junction
from compatctl.train.reference import Reference
from compatctl.train.training_set import TrainingSet, data_digest
from compatctl.train.weights import CheckpointMatch, load_base, load_junction


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """One run, before its first step."""

    recipe: Recipe
    training_set: TrainingSet
    reference: Reference | None
    network: Network
    base_match: CheckpointMatch
    """What the base file gave the network"""
    device: torch.device
    dim: int
    """D of the embedding"""

    @property
    def amp(self) -> bool:
        """Whether steps run in bfloat16 where that is safe: on a GPU that has it, if allowed."""
        wanted = self.recipe.amp == "auto" and self.device.type == "cuda"
        return wanted and torch.cuda.is_bf16_supported()

    @property
    def key(self) -> str:
        """What a checkpoint belongs to: a sha256 over all that decides the result."""
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
    """D: the gallery's, for ever; the recipe's only where there is no gallery.

    Raises:
        InputError: neither says it, or they differ.
    """
    wanted = recipe.objective.dim
    if reference is None:
        if wanted is None:
            raise InputError("no gallery and no objective.dim", tip="write dim: 128, for example")
        return wanted
    if wanted not in (None, reference.dim):
        raise InputError(
            f"objective.dim is {wanted}, the deployed gallery has {reference.dim} dimensions",
            tip="leave dim out: a gallery keeps its dimension",
        )
    return reference.dim


def make_network(recipe: Recipe, base: Path | None, dim: int) -> tuple[Network, CheckpointMatch]:
    """Backbone with its weights, and a junction drawn by the seed unless the base brings one.

    torch's global generator is set: call it where that is given back.
    """
    torch.manual_seed(recipe.seed)
    backbone = make_backbone(recipe.backbone)
    spec = recipe.backbone.input
    match = CheckpointMatch(
        sha256=None, matched=0, missing=(), unexpected=(), prefix="", junction=False
    )
    tensors: dict[str, torch.Tensor] = {}
    if base is not None:
        match, tensors = load_base(
            backbone,
            base,
            part=recipe.backbone.part,
            least_share=recipe.backbone.least_share,
        )
    width = feature_width(backbone, recipe.backbone.method, spec)
    torch.manual_seed(recipe.seed)
    head = make_junction(recipe.junction, width, dim)
    network = Network(backbone, recipe.backbone.method, head, spec).eval()
    return network, replace(match, junction=load_junction(network, tensors))


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def isolated_rng(device: torch.device) -> Iterator[None]:
    """torch's global generators, given back afterwards as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
