"""Files that are not what they should be: pointers to a large file, error pages, archives."""

from __future__ import annotations

import re
from pathlib import Path

from compatctl.errors import InputError

MAX_POINTER_BYTES = 1024
"""Most bytes of a pointer of Git LFS, by its specification."""

_POINTERS = {
    b"version https://git-lfs": ("Git LFS", "git lfs pull"),
    b"version https://hawser": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}
_ANNEX_LINK = re.compile(rb"(?:\.\.[/\\])*\.git[/\\]annex[/\\]objects[/\\]")
"""A link of git-annex as a text, as Git writes it where there are no links."""

_FETCH_AGAIN = "a download may have failed: look into it, and fetch the file again"
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"(?i)\s*<(?:!doctype html|html|head|body)\b"), "an HTML page", _FETCH_AGAIN),
    (re.compile(rb"(?i)\s*<(?:\?xml|error)\b"), "an XML text", _FETCH_AGAIN),
    (re.compile(rb"\x1f\x8b"), "a gzip file", "unpack it first"),
    (
        re.compile(rb"BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd"),
        "a compressed file",
        "unpack it first",
    ),
    (
        re.compile(rb"PK\x03\x04"),
        "a zip archive, as .xlsx, .ods, .npz and .pt files are",
        "unpack it, or save the table as CSV in UTF-8",
    ),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an Excel workbook", "save the table as CSV in UTF-8"),
    (re.compile(rb"%PDF-"), "a PDF document", "name the file itself"),
    (re.compile(rb"PAR1"), "a Parquet file", "its name must end in .parquet"),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database", "export the table as CSV"),
    (re.compile(rb"\x93NUMPY"), "a .npy array", "save named arrays with numpy.savez"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), "an image", "name the file itself"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle, which could run code", "save it in another form"),
)
"""How a file begins -> what it is, and what to do."""


def refuse_pointer(path: Path, data: bytes) -> None:
    """Refuse a file whose first bytes are ``data``, if it only points to the file that is meant.

    Raises:
        InputError: it is a pointer; the tip says how to fetch the file.
    """
    for begin, (system, command) in _POINTERS.items():
        is_link = system == "git-annex" and _ANNEX_LINK.match(data)
        if data.startswith(begin) or is_link:
            raise InputError(
                f"{path}: it is a {system} pointer, not the file itself",
                tip=f"{command} fetches the file",
            )


def other_kind(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with ``head`` is, and what to do; None if that is not known.

    For files that cannot be read as what they should be.
    """
    for begin, kind, tip in _KINDS:
        if begin.match(head):
            return kind, tip
    return None


def absence(path: Path) -> str:
    """What to do about a file that is missing, if it is known where it is; else empty."""
    beside = path.with_name(path.name + ".dvc")
    if beside.is_file():
        return f"{beside.name} stands for it: dvc pull fetches the file"
    if path.is_symlink():
        target = path.readlink()
        is_annex = _ANNEX_LINK.search(bytes(target))
        fetch = "git annex get fetches the file" if is_annex else "mend the link"
        return f"it is a link to {target}, which is missing: {fetch}"
    return ""
