"""What must hold after every fault, whatever it was; nothing here knows how the program works.

The store is the old or the new one, whole; the same command then ends in the new one; and
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

LOCKS = {"LOCK", "attempts/LOCK"}
HANDLED = (5, 6)
"""The exit codes of a command that could not write."""


Try = Callable[[Stage, list[Fault]], None]
"""Runs a scenario under each fault and looks at every law."""


@dataclass
class Tally:
    """What was tried, for the summary."""

    kills: int = 0
    random_kills: int = 0
    errors: int = 0
    other: int = 0
    cuts: int = 0
    losses: list[str] = field(default_factory=list)
    boundaries: dict[str, int] = field(default_factory=dict)

    def count(self, fault: Fault, outcome: Outcome) -> None:
        """Note one fault, and at which call it was."""
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
    """The calls that were made: not one that failed, nor the one before which it died."""
    if fault.kind in (Kind.ERRNO_ONCE, Kind.ERRNO_FROM, Kind.KILL_BEFORE):
        return tuple(call for call in outcome.calls if call.where == "in")
    return outcome.calls


def counted(stage: Stage, folder: Path) -> bool:
    """Whether the attempt is counted; files of attempts that are neither old nor new fail."""
    now = attempts(folder)
    assert now in stage.counted, "the attempts are neither the old nor the new ones"
    return now == stage.counted[1]


def committed(stage: Stage, folder: Path) -> bool:
    """Whether the new generation is there; anything but exactly the old or the new one fails."""
    path = folder / "store"
    if stage.before is None and not (path / "manifest.json").exists():
        try:
            Store.open(path)
        except InputError:
            return False
        raise AssertionError("a store without manifest.json opens")
    counted(stage, folder)
    store = Store.open(path)
    store.history()
    kept = [path / "history" / f"{at + 1:06d}.json" for at in range(store.manifest.generation)]
    assert all(one.is_file() for one in kept), "a generation is not in history/"
    current = (path / "manifest.json").read_bytes()
    assert kept[-1].read_bytes() == current, "history/ ends in another generation"
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
    """What ``check`` reports; it must be ok."""
    done = machine.run(folder, ("compatctl", "check", "--json", "--store", "store", *flags))
    assert done.status == 0, f"check: {done.stdout[-2000:]} {done.stderr}"
    found: dict[str, object] = json.loads(done.stdout)
    assert found["ok"], found
    assert not done.outside, done.outside[0]
    return found


def _repeat(machine: Machine, stage: Stage, folder: Path, new: bool) -> None:
    """The same command once more, without a fault, ends in the new state."""
    was = Store.open(folder / "store").manifest.generation if new else 0
    again = machine.run(folder, stage.scenario.argv)
    assert again.status == 0, f"repeated: exit {again.status}: {again.stderr}"
    store = Store.open(folder / "store")
    assert read_state(store) == stage.after, "repeated: not the new state"
    assert counted(stage, folder), "repeated: the attempt is not counted"
    for name, data in stage.written.items():
        assert (folder / name).read_bytes() == data, f"repeated: {name} is not as it writes it"
    if new and stage.scenario.makes_generation:
        repeated = again.json.get("written") or store.manifest.generation != was
        assert not repeated, "repeated after its commit, it made a further generation"
    elif not new:
        assert store.manifest.generation == stage.generation


def _only_what_is_named(folder: Path) -> None:
    """The store's files are those that kept generations name, found without the program's help."""
    root = folder / "store"
    generations = sorted((root / "history").glob("*"))
    current = json.loads((root / "manifest.json").read_bytes())
    assert len(generations) == current["generation"]
    wanted = {"LOCK", "manifest.json"} | {f"history/{path.name}" for path in generations}
    head = Manifest.from_json(current, "manifest.json")
    for path in generations[current["oldest_restorable"] - 1 :]:
        one = Manifest.from_json(json.loads(path.read_bytes()), str(path))
        named = one.blobs()
        if one.generation < current["oldest_gallery"]:
            named = head.model_blobs(one)
        wanted |= {f"{kind}/{digest}{KINDS[kind]}" for kind, digest in named}
    wanted |= {f"attempts/{name}" for name in attempts(folder)}
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert there - LOCKS == wanted - LOCKS


def _nothing_else_touched(stage: Stage, folder: Path, outcome: Outcome) -> None:
    """Nothing outside of the project, and in it only what the command may write, whole or not."""
    assert not outcome.outside, f"outside of the project: {outcome.outside[0]}"
    now, was = beside(folder), beside(stage.pristine)
    for name in now.keys() | was.keys():
        if name in stage.written and now.get(name) == stage.written[name]:
            continue
        if name == "report.json" and _says_uncounted(folder):
            continue
        if outcome.status != 0 and stage.written and Path(name).name.startswith(".new-"):
            continue  # the temporary of a file beside the store: no command cleans it away
        assert now.get(name) == was.get(name), f"{name} was changed"


def _says_uncounted(folder: Path) -> bool:
    """Whether the report of a verify that was denied writing says that it is not counted."""
    report = json.loads((folder / "report.json").read_bytes())
    why = "attempts: the store cannot be written to"
    return report["attempt"] is None and why in report["not_checked"]


def _message(outcome: Outcome) -> None:
    """A command that failed without being killed said what happened and what to do next."""
    said = outcome.stderr
    assert "Traceback" not in said, said
    assert outcome.status in HANDLED, f"exit {outcome.status}: {said}"
    assert said.startswith("compatctl: "), said
    assert "next: " in said, f"it does not say what to do: {said}"


def verify(
    machine: Machine,
    stage: Stage,
    folder: Path,
    fault: Fault,
    outcome: Outcome,
    *,
    cut: bool = False,
) -> None:
    """Every law, after ``fault`` ended the scenario's command in ``folder`` with ``outcome``.

    ``cut``: a power cut came besides, so that the commit itself may have been lost.
    """
    _nothing_else_touched(stage, folder, outcome)
    new = committed(stage, folder)
    if outcome.status == 0:
        assert new, "it reported success, and the old state is there"
        told = counted(stage, folder) or (fault.arg == EACCES and _says_uncounted(folder))
        assert told, "it reported success, and the attempt is not counted"
    elif not outcome.killed:
        _message(outcome)
    renamed = [call for call in performed(outcome, fault) if call.name == "rename"]
    if stage.scenario.makes_generation and fault.kill_after_s is None and not cut:
        at = any(call.other == str(folder / "store" / "manifest.json") for call in renamed)
        assert new == at, "the commit is not the replacing of manifest.json"
    if "report.json" in stage.written and (folder / "report.json").exists():
        assert _says_uncounted(folder) or counted(stage, folder), (
            "there is a report, and its attempt is not counted"
        )
    if new and stage.scenario.erases:
        _unfinished_at_most(machine, folder)
    elif new:
        checked(machine, folder)
    _repeat(machine, stage, folder, new)
    checked(machine, folder, "--gc")
    assert checked(machine, folder)["unreferenced"] == []
    _only_what_is_named(folder)
    _nothing_erased_left(stage, folder)
    assert counted(stage, folder), "gc deleted attempts"
    if LONG or fault.kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER):
        _afterwards(machine, stage, folder)


def _afterwards(machine: Machine, stage: Stage, folder: Path) -> None:
    """What follows succeeds; a further verify knows of every attempt before it."""
    for argv in stage.scenario.afterwards:
        done = machine.run(folder, argv)
        assert done.status == 0, f"afterwards {argv}: exit {done.status}: {done.stderr}"
        if argv[1] == "verify":
            number = 1 + sum(data.count(b'"key"') for data in stage.counted[1].values())
            assert done.json["attempt"]["number"] == number, done.json["attempt"]
    if stage.scenario.afterwards:
        checked(machine, folder)


def _unfinished_at_most(machine: Machine, folder: Path) -> None:
    """An erasure that was committed is checked, or said to be unfinished and nothing else."""
    done = machine.run(folder, ("compatctl", "check", "--json", "--store", "store"))
    problems = done.json["problems"]
    assert (done.status, len(problems)) in ((0, 0), (5, 1)), problems
    assert all("a removal was killed" in one for one in problems), problems


def _nothing_erased_left(
    stage: Stage, folder: Path, where: tuple[str, ...] = ("store", "build")
) -> None:
    """No file has the bytes of a vector, nor one of the store or the candidate an id, that left."""
    if stage.before is None or not stage.scenario.erases:
        return
    for path in folder.rglob("*"):
        whose = path.relative_to(folder).parts[0]
        data = path.read_bytes() if path.is_file() and whose in where else b""
        for item in stage.before.rows.keys() - stage.after.rows.keys():
            assert stage.before.rows[item][2] not in data, f"a vector of {item} is in {path}"
            assert f'"{item}"'.encode() not in data, f"{item} is in {path}"
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
"""Run one after the other on a store that was swept; a rollback may find nothing to undo."""


def swept(machine: Machine, stage: Stage, folder: Path, keep: tuple[str, ...]) -> None:
    """gc with these flags, right after the fault: the state stays what it was, whole; nothing that
    a kept generation names goes; and every command works."""
    store = folder / "store"
    new, was = committed(stage, folder), attempts(folder)
    done = machine.run(folder, ("compatctl", "check", "--gc", "--json", "--store", "store", *keep))
    if not (store / "manifest.json").exists():
        assert done.status == 5, done.stderr
    else:
        assert done.status == 0, f"gc: exit {done.status}: {done.stdout}{done.stderr}"
        _said_what_is(store, done)
        assert read_state(Store.open(store)) == (stage.after if new else stage.before)
        assert checked(machine, folder)["unreferenced"] == []
        assert attempts(folder) == was, "gc changed the attempts"
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
        ran = machine.run(folder, argv)
        allowed = (0, 2) if command[0] == "rollback" else (0,)
        assert ran.status in allowed, f"after gc {command}: exit {ran.status}: {ran.stderr}"


def _said_what_is(store: Path, done: Outcome) -> None:
    """What gc said is of the state that it left."""
    said, current = done.json, (store / "manifest.json").read_bytes()
    assert said["head"] == hashlib.sha256(current).hexdigest()
    now = json.loads(current)
    assert (said["generations"], said["oldest_restorable"]) == (
        now["generation"],
        now["oldest_restorable"],
    )
    assert said["unreferenced"] == []
    assert not [name for name in said["deleted"] if (store / name).exists()]
