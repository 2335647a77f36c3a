"""Processes that damage a store and ask about it, and processes that write and read one at once.

Run as ``python store_workers.py VERB JSON``; the answer is one line of JSON on stdout. What a
crash of the interpreter would take down is a process of its own.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import compatctl
from compatctl.data import Dataset, Item, memory_bytes
from compatctl.errors import CompatError, ConflictError
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Catalog, IndexInfo, Manifest, ModelShare
from compatctl.store import (
    KINDS,
    Attempt,
    Store,
    Transaction,
    check,
    gc,
    manifest_digest,
    record_attempt,
    restore,
    rollback_plan,
)

AT = "2026-01-31T12:00:00Z"
FIRST, MORE, ALL = 12, 15, 18
"""Items of the first generation, after an add, and of the project's table."""

HANGS_S = 20
"""A command over a small store takes less than a tenth of a second."""

# --------------------------------------------------------------------------------------------
# Starting them


def start(verb: str, *, env: dict[str, str] | None = None, **request: Any) -> subprocess.Popen[str]:
    """A fresh process of this interpreter that runs a verb with the package of these tests."""
    package = str(Path(compatctl.__file__).parent.parent)
    beside = str(Path(__file__).parent.parent / "kits")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("COMPATCTL")}
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    path = {"PYTHONPATH": os.pathsep.join([package, beside])}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", __file__, verb, json.dumps(request, default=str)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **one, **path, **(env or {})},
    )


PATIENCE_S = 5400.0 if os.environ.get("COMPATCTL_TORTURE") == "long" else 300.0


def answer(process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Any:
    """What the process says at its end, which must be an orderly one."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"exit {process.returncode}: {out[-2000:]} {err[-4000:]}"
    return json.loads(out.splitlines()[-1])


def work(verb: str, *, env: dict[str, str] | None = None, **request: Any) -> Any:
    """Run a verb in a process of its own and wait for its answer."""
    return answer(start(verb, env=env, **request))


# --------------------------------------------------------------------------------------------
# The command line, in this process


@dataclass(frozen=True)
class Said:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.stdout)


@functools.cache
def _command_line() -> Any:
    """What ``cli.main`` calls, made once: that takes longer than a command."""
    import typer.main

    from compatctl import cli

    return typer.main.get_command(cli.app)


def command(project: Path, *argv: object) -> Said:
    """Run a command with JSON; what escapes the command line's error boundary escapes here."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    given = [str(one) for one in argv]
    given += ["--project", str(project / "compatctl.yaml"), "--json"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _command_line()(given, prog_name="compatctl")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Said(code, out.getvalue(), err.getvalue())


def argv_of(name: str, project: Path) -> tuple[str, ...]:
    """The command line of a name, in a project that ``build`` made."""
    lines = {
        "search": ("search", str(project / "query.png"), "-k", "3"),
        "add": ("add", "--data", str(project / "items.csv")),
        "deploy": ("deploy", "--model", str(project / "new.onnx"), "--force", "--reason", "drill"),
        "rollback": ("rollback", "--to", "1", "--added", "drop"),
        "gc": ("check", "--gc"),
    }
    return lines.get(name, (name,))


def snapshot(root: Path) -> dict[str, str | bytes]:
    """Everything in a folder: a file's bytes, a link's target, '/' for a folder."""
    return {
        str(path.relative_to(root)): (
            str(path.readlink())
            if path.is_symlink()
            else "/"
            if path.is_dir()
            else path.read_bytes()
        )
        for path in root.rglob("*")
    }


# --------------------------------------------------------------------------------------------
# A project whose store has a file of every kind


def build(folder: Path, *, other: bool = False) -> None:
    """A real project in four generations: init, add, deploy with its artifacts, rollback.

    ``other``: other models over other items.
    """
    from shop_kit import write_encoder

    folder.mkdir(parents=True)
    _write_items(folder, 2 * ALL if other else 0)
    write_encoder(folder / "old.onnx", noise=0.6, seed=int(other))
    write_encoder(folder / "new.onnx", noise=0.05, seed=int(other))
    (folder / "compatctl.yaml").write_text("format: 1\nstore: store\ndata: items.csv\n")
    for line in (
        ("init", "--model", folder / "old.onnx", "--data", folder / "first.csv"),
        ("add", "--data", folder / "more.csv"),
    ):
        done = command(folder, *line)
        assert done.code == 0, done.stderr
    _deploy_with_artifacts(Store.open(folder / "store"), folder / "new.onnx", other=other)
    done = command(folder, "rollback")
    assert done.code == 0, done.stderr


def _write_items(folder: Path, skip: int) -> None:
    """Emoji of one vendor, a query, and three tables of more and more of them."""
    from PIL import Image

    from compatctl.samples import TILE, emoji_source

    source = emoji_source()
    with (source / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["sheet"] == "noto.webp"]
    rows = rows[skip : skip + ALL]
    (folder / "images").mkdir()
    with Image.open(source / "noto.webp") as sheet:
        for row in rows:
            top, left = divmod(int(row["tile"]), sheet.width // TILE)
            at = (left * TILE, top * TILE, (left + 1) * TILE, (top + 1) * TILE)
            tile = sheet.crop(at).convert("RGB").resize((16, 16))
            tile.save(folder / "images" / f"{row['label']}.png")
    shutil.copy(folder / "images" / f"{rows[3]['label']}.png", folder / "query.png")
    for name, count in (("first.csv", FIRST), ("more.csv", MORE), ("items.csv", ALL)):
        lines = [f"{row['label']},images/{row['label']}.png,c{at % 6},test,gallery"
                 for at, row in enumerate(rows[:count])]  # fmt: skip
        (folder / name).write_text("\n".join(["id,path,label,split,role", *lines, ""]))


def _deploy_with_artifacts(store: Store, model: Path, *, other: bool) -> None:
    """A deploy with report, registry and memory, as a verified candidate's has."""
    from compatctl.commands.deploy import with_model
    from compatctl.deployment.model_file import ModelFile

    now = store.manifest
    with store.transaction(now, operation="deploy") as tx:
        share = ModelFile.read(model).put(tx, rows=0)
        tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=share.sha256,
            models=with_model(now, share),
            report=tx.put("reports", _writes(b'{"outcome": "pass", "other": %d}\n' % other)),
            registry=tx.put("registries", _writes(b'{"classes": ["a", "b", %d]}\n' % other)),
            memory=tx.put("memories", _writes(_memory(other=other))),
        )


def _memory(*, other: bool) -> bytes:
    """A rehearsal memory of two small images."""
    items = tuple(Item(id=one, label="a", split="train") for one in ("first", "second"))
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) + np.uint8(other)
    return memory_bytes(Dataset(items=items, sources=tuple(pixels)))


def _writes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


# --------------------------------------------------------------------------------------------
# Damage, and what must be said of it


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file of the store. ``every``: the commands asked after each flip; ``sampled``: after some;
    ``swap``: another file to exchange it with, beside those of its kind."""

    name: str
    path: Path
    every: tuple[str, ...] = ("check",)
    sampled: tuple[str, ...] = ()
    swap: tuple[Path, ...] = ()


NAMES = ("manifest", "newest", "oldest", *(kind for kind in KINDS if kind != "erasures"))
"""Of the targets: manifest.json, history's newest and oldest file, and a file of each kind that a
store has which erased nothing."""

_ALL = ("search", "add", "deploy", "history", "rollback")


def target(root: Path, name: str) -> Target:
    """The file of that name that the store's commands use, or that only check looks at."""
    store = Store.open(root)
    now, deployed = store.manifest, store.generation(3)
    history = root / "history"
    newest = history / f"{now.generation:06d}.json"
    if name in ("manifest", "newest"):
        path, swap = ((root / "manifest.json", newest), (newest, history / "000003.json"))[
            name == "newest"
        ]
        other = history / "000003.json" if name == "manifest" else swap
        return Target(name=name, path=path, every=("check", "status"), sampled=_ALL, swap=(other,))
    if name == "oldest":
        path, swap = history / "000001.json", history / "000002.json"
        return Target(name=name, path=path, sampled=("history", "rollback"), swap=(swap,))
    share = next(one for one in now.models if one.sha256 == now.query_model)
    beyond = next(one for one in deployed.models if one.sha256 == deployed.query_model)
    first = store.generation(1)
    report, registry = deployed.report or "", deployed.registry or ""
    used, swap_kind, swap_digest, sampled = {
        "models": (share.sha256, name, beyond.sha256, ("search", "add")),
        "canaries": (share.canary, name, beyond.canary, ("search", "add")),
        "indexes": (now.index.sha256, name, first.index.sha256, ("search", "add")),
        "catalogs": (now.catalog, name, first.catalog, ("search", "add", "rollback")),
        "reports": (report, "registries", registry, ()),
        "registries": (registry, "reports", report, ()),
        "memories": (deployed.memory or "", "catalogs", now.catalog, ()),
    }[name]
    swap = store.blob_path(swap_kind, swap_digest)
    return Target(name=name, path=store.blob_path(name, used), sampled=sampled, swap=(swap,))


@dataclass
class Found:
    """What a worker tried, and what was not as it must be."""

    commands: Counter[str]
    broken: list[str]
    tried: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return {"commands": self.commands, "broken": self.broken[:40], "tried": self.tried}


class _HangsError(BaseException):
    """A command did not end."""


def _hangs(number: int, frame: object) -> None:
    raise _HangsError


signal.signal(signal.SIGALRM, _hangs)


def _ask(found: Found, project: Path, asked: str, names: tuple[str, ...], what: str) -> None:
    """Run a command over a damaged store: exit 5, one of the files named, a tip, no answer."""
    found.commands[asked] += 1
    signal.alarm(HANGS_S)
    try:
        said = command(project, *argv_of(asked, project))
    except (Exception, _HangsError):  # noqa: BLE001 - a traceback is what is looked for
        found.broken.append(f"{what}: {asked}: {traceback.format_exc()[-1500:]}")
        return
    finally:
        signal.alarm(0)
    if why := _not_refused(said, names):
        text = f"{said.stdout[-600:]} {said.stderr[-600:]}"
        found.broken.append(f"{what}: {asked}: {why}; exit {said.code}: {text}")


def _not_refused(said: Said, names: tuple[str, ...]) -> str:
    """Why this is not the refusal that names a file, or nothing."""
    if said.code != 5:
        return "not exit 5"
    told = said.json
    if "error" not in told:
        if told.get("ok") is not False:
            return "an answer was given"
        text = " ".join(told["problems"])
    else:
        error = told["error"]
        text = error["message"]
        if set(told) != {"error"} or not said.stderr.startswith("compatctl: "):
            return "no plain error"
        if not error["tip"] or "next: " not in said.stderr:
            return "no tip"
    return "" if any(name in text for name in names) else f"none of {names} is named"


def flip(path: Path, bit: int, *, keep_mtime: bool = False) -> None:
    """Change one bit of a file in place."""
    was = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    if keep_mtime:
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def _positions(size: int, most: int, seed: str) -> list[int]:
    """The bits to flip: all where there are no more, else drawn by the seed."""
    bits = 8 * size
    if bits <= most:
        return list(range(bits))
    return random.Random(seed).sample(range(bits), most)


def do_build(folder: str, other: bool = False) -> dict[str, Any]:
    """Build a project."""
    build(Path(folder), other=other)
    return {"bits": {name: 8 * target(Path(folder) / "store", name).path.stat().st_size
                     for name in NAMES}}  # fmt: skip


def do_flips(folder: str, name: str, most: int, every: int) -> dict[str, Any]:
    """One flipped bit after the other; each of them must be found by every command that it is for.

    At last the right bytes are there, and everything works again.
    """
    project, found = Path(folder), Found(Counter(), [])
    root = project / "store"
    aim = target(root, name)
    before = snapshot(root)
    for at, bit in enumerate(_positions(aim.path.stat().st_size, most, name)):
        flip(aim.path, bit, keep_mtime=at % 2 == 0)
        damaged = aim.path.read_bytes()
        found.tried += 1
        asked = (*aim.every, *(aim.sampled if at % every == 0 else ()))
        for one in asked:
            _ask(found, project, one, (aim.path.name,), f"{name}, bit {bit}")
        if aim.path.read_bytes() != damaged:
            found.broken.append(f"{name}, bit {bit}: the damaged file was written to")
        flip(aim.path, bit)
        if snapshot(root) != before:
            found.broken.append(f"{name}, bit {bit}: the store was written to")
            break
    _works(found, project)
    return found.told()


def _works(found: Found, project: Path) -> None:
    """Every command that reads ends well."""
    for one in ("check", "status", "history", "search"):
        said = command(project, *argv_of(one, project))
        found.commands[one] += 1
        if said.code != 0:
            found.broken.append(f"restored: {one}: exit {said.code}: {said.stdout} {said.stderr}")


def do_lock_flips(folder: str, most: int) -> dict[str, Any]:
    """One flipped bit after the other in what a dead holder left in LOCK: nothing minds."""
    project, found = Path(folder), Found(Counter(), [])
    lock = project / "store" / "LOCK"
    left = json.dumps({"host": "h", "operation": "add", "pid": 1}).encode()
    for at, bit in enumerate(_positions(len(left), most, "LOCK")):
        lock.write_bytes(left)
        flip(lock, bit)
        found.tried += 1
        for one in ("status", *(("check", "gc", "search") if at % 10 == 0 else ())):
            said = command(project, *argv_of(one, project))
            found.commands[one] += 1
            if said.code != 0:
                found.broken.append(f"LOCK, bit {bit}: {one}: {said.stdout} {said.stderr}")
    return found.told()


# --------------------------------------------------------------------------------------------
# Damage of a whole file


Damage = Callable[[Path], None]


def _damages(aim: Target, strange: Path, aside: Path) -> Iterator[tuple[str, Damage, Path]]:
    """Name, what to do to the file, and which file is damaged by it besides."""
    data = aim.path.read_bytes()
    for length in dict.fromkeys((0, 1, len(data) // 2, len(data) - 1)):
        yield f"cut to {length}", lambda path, n=length: _put(path, data[:n]), aim.path
    yield "a byte more", lambda path: _put(path, data + b"\0"), aim.path
    yield "a line more", lambda path: _put(path, data + b"\n"), aim.path
    yield "zeros", lambda path: _put(path, bytes(len(data))), aim.path
    yield "deleted", Path.unlink, aim.path
    yield "a folder", _folder, aim.path
    yield "a full folder", lambda path: (_folder(path), _put(path / "x", b"x")), aim.path
    yield "a link", lambda path: _link(path, _aside(aside, data)), aim.path
    yield "a dangling link", lambda path: _link(path, aside / "nothing"), aim.path
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path)), aim.path
    yield "another store's", lambda path: _put(path, strange.read_bytes()), aim.path
    for other in aim.swap:
        yield f"swapped with {other.name}", lambda path, o=other: _swap(path, o), other


def _put(path: Path, data: bytes) -> None:
    if path.exists():
        path.chmod(0o644)
    path.write_bytes(data)


def _aside(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "real").write_bytes(data)
    return folder / "real"


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, to: Path) -> None:
    path.unlink()
    path.symlink_to(to)


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    _put(one, second)
    _put(other, first)


def _restore(path: Path, data: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def do_damages(folder: str, strange: str, name: str) -> dict[str, Any]:
    """Every damage of a whole file; the right bytes put back, and everything works again."""
    project, found = Path(folder), Found(Counter(), [])
    root, other = project / "store", Path(strange) / "store"
    aim, from_other = target(root, name), target(other, name).path
    for what, damage, besides in list(_damages(aim, from_other, project / "aside")):
        kept = {path: path.read_bytes() for path in (aim.path, besides)}
        damage(aim.path)
        found.tried += 1
        damaged = _without_pipes(root)
        for one in (*aim.every, *aim.sampled):
            names = (aim.path.name, besides.name)
            _ask(found, project, one, names, f"{name} {what}")
            if _without_pipes(root) != damaged:
                found.broken.append(f"{name} {what}: {one}: the store was written to")
        for path, data in kept.items():
            _restore(path, data)
        _works(found, project)
    return found.told()


def _without_pipes(root: Path) -> dict[str, str | bytes]:
    pipes = [path for path in root.rglob("*") if path.is_fifo()]
    kept = [(path, path.with_name(f"pipe-{at}")) for at, path in enumerate(pipes)]
    found = {f"pipe {path}": "" for path in pipes}
    for path, _ in kept:
        path.unlink()
    result = {**found, **snapshot(root)}
    for path, _ in kept:
        os.mkfifo(path)
    return result


def do_exchanged_heads(folder: str, strange: str) -> dict[str, Any]:
    """manifest.json and the newest generation of another store, which agree with each other."""
    project, found = Path(folder), Found(Counter(), [])
    root, other = project / "store", Path(strange) / "store"
    heads = [target(root, name).path for name in ("manifest", "newest")]
    theirs = Store.open(other).manifest
    kept = {path: path.read_bytes() for path in heads}
    for path in heads:
        _put(path, (other / path.relative_to(root)).read_bytes())
    found.tried += 1
    _ask(found, project, "check", ("000003.json",), "another store's head")
    _ask(found, project, "history", ("000003.json",), "another store's head")
    _ask(found, project, "rollback", ("000003.json",), "another store's head")
    blobs = tuple(digest for _, digest in theirs.blobs())
    for one in ("search", "add", "deploy"):
        _ask(found, project, one, blobs, "another store's head")
    for path, data in kept.items():
        _restore(path, data)
    _works(found, project)
    return found.told()


def do_commands(folder: str, names: list[str], drop: bool = False) -> list[dict[str, Any]]:
    """Run commands one after the other; with ``drop`` permissions hold although root runs it."""
    if drop and os.geteuid() == 0:
        from forkserver import give_up_override

        give_up_override()
    project = Path(folder)
    return [vars(command(project, *argv_of(name, project))) for name in names]


def do_verified_path(store: str, kind: str, digest: str) -> list[str]:
    """Verify a file of the store twice; where a memory of it would lie."""
    opened = Store.open(Path(store))
    return [str(opened.verified_path(kind, digest)) for _ in range(2)]


# --------------------------------------------------------------------------------------------
# Many at once

DIM = 16
PARAMS = HnswParams(dim=DIM, M=4, ef_construction=20, ef_search=10)
MODELS = (b"model A", b"model B", b"model C", b"model D")


def vector(item: str) -> np.ndarray:
    """The unit row (D,) of an item: a function of its id and of nothing else."""
    seed = int.from_bytes(hashlib.sha256(item.encode()).digest()[:8], "little")
    row = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return row / np.linalg.norm(row)


def vectors(items: tuple[str, ...]) -> np.ndarray:
    """The rows (n, D) of items."""
    return np.stack([vector(item) for item in items])


def _info(sha256: str, count: int) -> IndexInfo:
    return IndexInfo(
        engine="hnswlib", space="ip", dim=DIM, M=PARAMS.M, ef_construction=PARAMS.ef_construction,
        ef_search=PARAMS.ef_search, count=count, sha256=sha256, seed=PARAMS.seed,
    )  # fmt: skip


def _share(tx: Transaction, model: bytes, rows: int) -> ModelShare:
    sha = tx.put("models", _writes(model))
    canary = tx.put("canaries", _writes(b"canary of " + model))
    return ModelShare(sha256=sha, dim=DIM, rows=rows, name=model.decode(), canary=canary)


def begin(path: Path, rows: int = 40) -> Store:
    """A store of one generation whose rows are those of ``vector``."""
    items = tuple(f"first-{at}" for at in range(rows))
    keys = np.arange(rows, dtype=np.uint64)
    index = HnswIndex.create(PARAMS, rows)
    index.add(vectors(items), keys)
    with Store.create(path) as tx:
        share = _share(tx, MODELS[0], rows)
        catalog = Catalog(
            ids=items, labels=("x",) * rows, keys=keys, model_of=np.zeros(rows, np.int32),
            models=(share.sha256,),
        )  # fmt: skip
        tx.commit(
            operation="init",
            created_at=AT,
            query_model=share.sha256,
            index=_info(tx.put("indexes", index.save), rows),
            catalog=tx.put("catalogs", catalog.write),
            models=(share,),
        )
    return Store.open(path)


def _index(store: Store) -> HnswIndex:
    now = store.manifest.index
    return HnswIndex.load(store.verified_path("indexes", now.sha256), PARAMS, now.count)


def add_items(store: Store, items: tuple[str, ...], timeout_s: float = 10.0) -> Manifest:
    """The next generation, with these items, from the files of the opened one."""
    now = store.manifest
    catalog = store.catalog()
    grown = catalog.extended(items, ["x"] * len(items), now.query_model)
    index = _index(store)
    index.add(vectors(items), grown.keys[len(catalog) :])
    counts = grown.counts()
    with store.transaction(now, operation="add", timeout_s=timeout_s) as tx:
        return tx.commit(
            operation="add",
            created_at=AT,
            index=_info(tx.put("indexes", index.save), len(index)),
            catalog=tx.put("catalogs", grown.write),
            models=tuple(replace(one, rows=counts.get(one.sha256, 0)) for one in now.models),
        )


def _deploy(store: Store, model: bytes) -> Manifest:
    now = store.manifest
    with store.transaction(now, operation="deploy") as tx:
        share = _share(tx, model, 0)
        known = [one for one in now.models if one.rows > 0 and one.sha256 != share.sha256]
        rows = now.index.count - sum(one.rows for one in known)
        return tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=share.sha256,
            models=(*known, replace(share, rows=rows)),
        )


def _roll_back(store: Store, rng: random.Random) -> Manifest:
    now = store.manifest
    oldest = max(now.oldest_restorable, now.generation - 6)
    if oldest >= now.generation:
        return now
    plan = rollback_plan(store, to=rng.randrange(oldest, now.generation))
    return now if plan.already_restored else restore(store, plan.target, created_at=AT)


def _collect(store: Store) -> Manifest:
    found = gc(store, keep=3, created_at=AT)
    assert found.ok, found.problems
    if found.head == manifest_digest(store.manifest):
        return store.manifest
    return Store.open(store.path).generation(found.generations)


def items_of(writer: int, turn: int) -> tuple[str, ...]:
    """The one or two items that a writer adds at a turn."""
    return tuple(f"w{writer}-{turn}-{at}" for at in range(1 + turn % 2))


def _one_write(sort: str, store: Store, rng: random.Random, writer: int, turn: int) -> Manifest:
    """One write; the manifest that it made, or the one it found good already."""
    if sort == "add":
        return add_items(store, items_of(writer, turn))
    if sort == "deploy":
        return _deploy(store, rng.choice(MODELS))
    return _roll_back(store, rng) if sort == "rollback" else _collect(store)


def _together(*, gallery: bool = False) -> None:
    """Load what the work needs, then wait until all others have, too."""
    import hnswlib

    if gallery:
        importlib.import_module("compatctl.deployment.gallery")
    assert hnswlib
    print("ready", flush=True)
    sys.stdin.readline()


def let_go(processes: list[subprocess.Popen[str]]) -> None:
    """Let processes that wait for each other begin at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def do_write(store: str, writer: int, seconds: float, log: str) -> dict[str, Any]:
    """Write until the time is up, and log every generation that was acknowledged."""
    _together()
    rng, counts, broken = random.Random(writer), Counter[str](), list[str]()
    deadline, turn, sort = time.monotonic() + seconds, 0, ""
    with Path(log).open("a", encoding="utf-8") as file:
        while time.monotonic() < deadline:
            turn += 1
            sort = sort or rng.choices(("add", "deploy", "rollback", "collect"), (8, 4, 3, 4))[0]
            try:
                opened = Store.open(Path(store))
                made = _one_write(sort, opened, rng, writer, turn)
            except ConflictError:
                counts["conflicts"] += 1
                sort = sort if rng.random() < 0.8 else ""  # mostly the same again
                continue
            except CompatError as error:
                broken.append(f"{type(error).__name__}: {error.message} ({error.tip})")
                continue
            sort = ""
            if made == opened.manifest:
                counts["nothing to do"] += 1
                continue
            counts[made.operation] += 1
            added = items_of(writer, turn) if made.operation == "add" else ()
            file.write(json.dumps([made.generation, manifest_digest(made), added]) + "\n")
            file.flush()
    return {"counts": counts, "broken": broken}


def do_read(store: str, seconds: float, gallery: bool) -> dict[str, Any]:
    """Read until the time is up; every answer is of exactly one generation, and none goes back.

    ``gallery``: opened as the commands do it.
    """
    _together(gallery=gallery)
    counts, broken, newest = Counter[str](), list[str](), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            newest = read_once(Path(store), newest, gallery=gallery)
            counts["reads"] += 1
        except ConflictError as error:
            counts["deleted" if "deleted the files" in error.message else "other conflicts"] += 1
        except (CompatError, AssertionError) as error:
            broken.append(f"{type(error).__name__}: {error} ({getattr(error, 'tip', '')})")
    return {"counts": counts, "broken": broken, "newest": newest}


def read_once(root: Path, newest: int, *, gallery: bool = False) -> int:
    """Read all of the store, which must be of one generation, not older than ``newest``: which."""
    store = Store.open(root)
    if gallery:
        from compatctl.deployment.gallery import DeployedGallery

        opened = DeployedGallery.open(store)
        now, catalog, index = opened.manifest, opened.catalog, opened.index
    else:
        now, catalog, index = store.manifest, store.catalog(), _index(store)
    assert now.generation >= newest, f"generation {now.generation} after {newest}"
    assert len(index) == len(catalog) == now.index.count, "other counts"
    assert np.array_equal(np.sort(index.keys()), np.sort(catalog.keys)), "other keys"
    assert np.array_equal(index.vectors(catalog.keys), vectors(catalog.ids)), "other vectors"
    nearest, _ = index.search(vectors(catalog.ids[:5]), 1, 50, threads=1)
    assert np.array_equal(nearest[:, 0], catalog.keys[:5]), "an item does not find itself"
    return now.generation


def do_hold(store: str) -> dict[str, Any]:
    """Hold the lock, in the middle of a long put, until stdin ends."""
    opened = Store.open(Path(store))

    def endless(path: Path) -> None:
        with path.open("xb") as file:
            file.write(b"half of a model")
            file.flush()
            print("holding", flush=True)
            sys.stdin.read()

    with opened.transaction(opened.manifest, operation="a long put") as tx:
        tx.put("reports", _writes(b"put, and never committed"))
        tx.put("models", endless)
    return {}


def do_count(root: str, question: tuple[str, str], counter: int, turns: int) -> dict[str, int]:
    """Count attempts at a question; which one each was."""
    _together()
    given = {}
    for turn in range(turns):
        name = f"{counter}-{turn}"
        one = Attempt(key=hashlib.sha256(name.encode()).hexdigest(), settings={"policy": name})
        given[name] = len(record_attempt(Path(root), *question, one, timeout_s=HANGS_S * 5))
    return given


def do_check(store: str) -> dict[str, Any]:
    """What a check of the files says."""
    found = check(Path(store))
    return {"ok": found.ok, "problems": found.problems, "unreferenced": found.unreferenced}


VERBS: dict[str, Callable[..., Any]] = {
    name.removeprefix("do_"): verb for name, verb in list(globals().items()) if name[:3] == "do_"
}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](**json.loads(sys.argv[2]))))
