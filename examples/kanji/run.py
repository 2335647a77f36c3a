"""Play the papers' setting on characters: a small CNN replaced by one that was trained elsewhere.

    python examples/kanji/build.py     once: the images
    python examples/kanji/run.py [--folder DIR] [--seed N] [--threads N]

Three groups of training characters, by the order of sha1: 450 train the old model, which fills the
gallery; 901 others pre-train the incoming one; 901, the old model's 450 among them, fine-tune it
against the gallery. The test characters train nothing. One encoder answers a query at any time.
Everything lies in DIR (default: work beside this file), a project folder for every other command.
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

from compatctl.commands.finetune import export
from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.recipe import Recipe

HERE = Path(__file__).resolve().parent
FILES = ("cnn.py", "old.yaml", "pretrain.yaml", "new.yaml", "compatctl.yaml")
OLD, LOCAL = 450, 901
HARD = ("rampart", "kouzan-brush", "kouzan-gyosho")


def prepare(folder: Path) -> None:
    """The project folder: code, recipes, and a data set for each of the three groups."""
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
        np.savez_compressed(folder / name, **{key: one[rows] for key, one in arrays.items()})


def scratch(folder: Path, seed: int) -> None:
    """Random weights for the old model to start from."""
    import cnn

    torch.manual_seed(seed)
    torch.save(cnn.build().state_dict(), folder / "scratch.ckpt")


def pretrain(folder: Path, seed: int) -> None:
    """new.ckpt, the backbone's weights alone, and independent.onnx, the same model as it stands."""
    from compatctl import train

    recipe = Recipe.load(folder / "pretrain.yaml")
    recipe = replace(recipe, seed=recipe.seed + seed)
    data = load(folder / "elsewhere.npz")
    trained = train.train(recipe=recipe, base=None, data=data, reference=None, work=folder)
    torch.save({"state_dict": trained.network.backbone.state_dict()}, folder / "new.ckpt")
    record = TrainingRecord.from_json(trained.record, None)
    model, _, _ = export(trained, recipe, data, record)
    (folder / "independent.onnx").write_bytes(model)


def compatctl(folder: Path, *words: str, expected: int = 0) -> None:
    """Run one command in ``folder``, shown as it would be typed; another exit code ends it all."""
    print(f"\n$ compatctl {' '.join(words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "compatctl", *words], cwd=folder, check=False)
    print(f"(exit {done.returncode}, {time.monotonic() - began:.0f} s)", flush=True)
    if done.returncode != expected:
        sys.exit(done.returncode or 1)


def fonts(folder: Path) -> None:
    """recall@1 of the test characters, all fonts together and the three hard ones apart."""
    data = load(folder / "kanji.npz")
    gallery, queries = data.filter(role="gallery"), data.filter(split="test", role="query")
    codes = np.unique([*gallery.labels, *queries.labels], return_inverse=True)[1]
    at = np.array([item.slices["font"] for item in queries.items])
    old, new = (Encoder.load(folder / name) for name in ("old.onnx", "new.onnx"))
    stored, asked = {}, {}
    for name, encoder in (("old", old), ("new", new)):
        stored[name], asked[name] = encoder.embed(gallery).features, encoder.embed(queries).features
    print(f"\n{'recall@1, query on gallery':28s}{'mean':>10s}" + "".join(f"{x:>15s}" for x in HARD))
    for q, g in (("old", "old"), ("new", "old"), ("new", "new")):
        found = exact_search(asked[q], stored[g], 1)
        hit = evaluate(found, codes[len(gallery) :], codes[: len(gallery)], ks=(1,), map_k=1).hit1
        figures = "".join(f"{hit[at == font].mean():15.3f}" for font in HARD)
        print(f"{q + ' on ' + g:28s}{hit.mean():10.3f}{figures}")


def play(folder: Path, seed: int) -> None:
    """Old model, store, incoming model, upgrade, way back."""
    scratch(folder, seed)
    legacy = ("--recipe", "old.yaml", "--data", "old.npz", "--candidate", "build/old")
    told = ("--seed", str(seed))
    compatctl(folder, "finetune", "--base", "scratch.ckpt", *legacy, "--output", "old.onnx", *told)
    compatctl(folder, "init", "--model", "old.onnx")
    print("\npre-training the incoming model elsewhere ...", flush=True)
    pretrain(folder, seed)
    print("\nThe incoming model as it stands, which the gate must refuse (exit 3):")
    apart = ("--report", "independent.json")
    compatctl(folder, "verify", "old.onnx", "independent.onnx", *apart, expected=3)
    compatctl(folder, "finetune", "--base", "new.ckpt", *told)
    compatctl(folder, "verify", "old.onnx", "new.onnx")
    fonts(folder)
    compatctl(folder, "deploy")
    compatctl(folder, "status")
    compatctl(folder, "check")
    compatctl(folder, "rollback")


def main() -> None:
    """Prepare the folder and play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=HERE / "work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.exists():
        sys.exit(f"{folder} exists: remove it, or name another by --folder")
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    prepare(folder)
    os.chdir(folder)  # where cnn.py is found
    play(folder, given.seed)


if __name__ == "__main__":
    main()
