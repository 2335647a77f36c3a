"""A model of a library or of your own code as a ``Network``, to be written as ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from compatctl.data import Preprocessing
from compatctl.errors import InputError, UsageError
from compatctl.recipe import FACTORIES, Backbone, InputSpec
from compatctl.train.factory import make_backbone
from compatctl.train.network import ImageNetwork, unit
from compatctl.train.sources import FOLDERS, ImageModel, PixelSpec, Pooling, Source, load
from compatctl.train.sources._model import Transform
from compatctl.train.weights import CheckpointMatch, load_base


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: LIBRARY:NAME, or module:callable.
        weights: the checkpoint; None for a folder, which has them.
        part: the prefix of the network's tensors in the checkpoint.
        args: keyword arguments of the library's function or of the callable.
        method: the method of a callable's module that gives the features.
        pooling: see ``sources.transformers_folders.load``.
        pixels: the preprocessing, instead of the library's own.
        factories: modules and callables that the project allows.
    """

    source: str
    weights: Path | None = None
    part: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    method: str = "forward"
    pooling: Pooling = "auto"
    pixels: PixelSpec | None = None
    factories: tuple[str, ...] = FACTORIES


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedNetwork:
    """A network on the CPU in evaluation mode, and where it is from.

    Attributes:
        network: gives unit rows of pixels that ``pixels.preprocessing`` makes.
        transform: the library's own preprocessing; None if it has none, or another one is used.
        match: what of the checkpoint the network has.
        origin: the library and its version, or the callable.
    """

    network: ImageNetwork
    pixels: PixelSpec
    transform: Transform | None
    match: CheckpointMatch
    origin: str

    @property
    def size(self) -> Preprocessing:
        """The preprocessing of its images."""
        return self.pixels.preprocessing


class _BlueFirst(nn.Module):
    """A network that takes blue, green, red."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = getattr(self.module, self.method)(images.flip(1))
        return out


def load_network(request: ExportRequest) -> ExportedNetwork:
    """Make the network, load its weights, and run it once.

    Raises:
        UsageError: no source, no checkpoint, or one beside a folder.
        InputError: the library is not installed or has no such model; the project does not allow
            the callable; the checkpoint lacks a tensor of the model; or it does not run on images.
    """
    source = Source.parse(request.source)
    _check_weights(source, request)
    model = _own(request) if source.library == "" else load(source, request.args, request.pooling)
    pixels = request.pixels or model.derive()
    match = CheckpointMatch()
    if request.weights is not None:
        match = _load_weights(model.module, request.weights, request.part)
    module, method = model.module, model.method
    if pixels.bgr:
        module, method = _BlueFirst(module, method), "forward"
        pixels = PixelSpec(
            preprocessing=pixels.preprocessing,
            mean=(pixels.mean[2], pixels.mean[1], pixels.mean[0]),
            std=(pixels.std[2], pixels.std[1], pixels.std[0]),
        )
    network = ImageNetwork(module, method, nn.Identity(), input_spec(pixels)).eval()
    _check_runs(network, pixels.preprocessing, request.source)
    return ExportedNetwork(
        network=network,
        pixels=pixels,
        transform=model.transform if request.pixels is None else None,
        match=match,
        origin=model.origin,
    )


def folder_backbone(folder: Path) -> Backbone:
    """The backbone of an image model's folder of transformers, with its own preprocessing.

    Raises:
        InputError: as ``load``; or a recipe cannot say its preprocessing.
    """
    name = f"transformers:{folder}"
    pixels = load(Source.parse(name), {}).derive()
    if pixels.bgr:
        raise InputError(
            f"{name} takes blue before red, which a recipe cannot say",
            tip=f"compatctl export {name} makes an encoder of it",
        )
    return Backbone(factory=name, input=input_spec(pixels), factories=(name,))


def input_spec(pixels: PixelSpec) -> InputSpec:
    """The same preprocessing as a recipe writes it."""
    return InputSpec(**vars(pixels.preprocessing), mean=pixels.mean, std=pixels.std)


def library_rows(model: ExportedNetwork, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """(n, D) float32 unit rows of the images by the library's own preprocessing."""
    assert model.transform is not None
    rows = []
    with torch.no_grad():
        for image in images:
            out = getattr(model.network.backbone, model.network.method)(
                torch.as_tensor(model.transform(image))[None]
            )
            rows.append(unit(out.mean((2, 3)) if out.ndim == 4 else out))
    return torch.cat(rows).numpy()


def _check_weights(source: Source, request: ExportRequest) -> None:
    if source.library in FOLDERS and request.weights is not None:
        raise UsageError(
            f"the weights of {request.source} are in its folder: --weights has no effect",
            tip="compatctl export without --weights",
        )
    if source.library not in FOLDERS and request.weights is None:
        raise UsageError(
            f"{request.source} is an architecture without weights: nothing is downloaded",
            tip="compatctl export --weights FILE names a checkpoint on disk",
        )
    if source.library == "" and request.pixels is None:
        raise UsageError(
            f"{request.source} does not say how an image becomes its input",
            tip="compatctl export --preprocessing FILE says it; compatctl export "
            "--preprocessing-template prints such a file",
        )
    if source.library != "" and request.method != "forward":
        raise UsageError("--method is of module:callable", tip="leave it out")
    if source.library not in FOLDERS and request.pooling != "auto":
        raise UsageError("--pooling is of a folder of transformers", tip="leave it out")


def _own(request: ExportRequest) -> ImageModel:
    """The module that the callable makes."""
    assert request.pixels is not None
    pixels = request.pixels
    backbone = Backbone(
        factory=request.source,
        args=dict(request.args),
        method=request.method,
        input=input_spec(pixels),
        factories=request.factories,
    )
    return ImageModel(
        module=make_backbone(backbone).eval(),
        derive=lambda: pixels,
        transform=None,
        origin=request.source,
        method=request.method,
    )


def _load_weights(module: nn.Module, weights: Path, part: str | None) -> CheckpointMatch:
    try:
        match, _ = load_base(module, weights, part=part, least_share=1.0)
    except InputError as error:
        raise InputError(
            error.message,
            tip="an export needs every weight of the model: check its name and size, and "
            "--part of compatctl export",
        ) from error
    return match


def _check_runs(network: ImageNetwork, size: Preprocessing, source: str) -> None:
    """Run two blank images: a model that takes none gives a traceback of its library."""
    images = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            out: Any = network.features(images)
    except Exception as error:
        raise InputError(
            f"{source} does not run on images {size.height} x {size.width}: {error}",
            tip="check the size in the preprocessing, and --method of compatctl export",
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"{source} must give (N, F) or (N, F, h, w); got {shape}",
            tip="compatctl export --method names one that does; or write a function that makes "
            "such a module",
        )
