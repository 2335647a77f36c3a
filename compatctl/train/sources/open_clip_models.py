"""open_clip: the image tower of a model, and the preprocessing of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from compatctl.data import WHITE, Fit, Preprocessing
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


class ImageTower(nn.Module):
    """A model's ``encode_image``: float32 (N, 3, H, W) to (N, F)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        visual: Any = model.visual
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """(N, F) features, not of unit length."""
        out = self.visual(images)
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features


def load(name: str, args: Mapping[str, Any]) -> ImageModel:
    """The image tower of the architecture ``name``, such as ViT-B-32, with random weights.

    Raises:
        InputError: open_clip is not installed, or has no such architecture.
    """
    open_clip = library("open_clip", "open-clip")
    where = f"open_clip:{name}"
    if name not in open_clip.list_models():
        raise InputError(
            f"{where}: open_clip {open_clip.__version__} has no such architecture",
            tip="open_clip.list_models() of Python lists them",
        )
    model = build(where, open_clip.create_model, args, model_name=name, pretrained=None)
    config = open_clip.get_model_preprocess_cfg(model)
    transforms = library("open_clip.transform", "open-clip")
    return ImageModel(
        module=ImageTower(model).eval(),
        derive=partial(pixels_of, config, where),
        transform=transforms.image_transform_v2(transforms.PreprocessCfg(**config), is_train=False),
        origin=f"open_clip {open_clip.__version__}",
    )


def pixels_of(config: Mapping[str, Any], where: str) -> PixelSpec:
    """The preprocessing of open_clip's configuration.

    Raises:
        InputError: it cannot be said by a preprocessing file.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode, interpolation = config["resize_mode"], str(config["interpolation"])
    if mode == "shortest" and height == width:
        preprocessing = centre_crop(height, height, interpolation, "round", where)
    elif mode in {"squash", "longest"}:
        fit: Fit = "stretch" if mode == "squash" else "pad"
        fill = config.get("fill_color") or 0
        border = tuple([fill] * 3 if isinstance(fill, int) else fill) if fit == "pad" else WHITE
        preprocessing = Preprocessing(
            height=height,
            width=width,
            resize=resize_filter(interpolation, where),
            fit=fit,
            border=border,
        )
    else:
        raise InputError(
            f"{where}: its preprocessing (resize_mode {mode}, {height} x {width}) is none that a "
            "preprocessing file can say",
            tip=BY_PREPROCESSING_FILE,
        )
    return PixelSpec(
        preprocessing=preprocessing,
        mean=triple(config["mean"], 255.0, f"{where}: mean"),
        std=triple(config["std"], 255.0, f"{where}: std"),
    )
