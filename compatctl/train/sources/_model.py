"""A model of images from a library, with the preprocessing of the library's configuration."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from PIL import Image
from torch import Tensor, nn

from compatctl.data import MIN_CROP_SHARE, Preprocessing, Resize
from compatctl.errors import InputError

Transform = Callable[[Image.Image], Tensor]
"""A library's own way from an RGB image to the model's input (3, H, W) float32."""

Triple = tuple[float, float, float]

FILTERS: dict[str, Resize] = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}
BY_PREPROCESSING_FILE = "compatctl export --preprocessing FILE says how an image is made instead"
DOWNLOADS = {
    "cache_dir", "checkpoint_path", "hf_hub_id", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "trust_remote_code", "weights", "weights_backbone",
}  # fmt: skip
"""Arguments that fetch weights or code."""


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """How an image becomes a model's input: ``preprocessing``, then ``(pixels - mean) / std``.

    ``mean`` and ``std`` are of red, green and blue, on the scale 0 to 255. ``bgr``: the model takes
    blue first.
    """

    preprocessing: Preprocessing
    mean: Triple
    std: Triple
    bgr: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageModel:
    """A network from float32 (N, 3, H, W) to features (N, F) or (N, F, h, w), without its head.

    Attributes:
        module: the network, with random weights unless its source is a folder.
        derive: gives the preprocessing of the library's configuration, or raises an InputError
            where no preprocessing file can say it.
        transform: the library's own preprocessing, to compare with; None if it has none.
        method: the method of ``module`` that gives the features.
        origin: the library and its version.
    """

    module: nn.Module
    derive: Callable[[], PixelSpec]
    transform: Transform | None
    origin: str
    method: str = "forward"


def triple(values: Any, scale: float, what: str) -> Triple:
    """Three numbers of a configuration on the scale 0 to 255; one number stands for three.

    Raises:
        InputError: they are no three numbers.
    """
    listed = [values] * 3 if isinstance(values, int | float) else list(values or ())
    if len(listed) != 3 or not all(isinstance(value, int | float) for value in listed):
        raise InputError(f"{what}: expected three numbers, got {values!r:.80}")
    first, second, third = (float(value) * scale for value in listed)
    return first, second, third


def resize_filter(name: str, where: str) -> Resize:
    """The filter of a ``Preprocessing`` by a library's name for it.

    Raises:
        InputError: the filter is none that images are resized with here.
    """
    if name not in FILTERS:
        raise InputError(
            f"{where}: images are resized by {name!r}; it must be {', '.join(FILTERS)}",
            tip=BY_PREPROCESSING_FILE,
        )
    return FILTERS[name]


def centre_crop(
    resized: int, side: int, filter_name: str, offset: str, where: str
) -> Preprocessing:
    """The shorter side is resized to ``resized``, and a square of ``side`` is cut from the centre.

    Raises:
        InputError: the square is larger than the resized image, or less than a tenth of it.
    """
    share = 1.0 if side == resized else side / resized
    if math.floor(side / share) != resized:
        share = side / (resized + 0.5)  # the quotient may round down to the integer before
    if not MIN_CROP_SHARE <= share <= 1:
        raise InputError(
            f"{where}: a square of {side} is cut out of an image of {resized}",
            tip=BY_PREPROCESSING_FILE,
        )
    return Preprocessing(
        height=side,
        width=side,
        resize=resize_filter(filter_name, where),
        fit="crop",
        crop_share=share,
        crop_offset="round" if offset == "round" else "floor",
    )


def library(name: str, extra: str) -> ModuleType:
    """Import a library of models; ``extra`` installs it.

    Raises:
        InputError: it is not installed, or cannot be imported beside the installed torch.
    """
    try:
        with offline():
            return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot be imported: {error}", tip=f"pip install 'compatctl[{extra}]'"
        ) from error


def build(where: str, make: Callable[..., Any], args: Mapping[str, Any], **fixed: Any) -> Any:
    """What a library's function makes, with no access to weights on the network.

    Raises:
        InputError: an argument fetches weights or code, or the function fails.
    """
    refused = DOWNLOADS & set(args)
    if refused:
        raise InputError(
            f"{where}: the argument {min(refused)} fetches weights or code: refused",
            tip="weights come from a file: compatctl export --weights FILE",
        )
    try:
        with offline():
            return make(**{**fixed, **args})
    except Exception as error:  # a library's errors share no base class
        raise InputError(f"{where}: cannot be made: {error!r}") from error


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep libraries of the Hugging Face hub from its server, and torch from unpickling objects."""
    settings = {"HF_HUB_OFFLINE": "1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
