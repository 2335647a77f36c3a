"""The same rows as a store of its own and as a store of a table or collection: what is measured on
both, in turns within one run."""

from __future__ import annotations

import cProfile
import importlib
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.large_store import SIDE, write_encoder

ITEMS = 1000
"""Rows of which images are known."""


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D), each divided by its norm, float32."""
    found: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def kit(name: str) -> Any:
    """A module of the tests, which starts a server."""
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "kits"))
    return importlib.import_module(name)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(sides: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each side in each turn; one turn before them warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, call in sides.items():
            spent = seconds(call)
            if turn:
                taken[name].append(spent)
    return taken


def ratio(taken: dict[str, list[float]], first: str, second: str) -> float:
    """The median over the turns of the seconds of ``first`` over those of ``second``."""
    pairs = zip(taken[first], taken[second], strict=True)
    return statistics.median(a / b for a, b in pairs)


def clusters(rng: np.random.Generator, dim: int) -> Callable[[int], np.ndarray]:
    """What gives n unit rows (n, dim) near 2,000 centres."""
    centres = rng.standard_normal((2000, dim))

    def near(n: int) -> np.ndarray:
        noise = 0.6 * rng.standard_normal((n, dim))
        return unit(centres[rng.integers(0, 2000, n)] + noise)

    return near


def write_items(folder: Path, vectors: np.ndarray) -> list[str]:
    """Two models, images of the first ``ITEMS`` rows of ``vectors`` (N, D), which get the first
    model's own vectors, noisy images as queries, and the rows as a file; the ids (N,)."""
    from compatctl.data import load
    from compatctl.encoder import Encoder

    for seed, name in enumerate(("model.onnx", "new.onnx")):
        write_encoder(folder / name, vectors.shape[1], seed)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (ITEMS, SIDE, SIDE, 3)).astype(np.int64)
    noisy = np.clip(images + rng.integers(-90, 91, images.shape), 0, 255)
    ids = [f"{row:09d}" for row in range(len(vectors))]
    np.savez(
        folder / "items.npz",
        images=np.concatenate([images, noisy]).astype(np.uint8),
        ids=np.array(ids[:ITEMS] + [f"q{row}" for row in range(ITEMS)]),
        labels=np.array([f"class {number}" for number in range(ITEMS)] * 2),
        role=np.array(["gallery"] * ITEMS + ["query"] * ITEMS),
    )
    embedded = Encoder.load(folder / "model.onnx").embed(load(folder / "items.npz"))
    vectors[:ITEMS] = embedded.features[:ITEMS]
    np.savez(folder / "rows.npz", ids=np.array(ids), vectors=vectors)
    return ids


def import_both(folder: Path, engine: str, url: str, ef: int) -> None:
    """Make the stores ``ENGINE-store``, of the URL, and ``file-store``, of the file of rows."""
    from compatctl.commands.import_index import import_index
    from compatctl.recipe import Project

    for name, index in ((engine, url), ("file", folder / "rows.npz")):
        project = Project(store=folder / f"{name}-store")
        make = partial(import_index, project, index=index, model=folder / "model.onnx",
                       items=None, ef_search=ef)  # fmt: skip
        print(f"import of the {name}: {seconds(make):.1f} s")


def comparing_searches(
    fenced: Callable[[bool], Callable[[], None]],
    store: Path,
    queries: np.ndarray,
    *,
    k: int,
    ef: int,
    turns: int,
    target: str = "",
) -> None:
    """Print the searches a second of each side, and the ratios to a search without the fence.

    Args:
        fenced: what searches for every query one by one, with the fence or without.
        store: the store whose index does the same, one by one and in one batch.
        queries: unit rows (Q, D).
        target: what the ratio is to be, for people.
    """
    from compatctl.deployment.gallery import DeployedGallery
    from compatctl.store import Store

    gallery = DeployedGallery.open(Store.open(store))
    _ = gallery.catalog.row_of

    def own() -> None:
        for query in queries:
            gallery.index.search(query[None], k, ef)

    taken = in_turns(
        {
            "without the fence": fenced(False),
            "with the fence": fenced(True),
            "a store's index, one by one": own,
            "a store's index, a batch": lambda: gallery.index.search(queries, k, ef),
        },
        turns,
    )
    for name, spent in taken.items():
        speed = len(queries) / statistics.median(spent)
        relative = ratio(taken, "without the fence", name)
        print(f"{name}: {speed:,.0f} queries/s, ratio {relative:.2f}{target}")


def reading(folder: Path, engine: str) -> None:
    """Print the seconds of a whole-gallery read of each store, and the ratio."""
    from compatctl.deployment.gallery import DeployedGallery
    from compatctl.store import Store

    galleries = {
        name: DeployedGallery.open(Store.open(folder / f"{name}-store"))
        for name in ("file", engine)
    }
    for gallery in galleries.values():
        _ = gallery.catalog.row_of
    rows = {name: gallery.vectors() for name, gallery in galleries.items()}
    assert np.allclose(rows["file"], rows[engine], atol=1e-6)
    taken = in_turns({name: gallery.vectors for name, gallery in galleries.items()}, turns=5)
    for name, spent in taken.items():
        n, dim = rows[name].shape
        print(f"reading {n} rows of {dim} from the {name}: {statistics.median(spent):.2f} s")
    print(f"{engine} / file: {ratio(taken, engine, 'file'):.1f}")


def verifying(folder: Path, engine: str, *, profiled: bool = False) -> None:
    """Print the seconds of ``verify`` on each store, and the ratio; the new model is another one,
    and the gate lets it pass on neither."""
    from compatctl.commands.verify import verify
    from compatctl.recipe import Project

    def judge(name: str) -> None:
        project = Project(
            store=folder / f"{name}-store",
            data=folder / "items.npz",
            report=folder / f"{name}.json",
        )
        report = verify(project, new=folder / "new.onnx")
        assert report.verdict.outcome != "pass"
        assert report.store is not None
        assert report.searched is not None

    sides = ("file", engine)
    taken = in_turns({name: partial(judge, name) for name in sides}, turns=3)
    for name, spent in taken.items():
        print(f"verify on the {name}: {statistics.median(spent):.1f} s")
    print(f"{engine} / file: {ratio(taken, engine, 'file'):.2f} (target 1.5)")
    if profiled:
        for name in sides:
            with cProfile.Profile() as profiler:
                judge(name)
            print(f"== verify on the {name}")
            pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)
