"""The laws that hold after every fault; they know the promises of the store and not its code.

The store is in the old or the new state, completely. The same command then reaches the new state.
``check --gc`` leaves exactly the files that the generations name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path

from kit import LONG, Call, Fault, Kind, Machine, Outcome
from scenarios import Stage, attempts, beside, read_state

from compatctl.errors import InputError
from compatctl.files import sha256_file
from compatctl.manifest import Manifest
from compatctl.store import KINDS, Store

LOCKS = {"LOCK", "attempts/LOCK", "side/LOCK", "backfill/LOCK"}
HANDLED = (5, 6)
"""The exit codes of a command that could not write."""


Try = Callable[[Stage, list[Fault]], None]
"""Runs a scenario under each fault and asserts every law after it."""


@dataclass
class Tally:
    """The number of injected faults by kind, for the summary."""

    kills: int = 0
    random_kills: int = 0
    errors: int = 0
    other: int = 0
    cuts: int = 0
    losses: list[str] = field(default_factory=list)
    boundaries: dict[str, int] = field(default_factory=dict)

    def count(self, fault: Fault, outcome: Outcome) -> None:
        """Count one fault, and the call at which it happened."""
        if fault.kill_after_s is not None:
            self.random_kills += outcome.killed
        elif fault.kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.SHORT):
            self.kills += outcome.killed
        elif fault.kind in (Kind.ERRNO_ONCE, Kind.ERRNO_FROM):
            self.errors += outcome.hit is not None
        else:
            self.other += 1
        if outcome.hit is not None:
            name = outcome.hit.name
            self.boundaries[name] = self.boundaries.get(name, 0) + 1


def performed(outcome: Outcome, fault: Fault) -> tuple[Call, ...]:
    """The calls that took effect: not one that failed, nor the one before which it was killed."""
    if fault.kind in (Kind.ERRNO_ONCE, Kind.ERRNO_FROM, Kind.KILL_BEFORE):
        return tuple(call for call in outcome.calls if call.where == "in")
    return outcome.calls


def counted(stage: Stage, folder: Path) -> bool:
    """Whether the attempt is counted; the files of attempts must be the old or the new ones."""
    current = attempts(folder)
    assert current in stage.counted, "the attempts are neither the old nor the new ones"
    return current == stage.counted[1]


def committed(stage: Stage, folder: Path) -> bool:
    """Whether the store is in the new state; it must be exactly in the old or the new one."""
    path = folder / "store"
    if stage.before is None and not (path / "manifest.json").exists():
        try:
            Store.open(path)
        except InputError:
            return False
        raise AssertionError("a store without manifest.json can be opened")
    counted(stage, folder)
    store = Store.open(path)
    store.history()
    numbers = range(1, store.manifest.generation + 1)
    generations = [path / "history" / f"{number:06d}.json" for number in numbers]
    assert all(file.is_file() for file in generations), "a generation is not in history/"
    current = (path / "manifest.json").read_bytes()
    assert generations[-1].read_bytes() == current, "history/ ends in another generation"
    for kind, digest in store.manifest.blobs():
        blob = store.blob_path(kind, digest)
        assert sha256_file(blob) == digest, f"{blob} has other bytes"
    new = not stage.scenario.makes_generation or store.manifest != stage.before_manifest
    if new and stage.scenario.makes_generation:
        assert store.manifest.generation == stage.generation
    state = read_state(store)
    if new:
        assert state == stage.after, "neither the old nor the new state"
    else:
        assert state == stage.before, "neither the old nor the new state"
    return new


def checked(machine: Machine, folder: Path, *flags: str) -> dict[str, object]:
    """The report of ``check``, which must be ok."""
    outcome = machine.run(folder, ("compatctl", "check", "--json", "--store", "store", *flags))
    assert outcome.status == 0, f"check: {outcome.stdout[-2000:]} {outcome.stderr}"
    report: dict[str, object] = json.loads(outcome.stdout)
    assert report["ok"], report
    assert not outcome.outside, outcome.outside[0]
    return report


def _repeat_reaches_new_state(machine: Machine, stage: Stage, folder: Path, new: bool) -> None:
    """The same command, repeated without a fault, reaches the new state."""
    generation = Store.open(folder / "store").manifest.generation if new else 0
    again = machine.run(folder, stage.scenario.argv)
    assert again.status == 0, f"repeated: exit {again.status}: {again.stderr}"
    store = Store.open(folder / "store")
    assert read_state(store) == stage.after, "repeated: not the new state"
    assert counted(stage, folder), "repeated: the attempt is not counted"
    for name, data in stage.written.items():
        assert (folder / name).read_bytes() == data, (
            f"repeated: {name} differs from what the command writes"
        )
    if new and stage.scenario.makes_generation:
        repeated = again.json.get("written") or store.manifest.generation != generation
        assert not repeated, "repeated after its commit, it made another generation"
    elif not new:
        assert store.manifest.generation == stage.generation


def _only_what_is_named(folder: Path) -> None:
    """The store has exactly the files that its kept generations name."""
    root = folder / "store"
    generations = sorted((root / "history").glob("*"))
    current = json.loads((root / "manifest.json").read_bytes())
    assert len(generations) == current["generation"]
    expected = {"LOCK", "manifest.json"} | {f"history/{path.name}" for path in generations}
    for path in generations[current["oldest_restorable"] - 1 :]:
        manifest = Manifest.from_json(json.loads(path.read_bytes()), str(path))
        blobs = manifest.blobs()
        if manifest.generation < current["oldest_gallery"]:
            blobs = manifest.model_blobs()
        expected |= {f"{kind}/{digest}{KINDS[kind]}" for kind, digest in blobs}
    expected |= {f"attempts/{name}" for name in attempts(folder)}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    models = {Path(name).stem for name in expected if name.startswith("models/")}
    expected |= files & {f"side/{model}.vectors" for model in models}
    expected |= files & {"backfill/run.json"}  # of a backfill that was killed
    assert files - LOCKS == expected - LOCKS


def _nothing_else_changed(stage: Stage, folder: Path, outcome: Outcome) -> None:
    """The command changed nothing outside of the project, and in it only the files it may write."""
    assert not outcome.outside, f"outside of the project: {outcome.outside[0]}"
    after, before = beside(folder), beside(stage.pristine)
    for name in after.keys() | before.keys():
        if name in stage.written and after.get(name) == stage.written[name]:
            continue
        if name == "report.json" and _says_uncounted(folder):
            continue
        if outcome.status != 0 and stage.written and Path(name).name.startswith(".new-"):
            continue  # a temporary file outside the store, which no command deletes
        assert after.get(name) == before.get(name), f"{name} was changed"


def _says_uncounted(folder: Path) -> bool:
    """Whether the report of a verify without permission to write says that it is not counted."""
    report = json.loads((folder / "report.json").read_bytes())
    reason = "attempts: the store cannot be written to"
    return report["attempt"] is None and reason in report["not_checked"]


def _says_what_to_do(outcome: Outcome) -> None:
    """A command that failed without being killed says what happened and what to do next."""
    message = outcome.stderr
    assert "Traceback" not in message, message
    assert outcome.status in HANDLED, f"exit {outcome.status}: {message}"
    assert message.startswith("compatctl: "), message
    assert "next: " in message, f"it does not say what to do: {message}"


def assert_laws(
    machine: Machine,
    stage: Stage,
    folder: Path,
    fault: Fault,
    outcome: Outcome,
    *,
    cut: bool = False,
) -> None:
    """Assert every law after the scenario's command ran with ``fault`` in ``folder``.

    ``cut``: a power cut followed, so that even the commit can be lost.
    """
    _nothing_else_changed(stage, folder, outcome)
    new = committed(stage, folder)
    if outcome.status == 0:
        assert new, "it reported success, but the store is in the old state"
        reported = counted(stage, folder) or (fault.arg == EACCES and _says_uncounted(folder))
        assert reported, "it reported success, but the attempt is not counted"
    elif not outcome.killed:
        _says_what_to_do(outcome)
    renamed = [call for call in performed(outcome, fault) if call.name == "rename"]
    if stage.scenario.makes_generation and fault.kill_after_s is None and not cut:
        replaced = any(call.other == str(folder / "store" / "manifest.json") for call in renamed)
        assert new == replaced, "the commit is not the replacement of manifest.json"
    if "report.json" in stage.written and (folder / "report.json").exists():
        assert _says_uncounted(folder) or counted(stage, folder), (
            "there is a report, but its attempt is not counted"
        )
    if new and stage.scenario.erases:
        _erased_or_unfinished(machine, folder)
    elif new:
        checked(machine, folder)
    _repeat_reaches_new_state(machine, stage, folder, new)
    checked(machine, folder, "--gc")
    assert checked(machine, folder)["unreferenced"] == []
    _only_what_is_named(folder)
    _nothing_erased_left(stage, folder)
    assert counted(stage, folder), "gc deleted attempts"
    if LONG or fault.kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER):
        _afterwards(machine, stage, folder)


def _afterwards(machine: Machine, stage: Stage, folder: Path) -> None:
    """The commands that follow succeed; another verify knows every attempt before it."""
    for argv in stage.scenario.afterwards:
        outcome = machine.run(folder, argv)
        assert outcome.status == 0, f"afterwards {argv}: exit {outcome.status}: {outcome.stderr}"
        if argv[1] == "verify":
            number = 1 + sum(data.count(b'"key"') for data in stage.counted[1].values())
            assert outcome.json["attempt"]["number"] == number, outcome.json["attempt"]
    if stage.scenario.afterwards:
        checked(machine, folder)


def _erased_or_unfinished(machine: Machine, folder: Path) -> None:
    """``check`` finds a committed erasure correct, or unfinished and nothing else."""
    outcome = machine.run(folder, ("compatctl", "check", "--json", "--store", "store"))
    problems = outcome.json["problems"]
    assert (outcome.status, len(problems)) in ((0, 0), (5, 1)), problems
    assert all("a removal was killed" in problem for problem in problems), problems


def _nothing_erased_left(
    stage: Stage, folder: Path, folders: tuple[str, ...] = ("store", "build")
) -> None:
    """No file of the store or the candidate has an id or a vector of a removed item."""
    if stage.before is None or not stage.scenario.erases:
        return
    for path in folder.rglob("*"):
        top = path.relative_to(folder).parts[0]
        data = path.read_bytes() if path.is_file() and top in folders else b""
        for item in stage.before.rows.keys() - stage.after.rows.keys():
            assert stage.before.rows[item][2] not in data, f"a vector of {item} is in {path}"
            assert f'"{item}"'.encode() not in data, f"{item} is in {path}"
            key = hashlib.sha256(item.encode()).digest()[:16]
            assert path.suffix != ".vectors" or key not in data, f"{item} is in {path}"
            assert path.parent.name != "catalogs" or item.encode() not in data


EVERY_COMMAND = (
    ("status",),
    ("history",),
    ("check",),
    ("search", "images/c.png"),
    ("rollback", "--dry-run"),
    ("add",),
    ("check", "--gc", "--keep", "1"),
    ("check",),
)
"""Run one after the other on a store after gc; a rollback may find nothing to undo."""


def assert_gc_is_safe(machine: Machine, stage: Stage, folder: Path, keep: tuple[str, ...]) -> None:
    """Assert that gc, right after the fault, keeps the state and every file that a kept generation
    names, and that every command works afterwards."""
    store = folder / "store"
    new, counts = committed(stage, folder), attempts(folder)
    outcome = machine.run(
        folder, ("compatctl", "check", "--gc", "--json", "--store", "store", *keep)
    )
    if not (store / "manifest.json").exists():
        assert outcome.status == 5, outcome.stderr
    else:
        assert outcome.status == 0, f"gc: exit {outcome.status}: {outcome.stdout}{outcome.stderr}"
        _reports_the_state(store, outcome)
        assert read_state(Store.open(store)) == (stage.after if new else stage.before)
        assert checked(machine, folder)["unreferenced"] == []
        assert attempts(folder) == counts, "gc changed the attempts"
        _only_what_is_named(folder)
        if new:
            _nothing_erased_left(stage, folder, ("store",))
    again = machine.run(folder, stage.scenario.argv)
    assert again.status == 0, f"repeated after gc: exit {again.status}: {again.stderr}"
    assert read_state(Store.open(store)) == stage.after, "repeated after gc: not the new state"
    assert counted(stage, folder), "repeated after gc: the attempt is not counted"
    _nothing_erased_left(stage, folder)
    if not (keep or LONG):  # the short form runs them after one of the two forms of gc
        return
    (folder / "images" / "c.png").write_bytes(next((folder / "images").iterdir()).read_bytes())
    for command in EVERY_COMMAND:
        argv = ("compatctl", *command, "--store", "store")
        argv += ("--data", "items.csv") if command[0] in ("add", "rollback") else ()
        result = machine.run(folder, argv)
        allowed = (0, 2) if command[0] == "rollback" else (0,)
        assert result.status in allowed, (
            f"after gc {command}: exit {result.status}: {result.stderr}"
        )


def _reports_the_state(store: Path, outcome: Outcome) -> None:
    """gc printed the state that it left."""
    report, current = outcome.json, (store / "manifest.json").read_bytes()
    assert report["head"] == hashlib.sha256(current).hexdigest()
    manifest = json.loads(current)
    assert (report["generations"], report["oldest_restorable"]) == (
        manifest["generation"],
        manifest["oldest_restorable"],
    )
    assert report["unreferenced"] == []
    assert not [name for name in report["deleted"] if (store / name).exists()]
