"""Power cuts: lay out every state of the disk that can remain after some calls.

What a killed process gave to the kernel is not lost; a power cut can lose it. Here the bytes of a
file are safe once the file was synced, and a name (made, moved or removed) is safe once its folder
was synced. Any part of the rest may be on the disk, in any order: this is stricter than a
journalling file system.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from kit import Call

MANY = 7
"""Up to this number of unsafe names every subset is tried; above it each one alone, and all."""


@dataclass
class _Name:
    """A change of a folder: ``file`` (a number) got the name ``made``, and ``gone`` was removed."""

    folder: str
    file: int | None
    made: str | None
    gone: str | None
    safe: bool = False


@dataclass
class Disk:
    """A project's files, numbered by name, and which bytes and names are not safe yet."""

    names: dict[str, int]
    folders: set[str]
    changes: list[_Name] = field(default_factory=list)
    unsafe_bytes: set[int] = field(default_factory=set)
    made: int = 0

    @classmethod
    def of(cls, project: Path) -> Disk:
        """A disk on which everything is safe."""
        inside = sorted(project.rglob("*"))
        files = [str(path) for path in inside if path.is_file()]
        folders = {str(path) for path in inside if path.is_dir()} | {str(project)}
        return cls({name: number for number, name in enumerate(files)}, folders, made=len(files))

    def apply(self, calls: Iterable[Call]) -> None:
        """Apply calls that took effect."""
        for call in calls:
            if call.name in ("open", "fopen", "creat"):
                self._create(call.path)
            elif call.name in ("fsync", "fdatasync"):
                self._sync(call.path)
            elif call.name == "rename":
                self._rename(call.path, call.other)
            elif call.name in ("unlink", "rmdir"):
                self._unlink(call.path)
            elif call.name == "mkdir":
                self._mkdir(call.path)
            elif call.path in self.names:
                self.unsafe_bytes.add(self.names[call.path])

    def _create(self, path: str) -> None:
        if path not in self.names:
            self.names[path] = self.made
            self._change(path, self.made, path, None)
            self.made += 1

    def _sync(self, path: str) -> None:
        if path in self.names:
            self.unsafe_bytes.discard(self.names[path])
        for change in self.changes:
            change.safe |= change.folder == path

    def _rename(self, path: str, other: str) -> None:
        if path in self.names:
            file = self.names[other] = self.names.pop(path)
            self._change(other, file, other, path)

    def _unlink(self, path: str) -> None:
        if self.names.pop(path, None) is not None:
            self._change(path, None, None, path)

    def _mkdir(self, path: str) -> None:
        if path not in self.folders:
            self.folders.add(path)
            self._change(path, None, path, None)

    def _change(self, path: str, file: int | None, made: str | None, gone: str | None) -> None:
        self.changes.append(_Name(str(Path(path).parent), file, made, gone))

    def after_cuts(self, pristine: Disk) -> Iterator[tuple[dict[str, int], set[str]]]:
        """The names and folders that can remain after a power cut, the worst case first."""
        unsafe = [i for i, change in enumerate(self.changes) if not change.safe]
        for kept in _subsets(unsafe):
            names, folders = dict(pristine.names), set(pristine.folders)
            for i, change in enumerate(self.changes):
                if change.safe or i in kept:
                    _apply(change, names, folders)
            yield (
                {name: file for name, file in names.items() if str(Path(name).parent) in folders},
                folders,
            )


def _subsets(unsafe: Sequence[int]) -> Iterator[set[int]]:
    if len(unsafe) <= MANY:
        for chosen in product((False, True), repeat=len(unsafe)):
            yield {change for change, keep in zip(unsafe, chosen, strict=True) if keep}
        return
    yield set()
    yield set(unsafe)
    for change in unsafe:
        yield {change}
        yield set(unsafe) - {change}


def _apply(change: _Name, names: dict[str, int], folders: set[str]) -> None:
    if change.gone is not None:
        names.pop(change.gone, None)
    if change.made is not None and change.file is None:
        folders.add(change.made)
    elif change.made is not None and change.file is not None:
        names[change.made] = change.file


def cut(
    pristine: Path, project: Path, runs: Sequence[Sequence[Call]], target: Path
) -> Iterator[str]:
    """Lay out at ``target``, one by one, each state that a power cut can leave of ``project``.

    ``runs``: the calls since ``pristine``, in which everything is safe. Unsafe bytes are there,
    gone, or half there. Yields a description of each state.
    """
    start = _moved(Disk.of(pristine), pristine, project)
    disk = _moved(Disk.of(pristine), pristine, project)
    for calls in runs:
        disk.apply(calls)
    contents = {file: (pristine / Path(name).relative_to(project)).read_bytes()
                for name, file in start.names.items()}  # fmt: skip
    for name, file in disk.names.items():
        contents[file] = Path(name).read_bytes()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    laid: dict[str, bytes] = {}
    for names, folders in disk.after_cuts(start):
        unsafe = disk.unsafe_bytes & set(names.values())
        for share in (0.0, 0.5, 1.0) if unsafe else (1.0,):
            files = {}
            for name, file in names.items():
                data = contents.get(file, b"")
                kept = data[: int(len(data) * share)] if file in unsafe else data
                files[str(Path(name).relative_to(project))] = kept
            _lay(target, laid, files, {str(Path(path).relative_to(project)) for path in folders})
            laid = files
            yield f"{len(names)} files, {share:.0%} of the unsafe bytes"


def _lay(target: Path, laid: dict[str, bytes], files: dict[str, bytes], folders: set[str]) -> None:
    """Change ``target`` from the files ``laid`` to ``files``, with these folders."""
    for name in laid.keys() - files.keys():
        (target / name).unlink()
    existing = [path for path in target.rglob("*") if path.is_dir()]
    for folder in sorted(existing, reverse=True):
        if str(folder.relative_to(target)) not in folders:
            folder.rmdir()
    for name in sorted(folders):
        (target / name).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if laid.get(name) != data:
            (target / name).write_bytes(data)


def _moved(disk: Disk, source: Path, target: Path) -> Disk:
    def moved(name: str) -> str:
        return str(target / Path(name).relative_to(source))

    disk.names = {moved(name): file for name, file in disk.names.items()}
    disk.folders = {moved(name) for name in disk.folders}
    return disk
