"""The recipe: every setting that decides what a training run computes.

The text of a ``setting``, and the docstring of a dataclass that is one, are the comments of
``recipes/default.yaml`` and the table of ``docs/recipe.md`` (``make docs``).

Sources: the loss of TPAMI 2026 (arXiv 2606.12488) and the authors' code (repository
miccunifi/iamcl2r, ``src/iamcl2r/methods/hoc.py``), which uses lambda 0.1 and mu 10.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from compatctl.errors import InputError
from compatctl.printable import listed
from compatctl.recipe._typed import (
    between,
    build,
    load_yaml,
    read_bounded,
    setting,
    to_plain,
)

LOCAL = "."
"""Entry of ``factories`` that stands for the Python files of the working folder."""

FACTORIES = (
    LOCAL,
    "efficientnet_lite_pytorch",
    "open_clip:create_model",
    "timm:create_model",
    "timm.models",
    "torch.nn",
    "torchvision.models",
)
"""Modules (with their submodules) and callables that a recipe may name by default. None of these
packages downloads code."""

MAX_ORDER_BYTES = 256 << 20
"""Maximum size of a file of item ids."""

FREE_SCALE = 32.0
"""The scale of a free model's softmax, where the recipe has none."""

Frame = Literal["prototypes", "simplex", "anchored", "free"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the backbone's input: resized, then (x - mean) / std."""

    height: int = field(metadata=between(1, 4096, sentence="Height in pixels."))
    width: int = field(metadata=between(1, 4096, sentence="Width in pixels."))
    resize: Literal["bilinear", "bicubic", "lanczos"] = setting(
        "bicubic", "The filter that resizes the image."
    )
    fit: Literal["stretch", "crop", "pad"] = setting(
        "crop",
        "What to do if the aspect ratio differs: stretch the image, crop its centre, or pad it "
        "with border.",
    )
    crop_share: float = setting(
        1.0,
        "With fit: crop, resize the shorter side to floor(side / crop_share), then cut a square "
        "out of the centre: timm's crop_pct. 1.0 keeps the largest centred box.",
        0.1,
        1.0,
    )
    crop_offset: Literal["floor", "round"] | None = setting(
        None,
        "Where the centre of the resized image begins: floor of half the rest, or round, half to "
        "even, as timm and torchvision do. null: floor with a crop_share below 1; with 1.0 the box "
        "is not rounded.",
    )
    border: tuple[int, int, int] = setting(
        (255, 255, 255), "With fit: pad, the colour of the borders: red, green, blue.", 0, 255
    )
    mean: tuple[float, float, float] = setting(
        (0.0, 0.0, 0.0), "Subtracted from red, green and blue, on the scale 0 to 255."
    )
    std: tuple[float, float, float] = setting(
        (255.0, 255.0, 255.0), "Divides the difference, on the same scale.", 1e-6
    )


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The pre-trained network of images, whose weights come from --base. Without it, --base is an
    encoder: an ONNX file, or a space of vectors, behind which a head is trained.
    """

    factory: str = field(
        metadata=between(
            sentence="An architecture of a library, as timm:NAME, torchvision:NAME, "
            "open_clip:NAME or transformers:FOLDER; or a callable, as module:callable, that "
            "returns a torch module. The module may be a file in the working folder. The project "
            "lists the packages that are allowed (factories in compatctl.yaml)."
        )
    )
    args: dict[str, Any] = field(
        default_factory=dict, metadata=between(sentence="Keyword arguments of the callable.")
    )
    method: str = setting(
        "forward",
        "The module's method that maps float32 (N, 3, height, width) to (N, F), or to "
        "(N, F, h, w), which is averaged over h and w.",
    )
    taps: tuple[str, ...] | None = setting(
        ("auto",),
        "Modules whose output, averaged over the image, joins the final feature: auto finds the "
        "last block of every stage; a list names modules; null has none.",
    )
    input: InputSpec
    part: str | None = setting(
        None,
        "The prefix of the tensor names to load, if the base holds several networks, such as a "
        "student and a teacher, or an average of the weights.",
    )
    least_share: float = setting(
        0.9,
        "The minimum share of the backbone's tensors, and of their values, that the base must "
        "contain. Missing tensors start from random values.",
        0.0,
        1.0,
    )
    factories: tuple[str, ...] = field(default=FACTORIES, metadata={"key": ""})
    """What the project allows; not part of the file."""


@dataclass(frozen=True, kw_only=True)
class Junction:
    """The layers from the backbone's F features to the gallery's D dimensions."""

    kind: Literal["residual", "linear", "mlp"] = setting(
        "residual", "One matrix without bias (linear), two layers (mlp), or the sum of both."
    )
    hidden: int = setting(512, "The width between the two layers.", 1, 65536)
    dropout: float = setting(0.5, "Dropout between the two layers.", 0.0, 0.95)
    standardise: bool = setting(
        True,
        "First give each of the features mean 0 and one standard deviation on the training items. "
        "A backbone with random weights, or a base that brings its junction, is left as it is.",
    )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """L = lambda * CE + (1 - lambda) * NCE. If frame, lambda or mu is a list, every combination is
    trained. The one with the best hit@1 of new queries on the old gallery is kept, measured on
    the validation classes and never on the test classes.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "anchors": "leave it out; unlabelled trains on images without labels, those of gallery "
        "items as far as max_gallery_pass allows"
    }

    frame: tuple[Frame, ...] = setting(
        ("prototypes",),
        "The fixed class vectors of the cross-entropy CE:\n"
        "  prototypes  the class means of the deployed gallery; of a class that is not in it, the\n"
        "              mean of the deployed model's output for its training items\n"
        "  simplex     the d-Simplex (CVPR 2024, arXiv 2405.02581), of a first model, or if the\n"
        "              deployed model was trained on the same one\n"
        "  anchored    the d-Simplex, rotated onto the gallery's class means\n"
        "  free        vectors that are learned: the model ignores the gallery",
    )
    contrast: Literal["infonce", "hoc"] = setting(
        "infonce",
        "The form of NCE, which contrasts each new feature with the old features of the batch: the "
        "equation of the paper (TPAMI 2026, arXiv 2606.12488), or the authors' code.",
    )
    lambda_: tuple[float, ...] = setting(
        (0.25,),
        "The weight of CE. 1.0 is CE alone, which needs no old features, and answers new classes "
        "with items of trained ones. The papers use 0.1, with hoc and mu 10, on a simplex.",
        0.0,
        1.0,
        key="lambda",
    )
    mu: tuple[float, ...] = setting((16.0,), "The inverse temperature of NCE.", 1e-3, 1e3)
    scale: float | None = setting(
        32.0,
        "CE is a softmax over scale * cosine. null: over raw products, as the authors do on a "
        "simplex.",
        1e-3,
        1e3,
    )
    K: int | None = setting(
        None,
        "The number of vertices of the simplex, at most D + 1. null: D + 1. More classes than "
        "vertices is an error.",
        2,
        65536,
    )
    dim: int | None = setting(
        None, "The dimension D, if there is no gallery that fixes it.", 1, 65536
    )


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW; learning rates fall along half a cosine to 0."""

    epochs: int = setting(40, "Passes over the data.", 1, 100_000)
    batch_size: int = setting(256, "Items in one step.", 2, 65536)
    micro_batch: int | None = setting(
        None,
        "With train: full or lora, how many items of a step the backbone takes at once; the loss "
        "still sees the whole step. It takes less memory and a second pass of the backbone without "
        "gradient. null: all of them; several processes have a part each.",
        1,
        65536,
    )
    lr: float = setting(0.002, "The learning rate of the junction.", 0.0, 100.0)
    backbone_lr: float = setting(
        0.0001, "The learning rate of the backbone, with train: full or lora.", 0.0, 100.0
    )
    weight_decay: float = setting(0.01, "The decoupled weight decay.", 0.0, 100.0)
    frozen_norm: bool = setting(
        True, "Keep the BatchNorm statistics of the base, with train: full or lora."
    )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to training images."""

    views: int = setting(
        1,
        "With train: head, how many variants of an image are cached, the first one unchanged. With "
        "train: full, every epoch draws a new one.",
        1,
        64,
    )
    flip: bool = setting(False, "Mirror half of the images.")
    crop: float = setting(1.0, "The minimum share of the area to keep.", 0.05, 1.0)
    rotate: float = setting(0.0, "The maximum rotation in degrees, either way.", 0.0, 180.0)
    shift: float = setting(0.0, "The maximum shift, as a share of the side.", 0.0, 0.5)
    colour: float = setting(
        0.0, "The strength of changes to brightness, contrast, saturation.", 0.0, 1.0
    )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Sequential fine-tuning: half of a batch are new items, half are items of a memory with
    per_class images of each earlier class. deploy keeps that memory in the store; --memory adds
    data of earlier runs. null: no memory.
    """

    per_class: int = setting(20, "How many images of each class to keep.", 1, 100_000)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The low-rank matrices of train: lora."""

    rank: int = setting(8, "The rank of a matrix.", 1, 4096)
    alpha: float = setting(16.0, "A matrix counts alpha / rank times.", 1e-3, 1e4)
    dropout: float = setting(0.0, "Dropout before it.", 0.0, 0.95)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole recipe. ``Recipe.load(path)`` reads one, ``digest`` identifies it."""

    format: Literal[1] = setting(1, "The version of this file's format.")
    seed: int = setting(
        0,
        "Seeds everything that is random. On a CPU the same seed gives the same weights.",
        0,
        2**31 - 1,
    )
    backbone: Backbone | None = None
    junction: Junction = Junction()
    objective: Objective = Objective()
    train: Literal["head", "full", "lora"] = setting(
        "head",
        "What trains beside the junction:\n"
        "  head  nothing: the backbone is frozen and runs once over each item; it takes seconds\n"
        "  full  the backbone\n"
        "  lora  matrices of low rank beside its linear layers, which are then added to these (Hu\n"
        "        et al., ICLR 2022, arXiv 2106.09685); needs the extra lora",
    )
    layers: int | None = setting(
        None,
        "With train: full or lora, only the last so many blocks of the backbone train. null: all.",
        1,
        10_000,
    )
    lora: Lora = Lora()
    optimiser: Optimiser = Optimiser()
    blend: Literal["auto", "off"] = setting(
        "auto",
        "auto: where the base is an earlier model with its junction, such as the deployed one, the "
        "weights are a mean of the base's and the trained ones (Wortsman et al., CVPR 2022, arXiv "
        "2109.01903), in the shares that have the best hit@1 on the validation classes. off: "
        "the trained weights.",
    )
    augmentation: Augmentation = Augmentation()
    rehearsal: Rehearsal | None = None
    unlabelled: Path | None = setting(
        None,
        "Images without labels: a folder, or a table with the columns id and path; a relative path "
        "starts from the recipe's folder. The old and the new model embed each, and it joins the "
        "contrast NCE, with its old feature as the target. Labels and sub-folders do not count. "
        "null: none.",
    )
    free_head: bool = setting(
        True,
        "Train a second head on the same features, without the gallery: the encoder's output named "
        "free, with which compatctl deploy --rescore scores again what a query retrieves. A model "
        "without a gallery has none. Behind an encoder it is the encoder's own embedding.",
    )
    amp: Literal["auto", "bf16", "off"] = setting(
        "auto",
        "The precision of training steps. auto: bfloat16 on a GPU that has it. bf16: bfloat16 "
        "(autocast) on every device, or an error. off: float32. Losses, weights and the exported "
        "file are float32.",
    )

    @classmethod
    def load(cls, path: Path, factories: tuple[str, ...] = FACTORIES) -> Recipe:
        """Read a recipe from a YAML file; ``factories`` is what the project lets it name.

        Raises ``InputError`` that names the wrong key and the reason.
        """
        value = load_yaml(path, newest=1)
        recipe = build(cls, value, str(path))
        if recipe.backbone is None:
            return recipe
        return replace(recipe, backbone=replace(recipe.backbone, factories=factories))

    @property
    def image_backbone(self) -> Backbone:
        """The network of images whose weights the base has.

        Raises:
            InputError: the recipe names none.
        """
        if self.backbone is None:
            raise InputError(
                "the recipe names no backbone, whose weights a checkpoint has",
                tip="write backbone with its factory and input; or compatctl finetune --base names "
                "an encoder, an ONNX file",
            )
        return self.backbone

    def without_gallery(self, dim: int) -> Recipe:
        """The same backbone, junction and epochs for a free model of dimension ``dim``."""
        objective = Objective(
            frame=("free",), lambda_=(1.0,), scale=self.objective.scale or FREE_SCALE, dim=dim
        )
        return replace(self, objective=objective)

    def to_json(self) -> dict[str, Any]:
        """The recipe with all its settings, defaults included."""
        settings: dict[str, Any] = to_plain(self)
        return settings

    @property
    def digest(self) -> str:
        """sha256 (hex) of the recipe's values."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def read_ids(path: Path) -> tuple[str, ...]:
    """Item ids from a text file, one per line; empty lines and a byte order mark are skipped.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, holds no id, or one of them twice.
    """
    try:
        lines = read_bounded(path, MAX_ORDER_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error}") from error
    ids = tuple(line for line in lines if line.strip())
    if not ids:
        raise InputError(f"{path}: expected one id per line, got none")
    if twice := [item for item, count in Counter(ids).items() if count > 1]:
        raise InputError(
            f"{path}: expected one id per line, none twice; got twice: {listed(twice)}",
            tip="leave each id once",
        )
    return ids


def default_recipe() -> str:
    """The text of recipes/default.yaml, from the package or else from the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "recipes" / "default.yaml"
    path = shipped if shipped.is_file() else package.parent / "recipes" / "default.yaml"
    return path.read_text(encoding="utf-8")
