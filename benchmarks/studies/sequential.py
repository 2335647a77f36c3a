"""Five versions in a row on one store, on characters: fine-tuned, fine-tuned, replaced, fine-tuned.

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.sequential [--lives hoc,none,ce] [--seed 0] [--data FILE]
                                            [--threads 1] [--json FILE]
                                            [--docs docs/sequential.md]

Version 1 is born on the d-Simplex from random weights. Versions 2, 3 and 5 are fine-tuned from the
version before, each on classes that are new and on the store's rehearsal memory; version 4 is a
larger network that was trained elsewhere, on other classes, and is then fine-tuned alike. Every
version is verified and deployed by the commands' own functions on one store, and adds new gallery
items with the vectors of its day. The training images of earlier versions are gone. Lives differ in
the loss of versions 2 to 5 and in the memory; test classes train nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha1
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.arguments import study_parser
from benchmarks.common.cases import KANJI, KANJI_FONTS
from benchmarks.common.cnn import build
from compatctl import train
from compatctl.commands.add import add
from compatctl.commands.check import check
from compatctl.commands.deploy import deploy
from compatctl.commands.finetune import finetune
from compatctl.commands.init import init
from compatctl.commands.matrix import compatibility_matrix
from compatctl.commands.verify import verify
from compatctl.core.matrix import summarise
from compatctl.data import Dataset, load, read_memory
from compatctl.errors import CompatError
from compatctl.files import write_atomic
from compatctl.recipe import Project, Recipe
from compatctl.report import Report
from compatctl.store import Store

VERSIONS = 5
REPLACED = 4
"""The version with another backbone"""
NEW = (112, 100, 100, 100, 100)
"""New training classes of each version: 512 in all, which is K"""
ELSEWHERE = 450
"""Classes of the incoming network, none of which is in the life"""
SMALL, LARGE = {"width": 12, "features": 128}, {"width": 24, "features": 256}
LATE = (0.6, 0.1, 0.1, 0.1, 0.1)
"""Share of the test classes whose gallery items come with each version"""
PER_CLASS = 2
"""Of ten training images a class"""
SEARCHED = "ipa-mincho"
"""The typeface of the gallery"""
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

RECIPE = """\
format: 1
seed: {seed}
backbone:
  factory: "benchmarks.common.cnn:build"
  args: {args}
  taps: null
  input: {{height: 32, width: 32, fit: stretch, mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5]}}
junction: {{kind: linear, standardise: false}}
objective: {{{objective}}}
train: full
optimiser: {{epochs: {epochs}, batch_size: 128, lr: {lr}, backbone_lr: {lr}, weight_decay: 0.05, frozen_norm: false}}
augmentation: {{rotate: 5.0, shift: 0.06}}
rehearsal: {rehearsal}
"""  # noqa: E501
SIMPLEX = f"frame: simplex, scale: null, dim: {sum(NEW) - 1}"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Life:
    """One way to live: the loss of versions 2 to 5, and whether there is a memory."""

    title: str
    loss: str
    memory: bool


HOC = "contrast: hoc, lambda: 0.1, mu: 10.0"
LIVES = {
    "hoc": Life(title="HOC, lambda .1, memory", loss=HOC, memory=True),
    "none": Life(title="HOC, lambda .1, no memory", loss=HOC, memory=False),
    "ce": Life(title="cross-entropy alone, memory", loss="lambda: 1.0", memory=True),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One version: the gate's view of it on the store as it was, and what it left behind."""

    version: int
    trained_items: int
    rehearsed: int
    classes: int
    old_old: float
    new_old: float
    gate: str
    links: tuple[tuple[str, float, str], ...]
    """(Owner of rows, gain of the new queries on them, outcome)"""
    rows: int
    memory_items: int
    memory_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Lived:
    """A life: its steps, and the hit@1 of every version's queries on every version's gallery."""

    life: str
    seed: int
    steps: tuple[Step, ...]
    values: tuple[tuple[float, ...], ...]
    ac: tuple[float | None, ...]
    """Over the life so far, after each step"""
    aa: tuple[float, ...]
    n_queries: int
    n_classes: int
    checked: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Characters:
    """The images, and who has which part in the life; ``new`` is of each version's classes."""

    arrays: Arrays
    new: tuple[frozenset[str], ...]
    elsewhere: frozenset[str]
    late: tuple[frozenset[str], ...]
    """Test classes whose gallery items come with each version"""

    @classmethod
    def of(cls, path: Path, seed: int) -> Characters:
        """By the order of a hash of seed and character."""
        with np.load(path) as archive:
            arrays = dict(archive)

        def order(split: str) -> list[str]:
            labels = set(arrays["labels"][arrays["split"] == split].tolist())
            return sorted(labels, key=lambda label: sha1(f"{seed} {label}".encode()).digest())

        training, test = order("train"), order("test")
        ends = np.cumsum((0, *NEW))
        later = np.round(np.cumsum(LATE[:-1]) * len(test)).astype(int)
        return cls(
            arrays=arrays,
            new=tuple(frozenset(training[a:b]) for a, b in pairwise(ends)),
            elsewhere=frozenset(training[ends[-1] : ends[-1] + ELSEWHERE]),
            late=tuple(frozenset(part) for part in np.split(np.array(test), later)),
        )

    def write(self, path: Path, rows: NDArray[np.bool_]) -> Path:
        """A data set of some rows."""
        chosen: dict[str, Any] = {key: values[rows] for key, values in self.arrays.items()}
        np.savez(path, **chosen)
        return path

    def of_classes(self, classes: frozenset[str]) -> NDArray[np.bool_]:
        """(N,) which rows are of these classes."""
        characters: NDArray[np.bool_] = np.isin(self.arrays["labels"], sorted(classes))
        return characters

    def training(self, version: int) -> NDArray[np.bool_]:
        """(N,) what is new to train on: every typeface of the version's classes."""
        return self.of_classes(self.new[version - 1])

    def gallery(self, versions: int) -> NDArray[np.bool_]:
        """(N,) the gallery's items once that many versions added theirs."""
        classes = frozenset().union(*self.new[:versions], *self.late[:versions])
        printed: NDArray[np.bool_] = self.arrays["font"] == SEARCHED
        return self.of_classes(classes) & printed

    def judged(self, versions: int) -> NDArray[np.bool_]:
        """(N,) that gallery, and the queries of its test classes in the hard typefaces."""
        queries = self.of_classes(frozenset().union(*self.late[:versions]))
        queries &= np.isin(self.arrays["font"], KANJI_FONTS) & (self.arrays["role"] == "query")
        return self.gallery(versions) | queries


def recipe(
    path: Path, *, seed: int, args: dict[str, int], objective: str, epochs: int, **more: Any
) -> Path:
    """A recipe's file."""
    values = {"lr": 0.002, "rehearsal": "null", **more}
    args_text = json.dumps(args)
    path.write_text(
        RECIPE.format(seed=seed, args=args_text, objective=objective, epochs=epochs, **values)
    )
    return path


def begin(folder: Path, characters: Characters, seed: int) -> None:
    """What all lives share: version 1, and the incoming network that was trained elsewhere."""
    torch.manual_seed(seed)
    torch.save(build(SMALL["width"], SMALL["features"]).state_dict(), folder / "scratch.ckpt")
    first = recipe(
        folder / "first.yaml", seed=seed, args=SMALL, objective=f"{SIMPLEX}, lambda: 1.0",
        epochs=12, rehearsal=f"{{per_class: {PER_CLASS}}}",
    )  # fmt: skip
    project = Project(
        store=folder / "none", data=characters.write(folder / "first.npz", characters.training(1)),
        recipe=first, candidate=folder / "v1", output=folder / "v1/model.onnx",
    )  # fmt: skip
    finetune(project, base=folder / "scratch.ckpt")
    path = recipe(
        folder / "elsewhere.yaml", seed=100 + seed, args=LARGE,
        objective="frame: free, dim: 128, lambda: 1.0, scale: 16.0", epochs=7,
    )  # fmt: skip
    data = load(
        characters.write(folder / "elsewhere.npz", characters.of_classes(characters.elsewhere))
    )
    trained = train.train(
        recipe=Recipe.load(path), base=None, data=data, reference=None, work=folder
    )
    torch.save(trained.network.backbone.state_dict(), folder / "elsewhere.ckpt")


def live(folder: Path, shared: Path, characters: Characters, name: str, seed: int) -> Lived:
    """One life on a store of its own."""
    life, models = LIVES[name], [shared / "v1" / "model.onnx"]
    project = Project(
        store=folder / "store",
        data=characters.write(folder / "gallery.npz", characters.gallery(1)),
        candidate=shared / "v1", report=folder / "report.json", policy="default",
    )  # fmt: skip
    init(project, model=models[0])
    project = replace(project, candidate=folder / "candidate", output=folder / "new.onnx")
    shutil.copy(shared / "v1" / "weights.safetensors", folder / "deployed.safetensors")
    steps = [_first(project, shared)]
    for version in range(2, VERSIONS + 1):
        step = _version(folder, shared, project, characters, life, version, seed)
        models.append(folder / f"v{version}.onnx")
        shutil.copy(folder / "candidate" / "model.onnx", models[-1])
        steps.append(step)
        print(f"{name}: {step}", flush=True)
    matrix = compatibility_matrix(models, _test(folder, characters))
    values = np.full((VERSIONS, VERSIONS), np.nan)
    for i, row in enumerate(matrix.values):
        values[i, : i + 1] = row
    so_far = [summarise(values[:t, :t]) for t in range(1, VERSIONS + 1)]
    return Lived(
        life=name,
        seed=seed,
        steps=tuple(steps),
        values=matrix.values,
        ac=tuple(entry.ac for entry in so_far),
        aa=tuple(entry.aa for entry in so_far),
        n_queries=matrix.n_queries,
        n_classes=matrix.n_classes,
        checked=check(project).ok,
    )


def _first(project: Project, shared: Path) -> Step:
    record = json.loads((shared / "v1" / "training.json").read_bytes())
    return Step(
        version=1, trained_items=len(record["items"]), rehearsed=0,
        classes=len(record["classes"]), old_old=float("nan"), new_old=float("nan"), gate="",
        links=(), rows=Store.open(project.store).manifest.index.count, **_memory(project),
        seconds=record["seconds"],
    )  # fmt: skip


def _version(  # noqa: PLR0917
    folder: Path,
    shared: Path,
    project: Project,
    characters: Characters,
    life: Life,
    version: int,
    seed: int,
) -> Step:
    """Fine-tune, verify, deploy, add."""
    start = time.monotonic()
    replaced = version == REPLACED
    recipe_file = recipe(
        folder / "recipe.yaml",
        seed=seed + version,
        args=LARGE if version >= REPLACED else SMALL,
        objective=f"{SIMPLEX}, {life.loss}",
        epochs=8,
        lr=0.002 if replaced else 0.001,
        rehearsal=f"{{per_class: {PER_CLASS}}}" if life.memory else "null",
    )
    data = characters.write(folder / "new.npz", characters.training(version))
    base = shared / "elsewhere.ckpt" if replaced else folder / "deployed.safetensors"
    tuned = finetune(replace(project, data=data, recipe=recipe_file), base=base)
    judged = replace(
        project, data=characters.write(folder / "judged.npz", characters.judged(version - 1))
    )
    manifest = Store.open(project.store).manifest
    old = project.store / "models" / f"{manifest.query_model}.onnx"
    report = verify(judged, old=old, new=folder / "candidate" / "model.onnx")
    passed = report.verdict.outcome == "pass"
    deploy(project, forced_reason=None if passed else f"the gate said {report.verdict.outcome}")
    shutil.copy(folder / "candidate" / "weights.safetensors", folder / "deployed.safetensors")
    add(replace(project, data=characters.write(folder / "more.npz", characters.gallery(version))))
    hit_rate = report.groups[0].hit_rate
    return Step(
        version=version, trained_items=tuned.items, rehearsed=tuned.rehearsed,
        classes=tuned.classes,
        old_old=hit_rate["old_old"]["1"], new_old=hit_rate["new_old"]["1"],
        gate=report.verdict.outcome, links=_links(report, project.store),
        rows=Store.open(project.store).manifest.index.count, **_memory(project),
        seconds=time.monotonic() - start,
    )  # fmt: skip


def _links(report: Report, store: Path) -> tuple[tuple[str, float, str], ...]:
    """The chain check by version, in the order of the versions."""
    order = dict.fromkeys(generation.query_model[:12] for generation in Store.open(store).history())
    names = {f"gallery of {sha256}": f"v{number}" for number, sha256 in enumerate(order, 1)}
    return tuple(sorted(
        (
            names[check.group],
            check.estimate if check.estimate is not None else float("nan"),
            check.outcome,
        )
        for check in report.verdict.checks if check.name == "chain_gain"
    ))  # fmt: skip


def _memory(project: Project) -> dict[str, int]:
    store = Store.open(project.store)
    if store.manifest.memory is None:
        return {"memory_items": 0, "memory_bytes": 0}
    path = store.blob_path("memories", store.manifest.memory)
    return {"memory_items": len(read_memory(path)), "memory_bytes": path.stat().st_size}


def _test(folder: Path, characters: Characters) -> Dataset:
    """The test classes alone: their gallery items and their queries in the hard typefaces."""
    queries = characters.of_classes(frozenset().union(*characters.late))
    return load(characters.write(folder / "test.npz", characters.judged(VERSIONS) & queries))


def tables(lives: Sequence[Lived]) -> str:
    """Markdown: what happened at every step, and the matrix, of each life."""
    return "\n".join(line for life in lives for line in _table(life))


def _table(lived: Lived) -> Iterator[str]:
    life = LIVES[lived.life]
    yield f"### {life.title}\n"
    yield (
        "| version | trained on (rehearsed) | old/old | new/old | gate | chain: gain on rows of | "
        "rows | memory | AC | AA | s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for step, ac, aa in zip(lived.steps, lived.ac, lived.aa, strict=True):
        links = ", ".join(f"{owner} {gain:+.3f} {outcome}" for owner, gain, outcome in step.links)
        memory = f"{step.memory_items}, {step.memory_bytes / 1e6:.1f} MB" if life.memory else ""
        judged = (f"{step.old_old:.3f} | {step.new_old:.3f}") if step.version > 1 else " | "
        chain = links or ("one version only" if step.version > 1 else "")
        yield (
            f"| {step.version}{', replaced' if step.version == REPLACED else ''} | "
            f"{step.trained_items} ({step.rehearsed}) | {judged} | {step.gate} | {chain} | "
            f"{step.rows} | {memory} | {'' if ac is None else f'{ac:.2f}'} | {aa:.3f} | "
            f"{step.seconds:.0f} |"
        )
    head = " | ".join(f"v{at}" for at in range(1, VERSIONS + 1))
    yield f"\n| query \\ gallery | {head} |"
    yield "|---|" + "---|" * VERSIONS
    for at, row in enumerate(lived.values, 1):
        cells = [f"{value:.3f}" for value in row] + [""] * (VERSIONS - len(row))
        yield f"| v{at} | {' | '.join(cells)} |"
    yield ""


def main() -> None:
    """Live, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    characters = Characters.of(arguments.data, arguments.seed)
    with tempfile.TemporaryDirectory() as temporary, _timed():
        shared = Path(temporary) / "shared"
        shared.mkdir()
        begin(shared, characters, arguments.seed)
        lives = []
        for name in arguments.lives:
            folder = Path(temporary) / name
            folder.mkdir()
            lives.append(live(folder, shared, characters, name, arguments.seed))
            print(tables(lives[-1:]), flush=True)
            _write(lives, arguments)


def _write(lives: Sequence[Lived], arguments: argparse.Namespace) -> None:
    if arguments.json:
        text = json.dumps([asdict(life) for life in lives], indent=1)
        arguments.json.write_text(text.replace("NaN", "null") + "\n")
    if arguments.docs:
        before, rest = arguments.docs.read_text(encoding="utf-8").split(BEGIN)
        whole = f"{before}{BEGIN}\n\n{tables(lives)}\n{END}{rest.split(END)[1]}"
        write_atomic(arguments.docs, whole.encode())


@contextmanager
def _timed() -> Iterator[None]:
    """Print the total time; end with an error as the command line shows it."""
    start = time.monotonic()
    try:
        yield
    except CompatError as error:
        raise SystemExit(f"{error.message}\n{error.tip}") from None
    print(f"{time.monotonic() - start:.0f} s\n", flush=True)


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "threads", "json", "docs")
    parser.add_argument("--lives", type=lambda text: text.split(","), default=list(LIVES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=KANJI)
    arguments = parser.parse_args()
    if not arguments.data.exists():
        raise SystemExit(f"no images at {arguments.data}: examples/kanji/build.py draws them")
    if unknown := set(arguments.lives) - LIVES.keys():
        raise SystemExit(f"no life is called {min(unknown)}; known: {', '.join(LIVES)}")
    return arguments


if __name__ == "__main__":
    main()
