"""torchvision: a classifier without its last layer, and the preprocessing of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from compatctl.errors import InputError
from compatctl.notices import notice
from compatctl.train.sources._model import (
    BY_PREPROCESSING_FILE,
    ImageModel,
    PixelSpec,
    build,
    centre_crop,
    library,
    triple,
)

_HEADS = ("fc", "classifier", "heads", "head")
"""Attributes of torchvision's classifiers that hold the last layer."""


def load(name: str, args: Mapping[str, Any]) -> ImageModel:
    """The classifier ``name``, such as resnet50 or resnet50:IMAGENET1K_V1, with random weights.

    The name of its weights says which preprocessing; without one it is that of torchvision's
    default, with a notice where other weights have another.

    Raises:
        InputError: torchvision is not installed, has no such model or weights, or the model has no
            last layer that can be left out.
    """
    torchvision = library("torchvision", "torchvision")
    models = torchvision.models
    model, _, weights = name.partition(":")
    where = f"torchvision:{name}"
    if model not in models.list_models(module=models):
        raise InputError(
            f"{where}: torchvision {torchvision.__version__} has no classifier of that name",
            tip="torchvision.models.list_models() of Python lists them",
        )
    module = build(where, models.get_model, args, name=model, weights=None)
    transform = transform_of(models.get_model_weights(model), weights, where)
    return ImageModel(
        module=without_head(module.eval(), where),
        derive=partial(pixels_of, transform, where),
        transform=transform,
        origin=f"torchvision {torchvision.__version__}",
    )


def without_head(module: nn.Module, where: str) -> nn.Module:
    """The classifier with its last linear layer replaced by the identity, in place.

    Raises:
        InputError: it has none where torchvision's classifiers have it.
    """
    for name in _HEADS:
        head = getattr(module, name, None)
        if isinstance(head, nn.Linear):
            setattr(module, name, nn.Identity())
            return module
        linear = (
            [key for key, part in head.named_children() if isinstance(part, nn.Linear)]
            if (isinstance(head, nn.Sequential))
            else []
        )
        if linear and isinstance(head, nn.Sequential):
            setattr(head, linear[-1], nn.Identity())
            return module
    raise InputError(
        f"{where}: no last linear layer is found in {', '.join(_HEADS)}",
        tip="write a function that returns the features, and export it as module:callable",
    )


def transform_of(weights: Any, named: str, where: str) -> Any:
    """The preprocessing of the named weights, or of the default; None if there are no weights."""
    names = [entry.name for entry in weights]
    if named and named not in names:
        raise InputError(
            f"{where}: there are no weights {named!r}; there are {', '.join(names) or 'none'}"
        )
    if not names:
        return None
    chosen = weights[named] if named else weights.DEFAULT
    shown = {str(entry.transforms()) for entry in weights}
    if not named and len(shown) > 1:
        model = where.removeprefix("torchvision:")
        notice(
            "weights",
            where,
            "preprocessings of torchvision's default weights",
            [chosen.name],
            f"of {', '.join(names)}; torchvision:{model}:NAME names another",
        )
    return chosen.transforms()


def pixels_of(transform: Any, where: str) -> PixelSpec:
    """The preprocessing of a transform of torchvision's weights.

    Raises:
        InputError: there is none, or it cannot be said by a preprocessing file.
    """
    if transform is None:
        raise InputError(f"{where}: no weights say a preprocessing", tip=BY_PREPROCESSING_FILE)
    crop, resized = _only(transform.crop_size), _only(transform.resize_size)
    if crop is None or resized is None:
        raise InputError(
            f"{where}: it resizes to {transform.resize_size} and cuts out {transform.crop_size}; "
            "squares are expected",
            tip=BY_PREPROCESSING_FILE,
        )
    return PixelSpec(
        preprocessing=centre_crop(resized, crop, transform.interpolation.value, "round", where),
        mean=triple(transform.mean, 255.0, f"{where}: mean"),
        std=triple(transform.std, 255.0, f"{where}: std"),
    )


def _only(sides: Sequence[int]) -> int | None:
    return sides[0] if len(sides) == 1 else None
