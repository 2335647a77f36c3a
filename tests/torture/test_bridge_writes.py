"""bridge killed, or without space on the disk, at every call that changes a file."""

from __future__ import annotations

import csv
import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit import Fault, Kind, Machine, fresh_copy
from scenarios import FIRST, beside, prepare_store

ARGV = ("compatctl", "bridge", "new.onnx", "-o", "bridged.onnx", "--kind", "orthogonal",
        "--data", "bridge.csv", "--json")  # fmt: skip
WRITES = ("write", "writev", "pwrite", "pwritev")
MODEL, RECORD = "bridged.onnx", "bridged.training.json"


@dataclass(frozen=True)
class Ready:
    """A project to bridge in, the files that one run writes, and its calls."""

    folder: Path
    before: dict[str, bytes]
    written: dict[str, bytes]
    calls: tuple[str, ...]


@pytest.fixture(scope="module")
def ready(shell: Machine, scratch_root: Path) -> Ready:
    """A store of 12 items; the data have six more, for training or as validation queries."""
    folder = scratch_root / "bridge"
    folder.mkdir()
    prepare_store(shell, folder)
    with (folder / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row["split"] = "train" if row["label"] == "c0" else "validation"
        row["role"] = "gallery" if i < FIRST else "query"
    with (folder / "bridge.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    copy = fresh_copy(folder, scratch_root / "bridge-ran")
    outcome = shell.run(copy, ARGV)
    assert outcome.status == 0, outcome.stderr
    before, after = beside(folder), beside(copy)
    written = {name: data for name, data in after.items() if before.get(name) != data}
    assert set(written) == {MODEL, RECORD}
    return Ready(
        folder=folder,
        before=before,
        written=written,
        calls=tuple(call.name for call in outcome.calls),
    )


@pytest.mark.parametrize("kind", [Kind.KILL_BEFORE, Kind.SHORT, Kind.ERRNO_ONCE])
def test_bridge_leaves_model_and_record_or_neither(
    shell: Machine, ready: Ready, scratch: Path, kind: Kind
) -> None:
    """The model is complete and has its record, or it is not there; an error leaves neither.

    All other files are unchanged, and the next run writes the same bytes."""
    numbers = [
        number for number, name in enumerate(ready.calls, 1) if kind != Kind.SHORT or name in WRITES
    ]
    assert len(numbers) >= 2
    for number in numbers:
        folder = fresh_copy(ready.folder, scratch / "project")
        fault = Fault(kind=kind, at=number, arg=errno.ENOSPC if kind == Kind.ERRNO_ONCE else 0)
        outcome = shell.run(folder, ARGV, fault)
        assert outcome.killed or outcome.status == 5 or kind == Kind.ERRNO_ONCE
        files = {name: data for name, data in beside(folder).items() if "/.new-" not in f"/{name}"}
        new = {name: data for name, data in files.items() if name not in ready.before}
        assert {name: files[name] for name in ready.before} == ready.before, fault
        assert new.items() <= ready.written.items(), fault
        assert MODEL not in new or RECORD in new, fault
        if outcome.status == 5:
            assert not new, (fault, outcome.hit)
    again = shell.run(folder, ARGV)
    assert again.status == 0, again.stderr
    assert {name: beside(folder)[name] for name in ready.written} == ready.written


def test_an_error_restores_the_earlier_bridge(shell: Machine, ready: Ready, scratch: Path) -> None:
    """If the second file cannot be written or synced, the first has its earlier bytes."""
    earlier = {MODEL: b"an earlier model", RECORD: b"{}"}
    for number in range(len(ready.calls) // 2 + 1, len(ready.calls) + 1):
        folder = fresh_copy(ready.folder, scratch / "project")
        for name, data in earlier.items():
            (folder / name).write_bytes(data)
        outcome = shell.run(folder, ARGV, Fault(kind=Kind.ERRNO_ONCE, at=number, arg=errno.ENOSPC))
        files = beside(folder)
        expected = earlier if outcome.status == 5 else ready.written
        assert {name: files[name] for name in earlier} == expected, (number, outcome.hit)
