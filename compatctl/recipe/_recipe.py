"""A recipe: everything that decides what a training run computes, as data.

Sources: the loss of TPAMI 2026 (arXiv 2606.12488), with the values of the authors' code (repository
miccunifi/iamcl2r, ``src/iamcl2r/methods/hoc.py``): lambda 0.1 on the cross-entropy, mu 10.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compatctl.errors import InputError
from compatctl.recipe._typed import between, build, load_yaml, plain, read_bounded

LOCAL = "."
"""In a list of factories: the files of the working folder."""

FACTORIES = (
    LOCAL,
    "efficientnet_lite_pytorch",
    "open_clip:create_model",
    "timm:create_model",
    "timm.models",
    "torch.nn",
    "torchvision.models",
)
"""The code that a recipe may name where the project says nothing: modules, with all below them, and
callables. What such a package has fetches no code from elsewhere."""

MAX_ORDER_BYTES = 256 << 20
"""The largest file of item ids."""

Frame = Literal["prototypes", "simplex", "anchored", "free"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the backbone's input: resized to pixels, then ``(x - mean) / std``.

    ``mean`` and ``std`` are for red, green and blue on the scale 0 .. 255.
    """

    height: int = field(metadata=between(1, 4096))
    width: int = field(metadata=between(1, 4096))
    resize: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    fit: Literal["stretch", "crop", "pad"] = "crop"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = field(default=(255.0, 255.0, 255.0), metadata=between(1e-6))


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """``factory`` ("module:callable") called with ``args`` gives a torch module.

    Its ``method`` takes float32 (N, 3, H, W) and returns (N, F), or (N, F, h, w) which is averaged
    over h and w. ``part``: what the base's names begin with, where it holds several networks;
    ``least_share``: of the backbone's tensors, and of their numbers, that the base must have.
    ``factories``: what the project permits as a factory; a recipe does not say it.
    """

    factory: str
    args: dict[str, Any] = field(default_factory=dict)
    method: str = "forward"
    input: InputSpec
    part: str | None = None
    least_share: float = field(default=0.9, metadata=between(0.0, 1.0))
    factories: tuple[str, ...] = field(default=FACTORIES, metadata={"key": ""})


@dataclass(frozen=True, kw_only=True)
class Junction:
    """From the backbone's F numbers to the gallery's D: one matrix without bias, or two layers."""

    kind: Literal["linear", "mlp"] = "linear"
    hidden: int = field(default=1024, metadata=between(1, 65536))
    dropout: float = field(default=0.0, metadata=between(0.0, 0.95))


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Deployed gallery items that join the training unlabelled, each as a class of its own.

    ``share`` of the gallery; ``order``: ``random``, or a text file with one item id a line, the
    most wanted first; ``batch`` anchors go through the network in one step and are told apart from
    ``rows`` stored vectors (all of them where there are fewer); ``weight`` of the term; ``scale``
    of its softmax over cosines. ``transfer``: share of the drawn anchors that are changed as two
    images of a training class differ (head only). ``attention``: the width of the keys by which the
    encoder attends to the first ``slots`` anchors, whose stored vectors it then holds; null: it
    does not (head only). ``ids`` is the content of the order's file.
    """

    share: float = field(default=1.0, metadata=between(0.0, 1.0))
    order: str = "random"
    batch: int = field(default=512, metadata=between(2, 65536))
    rows: int = field(default=8192, metadata=between(2, 1 << 20))
    weight: float = field(default=1.0, metadata=between(0.0, 1e6))
    scale: float = field(default=16.0, metadata=between(1e-3, 1e3))
    transfer: float = field(default=0.0, metadata=between(0.0, 1.0))
    attention: int | None = field(default=None, metadata=between(1, 4096))
    slots: int = field(default=65536, metadata=between(1, 1 << 20))
    ids: tuple[str, ...] = field(default=(), metadata={"key": ""})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = lambda * CE + (1 - lambda) * NCE`` (+ anchors); validation classes choose from lists.

    ``scale``: of a softmax over cosines; null takes raw ``z . w``, as the authors do. ``K``: number
    of vertices of the simplex; ``dim``: D where no gallery dictates it.
    """

    frame: tuple[Frame, ...] = ("prototypes",)
    contrast: Literal["hoc", "infonce"] = "hoc"
    lambda_: tuple[float, ...] = field(default=(0.1,), metadata=between(0.0, 1.0, key="lambda"))
    mu: tuple[float, ...] = field(default=(10.0,), metadata=between(1e-3, 1e3))
    scale: float | None = field(default=None, metadata=between(1e-3, 1e3))
    K: int | None = field(default=None, metadata=between(2, 65536))
    dim: int | None = field(default=None, metadata=between(1, 65536))
    anchors: Anchors | None = None


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW with a cosine schedule; ``frozen_norm`` keeps BatchNorm statistics as loaded (full)."""

    epochs: int = field(default=20, metadata=between(1, 100_000))
    batch_size: int = field(default=256, metadata=between(2, 65536))
    lr: float = field(default=0.002, metadata=between(0.0, 100.0))
    backbone_lr: float = field(default=0.0001, metadata=between(0.0, 100.0))
    weight_decay: float = field(default=0.01, metadata=between(0.0, 100.0))
    frozen_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training image.

    ``views``: how many a head caches of each image, the first one unchanged; training the whole
    network draws a new one each time. ``crop``: least share of the area kept (1 keeps all);
    ``rotate``: degrees either way; ``shift``: share of the side; ``colour``: strength of
    brightness, contrast and saturation; ``flip``: mirror.
    """

    views: int = field(default=1, metadata=between(1, 64))
    flip: bool = False
    crop: float = field(default=1.0, metadata=between(0.05, 1.0))
    rotate: float = field(default=0.0, metadata=between(0.0, 180.0))
    shift: float = field(default=0.0, metadata=between(0.0, 0.5))
    colour: float = field(default=0.0, metadata=between(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Sequential fine-tuning: ``per_class`` remembered images; batches half memory, half new."""

    per_class: int = field(default=20, metadata=between(1, 100_000))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole recipe: ``Recipe.load(path)`` reads one, ``digest`` identifies it."""

    format: Literal[1]
    seed: int = field(default=0, metadata=between(0, 2**31 - 1))
    backbone: Backbone
    junction: Junction = Junction()
    objective: Objective = Objective()
    train: Literal["head", "full"] = "head"
    optimiser: Optimiser = Optimiser()
    augmentation: Augmentation = Augmentation()
    rehearsal: Rehearsal | None = None
    amp: Literal["auto", "off"] = "auto"

    @classmethod
    def load(cls, path: Path, factories: tuple[str, ...] = FACTORIES) -> Recipe:
        """The recipe in a YAML file; ``InputError`` says which key is wrong and why.

        ``factories``: the code that it may name, by the project.
        """
        value = load_yaml(path)
        _refuse_newer(value, path, 1)
        recipe = build(cls, value, str(path))
        recipe = replace(recipe, backbone=replace(recipe.backbone, factories=factories))
        anchors = recipe.objective.anchors
        _check_anchors(recipe, path)
        if anchors is None or anchors.order == "random":
            return recipe
        ids = read_ids(_beside(path, anchors.order))
        return replace(
            recipe, objective=replace(recipe.objective, anchors=replace(anchors, ids=ids))
        )

    def to_json(self) -> dict[str, Any]:
        """The recipe as it would be written, defaults filled in."""
        written: dict[str, Any] = plain(self)
        return written

    @property
    def digest(self) -> str:
        """sha256 (hex) of the recipe's values and of its anchors' order."""
        anchors = self.objective.anchors
        content = {"recipe": self.to_json(), "ids": list(anchors.ids) if anchors else []}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_anchors(recipe: Recipe, path: Path) -> None:
    """What of the anchors goes with a frozen backbone, or with cosines, alone."""
    anchors, where = recipe.objective.anchors, f"{path}: objective: anchors"
    if anchors is None:
        return
    if anchors.transfer > 0.0 and recipe.train == "full":
        raise InputError(
            f"{where}: transfer changes cached features: with train: full it must be 0",
            tip="use augmentation instead",
        )
    if anchors.attention is None:
        return
    if recipe.train == "full":
        raise InputError(
            f"{where}: attention compares features of a frozen backbone: with train: full it must "
            "be null"
        )
    if recipe.objective.scale is None:
        raise InputError(
            f"{where}: attention gives rows of length 1 or so, which raw products do not tell "
            "apart: scale must not be null",
            tip="write scale: 16.0",
        )


def _refuse_newer(value: Any, path: Path, known: int) -> None:
    """A newer format gets the sentence that it deserves, before any unknown key does."""
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, int) and found > known:
        raise InputError(
            f"{path}: format {found}; this version reads up to {known}", tip="upgrade compatctl"
        )


def _beside(recipe: Path, name: str) -> Path:
    """A file in the recipe's folder or below it: no other is a stranger's recipe to name."""
    path = recipe.parent / name
    if not path.resolve().is_relative_to(recipe.parent.resolve()):
        raise InputError(
            f"{recipe}: anchors.order {name} lies outside of the recipe's folder",
            tip="put the file beside the recipe",
        )
    return path


def read_ids(path: Path) -> tuple[str, ...]:
    """Item ids from a file of text, one a line; empty lines do not count.

    Raises:
        InputError: it cannot be read, is no UTF-8 text, holds no id, or one of them twice.
    """
    try:
        lines = read_bounded(path, MAX_ORDER_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error}") from error
    ids = tuple(line for line in lines if line.strip())
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"{path}: expected one id a line, none twice; got {len(ids)} ids")
    return ids
