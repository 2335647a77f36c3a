"""Every writing command as a scenario: a prepared project, the command, the states around it.

A new command is one line in ``SCENARIOS``, with a function that prepares its project if none fits.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from free_kit import with_free
from kit import LONG, Kind, Machine, Outcome, fresh_copy
from PIL import Image, ImageOps
from shop_kit import SIDE, write_encoder

from compatctl.core.policy import POLICY_FORMAT
from compatctl.data import load, memory_bytes
from compatctl.files import canonical_json, sha256_bytes, sha256_file
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Manifest
from compatctl.recipe import load_policy
from compatctl.samples import TILE, emoji_source
from compatctl.store import Store
from compatctl.store.side_file import SideFile

FIRST, ALL = 12, 18
"""The number of items of the first generation, and of the project."""
REASON = "the drill"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One write.

    ``argv``: program first. ``creates``: there is no store before it. ``makes_generation``: whether
    it makes a generation. ``every``: the short form tries every n-th call, 1 is all calls.
    ``beside``: the files that it may write outside the store. ``erases``: whether it removes items.
    ``afterwards``: commands that must succeed after it.
    """

    name: str
    argv: tuple[str, ...]
    prepare: Callable[[Machine, Path], None]
    creates: bool = False
    makes_generation: bool = True
    every: int = 1
    beside: tuple[str, ...] = ()
    erases: bool = False
    afterwards: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class State:
    """The content of a store: the query model, and each item's class, model and vector."""

    query_model: str
    rows: dict[str, tuple[str, str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A scenario that was prepared and ran once without a fault.

    ``before`` and ``after``: the store's states (None before a creation). ``outcome`` and
    ``seconds``: those of the run. ``generation``: the number of the generation after it.
    ``written``: the files that it wrote outside the store. ``sizes``: the sizes of the files that
    it wrote into the store. ``counted``: the store's files of attempts before and after.
    """

    scenario: Scenario
    pristine: Path
    before: State | None
    after: State
    before_manifest: Manifest | None
    generation: int
    written: dict[str, bytes]
    outcome: Outcome
    seconds: float
    sizes: tuple[int, ...]
    counted: tuple[dict[str, bytes], dict[str, bytes]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the counted calls; that of call n is ``names[n - 1]``."""
        return tuple(call.name for call in self.outcome.calls)

    def boundaries(self, kind: Kind, *, only: tuple[str, ...] = (), every: int = 0) -> list[int]:
        """The calls (from 1) for faults of this kind; a sample in the short form."""
        calls = [number for number, name in enumerate(self.names, 1) if not only or name in only]
        step = 1 if LONG else every or self.scenario.every
        return calls[int(kind) % min(step, len(calls) or 1) :: step]


def read_state(store: Store) -> State:
    """The state of a store, in which each item must find its own vector as the nearest."""
    manifest, catalog = store.manifest, store.catalog()
    index = manifest.index
    params = HnswParams(
        space=index.space,
        dim=index.dim,
        M=index.M,
        ef_construction=index.ef_construction,
        ef_search=index.ef_search,
        seed=index.seed,
    )
    opened = HnswIndex.load(store.verified_path("indexes", index.sha256), params, index.count)
    vectors = opened.vectors(catalog.keys)
    keys, scores = opened.search(vectors, 1, index.ef_search, threads=1)
    assert np.array_equal(keys[:, 0], catalog.keys), "an item does not find itself"
    assert scores.min() > 0.999
    rows = zip(catalog.ids, catalog.labels, catalog.model_of, vectors, strict=True)
    return State(
        query_model=manifest.query_model,
        rows={
            item: (label, catalog.models[model], vector.tobytes())
            for item, label, model, vector in rows
        },
    )


def beside(project: Path) -> dict[str, bytes]:
    """The bytes of every file of a project outside its store, by name."""
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file() and "store" not in path.relative_to(project).parts[:1]
    }


def attempts(project: Path) -> dict[str, bytes]:
    """The bytes of the files of attempts of a project's store, by name."""
    return {path.name: path.read_bytes() for path in project.glob("store/attempts/[!.]*.json")}


def stage(machine: Machine, scenario: Scenario, folder: Path) -> Stage:
    """Prepare the scenario's project, and run it once without a fault in a copy."""
    pristine, copy = folder / "pristine", folder / "ran"
    pristine.mkdir(parents=True)
    scenario.prepare(machine, pristine)
    before = None if scenario.creates else Store.open(pristine / "store")
    fresh_copy(pristine, copy)
    outcome = machine.run(copy, scenario.argv)
    assert outcome.status == 0, outcome.stderr
    store = Store.open(copy / "store")
    after = read_state(store)
    old = beside(pristine)
    written = {name: data for name, data in beside(copy).items() if old.get(name) != data}
    assert set(written) == set(scenario.beside)
    files = [path for path in (copy / "store").rglob("*") if path.is_file()]
    existing = {path.name for path in pristine.rglob("*") if path.name != "manifest.json"}
    sizes = {path.stat().st_size for path in files if path.name not in existing | {"LOCK"}}
    counted = (attempts(pristine), attempts(copy))
    shutil.rmtree(copy)
    state = read_state(before) if before else None
    assert state is None or (state.rows.keys() <= after.rows.keys()) != scenario.erases
    return Stage(
        scenario=scenario,
        pristine=pristine,
        before=state,
        after=after,
        before_manifest=before.manifest if before else None,
        generation=store.manifest.generation,
        written=written,
        outcome=outcome,
        seconds=outcome.seconds,
        sizes=tuple(sorted(sizes)),
        counted=counted,
    )


def _write_data(folder: Path) -> None:
    """Write emoji 16 pixels wide, and two tables: the first items, and all of them."""
    source = emoji_source()
    with (source / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["sheet"] == "noto.webp"][:ALL]
    (folder / "images").mkdir()
    with Image.open(source / "noto.webp") as image:
        sheet = image.convert("RGB")
    across = sheet.width // TILE
    for row in rows:
        top, left = divmod(int(row["tile"]), across)
        tile = sheet.crop((left * TILE, top * TILE, (left + 1) * TILE, (top + 1) * TILE))
        tile.resize((SIDE, SIDE)).save(folder / "images" / f"{row['label']}.png")
    for name, count in (("first.csv", FIRST), ("items.csv", ALL)):
        lines = [f"{row['label']},images/{row['label']}.png,c{i % 6},test,gallery"
                 for i, row in enumerate(rows[:count])]  # fmt: skip
        (folder / name).write_text("\n".join(["id,path,label,split,role", *lines, ""]))


def _write_project(folder: Path) -> None:
    (folder / "compatctl.yaml").write_text(
        "format: 1\nstore: store\ndata: items.csv\nmax_gallery_pass: 1.0\n"
    )


def _prepare_models(machine: Machine, folder: Path) -> None:
    _write_data(folder)
    write_encoder(folder / "old.onnx", noise=0.6)
    write_encoder(folder / "new.onnx", noise=0.05)


def _run(machine: Machine, folder: Path, *argv: str) -> None:
    outcome = machine.run(folder, ("compatctl", *argv))
    assert outcome.status == 0, outcome.stderr


def _prepare_lift(machine: Machine, folder: Path) -> None:
    """A store, and a table with its items and the others as validation queries."""
    prepare_store(machine, folder)
    with (folder / "items.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    queries = [[*row[:3], "validation", "query"] for row in rows[1 + FIRST :]]
    lines = [",".join(row) for row in (*rows[: 1 + FIRST], *queries)]
    (folder / "lift.csv").write_text("\n".join([*lines, ""]))


def _prepare_verify(machine: Machine, folder: Path) -> None:
    """``_prepare_queries``, and one counted attempt."""
    _prepare_queries(machine, folder)
    _run(machine, folder, *VERIFY[1:], "--seed", "1")
    (folder / "report.json").unlink()


def _prepare_promote(machine: Machine, folder: Path) -> None:
    """A store that re-scores, and that has the free vectors of what one query found."""
    _prepare_queries(machine, folder)
    with_free(folder / "both.onnx", folder / "new.onnx", folder / "new.onnx")
    with (folder / "items.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    queries = [row for row in rows[1:] if row[4] == "query"]
    lines = [f"v{i},{row[1]},{row[2]},validation,query" for i, row in enumerate(queries[::2])]
    (folder / "all.csv").write_text("\n".join([*map(",".join, rows), *lines, ""]))
    project = folder / "compatctl.yaml"
    project.write_text(project.read_text().replace("items.csv", "all.csv") + "policy: drill.yaml\n")
    rescored = ("--rescore", "4")
    _run(machine, folder, "verify", "old.onnx", "both.onnx", *rescored)
    _run(machine, folder, "deploy", *rescored)
    _run(machine, folder, "search", queries[0][1])
    (folder / "report.json").unlink()


def _prepare_queries(machine: Machine, folder: Path) -> None:
    """A store with one class for each item, darker copies as queries, and a policy that can pass
    with so few classes."""
    _prepare_models(machine, folder)
    _write_project(folder)
    with (folder / "items.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    lines = [f"{item},{path},{item},test,gallery" for item, path, *_ in rows]
    for item, path, *_ in rows:
        for darker in (3, 6):
            name = f"images/{item}-{darker}.png"
            with Image.open(folder / path) as image:
                image.point(lambda value, by=darker: max(0, value - by)).save(folder / name)
            lines.append(f"{item}-{darker},{name},{item},test,query")
    (folder / "items.csv").write_text("\n".join(["id,path,label,split,role", *lines, ""]))
    unlimited = ("different_class_margin", "min_slice_gain", "min_chain_gain",
                 "min_untouched_gain", "min_unjudged_gain", "max_design_effect")  # fmt: skip
    policy = replace(
        load_policy("default"),
        name="drill", alpha=0.4, replicates=999, min_queries=1, min_classes=1,
        min_hit_gain=-1.0, **dict.fromkeys(unlimited),
    )  # fmt: skip
    entries = {"format": POLICY_FORMAT, **asdict(policy)}
    (folder / "drill.yaml").write_text(
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in entries.items())
    )
    _run(machine, folder, "init", "--model", "old.onnx")


VERIFY = ("compatctl", "verify", "old.onnx", "new.onnx", "--policy", "drill.yaml", "--json")
VERIFIED_AGAIN = (*VERIFY, "--seed", "2", "--report", "third.json")
DEPLOYED = ("compatctl", "deploy", "--policy", "drill.yaml", "--json")
INIT = ("compatctl", "init", "--model", "old.onnx", "--json", "--store", "store",
        "--data", "items.csv")  # fmt: skip


def prepare_store(machine: Machine, folder: Path) -> None:
    _prepare_models(machine, folder)
    _write_project(folder)
    _run(machine, folder, "init", "--model", "old.onnx", "--data", "first.csv")


def _prepare_changed(machine: Machine, folder: Path) -> None:
    """A store, and data in which two items have other images and one has another class."""
    prepare_store(machine, folder)
    with (folder / "items.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[1:3]:
        with Image.open(folder / row[1]) as image:
            ImageOps.invert(image).save(folder / row[1])
    rows[2][2] = "c9"
    (folder / "items.csv").write_text("\n".join([*map(",".join, rows), ""]))


def _prepare_deployed(machine: Machine, folder: Path) -> None:
    prepare_store(machine, folder)
    _run(machine, folder, *DEPLOY[1:])


def _prepare_import(machine: Machine, folder: Path) -> None:
    """A deployed hnswlib file with its table, without a store."""
    prepare_store(machine, folder)
    store = Store.open(folder / "store")
    shutil.copy(store.blob_path("indexes", store.manifest.index.sha256), folder / "deployed.bin")
    catalog = store.catalog()
    rows = zip(catalog.keys, catalog.ids, catalog.labels, strict=True)
    lines = [f"{key},{item},{label}" for key, item, label in rows]
    (folder / "keys.csv").write_text("\n".join(["key,id,label", *lines, ""]))
    shutil.rmtree(folder / "store")


def _prepare_gc(machine: Machine, folder: Path) -> None:
    """Two generations, and remains of killed writers: blobs, temporary files, a generation."""
    _prepare_deployed(machine, folder)
    _leave_remains(folder)


def _prepare_gc_keep(machine: Machine, folder: Path) -> None:
    """Two generations without a deploy to undo, and the same remains of killed writers."""
    prepare_store(machine, folder)
    _run(machine, folder, "add")
    _leave_remains(folder)


def _leave_remains(folder: Path) -> None:
    store = Store.open(folder / "store")
    with store.transaction(store.manifest) as tx:
        for kind in ("indexes", "reports", "models"):
            tx.put(kind, lambda path: path.write_bytes(b"left behind") and None)
    (store.path / "catalogs" / ".new-0123456789abcdef.npz").write_bytes(b"half of")
    (store.path / ".new-0123456789abcdef.json").write_bytes(b"{")
    orphan = store.path / "history" / "000003.json"
    orphan.write_bytes((store.path / "history" / "000002.json").read_bytes())


def _prepare_remove(machine: Machine, folder: Path) -> None:
    """A deployed model, items that are also in the memory, in the candidate's files and in side
    files, and a list of two of these items."""
    prepare_store(machine, folder)
    store, data = Store.open(folder / "store"), load(folder / "first.csv")
    ids = store.catalog().ids
    vectors = np.array(
        [np.frombuffer(row[2], np.float32) for row in read_state(store).rows.values()]
    )
    write_encoder(folder / "new.onnx", noise=0.05, recorded=False)
    memory = memory_bytes(data)
    candidate = folder / "build" / "candidate"
    candidate.mkdir(parents=True)
    (candidate / "memory.npz").write_bytes(memory)
    entries = [{"id": item, "sha256": data.digest(row)} for row, item in enumerate(data.ids)]
    record = {
        "items": entries, "unlabelled": entries, "classes": [], "parity": 0.0,
        "registry_sha256": None, "memory_sha256": sha256_bytes(memory),
        "models": [sha256_file(folder / "new.onnx")],
    }  # fmt: skip
    (candidate / "training.json").write_bytes(canonical_json(record))
    _run(machine, folder, *DEPLOY[1:])
    for model in Store.open(store.path).manifest.models:
        side = SideFile.open(store.path, model.sha256, vectors.shape[1])
        assert side.append(ids, vectors, store.catalog().digests) == len(ids)
    (folder / "gone.txt").write_text(f"{ids[1]}\n{ids[4]}\n")


IMPORT = ("compatctl", "import", "deployed.bin", "--model", "old.onnx", "--items", "keys.csv",
          "--json")  # fmt: skip
DEPLOY = ("compatctl", "deploy", "--model", "new.onnx", "--force", "--reason", REASON, "--json")
BACKFILL = ("compatctl", "backfill", "--share", "0.5", "--step", "100%", "--force", "--reason",
            REASON, "--json")  # fmt: skip
LIFT = ("compatctl", "lift", "new.onnx", "--kind", "ridge", "--data", "lift.csv", "--force",
        "--reason", REASON, "--json")  # fmt: skip
PROMOTE = ("compatctl", "promote", "--force", "--reason", REASON, "--json")
GC = ("compatctl", "check", "--gc", "--json")
GC_KEEP = ("compatctl", "check", "--gc", "--keep", "1", "--json")

REMOVE = ("compatctl", "remove", "--ids", "gone.txt", "--json")
ROLLBACK = ("compatctl", "rollback", "--to", "1", "--json")

SCENARIOS = (
    Scenario(name="init", argv=INIT, prepare=_prepare_models, creates=True, every=9,
             beside=("compatctl.yaml",)),
    Scenario(name="import", argv=IMPORT, prepare=_prepare_import, creates=True, every=9),
    Scenario(name="add", argv=("compatctl", "add", "--json"), prepare=prepare_store, every=7),
    Scenario(name="changed", argv=("compatctl", "add", "--changed", "--json"),
             prepare=_prepare_changed, every=19),
    Scenario(name="deploy", argv=DEPLOY, prepare=prepare_store, every=3),
    Scenario(name="rollback", argv=ROLLBACK, prepare=_prepare_deployed),
    Scenario(name="backfill", argv=BACKFILL, prepare=_prepare_deployed, every=7),
    Scenario(name="promote", argv=PROMOTE, prepare=_prepare_promote, every=9,
             afterwards=(ROLLBACK, ("compatctl", "check"))),
    Scenario(name="gc", argv=GC, prepare=_prepare_gc, makes_generation=False, every=2),
    Scenario(name="remove", argv=REMOVE, prepare=_prepare_remove, every=25, erases=True,
             beside=("build/candidate/memory.npz", "build/candidate/training.json")),
    Scenario(name="verify", argv=VERIFY, prepare=_prepare_verify, makes_generation=False, every=7,
             beside=("report.json",), afterwards=(VERIFIED_AGAIN, DEPLOYED)),
    Scenario(name="gc keep", argv=GC_KEEP, prepare=_prepare_gc_keep, every=2),
    *((Scenario(name="lift", argv=LIFT, prepare=_prepare_lift),) if LONG else ()),
)  # fmt: skip
NAMES = tuple(scenario.name for scenario in SCENARIOS)
