"""Images for the sequence of ``iamcl2r.py``: characters, or CIFAR in its binary version.

The authors fine-tune on CIFAR-100 and search CIFAR-10, whose classes no model was fine-tuned on;
their galleries hold one row a class, the mean of its images' features (repository
miccunifi/iamcl2r, ``src/iamcl2r/dataset/cifar.py`` and ``performance_metrics.py`` beside it). Here
both are searched: classes of the sequence, and others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.data import load
from compatctl.errors import InputError
from compatctl.recipe import Augmentation, InputSpec

SIDE = 32
WRITTEN = ("klee", "rampart", "kouzan-brush", "kouzan-gyosho")
"""Typefaces written with pen or brush, or hollow, in which a small network still errs."""
PRINTED = ("ipa-mincho", "ipa-gothic", "vl-gothic", "yusei-magic", "dotgothic16", "motoya-maru")

PIXELS = SIDE * SIDE
FILES_100 = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")
FILES_10 = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
GALLERY_10 = "cifar-10-batches-bin/test_batch.bin"


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """``pixels`` uint8 (N, 32, 32, 3), ``labels`` int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def of(self, classes: Iterable[int]) -> Images:
        """Those of some classes."""
        rows = np.isin(self.labels, np.fromiter(classes, np.int64))
        return Images(pixels=self.pixels[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Test:
    """What is searched for in what; the gallery holds one row a class.

    ``ways``: classes searched at once: the first so many, the next, and so on; 0 for all.
    """

    queries: Images
    gallery: Images
    ways: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Everything that one seed looks at."""

    name: str
    elsewhere: tuple[Images, ...]
    """Of each pre-training; labels from 0, the classes of an earlier one first"""
    local: Images
    """Training images of the local classes 0 .. L-1; the sequence takes them in this order"""
    first: int
    """Local classes of the first task; the others are shared out evenly"""
    tests: dict[str, Test]
    spec: InputSpec
    augmentation: Augmentation

    @property
    def classes(self) -> int:
        """L, the local classes."""
        return int(self.local.labels.max()) + 1

    @property
    def others(self) -> int:
        """P, the classes of the largest pre-training."""
        return max(int(part.labels.max()) + 1 for part in self.elsewhere)


def tasks(classes: int, first: int, count: int) -> tuple[range, ...]:
    """Local classes of each task: ``first``, then equal shares of the others.

    Raises:
        InputError: the others cannot be shared out evenly.
    """
    rest, others = classes - first, count - 1
    if first < 1 or count < 2 or rest < others or rest % others:
        raise InputError(
            f"{classes} classes, {first} of them in the first task, do not make {count} tasks",
            tip="the other classes are shared out evenly",
        )
    step = rest // others
    starts = [first + step * i for i in range(others)]
    return (range(first), *(range(start, start + step) for start in starts))


def kanji(
    path: Path,
    seed: int,
    *,
    stages: Sequence[int] = (100, 300, 700),
    local: int = 300,
    others: int = 600,
    split: str = "test",
) -> Material:
    """Characters: the seed draws, of the training characters, the local ones and those elsewhere.

    The first pre-training sees the six print typefaces, the second klee besides, the third rampart
    too; nobody elsewhere sees the brush. The sequence has all ten: this is what fine-tuning is for.
    ``others`` characters of ``split``, which train nobody, are searched: written ones ask, the
    gallery is the mean of the printed ones.

    Raises:
        InputError: the file is none, or has too few characters.
    """
    data = load(path)
    names = np.array(data.labels)
    splits = np.array([item.split for item in data.items])
    fonts = np.array([item.slices["font"] for item in data.items])
    training = _drawn(names[splits == "train"], seed)
    unseen = _drawn(names[splits == split], -1)[:others]
    if len(training) < local + max(stages):
        raise InputError(f"{path}: {len(training)} training characters, {local + max(stages)} used")
    near, far = training[:local], training[local : local + max(stages)]
    written, printed = np.isin(fonts, WRITTEN), np.isin(fonts, PRINTED)
    seen = [(*PRINTED, *WRITTEN[:more]) for more in (0, 1, 2)]

    def images(rows: NDArray[np.bool_], labels: Sequence[str]) -> Images:
        code = {label: i for i, label in enumerate(labels)}
        chosen = [i for i in np.flatnonzero(rows).tolist() if names[i] in code]
        pixels = np.stack([np.asarray(data.read(i)) for i in chosen])
        return Images(pixels=pixels, labels=np.array([code[names[i]] for i in chosen], np.int64))

    grey = (127.5, 127.5, 127.5)
    queried, held = images(written, unseen), images(printed, unseen)
    return Material(
        name="kanji",
        elsewhere=tuple(
            images(np.isin(fonts, some), far[:classes])
            for some, classes in zip(seen, stages, strict=True)
        ),
        local=images(written | printed, near),
        first=local // 10,
        tests={
            "ten": Test(queries=queried, gallery=held, ways=10),
            "all": Test(queries=queried, gallery=held),
        },
        spec=InputSpec(height=SIDE, width=SIDE, fit="stretch", mean=grey, std=grey),
        augmentation=Augmentation(rotate=5.0, shift=0.06),
    )


def cifar(
    folder: Path,
    seed: int,
    *,
    stages: Sequence[int] = (20, 40, 60),
    local: int = 40,
    per_class: int = 300,
) -> Material:
    """CIFAR-100 for the sequence and for pre-training, CIFAR-10 as the authors search it.

    The seed draws which of the 100 classes are local. As the authors do, 300 images of a class
    train (``src/iamcl2r/params.py``); those that are left are the gallery of the local classes.

    Raises:
        InputError: see ``read_cifar``.
    """
    train, test = (read_cifar(folder / name, labels=2) for name in FILES_100)
    ten = _joined([read_cifar(folder / name, labels=1) for name in FILES_10])
    order = np.random.default_rng(seed).permutation(100)
    near, far = order[:local], order[local : local + max(stages)]
    place = np.concatenate([_place(train.labels == part) for part in order])
    rows = np.concatenate([np.flatnonzero(train.labels == part) for part in order])
    kept, left = np.sort(rows[place < per_class]), np.sort(rows[place >= per_class])

    def images(given: Images, classes: NDArray[np.int64]) -> Images:
        code = {int(label): i for i, label in enumerate(classes)}
        some = given.of(classes)
        return Images(pixels=some.pixels, labels=np.array([code[int(y)] for y in some.labels]))

    used, spare = (_rows(train, part) for part in (kept, left))
    mean, std = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)
    return Material(
        name="cifar",
        elsewhere=tuple(images(used, far[:classes]) for classes in stages),
        local=images(used, near),
        first=local // 4,
        tests={
            "ten": Test(queries=ten, gallery=read_cifar(folder / GALLERY_10, labels=1)),
            "all": Test(queries=images(test, near), gallery=images(spare, near)),
        },
        spec=InputSpec(height=SIDE, width=SIDE, fit="stretch", mean=mean, std=std),
        augmentation=Augmentation(flip=True, shift=0.125),
    )


def read_cifar(path: Path, *, labels: int) -> Images:
    """One file of the BINARY version of CIFAR-10 (1 label byte a record) or CIFAR-100 (2).

    A record is its label bytes, the last of which is the class, then 1,024 bytes each of red, green
    and blue, row by row. Source: https://www.cs.toronto.edu/~kriz/cifar.html. (The python version
    is a pickle, which can run code, and is not read.)

    Raises:
        InputError: it is missing, empty, or no whole number of records.
    """
    size = labels + 3 * PIXELS
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}",
            tip="unpack cifar-100-binary.tar.gz and cifar-10-binary.tar.gz in this folder",
        ) from error
    if not len(raw) or len(raw) % size:
        raise InputError(f"{path}: {len(raw)} bytes are no whole number of records of {size}")
    records = raw.reshape(-1, size)
    planes = records[:, labels:].reshape(-1, 3, SIDE, SIDE)
    return Images(
        pixels=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, labels - 1].astype(np.int64),
    )


def _drawn(labels: Iterable[str], seed: int) -> list[str]:
    """The classes in an order by hash of seed and label."""
    return sorted(set(labels), key=lambda label: hashlib.sha1(f"{seed} {label}".encode()).digest())


def _place(mine: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.arange(int(mine.sum()))


def _rows(images: Images, rows: NDArray[np.int64]) -> Images:
    return Images(pixels=images.pixels[rows], labels=images.labels[rows])


def _joined(parts: Sequence[Images]) -> Images:
    return Images(
        pixels=np.concatenate([part.pixels for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
