"""bridge killed, or told that there is no room, at every call that changes a file."""

from __future__ import annotations

import csv
import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit import Fault, Kind, Machine, fresh_copy
from scenarios import FIRST, _begun, beside

ARGV = ("compatctl", "bridge", "new.onnx", "-o", "bridged.onnx", "--kind", "orthogonal",
        "--data", "bridge.csv", "--json")  # fmt: skip
WRITES = ("write", "writev", "pwrite", "pwritev")
MODEL, RECORD = "bridged.onnx", "bridged.training.json"


@dataclass(frozen=True)
class Ready:
    """A project to bridge in, what one run writes, and the calls by which it does so."""

    folder: Path
    before: dict[str, bytes]
    written: dict[str, bytes]
    calls: tuple[str, ...]


@pytest.fixture(scope="module")
def ready(shell: Machine, scratch_root: Path) -> Ready:
    """A store of 12 items; the data has six more, which train or are validation queries."""
    folder = scratch_root / "bridge"
    folder.mkdir()
    _begun(shell, folder)
    with (folder / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for at, row in enumerate(rows):
        row["split"] = "train" if row["label"] == "c0" else "validation"
        row["role"] = "gallery" if at < FIRST else "query"
    with (folder / "bridge.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ran = fresh_copy(folder, scratch_root / "bridge-ran")
    outcome = shell.run(ran, ARGV)
    assert outcome.status == 0, outcome.stderr
    before, after = beside(folder), beside(ran)
    written = {name: data for name, data in after.items() if before.get(name) != data}
    assert set(written) == {MODEL, RECORD}
    return Ready(
        folder=folder,
        before=before,
        written=written,
        calls=tuple(call.name for call in outcome.calls),
    )


@pytest.mark.parametrize("kind", [Kind.KILL_BEFORE, Kind.SHORT, Kind.ERRNO_ONCE])
def test_no_half_of_a_bridge_is_left(
    shell: Machine, ready: Ready, scratch: Path, kind: Kind
) -> None:
    """The model is whole with its record, or is not there; an error leaves neither; the store and
    all other files stay as they are, and the next run writes the same bytes."""
    places = [at for at, name in enumerate(ready.calls, 1) if kind != Kind.SHORT or name in WRITES]
    assert len(places) >= 2
    for at in places:
        folder = fresh_copy(ready.folder, scratch / "project")
        fault = Fault(kind=kind, at=at, arg=errno.ENOSPC if kind == Kind.ERRNO_ONCE else 0)
        outcome = shell.run(folder, ARGV, fault)
        assert outcome.killed or outcome.status == 5 or kind == Kind.ERRNO_ONCE
        found = {name: data for name, data in beside(folder).items() if "/.new-" not in f"/{name}"}
        made = {name: data for name, data in found.items() if name not in ready.before}
        assert {name: found[name] for name in ready.before} == ready.before, fault
        assert made.items() <= ready.written.items(), fault
        assert MODEL not in made or RECORD in made, fault
        if outcome.status == 5:
            assert not made, (fault, outcome.hit)
    again = shell.run(folder, ARGV)
    assert again.status == 0, again.stderr
    assert {name: beside(folder)[name] for name in ready.written} == ready.written


def test_an_error_gives_an_earlier_bridge_back(shell: Machine, ready: Ready, scratch: Path) -> None:
    """Where the second file cannot be written, or not made sure of, the first is what it was."""
    earlier = {MODEL: b"an earlier model", RECORD: b"{}"}
    for at in range(len(ready.calls) // 2 + 1, len(ready.calls) + 1):
        folder = fresh_copy(ready.folder, scratch / "project")
        for name, data in earlier.items():
            (folder / name).write_bytes(data)
        outcome = shell.run(folder, ARGV, Fault(kind=Kind.ERRNO_ONCE, at=at, arg=errno.ENOSPC))
        found = beside(folder)
        wanted = earlier if outcome.status == 5 else ready.written
        assert {name: found[name] for name in earlier} == wanted, (at, outcome.hit)
