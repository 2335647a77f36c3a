"""Folders of images: which files are read, and what their folders say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compatctl.data._roots import AllowedRoots
from compatctl.errors import InputError
from compatctl.notices import MAX_NAMES, notice

IMAGE_SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Files with other suffixes in a folder are passed over, with a notice."""

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_ROLES = {**dict.fromkeys(("query", "queries"), "query"), "gallery": "gallery"}
"""Folder's name without case -> split or role of the class folders in it."""

_LETTERS = re.compile(r"[^\W\d_]+")
_CONTAINERS = frozenset((
    "image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures",
    "data", "dataset",
))  # fmt: skip
"""Names of folders that hold images of all classes, rather than those of one."""

Record = dict[str, object]
Parts = tuple[str, ...]


def image_files(top: Path, roots: AllowedRoots) -> list[Path]:
    """Every image file that is not hidden, sorted; see ``files_ending``."""
    return files_ending(top, roots, IMAGE_SUFFIXES, "images")


def files_ending(
    top: Path, roots: AllowedRoots, suffixes: Collection[str], kind: str
) -> list[Path]:
    """Every file that ends so (in lower case) and is not hidden, sorted; ``kind`` says what it is.

    Links to folders are followed, each folder once. Files that are passed over are counted and
    named by their ending.

    Raises:
        InputError: a file or folder lies outside the roots, or a folder is there twice.
    """
    images: list[Path] = []
    passed = _Passed(top, kind)
    waiting, seen = [top], {roots.real(top)}
    while waiting:
        for path in waiting.pop().iterdir():
            is_image = path.suffix.lower() in suffixes
            if path.name.startswith("."):
                if is_image and path.is_file():
                    passed.count(f"hidden {kind} that are passed over", path)
            elif is_image and path.is_file():
                images.append(roots.check(path, str(top)))
            elif path.is_dir():
                real = roots.real(roots.check(path, str(top)))
                if real in seen:
                    raise InputError(
                        f"{top}: {path} leads to a folder that is there already",
                        tip="remove one of the two: its images would be there twice",
                    )
                seen.add(real)
                waiting.append(path)
            elif is_image:
                passed.count(f"{kind} that are a broken link or no file", path)
            else:
                ending = path.suffix.lower() or "no ending"
                passed.count(f"files that are passed over ({ending})", path)
    passed.warn()
    return sorted(images, key=lambda file: file.relative_to(top).as_posix())


@dataclass
class _Passed:
    """Files that are not read: what they are -> how many, and the first of them."""

    top: Path
    kind: str
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def count(self, what: str, path: Path) -> None:
        self.counts[what] += 1
        if len(self.names[what]) < MAX_NAMES:
            self.names[what].append(path.relative_to(self.top).as_posix())

    def warn(self) -> None:
        for what in sorted(self.counts):
            convert = self.kind == "images" and "(" in what
            result = "convert images among them to JPEG or PNG" if convert else ""
            names = sorted(self.names[what])
            notice("file-not-read", self.top, what, names, result, count=self.counts[what])


def class_records(top: Path, paths: Sequence[Parts]) -> list[Record]:
    """The label of each image, and maybe its split or role, by its path (n parts) in ``top``.

    The label is the first folder. If all first folders are named like splits or roles (train, val,
    query) and have class folders in them, the label is the second one, and a notice says so.
    """
    tops = sorted({parts[0] for parts in paths})
    words = [name for name in tops if name.casefold() in _SPLITS or name.casefold() in _ROLES]
    deep = all(len(parts) > 2 for parts in paths)
    if words == tops and deep:
        names = [f"{name!r} as {_meaning(name)}" for name in tops]
        what = "folders read as splits or roles, with the classes below them"
        notice("split-folders", top, what, names)
        below = [parts[1:] for parts in paths]
        if not _warn_of_deeper_folders(top, below):
            _warn_of_containers(top, below)
        return [_nested(parts) for parts in paths]
    words = [name for name in tops if _sounds_like_a_split(name)]
    if words == tops or len(words) > 1:
        result = "if they are splits, put class folders into each, and only such folders beside it"
        names = [*map(repr, words)]
        notice("split-folders", top, "class folders named like a split or role", names, result)
    elif not _warn_of_deeper_folders(top, paths):
        _warn_of_containers(top, paths)
    return [{"label": parts[0]} for parts in paths]


def _sounds_like_a_split(name: str) -> bool:
    """Whether a word in the name is one of a split or role, as in train2017 and test_set."""
    words = _LETTERS.findall(name.casefold())
    plain = {word.removesuffix("s").removesuffix("set") for word in words} | {*words}
    return not plain.isdisjoint((*_SPLITS, *_ROLES, "trainval", "probe"))


def _warn_of_containers(top: Path, paths: Sequence[Parts]) -> None:
    """Warn of class folders, the first of ``paths``, with names of folders of any images."""
    labels = sorted({parts[0] for parts in paths})
    if names := [*map(repr, (name for name in labels if name.casefold() in _CONTAINERS))]:
        result = "they are the labels; put the images into folders named after their classes"
        notice("nested-folders", top, "class folders named like no class", names, result)


def _warn_of_deeper_folders(top: Path, paths: Sequence[Parts]) -> bool:
    """Warn of folders in class folders (the first of ``paths``) that may mean more than they do.

    A level that is one folder in all class folders is passed over. Returns whether there was a
    reason: they are named like splits; or all images lie in them, and they repeat or have one above
    them.
    """
    tops = sorted({parts[0] for parts in paths})
    while all(len(parts) > 3 for parts in paths) and len({parts[1] for parts in paths}) == 1:
        paths = [(parts[0], *parts[2:]) for parts in paths]
    below: dict[str, set[str]] = defaultdict(set)
    for parts in paths:
        if len(parts) > 2:
            below[parts[1]].add(parts[0])
    words = [name for name in sorted(below) if name.casefold() in (_SPLITS.keys() | _ROLES.keys())]
    if len(words) > 1:
        result = "they are not read as such; put the class folders into them instead"
        what = "folders in class folders that are named like a split or role"
        notice("split-folders", top, what, [*map(repr, words)], result)
        return True
    if all(len(parts) > 2 for parts in paths):
        repeated = sum(len(folders) > 1 for folders in below.values())
        most_repeat = len(below) > len(tops) and 2 * repeated > len(below)
        if len(below) > 1 and (len(tops) == 1 or most_repeat):
            result = f"they are the labels; {len(below)} names of folders lie deeper"
            what = "class folders whose images all lie in deeper folders"
            notice("nested-folders", top, what, [*map(repr, tops)], result)
            return True
    return False


def warn_of_empty_folders(top: Path, labels: Collection[str]) -> None:
    """Warn of folders in ``top`` without an image in or below them."""
    folders = [path.name for path in top.iterdir() if path.is_dir()]
    empty = [name for name in folders if name not in labels and not name.startswith(".")]
    if empty:
        notice("empty-folder", top, "folders without an image", [*map(repr, sorted(empty))])


def fields_of_split(word: str) -> Record | None:
    """What a name of a split or role says of the items below it; None if it is no such name."""
    plain = word.casefold()
    if plain in _ROLES:
        return {"split": "test", "role": _ROLES[plain]}
    return {"split": _SPLITS[plain]} if plain in _SPLITS else None


def _meaning(name: str) -> str:
    plain = name.casefold()
    return _SPLITS.get(plain) or _ROLES[plain]


def _nested(parts: Parts) -> Record:
    return {"label": parts[1], **(fields_of_split(parts[0]) or {})}
