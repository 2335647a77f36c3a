"""Backbone, junction and unit norm: the network that becomes the encoder.

The junction is the linear map from the backbone's width to the gallery's dimension of CVPR 2024
(arXiv 2405.02581); the retrieval feature is its output divided by its norm.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.recipe import InputSpec, Junction
from compatctl.train.attention import Attention


class Network(nn.Module):
    """Embeds uint8 (N, H, W, 3) images as float32 (N, D) unit rows.

    ``features`` runs the backbone; ``project`` the junction, and ``attention`` if there is one.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, method: str, junction: nn.Module, spec: InputSpec
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.junction = junction
        self.attention: Attention | None = None
        self.method = method
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(N, F) float32 backbone features of uint8 (N, H, W, 3) images."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        out: Tensor = getattr(self.backbone, self.method)(x)
        return out.mean((2, 3)) if out.ndim == 4 else out

    def project(self, features: Tensor) -> Tensor:
        """(N, D) raw outputs for (N, F) backbone features."""
        out: Tensor = self.junction(features)
        return out if self.attention is None else self.attention(out, features)

    def forward(self, images: Tensor) -> Tensor:
        """(N, D) unit rows for uint8 (N, H, W, 3) images."""
        return unit(self.project(self.features(images)))


def unit(z: Tensor) -> Tensor:
    """Rows of (N, D) divided by their norms, in float32."""
    z = z.float()
    out: Tensor = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return out


def make_junction(recipe: Junction, width: int, dim: int) -> nn.Module:
    """The layers from ``width`` to ``dim``: linear without bias, or two layers with dropout."""
    if recipe.kind == "linear":
        return nn.Linear(width, dim, bias=False)
    return nn.Sequential(
        nn.Linear(width, recipe.hidden),
        nn.ReLU(),
        nn.Dropout(recipe.dropout),
        nn.Linear(recipe.hidden, dim, bias=False),
    )


def feature_width(backbone: nn.Module, method: str, spec: InputSpec) -> int:
    """F, measured on two blank images; ``InputError`` for an output of another shape."""
    probe = Network(backbone, method, nn.Identity(), spec).eval()
    images = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            out = probe.features(images)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"backbone: {method} does not run on images {spec.height} x {spec.width}: {error}",
            tip="check backbone.method and backbone.input",
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"backbone: {method} must give (N, F) or (N, F, h, w); got {shape}")
    return int(out.shape[1])


def embed(network: Network, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, D) float32 unit rows of (N, H, W, 3) uint8 images, computed on the CPU."""
    network = network.cpu().eval()
    with torch.no_grad():
        out: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
    return out


def export(network: Network, path: Path, height: int, width: int) -> None:
    """Write ``network`` as ONNX: uint8 ``image`` (N, height, width, 3) -> ``embedding`` (N, D).

    The graph contains normalization, pooling, junction and unit norm; N is dynamic. The file has
    all weights, and still needs sealing (source paths, metadata).
    """
    network = network.cpu().eval()
    # The exporter warns that torchvision is missing, which nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
