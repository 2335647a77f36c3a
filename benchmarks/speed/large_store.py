"""A store of a million items: do deploy and rollback read it, and how much memory takes add?

    python -m benchmarks.speed.large_store [--rows 1000000] [--small 1000] [--dim 128] [--added 200]

Makes two stores, small and large, with two small encoders. ``compatctl deploy`` and ``compatctl
rollback`` run on both in turn, each as a process of its own, and the medians of their seconds are
held against each other. ``compatctl add`` then indexes new images in the large one, and the peak
memory of its process (the interpreter and every library included) is held against the size of the
index file; ``search`` runs twice, before and after the file's digest is remembered.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compatctl.index import HnswIndex

ROUNDS = 5
SIDE = 16
BATCH = 8192


def write_encoder(path: Path, dim: int, seed: int) -> None:
    """A sealed encoder: unit rows of a random projection of 16 x 16 pixels."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from compatctl.data import Preprocessing
    from compatctl.encoder import ImageInput, seal

    size = SIDE * SIDE * 3
    weights = np.random.default_rng(seed).standard_normal((size, dim)).astype(np.float32)
    constants = {"weights": weights, "flat": np.array([-1, size]), "middle": np.float32(127.5)}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "middle"], ["centred"]),
        helper.make_node("Reshape", ["centred", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    raw = path.with_suffix(".raw")
    onnx.save(model, raw)
    preprocessing = Preprocessing(height=SIDE, width=SIDE, resize="bilinear", fit="stretch")
    seal(raw, path, (ImageInput(name="image", preprocessing=preprocessing),))


def store_of(folder: Path, index: HnswIndex, model: Path) -> None:
    """A store of an index, whose row 7 is item-000000007 of the class class-0007."""
    from compatctl.deployment.artifacts import ModelArtifacts
    from compatctl.deployment.creation import create_store, first_catalog, index_info
    from compatctl.deployment.model_file import ModelFile

    file, rows = ModelFile.read(model), len(index)
    ids = tuple(f"item-{row:09d}" for row in range(rows))
    labels = tuple(f"class-{row % 1000:04d}" for row in range(rows))
    create_store(
        folder / "store",
        model=file,
        artifacts=ModelArtifacts(registry=None, memory=None),
        index=index.save,
        info=index_info(index.params),
        catalog=first_catalog(ids, labels, index.keys(), file.encoder.sha256),
        operation="init",
    )


def make(folder: Path, rows: int, dim: int, added: int) -> None:
    """A project folder with a store of that many random rows, two encoders and new images."""
    import numpy as np

    from compatctl.index import HnswIndex, HnswParams

    folder.mkdir()
    for seed, name in enumerate(("old.onnx", "new.onnx")):
        write_encoder(folder / name, dim, seed)
    params = HnswParams(dim=dim, M=16, ef_construction=20)
    index = HnswIndex.create(params, rows)
    rng = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        keys = np.arange(start, min(start + BATCH, rows), dtype=np.uint64)
        part = rng.standard_normal((len(keys), dim), dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        index.add(part, keys, threads=os.cpu_count() or 1)
    store_of(folder, index, folder / "old.onnx")
    np.savez(
        folder / "new.npz",
        images=rng.integers(0, 256, (added, SIDE, SIDE, 3), dtype=np.uint8),
        ids=np.array([f"new-{at}" for at in range(added)]),
        labels=np.array(["new"] * added),
        role=np.array(["gallery"] * added),
    )
    (folder / "compatctl.yaml").write_text("format: 1\nstore: store\ndata: new.npz\n")


def compatctl(folder: Path, *arguments: str) -> tuple[float, int, Any]:
    """Seconds, peak bytes and the answer of one command, run as a process of its own.

    This process stays small: a child's peak is never less than what its parent held when it began.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "compatctl", *arguments, "--json"]
    environment = {**os.environ, "COMPATCTL_CACHE": str(folder / "cache")}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"compatctl {' '.join(arguments)}: exit code {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), json.loads(said)


def switching(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Median seconds of deploy and rollback in each store, one after the other in every round."""
    seconds: dict[str, dict[str, list[float]]] = {
        command: {name: [] for name in folders} for command in ("deploy", "rollback")
    }
    for _ in range(ROUNDS):
        for name, folder in folders.items():
            force = ("--model", "new.onnx", "--force", "--reason", "benchmark")
            seconds["deploy"][name].append(compatctl(folder, "deploy", *force)[0])
        for name, folder in folders.items():
            seconds["rollback"][name].append(compatctl(folder, "rollback")[0])
    return {
        command: {name: statistics.median(times) for name, times in sides.items()}
        for command, sides in seconds.items()
    }


def main() -> None:
    """Measure, or be the process that makes a store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--added", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.make, given.rows, given.dim, given.added)
        return
    with tempfile.TemporaryDirectory() as name:
        folders = {"small": Path(name) / "small", "large": Path(name) / "large"}
        for side, rows in (("small", given.small), ("large", given.rows)):
            sizes = ("--rows", rows, "--dim", given.dim, "--added", given.added)
            arguments = [sys.executable, __file__, "--make", folders[side], *sizes]
            subprocess.run([str(argument) for argument in arguments], check=True)
        measured: dict[str, Any] = {"rows": given.rows, "dim": given.dim, **switching(folders)}
        for command in ("deploy", "rollback"):
            measured[command]["ratio"] = measured[command]["large"] / measured[command]["small"]
        large = folders["large"]
        seconds, peak, answer = compatctl(large, "add")
        size = (large / "store" / "indexes" / f"{answer['index_sha256']}.hnsw").stat().st_size
        measured["add"] = {
            "added": answer["added"],
            "seconds": seconds,
            "peak_bytes": peak,
            "index_bytes": size,
            "ratio": peak / size,
        }
        measured["search"] = searching(large)
    show(measured, as_json=given.json)


def searching(folder: Path) -> dict[str, float]:
    """Seconds of the first search after an add, and of one that remembers the index's digest."""
    from PIL import Image

    Image.new("RGB", (SIDE, SIDE), (200, 30, 90)).save(folder / "query.png")
    time.sleep(3.0)  # a file that has just changed is not remembered
    return {name: compatctl(folder, "search", "query.png")[0] for name in ("first", "again")}


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """The figures."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['rows']} x {found['dim']}")
    for command in ("deploy", "rollback"):
        values = found[command]
        print(
            f"{command:9} small {values['small']:.3f} s, large {values['large']:.3f} s, "
            f"ratio {values['ratio']:.2f}"
        )
    add = found["add"]
    print(
        f"add       {add['added']} items in {add['seconds']:.1f} s, peak "
        f"{add['peak_bytes'] / 1e6:.1f} MB, index {add['index_bytes'] / 1e6:.1f} MB, "
        f"ratio {add['ratio']:.3f}"
    )
    print(
        f"search    first {found['search']['first']:.2f} s, again {found['search']['again']:.2f} s"
    )


if __name__ == "__main__":
    main()
