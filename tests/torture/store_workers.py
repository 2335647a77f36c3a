"""Worker processes that damage a store and run commands on it, or write and read it concurrently.

Run as ``python store_workers.py VERB JSON``; the answer is one line of JSON on stdout. A crash of
the interpreter ends only the worker and not the tests.
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
"""The number of items of the first generation, after an add, and of the project's table."""

HANGS_S = 20
"""A command over a small store takes less than a tenth of a second."""

# --------------------------------------------------------------------------------------------
# Starting workers


def start(verb: str, *, env: dict[str, str] | None = None, **request: Any) -> subprocess.Popen[str]:
    """Start a process of this interpreter that runs a verb with the package of these tests."""
    package = str(Path(compatctl.__file__).parent.parent)
    kits = str(Path(__file__).parent.parent / "kits")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("COMPATCTL")}
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    path = {"PYTHONPATH": os.pathsep.join([package, kits])}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", __file__, verb, json.dumps(request, default=str)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **fixed, **path, **(env or {})},
    )


PATIENCE_S = 5400.0 if os.environ.get("COMPATCTL_TORTURE") == "long" else 300.0


def answer(process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Any:
    """Wait for a process, which must end with exit code 0, and return its answer."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"exit {process.returncode}: {out[-2000:]} {err[-4000:]}"
    return json.loads(out.splitlines()[-1])


def work(verb: str, *, env: dict[str, str] | None = None, **request: Any) -> Any:
    """Run a verb in a new process and return its answer."""
    return answer(start(verb, env=env, **request))


# --------------------------------------------------------------------------------------------
# The command line, in this process


@dataclass(frozen=True)
class Result:
    """The exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.stdout)


@functools.cache
def _command_line() -> Any:
    """The command that ``cli.main`` calls, built once: building takes longer than a command."""
    import typer.main

    from compatctl import cli

    return typer.main.get_command(cli.app)


def command(project: Path, *argv: object) -> Result:
    """Run a command with ``--json``; an error that escapes the command line is raised here."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments = [str(argument) for argument in argv]
    arguments += ["--project", str(project / "compatctl.yaml"), "--json"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _command_line()(arguments, prog_name="compatctl")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def argv_of(name: str, project: Path) -> tuple[str, ...]:
    """The arguments of a command, by its short name, in a project made by ``build``."""
    lines = {
        "search": ("search", str(project / "query.png"), "-k", "3"),
        "add": ("add", "--data", str(project / "items.csv")),
        "deploy": ("deploy", "--model", str(project / "new.onnx"), "--force", "--reason", "drill"),
        "rollback": ("rollback", "--to", "1", "--added", "drop"),
        "gc": ("check", "--gc"),
    }
    return lines.get(name, (name,))


def snapshot(root: Path) -> dict[str, str | bytes]:
    """The content of a folder by name: a file's bytes, a link's target, '/' for a folder."""
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
    (folder / "compatctl.yaml").write_text(
        "format: 1\nstore: store\ndata: items.csv\nmax_gallery_pass: 1.0\n"
    )
    for line in (
        ("init", "--model", folder / "old.onnx", "--data", folder / "first.csv"),
        ("add", "--data", folder / "more.csv"),
    ):
        result = command(folder, *line)
        assert result.code == 0, result.stderr
    _deploy_with_artifacts(Store.open(folder / "store"), folder / "new.onnx", other=other)
    result = command(folder, "rollback")
    assert result.code == 0, result.stderr


def _write_items(folder: Path, skip: int) -> None:
    """Write emoji of one vendor, a query, and three tables of increasing length."""
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
            box = (left * TILE, top * TILE, (left + 1) * TILE, (top + 1) * TILE)
            tile = sheet.crop(box).convert("RGB").resize((16, 16))
            tile.save(folder / "images" / f"{row['label']}.png")
    shutil.copy(folder / "images" / f"{rows[3]['label']}.png", folder / "query.png")
    for name, count in (("first.csv", FIRST), ("more.csv", MORE), ("items.csv", ALL)):
        lines = [f"{row['label']},images/{row['label']}.png,c{box % 6},test,gallery"
                 for box, row in enumerate(rows[:count])]  # fmt: skip
        (folder / name).write_text("\n".join(["id,path,label,split,role", *lines, ""]))


def _deploy_with_artifacts(store: Store, model: Path, *, other: bool) -> None:
    """Commit a deploy with report, registry and memory, like that of a verified candidate."""
    from compatctl.commands.deploy import with_model
    from compatctl.deployment.model_file import ModelFile

    current = store.manifest
    with store.transaction(current, operation="deploy") as tx:
        share = ModelFile.read(model).put(tx, rows=0)
        tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=share.sha256,
            models=with_model(current, share),
            report=tx.put("reports", _writes(b'{"outcome": "pass", "other": %d}\n' % other)),
            registry=tx.put("registries", _writes(b'{"classes": ["a", "b", %d]}\n' % other)),
            memory=tx.put("memories", _writes(_memory(other=other))),
        )


def _memory(*, other: bool) -> bytes:
    """A rehearsal memory of two small images."""
    items = tuple(Item(id=item, label="a", split="train") for item in ("first", "second"))
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) + np.uint8(other)
    return memory_bytes(Dataset(items=items, sources=tuple(pixels)))


def _writes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


# --------------------------------------------------------------------------------------------
# Damage, and the refusal that must follow


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file of the store to damage. ``every``: the commands to run after each flip; ``sampled``:
    those to run after some; ``swap``: files to exchange it with."""

    name: str
    path: Path
    every: tuple[str, ...] = ("check",)
    sampled: tuple[str, ...] = ()
    swap: tuple[Path, ...] = ()


NAMES = (
    "manifest",
    "newest",
    "oldest",
    *(kind for kind in KINDS if kind not in {"erasures", "tables"}),
)
"""The targets: manifest.json, the newest and the oldest file of history/, and a file of each kind
that a store has without erasures, whose rows are its own."""

_ALL = ("search", "add", "deploy", "history", "rollback")


def target(root: Path, name: str) -> Target:
    """The target of that name: a file that the commands use, or that only check reads."""
    store = Store.open(root)
    current, deployed = store.manifest, store.generation(3)
    history = root / "history"
    newest = history / f"{current.generation:06d}.json"
    if name in ("manifest", "newest"):
        path, swap = ((root / "manifest.json", newest), (newest, history / "000003.json"))[
            name == "newest"
        ]
        other = history / "000003.json" if name == "manifest" else swap
        return Target(name=name, path=path, every=("check", "status"), sampled=_ALL, swap=(other,))
    if name == "oldest":
        path, swap = history / "000001.json", history / "000002.json"
        return Target(name=name, path=path, sampled=("history", "rollback"), swap=(swap,))
    share = next(model for model in current.models if model.sha256 == current.query_model)
    other_share = next(model for model in deployed.models if model.sha256 == deployed.query_model)
    first = store.generation(1)
    report, registry = deployed.report or "", deployed.registry or ""
    digest, swap_kind, swap_digest, sampled = {
        "models": (share.sha256, name, other_share.sha256, ("search", "add")),
        "canaries": (share.canary, name, other_share.canary, ("search", "add")),
        "indexes": (current.index.sha256, name, first.index.sha256, ("search", "add")),
        "catalogs": (current.catalog, name, first.catalog, ("search", "add", "rollback")),
        "reports": (report, "registries", registry, ()),
        "registries": (registry, "reports", report, ()),
        "memories": (deployed.memory or "", "catalogs", current.catalog, ()),
    }[name]
    swap = store.blob_path(swap_kind, swap_digest)
    return Target(name=name, path=store.blob_path(name, digest), sampled=sampled, swap=(swap,))


@dataclass
class Findings:
    """The commands and faults that a worker tried, and the failures."""

    commands: Counter[str]
    broken: list[str]
    tried: int = 0

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {"commands": self.commands, "broken": self.broken[:40], "tried": self.tried}


class _HangsError(BaseException):
    """A command did not end in time."""


def _hangs(number: int, frame: object) -> None:
    raise _HangsError


signal.signal(signal.SIGALRM, _hangs)


def _expect_refusal(
    findings: Findings, project: Path, name: str, files: tuple[str, ...], what: str
) -> None:
    """Run a command on a damaged store, which must refuse: exit 5, a file named, a tip."""
    findings.commands[name] += 1
    signal.alarm(HANGS_S)
    try:
        result = command(project, *argv_of(name, project))
    except (Exception, _HangsError):  # noqa: BLE001 - a traceback is what is looked for
        findings.broken.append(f"{what}: {name}: {traceback.format_exc()[-1500:]}")
        return
    finally:
        signal.alarm(0)
    if problem := _not_refused(result, files):
        text = f"{result.stdout[-600:]} {result.stderr[-600:]}"
        findings.broken.append(f"{what}: {name}: {problem}; exit {result.code}: {text}")


def _not_refused(result: Result, names: tuple[str, ...]) -> str:
    """The reason why this is not a refusal that names a file, or an empty text."""
    if result.code != 5:
        return "not exit 5"
    answer = result.json
    if "error" not in answer:
        if answer.get("ok") is not False:
            return "an answer was given"
        text = " ".join(answer["problems"])
    else:
        error = answer["error"]
        text = error["message"]
        if set(answer) != {"error"} or not result.stderr.startswith("compatctl: "):
            return "no plain error"
        if not error["tip"] or "next: " not in result.stderr:
            return "no tip"
    return "" if any(name in text for name in names) else f"none of {names} is named"


def flip(path: Path, bit: int, *, keep_mtime: bool = False) -> None:
    """Change one bit of a file in place."""
    stat = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    if keep_mtime:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _positions(size: int, most: int, seed: str) -> list[int]:
    """The bits to flip: all of them if there are at most ``most``, else a sample."""
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
    """Flip one bit after another; every command that uses the file must find each flip.

    With the original bytes, every command works again.
    """
    project, findings = Path(folder), Findings(Counter(), [])
    root = project / "store"
    file = target(root, name)
    before = snapshot(root)
    for i, bit in enumerate(_positions(file.path.stat().st_size, most, name)):
        flip(file.path, bit, keep_mtime=i % 2 == 0)
        damaged = file.path.read_bytes()
        findings.tried += 1
        commands = (*file.every, *(file.sampled if i % every == 0 else ()))
        for command_name in commands:
            _expect_refusal(
                findings, project, command_name, (file.path.name,), f"{name}, bit {bit}"
            )
        if file.path.read_bytes() != damaged:
            findings.broken.append(f"{name}, bit {bit}: the damaged file was written to")
        flip(file.path, bit)
        if snapshot(root) != before:
            findings.broken.append(f"{name}, bit {bit}: the store was written to")
            break
    _works(findings, project)
    return findings.to_json()


def _works(findings: Findings, project: Path) -> None:
    """Every reading command succeeds."""
    for name in ("check", "status", "history", "search"):
        result = command(project, *argv_of(name, project))
        findings.commands[name] += 1
        if result.code != 0:
            findings.broken.append(
                f"restored: {name}: exit {result.code}: {result.stdout} {result.stderr}"
            )


def do_lock_flips(folder: str, most: int) -> dict[str, Any]:
    """Flip one bit after another in a LOCK that a dead process left: every command succeeds."""
    project, findings = Path(folder), Findings(Counter(), [])
    lock = project / "store" / "LOCK"
    content = json.dumps({"host": "h", "operation": "add", "pid": 1}).encode()
    for i, bit in enumerate(_positions(len(content), most, "LOCK")):
        lock.write_bytes(content)
        flip(lock, bit)
        findings.tried += 1
        for name in ("status", *(("check", "gc", "search") if i % 10 == 0 else ())):
            result = command(project, *argv_of(name, project))
            findings.commands[name] += 1
            if result.code != 0:
                findings.broken.append(f"LOCK, bit {bit}: {name}: {result.stdout} {result.stderr}")
    return findings.to_json()


# --------------------------------------------------------------------------------------------
# Damage of whole files


Damage = Callable[[Path], None]


def _damages(file: Target, strange: Path, aside: Path) -> Iterator[tuple[str, Damage, Path]]:
    """For each damage: its name, the function that does it, and the other file that it damages."""
    data = file.path.read_bytes()
    for length in dict.fromkeys((0, 1, len(data) // 2, len(data) - 1)):
        yield f"cut to {length}", lambda path, n=length: _put(path, data[:n]), file.path
    yield "a byte more", lambda path: _put(path, data + b"\0"), file.path
    yield "a line more", lambda path: _put(path, data + b"\n"), file.path
    yield "zeros", lambda path: _put(path, bytes(len(data))), file.path
    yield "deleted", Path.unlink, file.path
    yield "a folder", _folder, file.path
    yield "a full folder", lambda path: (_folder(path), _put(path / "x", b"x")), file.path
    yield "a link", lambda path: _link(path, _aside(aside, data)), file.path
    yield "a dangling link", lambda path: _link(path, aside / "nothing"), file.path
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path)), file.path
    yield "another store's", lambda path: _put(path, strange.read_bytes()), file.path
    for other in file.swap:
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


def _swap(path: Path, other: Path) -> None:
    data, other_data = path.read_bytes(), other.read_bytes()
    _put(path, other_data)
    _put(other, data)


def _restore(path: Path, data: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def do_damages(folder: str, strange: str, name: str) -> dict[str, Any]:
    """Damage a file as a whole in every way; with the original bytes everything works again."""
    project, findings = Path(folder), Findings(Counter(), [])
    root, other = project / "store", Path(strange) / "store"
    file, from_other = target(root, name), target(other, name).path
    for what, damage, second in list(_damages(file, from_other, project / "aside")):
        originals = {path: path.read_bytes() for path in (file.path, second)}
        damage(file.path)
        findings.tried += 1
        damaged = _without_pipes(root)
        for command_name in (*file.every, *file.sampled):
            names = (file.path.name, second.name)
            _expect_refusal(findings, project, command_name, names, f"{name} {what}")
            if _without_pipes(root) != damaged:
                findings.broken.append(f"{name} {what}: {command_name}: the store was written to")
        for path, data in originals.items():
            _restore(path, data)
        _works(findings, project)
    return findings.to_json()


def _without_pipes(root: Path) -> dict[str, str | bytes]:
    pipes = [path for path in root.rglob("*") if path.is_fifo()]
    moved = [(path, path.with_name(f"pipe-{i}")) for i, path in enumerate(pipes)]
    entries = {f"pipe {path}": "" for path in pipes}
    for path, _ in moved:
        path.unlink()
    result = {**entries, **snapshot(root)}
    for path, _ in moved:
        os.mkfifo(path)
    return result


def do_exchanged_heads(folder: str, strange: str) -> dict[str, Any]:
    """Put manifest.json and the newest generation of another store, which agree, in place."""
    project, findings = Path(folder), Findings(Counter(), [])
    root, other = project / "store", Path(strange) / "store"
    heads = [target(root, name).path for name in ("manifest", "newest")]
    theirs = Store.open(other).manifest
    originals = {path: path.read_bytes() for path in heads}
    for path in heads:
        _put(path, (other / path.relative_to(root)).read_bytes())
    findings.tried += 1
    _expect_refusal(findings, project, "check", ("000003.json",), "another store's head")
    _expect_refusal(findings, project, "history", ("000003.json",), "another store's head")
    _expect_refusal(findings, project, "rollback", ("000003.json",), "another store's head")
    blobs = tuple(digest for _, digest in theirs.blobs())
    for name in ("search", "add", "deploy"):
        _expect_refusal(findings, project, name, blobs, "another store's head")
    for path, data in originals.items():
        _restore(path, data)
    _works(findings, project)
    return findings.to_json()


def do_commands(folder: str, names: list[str], drop: bool = False) -> list[dict[str, Any]]:
    """Run commands one after another; with ``drop`` permissions apply even to root."""
    if drop and os.geteuid() == 0:
        from forkserver import drop_capabilities

        drop_capabilities()
    project = Path(folder)
    return [vars(command(project, *argv_of(name, project))) for name in names]


def do_verified_path(store: str, kind: str, digest: str) -> list[str]:
    """Verify a file of the store twice."""
    opened = Store.open(Path(store))
    return [str(opened.verified_path(kind, digest)) for _ in range(2)]


# --------------------------------------------------------------------------------------------
# Concurrent writers and readers

DIM = 16
PARAMS = HnswParams(dim=DIM, M=4, ef_construction=20, ef_search=10)
MODELS = (b"model A", b"model B", b"model C", b"model D")


def vector(item: str) -> np.ndarray:
    """The unit row (D,) of an item, which depends only on its id."""
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
    """A store of one generation, with the rows of ``vector``."""
    items = tuple(f"first-{i}" for i in range(rows))
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
    info = store.manifest.index
    return HnswIndex.load(store.verified_path("indexes", info.sha256), PARAMS, info.count)


def add_items(store: Store, items: tuple[str, ...], timeout_s: float = 10.0) -> Manifest:
    """Commit a generation with these items added to the opened one."""
    current = store.manifest
    catalog = store.catalog()
    grown = catalog.extended(items, ["x"] * len(items), current.query_model)
    index = _index(store)
    index.add(vectors(items), grown.keys[len(catalog) :])
    counts = grown.counts()
    with store.transaction(current, operation="add", timeout_s=timeout_s) as tx:
        return tx.commit(
            operation="add",
            created_at=AT,
            index=_info(tx.put("indexes", index.save), len(index)),
            catalog=tx.put("catalogs", grown.write),
            models=tuple(
                replace(model, rows=counts.get(model.sha256, 0)) for model in current.models
            ),
        )


def _deploy(store: Store, model: bytes) -> Manifest:
    current = store.manifest
    with store.transaction(current, operation="deploy") as tx:
        share = _share(tx, model, 0)
        known = [
            model for model in current.models if model.rows > 0 and model.sha256 != share.sha256
        ]
        rows = current.index.count - sum(entry.rows for entry in known)
        return tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=share.sha256,
            models=(*known, replace(share, rows=rows)),
        )


def _rollback(store: Store, rng: random.Random) -> Manifest:
    current = store.manifest
    oldest = max(current.oldest_restorable, current.generation - 6)
    if oldest >= current.generation:
        return current
    plan = rollback_plan(store, to=rng.randrange(oldest, current.generation))
    return current if plan.already_restored else restore(store, plan.target, created_at=AT)


def _gc(store: Store) -> Manifest:
    report = gc(store, keep=3, created_at=AT)
    assert report.ok, report.problems
    if report.head == manifest_digest(store.manifest):
        return store.manifest
    return Store.open(store.path).generation(report.generations)


def items_of(writer: int, turn: int) -> tuple[str, ...]:
    """The one or two items that a writer adds in a turn."""
    return tuple(f"w{writer}-{turn}-{i}" for i in range(1 + turn % 2))


def _write_once(sort: str, store: Store, rng: random.Random, writer: int, turn: int) -> Manifest:
    """Do one write; return the manifest that it made, or the current one if nothing was to do."""
    if sort == "add":
        return add_items(store, items_of(writer, turn))
    if sort == "deploy":
        return _deploy(store, rng.choice(MODELS))
    return _rollback(store, rng) if sort == "rollback" else _gc(store)


def _wait_for_start(*, gallery: bool = False) -> None:
    """Import what the work needs, say so, and wait for the signal to begin."""
    import hnswlib

    if gallery:
        importlib.import_module("compatctl.deployment.gallery")
    assert hnswlib
    print("ready", flush=True)
    sys.stdin.readline()


def start_together(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until all processes are ready, then let them begin at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def do_write(store: str, writer: int, seconds: float, log: str) -> dict[str, Any]:
    """Write until the time is up, and log every generation that was committed."""
    _wait_for_start()
    rng, counts, broken = random.Random(writer), Counter[str](), list[str]()
    deadline, turn, sort = time.monotonic() + seconds, 0, ""
    with Path(log).open("a", encoding="utf-8") as file:
        while time.monotonic() < deadline:
            turn += 1
            sort = sort or rng.choices(("add", "deploy", "rollback", "gc"), (8, 4, 3, 4))[0]
            try:
                opened = Store.open(Path(store))
                manifest = _write_once(sort, opened, rng, writer, turn)
            except ConflictError:
                counts["conflicts"] += 1
                sort = sort if rng.random() < 0.8 else ""  # mostly the same again
                continue
            except CompatError as error:
                broken.append(f"{type(error).__name__}: {error.message} ({error.tip})")
                continue
            sort = ""
            if manifest == opened.manifest:
                counts["nothing to do"] += 1
                continue
            counts[manifest.operation] += 1
            added = items_of(writer, turn) if manifest.operation == "add" else ()
            file.write(json.dumps([manifest.generation, manifest_digest(manifest), added]) + "\n")
            file.flush()
    return {"counts": counts, "broken": broken}


def do_read(store: str, seconds: float, gallery: bool) -> dict[str, Any]:
    """Read until the time is up; each read is of exactly one generation, never an older one.

    ``gallery``: open the store as the commands do.
    """
    _wait_for_start(gallery=gallery)
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
    """Read the whole store, of one generation, at least ``newest``; return its number."""
    store = Store.open(root)
    if gallery:
        from compatctl.deployment.gallery import DeployedGallery

        opened = DeployedGallery.open(store)
        manifest, catalog, index = opened.manifest, opened.catalog, opened.index
    else:
        manifest, catalog, index = store.manifest, store.catalog(), _index(store)
    assert manifest.generation >= newest, f"generation {manifest.generation} after {newest}"
    assert len(index) == len(catalog) == manifest.index.count, "other counts"
    assert np.array_equal(np.sort(index.keys()), np.sort(catalog.keys)), "other keys"
    assert np.array_equal(index.vectors(catalog.keys), vectors(catalog.ids)), "other vectors"
    nearest, _ = index.search(vectors(catalog.ids[:5]), 1, 50, threads=1)
    assert np.array_equal(nearest[:, 0], catalog.keys[:5]), "an item does not find itself"
    return manifest.generation


def do_hold(store: str) -> dict[str, Any]:
    """Hold the lock, inside a long ``put``, until stdin ends."""
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
    """Record attempts at a question; return the position of each."""
    _wait_for_start()
    positions = {}
    for turn in range(turns):
        name = f"{counter}-{turn}"
        attempt = Attempt(key=hashlib.sha256(name.encode()).hexdigest(), settings={"policy": name})
        positions[name] = len(record_attempt(Path(root), *question, attempt, timeout_s=HANGS_S * 5))
    return positions


def do_check(store: str) -> dict[str, Any]:
    """Check the store."""
    report = check(Path(store))
    return {"ok": report.ok, "problems": report.problems, "unreferenced": report.unreferenced}


VERBS: dict[str, Callable[..., Any]] = {
    name.removeprefix("do_"): verb for name, verb in list(globals().items()) if name[:3] == "do_"
}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](**json.loads(sys.argv[2]))))
