"""Upgrades of text models on WordNet: every route, alone and with its first answers ranked again.

    python -m benchmarks.studies.text_pairs [--pairs minilm,wordllama] [--folder DIR --train lora]

The texts, the split and the policy are those of ``compatctl demo --text``. The new model is
all-MiniLM-L6 with weights of 8 bits, 384 dimensions. The old one is paraphrase-MiniLM-L3 (384
dimensions), or the table of word vectors of WordLlama (256 dimensions). ``--folder`` is a folder of
sentence-transformers, whose network trains too, as the recipe's ``train`` and ``layers`` say.

Needs the extra ``demo-text``; ``pip install --no-deps wordllama==0.4.0.post1`` for the second pair,
of which the weights and the tokenizer are read and no code runs; ``--folder`` needs the extras
``transformers`` and ``lora``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.commands.bridge import bridge
from compatctl.commands.demo import route_of
from compatctl.commands.finetune import finetune
from compatctl.commands.fuse import fuse
from compatctl.commands.init import init
from compatctl.commands.verify import verify
from compatctl.evaluation.options import VerifyOptions
from compatctl.recipe import Project
from compatctl.report import Report
from compatctl.text_samples import write_text_project

RESCORED = 10
HEADER = """\
| pair | route | old | new on old gallery | gain | verdict | first 10 re-scored | gain | verdict |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print a row for each pair and route."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--pairs", default="minilm,wordllama")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--train", choices=("head", "full", "lora"), default="lora")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    print(HEADER, flush=True)
    for pair in given.pairs.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            project = PAIRS[pair](Path(scratch))
            for name, model in _routes(project, Path(scratch), given):
                print(f"| {pair} | {name} | {_row(project, Path(scratch), model)} |", flush=True)


def minilm(folder: Path) -> Project:
    """A store of paraphrase-MiniLM-L3."""
    write_text_project(folder)
    project = Project.load(folder / "compatctl.yaml")
    init(project, model=folder / "old.onnx")
    return project


def wordllama(folder: Path) -> Project:
    """A store of WordLlama: the mean of a text's word vectors, without tokens at its ends."""
    from safetensors.numpy import load_file

    write_text_project(folder)
    package = distribution("wordllama")
    weights, tokenizer = (
        Path(str(package.locate_file(f"wordllama/{name}")))
        for name in (
            "weights/l2_supercat_256.safetensors",
            "tokenizers/l2_supercat_tokenizer_config.json",
        )
    )
    (table,) = load_file(weights).values()
    write_static_model(folder / "old.onnx", table.astype(np.float32))
    content = json.loads(tokenizer.read_text(encoding="utf-8")) | {"post_processor": None}
    (folder / "words.json").write_text(json.dumps(content), encoding="utf-8")
    spec = {"format": 1, "modality": "text", "pooling": "mean", "max_length": 512}
    sidecar = folder / "old.preprocessing.json"
    sidecar.write_text(json.dumps({**spec, "tokenizer": "words.json"}), encoding="utf-8")
    project = Project.load(folder / "compatctl.yaml")
    init(project, model=folder / "old.onnx")
    return project


PAIRS: dict[str, Callable[[Path], Project]] = {"minilm": minilm, "wordllama": wordllama}


def write_static_model(path: Path, table: np.ndarray) -> None:
    """ONNX from token ids (N, L) to the rows (N, L, F) of a table (V, F)."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    axes = ["batch", "length", table.shape[1]]
    rows = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, axes)
    node = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    graph = helper.make_graph(
        [node], "words", [ids], [rows], [numpy_helper.from_array(table, "table")]
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def _routes(
    project: Project, folder: Path, given: argparse.Namespace
) -> Iterator[tuple[str, Path]]:
    """Each route's name and model."""
    new = folder / "new.onnx"
    bridged = folder / "bridged.onnx"
    result = bridge(project, new=new, output=bridged, share=0.0)
    yield f"bridged ({result.kind})", bridged
    yield _fused(project, folder, bridged)
    for base in (new, given.folder):
        if base is None:
            continue
        tuned = folder / "tuned.onnx"
        trained = replace(project, output=tuned, candidate=folder / "candidate")
        name = "a head behind it"
        if base is given.folder:
            recipe = folder / "recipe.yaml"
            settings = {"train": given.train, "layers": given.layers}
            optimiser = {"epochs": given.epochs, "batch_size": 128}
            recipe.write_text(json.dumps({"format": 1, **settings, "optimiser": optimiser}))
            trained = replace(trained, recipe=recipe)
            name = f"train: {given.train}, layers: {given.layers}, {given.epochs} epochs"
        made = finetune(trained, base=base)
        yield f"{name} ({made.seconds:.0f} s)", tuned
        yield _fused(project, folder, tuned)


def _fused(project: Project, folder: Path, new: Path) -> tuple[str, Path]:
    output = folder / "fused.onnx"
    fusion = fuse(project, old=folder / "old.onnx", new=new, output=output)
    return f"the same, fused, weight {fusion.weight:g}", output


def _row(project: Project, folder: Path, model: Path) -> str:
    """The cells of a model: alone, and with its first answers ranked again."""
    plain, ranked = (
        verify(
            project,
            old=folder / "old.onnx",
            new=model,
            options=VerifyOptions(dry_run=True, rescore=rescore),
        )
        for rescore in (None, RESCORED)
    )
    today = plain.groups[0].hit_rate["old_old"]["1"]
    alone, again = route_of("alone", plain).new_old, route_of("re-scored", ranked).new_old
    first = [f"{today:.4f}", f"{alone:.4f}", *_judged(plain)]
    return " | ".join([*first, f"{again:.4f}", *_judged(ranked)])


def _judged(report: Report) -> tuple[str, str]:
    """The gain with its interval, and the verdict."""
    gain = next(check for check in report.verdict.checks if check.name == "hit_gain")
    return (
        f"{gain.estimate:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})",
        report.verdict.outcome,
    )


if __name__ == "__main__":
    main()
