"""A script that exports small torch networks to the current folder, with torch's own embeddings."""

from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    """uint8 (N, 16, 16, 3) -> unit rows (N, 8)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 12, 3)
        self.junction = nn.Linear(12, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit rows."""
        x = (images.permute(0, 3, 1, 2).float() - 127.0) / 128.0
        z = self.junction(self.convolution(x).relu().mean((2, 3)))
        return z / z.norm(dim=1, keepdim=True)


class Bare(nn.Module):
    """A model from elsewhere: float NCHW in, rows of any length out, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.convolution = nn.Conv2d(3, 6, 5)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and a map."""
        x = self.convolution(pixels)
        return x.relu().mean((2, 3)) * 3.0, x


def main() -> None:
    """Write small0.onnx; ``here`` also small1.onnx (weights elsewhere), bare.onnx and arrays."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    images = torch.from_numpy(
        np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    )
    np.save("images.npy", images.numpy())
    batch = {0: torch.export.Dim("n", min=1)}
    here = sys.argv[1].startswith("here")
    for seed in (0, 1) if here else (0,):
        network = Small(seed).eval()
        torch.onnx.export(
            network,
            (images,),
            f"small{seed}.onnx",
            dynamo=True,
            external_data=seed == 1,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes={"images": batch},
            verbose=False,
        )
        np.save(f"small{seed}.npy", network(images).detach().numpy())
    if here:
        export_bare(images, batch)


def export_bare(images: torch.Tensor, batch: dict[int, object]) -> None:
    """The model from elsewhere, and its embeddings after its own preprocessing."""
    bare = Bare().eval()
    pixels = (images.permute(0, 3, 1, 2)[:, [2, 1, 0]] / 255.0 - 0.4) / torch.tensor(
        [0.2, 0.3, 0.4]
    )[:, None, None]
    torch.onnx.export(
        bare,
        (pixels,),
        "bare.onnx",
        dynamo=True,
        external_data=False,
        input_names=["image"],
        output_names=["embedding", "map"],
        dynamic_shapes={"pixels": batch},
        verbose=False,
    )
    features = bare(pixels)[0]
    unit = features / features.norm(dim=1, keepdim=True)
    np.save("bare.npy", unit.detach().numpy())


if __name__ == "__main__":
    main()
