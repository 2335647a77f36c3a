"""The paths in a store, and the strict reading of a generation."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.files import (
    TEMPORARY,
    canonical_json,
    os_errors,
    parse_json,
    sha256_bytes,
    sha256_file,
)
from compatctl.manifest import Catalog, Erasures, Manifest

KINDS = {
    "models": ".onnx",
    "canaries": ".npz",
    "indexes": ".hnsw",
    "tables": ".table",
    "catalogs": ".npz",
    "reports": ".json",
    "registries": ".json",
    "memories": ".npz",
    "erasures": ".npz",
}
"""Kinds of files: folder and file name suffix."""

Blobs = tuple[tuple[str, str], ...]
"""(kind, sha256) of files."""

LOCK = "LOCK"
MANIFEST = "manifest.json"
HISTORY = "history"
ATTEMPTS = "attempts"
SIDE = "side"
SIDE_SUFFIX = ".vectors"
BACKFILL = "backfill"
PENDING_SUFFIX = ".rows"
_MAX_BYTES = 16 << 20
NO_STORE_TIP = "compatctl init (or import) creates one"
RESTORE_TIP = "restore the file from a backup; compatctl check lists every problem"


def blob_path(root: Path, kind: str, sha256: str) -> Path:
    """The path of a file of this kind and digest, whether or not it exists."""
    return root / kind / f"{sha256}{KINDS[kind]}"


def generation_path(root: Path, generation: int) -> Path:
    """The path of a generation's manifest in the history."""
    return root / HISTORY / f"{generation:06d}.json"


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of the manifest's file, the same in manifest.json and in history/."""
    return canonical_json(manifest.to_json())


def manifest_digest(manifest: Manifest) -> str:
    """What the next generation records as its ``parent``."""
    return sha256_bytes(manifest_bytes(manifest))


def read_current(root: Path) -> Manifest:
    """The current generation; manifest.json must equal the newest file of history/.

    Raises:
        InputError: there is no store, its creation did not finish, or it is of another format.
        DamagedError: manifest.json is not what this program wrote, or the store holds a link.
    """
    manifest = read_manifest(root)
    path = generation_path(root, manifest.generation)
    if not is_regular_file(path):
        raise DamagedError(
            f"{path}, a copy of {root / MANIFEST}, is missing",
            tip="restore it from a backup, or copy manifest.json there if it is known to be right",
        )
    with os_errors("reading", path), path.open("rb") as file:
        if file.read(_MAX_BYTES + 1) != manifest_bytes(manifest):
            raise DamagedError(
                f"{root / MANIFEST} and {path} differ: one of them was changed",
                tip="compatctl check lists every problem; restore the changed file from a backup, "
                "or replace it with the other one",
            )
    return manifest


def read_manifest(root: Path) -> Manifest:
    """The manifest in manifest.json, not compared with history/; errors as ``read_current``."""
    refuse_links(root)
    path = root / MANIFEST
    if not path.exists():
        refuse_missing_manifest(root)
        unfinished = (root / HISTORY).is_dir()
        what = "a store whose creation did not finish" if unfinished else "no store"
        raise InputError(f"{root}: {what}", tip=NO_STORE_TIP)
    try:
        return _read(path, _recovery_tip(root))
    except InputError as error:  # another format; damaged if its history has this one
        try:
            _read(max((root / HISTORY).glob("*.json"), default=path))
        except CompatError:
            raise error from None
        raise DamagedError(error.message, tip=_recovery_tip(root)) from None


def refuse_missing_manifest(root: Path) -> None:
    """Raise DamagedError if only history/ has generations; a killed creation leaves at most one."""
    path = root / MANIFEST
    if not path.exists() and generation_path(root, 2).exists():
        raise DamagedError(f"{path} is missing", tip=_recovery_tip(root))


def older_manifest_problems(root: Path, current: Manifest) -> list[str]:
    """The problem that an older manifest.json replaced a newer one, if one did.

    A killed commit leaves one generation after the current one, never two in a chain: the first is
    committed before the second begins.
    """
    try:
        after = read_generation(root, current.generation + 1)
        later = read_generation(root, current.generation + 2)
    except CompatError:
        return []
    if (after.parent, later.parent) != (manifest_digest(current), manifest_digest(after)):
        return []
    return [
        f"{root / MANIFEST} is of generation {current.generation}, and {root / HISTORY} goes on: "
        "an older manifest.json was put back over a newer one"
    ]


def refuse_older_manifest(root: Path, current: Manifest) -> None:
    """Raise DamagedError if the history goes on after ``current``; call it under the lock."""
    if problems := older_manifest_problems(root, current):
        raise DamagedError(
            problems[0],
            tip=f"{_recovery_tip(root)}; if the older one is intended, move the later files of "
            "history/ elsewhere",
        )


def _recovery_tip(root: Path) -> str:
    return (
        f"every generation is kept in {root / HISTORY}: to recover the store, copy the newest "
        f"intact one over {root / MANIFEST}"
    )


def read_generation(root: Path, generation: int) -> Manifest:
    """A generation from history/; DamagedError if it is missing or not what was written."""
    path = generation_path(root, generation)
    if not is_regular_file(path):
        raise DamagedError(f"{path} is missing", tip=RESTORE_TIP)
    manifest = _read(path)
    if manifest.generation != generation:
        raise DamagedError(f"{path} holds generation {manifest.generation}", tip=RESTORE_TIP)
    return manifest


def is_regular_file(path: Path) -> bool:
    """Whether the path is a regular file, not a link, device or pipe."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_own_name(folder: str, name: str) -> bool:
    """Whether only this program gives such a name to a file in ``folder`` of a store ("": the store
    itself); others are never touched. Files of attempts are not among them."""
    suffix = {**KINDS, SIDE: SIDE_SUFFIX, BACKFILL: PENDING_SUFFIX}.get(folder)
    if folder not in {"", HISTORY, SIDE, BACKFILL, *KINDS}:
        return False
    pattern = r"\d{6,}\.json" if folder == HISTORY else rf"[0-9a-f]{{64}}{re.escape(suffix or '')}"
    named = bool(folder) and re.fullmatch(pattern, name) is not None
    return named or name.startswith(TEMPORARY)


def refuse_links(root: Path) -> None:
    """Raise DamagedError if a folder or file inside a store is a link: it leads elsewhere."""
    expected = dict.fromkeys((HISTORY, ATTEMPTS, SIDE, BACKFILL, *KINDS), "folder")
    locks = (f"{folder}/{LOCK}" for folder in (ATTEMPTS, SIDE, BACKFILL))
    expected |= dict.fromkeys((MANIFEST, LOCK, *locks), "file")
    for name, what in expected.items():
        path = root / name
        own = path.is_dir() if what == "folder" else is_regular_file(path)
        if path.is_symlink() or (path.exists() and not own):
            raise DamagedError(
                f"{path} is not a {what} of the store's own: a link, or something else",
                tip=f"replace it with the real {what}; to keep a store on another disk, move all "
                "of it",
            )


def _read(path: Path, tip: str = RESTORE_TIP) -> Manifest:
    with os_errors("reading", path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise DamagedError(f"{path}: larger than the {_MAX_BYTES} bytes a manifest may have")
        manifest = Manifest.from_json(parse_json(data, path, error=DamagedError), str(path))
        if manifest_bytes(manifest) != data:
            raise DamagedError(f"{path}: not the bytes that were written; was it edited by hand?")
    except DamagedError as error:
        error.tip = tip
        raise
    return manifest


def catalog_problems(root: Path, manifest: Manifest) -> list[str]:
    """Differences between a generation's catalogue and its manifest: row counts, by model."""
    path = blob_path(root, "catalogs", manifest.catalog)
    try:
        counts = Catalog.read(path).counts()
    except CompatError as error:
        return [error.message]
    total, count = sum(counts.values()), manifest.index.count
    problems = [f"{path} has {total} rows, the index {count}"] if total != count else []
    for model in manifest.models:
        rows = counts.pop(model.sha256, 0)
        if rows != model.rows:
            problems.append(f"{path} has {rows} rows of model {model.name}, not {model.rows}")
    unlisted = sorted(model for model, rows in counts.items() if rows)
    problems += [f"{path} has rows of a model {model} that is not listed" for model in unlisted]
    return problems


def erasure_problems(root: Path, manifest: Manifest) -> list[str]:
    """Problems: the catalogue of a generation contains rows that were erased before."""
    if manifest.erasures is None:
        return []
    path = blob_path(root, "catalogs", manifest.catalog)
    list_path = blob_path(root, "erasures", manifest.erasures)
    try:
        erased = Erasures.read(list_path)
        if sha256_file(list_path) != manifest.erasures:
            return [changed_bytes(list_path)]
        ids = erased.matching(Catalog.read(path).ids)
    except CompatError as error:
        return [error.message]
    return [f"{path} has {len(ids)} rows that were erased: {', '.join(ids[:5])}"] if ids else []


def changed_bytes(path: Path) -> str:
    """The problem that a file has another digest than its name says."""
    return f"{path} was changed: its bytes are not those of its name"


def retained_blobs(manifest: Manifest, current: Manifest) -> Blobs:
    """(kind, sha256) of the kept files of a generation: all, none, or, if items were erased since,
    those of its query model."""
    if manifest.generation < current.oldest_restorable:
        return ()
    if manifest.generation >= current.oldest_gallery:
        return manifest.blobs()
    return manifest.model_blobs()


def require_blobs(root: Path, manifest: Manifest, blobs: Blobs | None = None) -> None:
    """Raise DamagedError if a file of a generation is missing or empty; no file is read.

    ``blobs``: the files that are needed. Default: all.
    """
    for kind, digest in manifest.blobs() if blobs is None else blobs:
        path = blob_path(root, kind, digest)
        if not is_regular_file(path) or path.stat().st_size == 0:
            raise DamagedError(
                f"{path}, which generation {manifest.generation} needs, is missing or empty",
                tip=RESTORE_TIP,
            )
