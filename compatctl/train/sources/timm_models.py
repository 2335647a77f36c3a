"""timm: an architecture without its classifier, and timm's own preprocessing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from compatctl.data import Preprocessing
from compatctl.errors import InputError
from compatctl.train.sources._model import (
    BY_PREPROCESSING_FILE,
    ImageModel,
    PixelSpec,
    build,
    centre_crop,
    library,
    resize_filter,
    triple,
)

_NAME = re.compile(r"[A-Za-z0-9][\w.]*", re.ASCII)


def load(name: str, args: Mapping[str, Any]) -> ImageModel:
    """The architecture ``name``, such as resnet18.a1_in1k, with random weights.

    Raises:
        InputError: timm is not installed, or has no such architecture.
    """
    timm = library("timm", "timm")
    where = f"timm:{name}"
    if not _NAME.fullmatch(name) or not timm.is_model(name):
        start = re.sub(r"\W.*", "", name)[:8]
        near = ", ".join(timm.list_models(f"*{start}*")[:5]) or "none"
        raise InputError(
            f"{where}: timm {timm.__version__} has no such architecture; similar names: {near}",
            tip="timm.list_models() of Python lists them",
        )
    module = build(where, timm.create_model, args, model_name=name, pretrained=False, num_classes=0)
    config = timm.data.resolve_model_data_config(module)
    return ImageModel(
        module=module.eval(),
        derive=partial(pixels_of, config, where),
        transform=timm.data.create_transform(**config, is_training=False),
        origin=f"timm {timm.__version__}",
    )


def pixels_of(config: Mapping[str, Any], where: str) -> PixelSpec:
    """The preprocessing of timm's data configuration, for evaluation.

    Raises:
        InputError: it cannot be said by a preprocessing file.
    """
    channels, height, width = config["input_size"]
    if channels != 3:
        raise InputError(f"{where}: it takes {channels} channels; images have 3")
    return PixelSpec(
        preprocessing=_preprocessing(config, height, width, where),
        mean=triple(config["mean"], 255.0, f"{where}: mean"),
        std=triple(config["std"], 255.0, f"{where}: std"),
    )


def _preprocessing(config: Mapping[str, Any], height: int, width: int, where: str) -> Preprocessing:
    mode, share = config.get("crop_mode", "center"), float(config.get("crop_pct") or 0.875)
    interpolation = str(config["interpolation"])
    if mode == "center" and height == width:
        resized = math.floor(height / share)
        return centre_crop(resized, height, interpolation, "round", where)
    if mode == "squash" and share == 1:
        return Preprocessing(
            height=height, width=width, resize=resize_filter(interpolation, where), fit="stretch"
        )
    raise InputError(
        f"{where}: its preprocessing (crop_mode {mode}, crop_pct {share:g}, {height} x {width}) is "
        "none that a preprocessing file can say",
        tip=BY_PREPROCESSING_FILE,
    )
