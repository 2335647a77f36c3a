"""Backbone, stage taps, junction and unit norm: the network that becomes the encoder.

The junction maps the backbone's features to the gallery's dimension (CVPR 2024, arXiv 2405.02581,
where it is linear); the retrieval feature is its output divided by its norm.
"""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.core.adapters import Adapter, Affine, Perceptron
from compatctl.core.arrays import Vectors
from compatctl.errors import InputError
from compatctl.recipe import InputSpec
from compatctl.recipe import Junction as JunctionRecipe
from compatctl.train.taps import check_names, find_taps, run_with_taps

AUTO = "auto"
INPUT_NORM = 22.0
"""Length of a standardised row of features: that of 500 features of deviation 1."""


class Network(nn.Module, ABC):
    """Embeds a batch of items as float32 (N, D) unit rows; each kind of backbone has its own.

    ``features`` runs the backbone; ``project`` the junction. ``free`` is a second junction, trained
    without the gallery.
    """

    def __init__(self, backbone: nn.Module, junction: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.junction = junction
        self.free: Junction | None = None

    @abstractmethod
    def features(self, batch: Tensor) -> Tensor:
        """(N, F) float32 features of a batch that the reader made."""

    @abstractmethod
    def with_junction(self, junction: Junction) -> Network:
        """The same backbone with another junction, and without a free one."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.junction.parameters()).device

    def project(self, features: Tensor) -> Tensor:
        """(N, D) raw outputs for (N, F) features."""
        out: Tensor = self.junction(features)
        return out

    def forward(self, batch: Tensor) -> Tensor:
        """(N, D) unit rows of a batch."""
        return unit(self.project(self.features(batch)))


class ImageNetwork(Network):
    """Embeds uint8 (N, H, W, 3) images; the features are the backbone's, then those of ``taps``."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        method: str,
        junction: nn.Module,
        spec: InputSpec,
        taps: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, junction)
        self.method = method
        self.spec = spec
        self.taps = tuple(taps)
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def features(self, batch: Tensor) -> Tensor:
        """(N, F) float32 features of uint8 (N, H, W, 3) images."""

        def run() -> Tensor:
            x = (batch.permute(0, 3, 1, 2).float() - self.mean) / self.std
            out: Tensor = getattr(self.backbone, self.method)(x)
            return out.mean((2, 3)) if out.ndim == 4 else out

        if not self.taps:
            return run()
        modules = [self.backbone.get_submodule(name) for name in self.taps]
        return torch.cat(run_with_taps(modules, run), dim=1)

    def with_junction(self, junction: Junction) -> Network:
        return ImageNetwork(self.backbone, self.method, junction, self.spec, self.taps)


def unit(z: Tensor) -> Tensor:
    """Rows of (N, D) divided by their norms, in float32."""
    z = z.float()
    out: Tensor = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return out


class Junction(nn.Module):
    """The layers from F features to D dimensions, after the standardisation of the features.

    ``kind`` residual is the sum of a linear map and of two layers. Until ``standardise`` is called,
    features pass as they are.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, recipe: JunctionRecipe, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = None if recipe.kind == "mlp" else nn.Linear(width, dim, bias=False)
        self.layers = None
        if recipe.kind != "linear":
            self.layers = nn.Sequential(
                nn.Linear(width, recipe.hidden),
                nn.ReLU(),
                nn.Dropout(recipe.dropout),
                nn.Linear(recipe.hidden, dim, bias=False),
            )

    def standardise(self, features: Tensor) -> None:
        """Set mean 0 and one standard deviation for features like these (N, F), N >= 2.

        The standard deviation gives a row the length ``INPUT_NORM``, whatever F is. A feature that
        is constant is set to 0.
        """
        deviation = features.float().std(dim=0)
        constant = deviation <= 1e-6 * features.float().abs().mean(dim=0).clamp_min(1e-12)
        norm = INPUT_NORM / features.shape[1] ** 0.5
        self.center.copy_(features.float().mean(dim=0))
        self.scale.copy_(torch.where(constant, torch.zeros_like(deviation), norm / deviation))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) raw outputs for (N, F) features."""
        x = (features - self.center) * self.scale
        parts = [part(x) for part in (self.linear, self.layers) if part is not None]
        out: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return out

    def as_adapter(self) -> Adapter:
        """The same map, in evaluation, as layers with a ReLU between them.

        A linear map beside two layers goes through the ReLU as x and -x, whose difference it is.
        """
        with torch.no_grad():
            scale, shift = (part.double().cpu() for part in (self.scale, -self.center * self.scale))
            linear = None if self.linear is None else self.linear.weight.double().cpu().T
            if self.layers is None:
                assert linear is not None
                return Affine(matrix=_floats(scale[:, None] * linear), bias=_floats(shift @ linear))
            first, last = self.layers[0], self.layers[-1]
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            hidden, matrix = first.weight.double().cpu().T, last.weight.double().cpu().T
            bias = shift @ hidden + first.bias.double().cpu()
            hidden = scale[:, None] * hidden
            if linear is not None:
                both = torch.diag(scale)
                hidden = torch.cat([hidden, both, -both], dim=1)
                bias = torch.cat([bias, shift, -shift])
                matrix = torch.cat([matrix, linear, -linear])
            return Perceptron(
                hidden=_floats(hidden),
                hidden_bias=_floats(bias),
                matrix=_floats(matrix),
                bias=np.zeros(matrix.shape[1], np.float32),
            )


def _floats(values: Tensor) -> Vectors:
    return values.float().numpy()


def backbone_taps(
    backbone: nn.Module, method: str, spec: InputSpec, taps: Sequence[str] | None
) -> tuple[tuple[str, ...], int]:
    """The names of the taps, ``auto`` resolved, and F with them, measured on two blank images.

    Raises:
        InputError: the backbone does not run, gives another shape than (N, F) or (N, F, h, w), or
            has no such module.
    """
    network = ImageNetwork(backbone, method, nn.Identity(), spec).eval()
    images = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            _check_features(network.features(images), method)
            if taps == (AUTO,):
                taps = find_taps(backbone, lambda: network.features(images))
            network.taps = tuple(taps or ())
            check_names(backbone, network.taps)
            return network.taps, int(network.features(images).shape[1])
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"backbone: {method} does not run on images {spec.height} x {spec.width}: {error}",
            tip="check backbone.method and backbone.input",
        ) from error


def _check_features(out: object, method: str) -> None:
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"backbone: {method} must give (N, F) or (N, F, h, w); got {shape}")


def embed(network: Network, batch: NDArray[Any]) -> NDArray[np.float32]:
    """(N, D) float32 unit rows of a batch, such as (N, H, W, 3) uint8 images, on the CPU."""
    return embed_outputs(network, batch)[0]


def embed_outputs(network: Network, batch: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
    """As ``embed``, and (N, D) rows of the free head if there is one: all outputs of the file."""
    network = network.cpu().eval()
    with torch.no_grad():
        features = network.features(torch.from_numpy(batch))
        rows = [network.project(features)]
        if network.free is not None:
            rows.append(network.free(features))
        return tuple(unit(row).numpy() for row in rows)


class _BothHeads(nn.Module):
    """(N, D) unit rows of the junction and of the free head, from one pass of the backbone."""

    def __init__(self, network: Network, free: Junction) -> None:
        super().__init__()
        self.network = network
        self.free = free

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(batch)
        return unit(self.network.project(features)), unit(self.free(features))


def export(network: Network, path: Path, height: int, width: int) -> None:
    """Write ``network`` as ONNX: uint8 ``image`` (N, height, width, 3) -> ``embedding`` (N, D).

    A network with a free head has a second output, ``free`` (N, D), of the same forward pass. The
    graph contains normalization, pooling, junctions and unit norm; N is dynamic. The file has all
    weights, and still needs sealing (source paths, metadata).
    """
    network = network.cpu().eval()
    module = network if network.free is None else _BothHeads(network, network.free)
    # The exporter warns that torchvision is missing, which nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["embedding"] if network.free is None else ["embedding", "free"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        assert program is not None, "dynamo gives a program"
        _rename_inner(program.model.graph)
        program.save(str(path), external_data=False)


def _rename_inner(graph: Any) -> None:
    """Rename inner values that have an output's name: torch calls the rows of a table of tokens or
    positions ``embedding`` as well."""
    outputs = {id(value) for value in graph.outputs}
    names = {value.name for value in graph.outputs}
    inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in inner:
        if value.name in names and id(value) not in outputs:
            value.name = f"inner/{value.name}"
