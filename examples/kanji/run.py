"""The papers' setting on characters: a small CNN is replaced by one that was trained elsewhere.

    python examples/kanji/build.py     once: the images
    python examples/kanji/run.py [--folder DIR] [--seed N] [--threads N]

There are three groups of training characters, ordered by sha1: 450 train the old model, which fills
the gallery; 901 others pre-train the incoming model; 901, the old model's 450 among them, fine-tune
it against the gallery. No model is trained on the test characters, and one encoder embeds a query.
DIR (default: work beside this file) becomes a project folder for every other command.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import torch

from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.migration.exports import export_images
from compatctl.recipe import Recipe

HERE = Path(__file__).resolve().parent
FILES = ("cnn.py", "old.yaml", "pretrain.yaml", "new.yaml", "compatctl.yaml")
OLD, LOCAL = 450, 901
HARD = ("rampart", "kouzan-brush", "kouzan-gyosho")


def prepare(folder: Path) -> None:
    """Write the project folder: code, recipes, and a data set for each of the three groups."""
    images = HERE / "data" / "kanji.npz"
    if not images.exists():
        sys.exit(f"no images at {images}: run {HERE / 'build.py'} first")
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(HERE / name, folder / name)
    with np.load(images) as archive:
        arrays = dict(archive)
    training = arrays["split"] == "train"
    characters = sorted(set(arrays["labels"][training]), key=lambda c: sha1(c.encode()).hexdigest())
    groups = {
        "old.npz": training & np.isin(arrays["labels"], characters[:OLD]),
        "elsewhere.npz": training & np.isin(arrays["labels"], characters[LOCAL:]),
        "kanji.npz": ~training | np.isin(arrays["labels"], characters[:LOCAL]),
    }
    for name, rows in groups.items():
        np.savez_compressed(folder / name, **{key: values[rows] for key, values in arrays.items()})


def enter(folder: Path) -> None:
    """Work in ``folder``: recipes may name its cnn.py, and not the one beside this script."""
    os.chdir(folder)
    sys.path[0] = str(folder)


def scratch(folder: Path, seed: int) -> None:
    """Write random initial weights for the old model."""
    import cnn

    torch.manual_seed(seed)
    torch.save(cnn.build().state_dict(), folder / "scratch.ckpt")


def pretrain(folder: Path, seed: int) -> None:
    """Write new.ckpt, the backbone's weights, and independent.onnx, the whole model."""
    from compatctl import train

    recipe = Recipe.load(folder / "pretrain.yaml")
    recipe = replace(recipe, seed=recipe.seed + seed)
    data = load(folder / "elsewhere.npz")
    trained = train.train(recipe=recipe, base=None, data=data, reference=None, work=folder)
    torch.save({"state_dict": trained.network.backbone.state_dict()}, folder / "new.ckpt")
    record = TrainingRecord.from_json(trained.record, None)
    model, _, _ = export_images(trained, recipe, data, record)
    (folder / "independent.onnx").write_bytes(model)


def compatctl(folder: Path, *words: str, expected: int = 0) -> None:
    """Print and run one command in ``folder``; exit unless it ends with the expected code."""
    print(f"\n$ compatctl {' '.join(words)}", flush=True)
    start = time.monotonic()
    process = subprocess.run([sys.executable, "-m", "compatctl", *words], cwd=folder, check=False)
    print(f"(exit {process.returncode}, {time.monotonic() - start:.0f} s)", flush=True)
    if process.returncode != expected:
        sys.exit(process.returncode or 1)


def fonts(folder: Path) -> None:
    """Print hit@1 of the test characters: all fonts together, and each of three hard ones."""
    data = load(folder / "kanji.npz")
    gallery, queries = data.filter(role="gallery"), data.filter(split="test", role="query")
    codes = np.unique([*gallery.labels, *queries.labels], return_inverse=True)[1]
    query_font = np.array([item.slices["font"] for item in queries.items])
    old, new = (Encoder.load(folder / name) for name in ("old.onnx", "new.onnx"))
    stored, embedded = {}, {}
    for name, encoder in (("old", old), ("new", new)):
        stored[name] = encoder.embed(gallery).features
        embedded[name] = encoder.embed(queries).features
    print(
        f"\n{'hit_rate@1, query on gallery':28s}{'mean':>10s}" + "".join(f"{x:>15s}" for x in HARD)
    )
    for q, g in (("old", "old"), ("new", "old"), ("new", "new")):
        nearest = exact_search(embedded[q], stored[g], 1)
        hit = evaluate(nearest, codes[len(gallery) :], codes[: len(gallery)], ks=(1,), map_k=1).hit1
        figures = "".join(f"{hit[query_font == font].mean():15.3f}" for font in HARD)
        print(f"{q + ' on ' + g:28s}{hit.mean():10.3f}{figures}")


def upgrade(folder: Path, seed: int) -> None:
    """Train the old model, create the store, upgrade to the incoming model, and roll back."""
    scratch(folder, seed)
    legacy = ("--recipe", "old.yaml", "--data", "old.npz", "--candidate", "build/old")
    seeded = ("--seed", str(seed))
    compatctl(
        folder, "finetune", "--base", "scratch.ckpt", *legacy, "--output", "old.onnx", *seeded
    )
    compatctl(folder, "init", "--model", "old.onnx")
    print("\npre-training the incoming model elsewhere ...", flush=True)
    pretrain(folder, seed)
    print("\nThe incoming model as it is, which the gate must refuse (exit 3):")
    report = ("--report", "independent.json")
    compatctl(folder, "verify", "old.onnx", "independent.onnx", *report, expected=3)
    compatctl(folder, "finetune", "--base", "new.ckpt", *seeded)
    compatctl(folder, "verify", "old.onnx", "new.onnx")
    fonts(folder)
    compatctl(folder, "deploy")
    compatctl(folder, "status")
    compatctl(folder, "check")
    compatctl(folder, "rollback")


def main() -> None:
    """Prepare the folder and run the upgrade."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=HERE / "work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if folder.exists():
        sys.exit(f"{folder} exists: remove it, or choose another with --folder")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    prepare(folder)
    enter(folder)
    upgrade(folder, options.seed)


if __name__ == "__main__":
    main()
