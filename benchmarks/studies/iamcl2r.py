"""A sequence of fine-tunings with two replacements, by the authors' protocol IAM-CL2R.

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.iamcl2r [--tasks 7,31] [--seeds 0] [--methods ER,...] [--json FILE]
                                 [--work DIR] [--docs docs/iamcl2r.md] [--device cpu|cuda]
                                 [--split validation] [--lr 0.03] [--epochs 10] [--memory 4]
                                 [--elsewhere 60,30,15]
    python -m benchmarks.studies.iamcl2r --cifar DIR --device cuda

What is fine-tuned, replaced and searched is in ``_sequence_data.py``, the protocol and its sources
in ``_sequence.py``. ``--cifar DIR`` holds ``cifar-100-binary`` and ``cifar-10-batches-bin``, and
takes the authors' ResNet-18 and settings. With --json, what the file holds already is not measured
again, and what is new is added. --docs writes a page, and a figure beside it, of all in hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.common import cnn, resnet
from benchmarks.common.arguments import numbers, study_parser
from benchmarks.common.sequence import SequenceSetup, pretrained, untrained, walk
from benchmarks.common.sequence_data import cifar, kanji
from benchmarks.common.sequence_docs import Result, figure, page, table
from benchmarks.common.sequence_methods import METHODS, Settings
from compatctl.files import write_atomic
from compatctl.train import Network, save_weights

ROOT = Path(__file__).resolve().parents[2]
SMALL = Settings(epochs=10, lr=0.03, memory=4, elsewhere_epochs=(60, 30, 15))
"""Of the characters, whose tasks are thirty times smaller than the authors'."""
NAMES = [entry.name for entry in METHODS]


def main() -> None:
    """Train, search, show, write."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    results = _read(given.json) if given.json else []
    data = "cifar" if given.cifar else "kanji"
    if data == "kanji" and not given.kanji.exists():
        sys.exit(f"no images at {given.kanji}: examples/kanji/build.py draws them")
    chosen = settings(given)
    for seed in given.seeds:
        wanted = [
            (count, name) for count in given.tasks for name in given.methods
            if not any((r.data, r.tasks, r.method, r.seed, r.split, r.settings)
                       == (data, count, name, seed, given.split, asdict(chosen))
                       for r in results)
        ]  # fmt: skip
        if not wanted:
            continue
        for result in measured(setup(given, chosen, seed), wanted, given.split, given.work):
            results.append(result)
            print("\n".join(table([result])[2:]), flush=True)
            if given.json:
                write_atomic(given.json, _text(results).encode())
    alike = (data, given.split, asdict(chosen))
    shown = _ordered(
        entry for entry in results if (entry.data, entry.split, entry.settings) == alike
    )
    print("\n".join(table(shown)))
    if given.docs:
        write_atomic(given.docs, page(shown, given.docs.with_suffix(".svg").name).encode())
        write_atomic(given.docs.with_suffix(".svg"), figure(shown).encode())


def settings(given: argparse.Namespace) -> Settings:
    """The data's own, unless the command says otherwise."""
    overrides = {"lr": given.lr, "epochs": given.epochs, "memory": given.memory,
            "elsewhere_epochs": given.elsewhere}  # fmt: skip
    own = Settings() if given.cifar else SMALL
    return replace(own, **{key: value for key, value in overrides.items() if value is not None})


def setup(given: argparse.Namespace, chosen: Settings, seed: int) -> SequenceSetup:
    """Images and network of the command."""
    if given.cifar:
        material, build = cifar(given.cifar, seed), resnet.build
    else:
        material = kanji(given.kanji, seed, split=given.split)
        build = partial(cnn.build, width=16, features=128, pool=False)
    return SequenceSetup(
        material=material,
        settings=chosen,
        build=build,
        seed=seed,
        device=torch.device(given.device),
    )


def measured(
    setup: SequenceSetup, wanted: Sequence[tuple[int, str]], split: str, work: Path | None = None
) -> Iterable[Result]:
    """Every method and length of sequence, from the same models "from elsewhere"."""
    base: dict[bool, list[Network]] = {}
    for count, name in wanted:
        method = next(known for known in METHODS if known.name == name)
        start = time.monotonic()
        if method.fixed not in base:
            base[method.fixed] = [
                elsewhere(setup, stage, fixed=method.fixed, work=work) for stage in range(3)
            ]
            seconds = time.monotonic() - start
            print(f"three models from elsewhere in {seconds:.0f} s", file=sys.stderr, flush=True)
            start = time.monotonic()
        matrices = walk(setup, method, count, base[method.fixed], _print_progress)
        yield Result(
            data=setup.material.name,
            method=name,
            tasks=count,
            seed=setup.seed,
            split=split,
            settings=asdict(setup.settings),
            seconds=round(time.monotonic() - start, 1),
            matrices={
                test: [[round(float(value), 5) for value in row] for row in matrix]
                for test, matrix in matrices.items()
            },
        )


def elsewhere(setup: SequenceSetup, stage: int, *, fixed: bool, work: Path | None) -> Network:
    """``pretrained``; with a folder, kept there by the digest of all that decides it."""
    if work is None:
        return pretrained(setup, stage, fixed=fixed)
    given, images = setup.settings, setup.material.elsewhere[stage]
    key = hashlib.sha256(images.pixels.tobytes() + images.labels.tobytes())
    first = untrained(setup, stage, fixed=fixed)
    for weight in first.state_dict().values():
        key.update(weight.cpu().numpy().tobytes())
    key_parts = (setup.seed, stage, fixed, given.K, given.batch, given.elsewhere_epochs[stage],
            given.elsewhere_lr, str(setup.material.augmentation))  # fmt: skip
    key.update(repr(key_parts).encode())
    path = work / f"elsewhere-{key.hexdigest()[:16]}.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        save_weights(pretrained(setup, stage, fixed=fixed), path.with_suffix(".unfinished"))
        path.with_suffix(".unfinished").rename(path)
    first.load_state_dict(load_file(path))
    return first


def _print_progress(done: int, of: int) -> None:
    print(f"\rtask {done} of {of}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    loaded = json.loads(path.read_text(encoding="utf-8"))
    for result in loaded:
        result["settings"]["elsewhere_epochs"] = tuple(result["settings"]["elsewhere_epochs"])
    return [Result(**result) for result in loaded]


def _text(results: Iterable[Result]) -> str:
    """A line for each result."""
    return "[\n" + ",\n".join(json.dumps(asdict(result)) for result in _ordered(results)) + "\n]\n"


def _ordered(results: Iterable[Result]) -> list[Result]:
    return sorted(
        results, key=lambda result: (result.tasks, NAMES.index(result.method), result.seed)
    )


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "seeds", "work", "kanji", "threads", "json", "docs")
    parser.set_defaults(seeds=[0])
    parser.add_argument("--tasks", type=numbers, default=[7, 31])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=NAMES)
    parser.add_argument("--split", choices=("test", "validation"), default="test",
                        help="characters that are searched")  # fmt: skip
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR's binary version")
    parser.add_argument("--lr", type=float, help="of the tasks; this and the next: else the data's")
    parser.add_argument("--epochs", type=int, help="of each task")
    parser.add_argument("--memory", type=int, help="images of each class that are rehearsed")
    parser.add_argument("--elsewhere", type=lambda text: tuple(numbers(text)),
                        help="epochs of the three pre-trainings")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if unknown := sorted(set(given.methods) - set(NAMES)):
        parser.error(f"no method {unknown[0]}; there are {', '.join(NAMES)}")
    return given


if __name__ == "__main__":
    main()
