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
from compatctl.recipe._typed import build, load_yaml, read_bounded, setting, to_plain

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
    """How an image becomes the backbone's input: resized, then ``(x - mean) / std``."""

    height: int = field(metadata=setting("Pixels.", 1, 4096))
    width: int = field(metadata=setting("Pixels.", 1, 4096))
    resize: Literal["bilinear", "bicubic", "lanczos"] = field(
        default="bicubic", metadata=setting("The filter that resizes the image.")
    )
    fit: Literal["stretch", "crop", "pad"] = field(
        default="crop",
        metadata=setting(
            "How an image of another shape fits: stretched, cropped to its middle, or padded with "
            "white."
        ),
    )
    mean: tuple[float, float, float] = field(
        default=(0.0, 0.0, 0.0),
        metadata=setting("Subtracted from red, green and blue, on the scale 0 to 255."),
    )
    std: tuple[float, float, float] = field(
        default=(255.0, 255.0, 255.0),
        metadata=setting("Divides what is left, on the same scale.", 1e-6),
    )


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The pre-trained network. ``factories`` is what the project permits; no recipe sets it."""

    factory: str = field(
        metadata=setting(
            "A callable, as module:callable, that returns a torch module. It may be in a file of "
            "the working folder. The project lists the packages that are allowed (factories in "
            "compatctl.yaml)."
        )
    )
    args: dict[str, Any] = field(
        default_factory=dict, metadata=setting("Keyword arguments of the callable.")
    )
    method: str = field(
        default="forward",
        metadata=setting(
            "The module's method that maps float32 (N, 3, height, width) to (N, F), or to "
            "(N, F, h, w), which is averaged over h and w."
        ),
    )
    input: InputSpec = field(metadata=setting("How an image becomes the input of the backbone."))
    part: str | None = field(
        default=None,
        metadata=setting(
            "The prefix of the tensor names to load, if the base holds several networks, such as "
            "a student and a teacher, or an average of the weights."
        ),
    )
    least_share: float = field(
        default=0.9,
        metadata=setting(
            "The least share of the backbone's tensors, and of their values, that the base must "
            "contain. Missing tensors start from random values.",
            0.0,
            1.0,
        ),
    )
    factories: tuple[str, ...] = field(default=FACTORIES, metadata={"key": ""})


@dataclass(frozen=True, kw_only=True)
class Junction:
    """The layers from the backbone's F features to the gallery's D dimensions."""

    kind: Literal["linear", "mlp"] = field(
        default="mlp", metadata=setting("One matrix without bias, or two layers.")
    )
    hidden: int = field(
        default=1024, metadata=setting("The width between the two layers of the mlp.", 1, 65536)
    )
    dropout: float = field(
        default=0.5, metadata=setting("Dropout between the two layers of the mlp.", 0.0, 0.95)
    )


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Gallery items that train without labels: each is a class, and its stored vector the target.

    ``ids`` is the content of the file that ``order`` names.
    """

    share: float = field(
        default=1.0,
        metadata=setting(
            "The share of the gallery to use. Each item is passed once through the new backbone.",
            0.0,
            1.0,
        ),
    )
    order: str = field(
        default="random",
        metadata=setting(
            "Which items come first: random, or a text file beside the recipe with one item id a "
            "line."
        ),
    )
    batch: int = field(default=512, metadata=setting("Anchors in one training step.", 2, 65536))
    rows: int = field(
        default=8192,
        metadata=setting("Stored vectors that each anchor is contrasted with.", 2, 1 << 20),
    )
    weight: float = field(default=3.0, metadata=setting("The weight of the term.", 0.0, 1e6))
    scale: float = field(
        default=16.0, metadata=setting("The scale of the softmax over cosines.", 1e-3, 1e3)
    )
    transfer: float = field(
        default=0.5,
        metadata=setting(
            "The share of the anchors in a step whose features are shifted by the difference "
            "between two images of one training class, one in the gallery and one outside. This "
            "shows the model what queries of unlabelled items look like. Only with train: head.",
            0.0,
            1.0,
        ),
    )
    attention: int | None = field(
        default=256,
        metadata=setting(
            "The width of the keys by which the encoder attends to anchors. It then contains "
            "their stored vectors, and a query's embedding takes from those it is near to. Only "
            "with train: head.",
            1,
            4096,
        ),
    )
    slots: int = field(
        default=65536,
        metadata=setting("How many anchors the encoder contains, the first ones.", 1, 1 << 20),
    )
    ids: tuple[str, ...] = field(default=(), metadata={"key": ""})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = lambda * CE + (1 - lambda) * NCE + anchors.weight * anchors``."""

    frame: tuple[Frame, ...] = field(
        default=("prototypes",),
        metadata=setting(
            "The fixed class vectors of the cross-entropy CE:\n"
            "  prototypes  the class means of the deployed gallery\n"
            "  simplex     the d-Simplex (CVPR 2024, arXiv 2405.02581), if the deployed model was\n"
            "              trained on the same one\n"
            "  anchored    the d-Simplex, rotated onto the gallery's class means\n"
            "  free        vectors that are learned: the model ignores the gallery"
        ),
    )
    contrast: Literal["hoc", "infonce"] = field(
        default="hoc",
        metadata=setting(
            "The form of NCE: the authors' code, or the equation of the paper (TPAMI 2026, arXiv "
            "2606.12488)."
        ),
    )
    lambda_: tuple[float, ...] = field(
        default=(1.0,),
        metadata=setting(
            "The weight of CE. The papers use 0.1, for a gallery on the same simplex. 1.0 is CE "
            "alone, which is better for prototypes and needs no old features.",
            0.0,
            1.0,
            key="lambda",
        ),
    )
    mu: tuple[float, ...] = field(
        default=(10.0,), metadata=setting("The inverse temperature of NCE.", 1e-3, 1e3)
    )
    scale: float | None = field(
        default=16.0,
        metadata=setting(
            "CE is a softmax over scale * cosine. null: over raw products, as the authors do on a "
            "simplex.",
            1e-3,
            1e3,
        ),
    )
    K: int | None = field(
        default=None,
        metadata=setting(
            "The number of vertices of the simplex, at most D + 1. null: D + 1. More classes than "
            "vertices is an error.",
            2,
            65536,
        ),
    )
    dim: int | None = field(
        default=None,
        metadata=setting("The dimension D, if there is no gallery that fixes it.", 1, 65536),
    )
    anchors: Anchors | None = field(
        default=Anchors(),
        metadata=setting(
            "Gallery items that train without labels: each is a class of its own, with its stored "
            "vector as the target. The new model then finds these items; others gain little. "
            "null: none. If a recipe does not mention them, they are used where they can be: with "
            "train: head, a scale, and a frame that knows the gallery."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW; learning rates fall along half a cosine to 0."""

    epochs: int = field(default=20, metadata=setting("Passes over the data.", 1, 100_000))
    batch_size: int = field(default=256, metadata=setting("Items in one step.", 2, 65536))
    lr: float = field(
        default=0.002, metadata=setting("The learning rate of the junction.", 0.0, 100.0)
    )
    backbone_lr: float = field(
        default=0.0001,
        metadata=setting("The learning rate of the backbone, with train: full.", 0.0, 100.0),
    )
    weight_decay: float = field(
        default=0.01, metadata=setting("The decoupled weight decay.", 0.0, 100.0)
    )
    frozen_norm: bool = field(
        default=True,
        metadata=setting("Keep the BatchNorm statistics of the base, with train: full."),
    )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to training images."""

    views: int = field(
        default=1,
        metadata=setting(
            "With train: head, how many variants of an image are cached, the first one unchanged. "
            "With train: full, every epoch draws a new one.",
            1,
            64,
        ),
    )
    flip: bool = field(default=False, metadata=setting("Mirror half of the images."))
    crop: float = field(
        default=1.0, metadata=setting("The least share of the area to keep.", 0.05, 1.0)
    )
    rotate: float = field(
        default=0.0, metadata=setting("The largest angle in degrees, either way.", 0.0, 180.0)
    )
    shift: float = field(
        default=0.0, metadata=setting("The largest shift, as a share of the side.", 0.0, 0.5)
    )
    colour: float = field(
        default=0.0,
        metadata=setting("The strength of changes to brightness, contrast, saturation.", 0.0, 1.0),
    )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The memory of a sequence of fine-tunings."""

    per_class: int = field(
        default=20, metadata=setting("How many images of each class to keep.", 1, 100_000)
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole recipe: ``Recipe.load(path)`` reads one, ``digest`` identifies it."""

    format: Literal[1] = field(default=1, metadata=setting("The version of this file's layout."))
    seed: int = field(
        default=0,
        metadata=setting(
            "Seeds everything that is random. On a CPU the same seed gives the same weights.",
            0,
            2**31 - 1,
        ),
    )
    backbone: Backbone = field(
        metadata=setting("The pre-trained network. Its weights come from --base.")
    )
    junction: Junction = field(
        default=Junction(),
        metadata=setting(
            "The layers from the backbone's F features to the gallery's D dimensions."
        ),
    )
    objective: Objective = field(
        default=Objective(),
        metadata=setting(
            "L = lambda * CE + (1 - lambda) * NCE + anchors.weight * anchors. If frame, lambda or "
            "mu is a list, every combination is trained, and the one with the best recall@1 of "
            "new queries on the old gallery is kept, measured on the validation classes and never "
            "on the test classes."
        ),
    )
    train: Literal["head", "full"] = field(
        default="head",
        metadata=setting(
            "head: the backbone is frozen and runs once over each image; training takes seconds. "
            "full: the backbone is trained too."
        ),
    )
    optimiser: Optimiser = field(
        default=Optimiser(),
        metadata=setting("AdamW; learning rates fall along half a cosine to 0."),
    )
    augmentation: Augmentation = field(
        default=Augmentation(), metadata=setting("Random changes to training images.")
    )
    rehearsal: Rehearsal | None = field(
        default=None,
        metadata=setting(
            "Sequential fine-tuning: half of a batch are new items, half are items of a memory "
            "with per_class images of each earlier class. deploy keeps that memory in the store; "
            "--memory adds data of earlier runs. null: no memory."
        ),
    )
    amp: Literal["auto", "off"] = field(
        default="auto",
        metadata=setting("auto: bfloat16 on a GPU that has it. off: float32 everywhere."),
    )

    @classmethod
    def load(cls, path: Path, factories: tuple[str, ...] = FACTORIES) -> Recipe:
        """The recipe in a YAML file; ``InputError`` says which key is wrong and why.

        ``factories``: the code that it may name, by the project.
        """
        value = load_yaml(path)
        _refuse_newer(value, path, 1)
        recipe = build(cls, value, str(path))
        recipe = replace(recipe, backbone=replace(recipe.backbone, factories=factories))
        if not _mentions_anchors(value) and not recipe.can_anchor:
            recipe = replace(recipe, objective=replace(recipe.objective, anchors=None))
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
        written: dict[str, Any] = to_plain(self)
        return written

    @property
    def can_anchor(self) -> bool:
        """Whether the default anchors work here: a frozen backbone, cosines, and a gallery."""
        objective = self.objective
        gallery = "free" not in objective.frame and objective.dim is None
        return self.train == "head" and objective.scale is not None and gallery

    @property
    def digest(self) -> str:
        """sha256 (hex) of the recipe's values and of its anchors' order."""
        anchors = self.objective.anchors
        content = {"recipe": self.to_json(), "ids": list(anchors.ids) if anchors else []}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mentions_anchors(value: Any) -> bool:
    objective = value.get("objective") if isinstance(value, dict) else None
    return isinstance(objective, dict) and "anchors" in objective


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
