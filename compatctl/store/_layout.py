"""The paths in a store, and the strict reading of a generation."""

from __future__ import annotations

import stat
from pathlib import Path

from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.files import canonical_json, os_errors, parse_json, sha256_bytes, sha256_file
from compatctl.manifest import Catalog, Erasures, Manifest

KINDS = {
    "models": ".onnx",
    "canaries": ".npz",
    "indexes": ".hnsw",
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
_MAX_BYTES = 16 << 20
_RESTORE_TIP = "restore the file from a backup; compatctl check lists all that is wrong"


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
        InputError: there is no store, its creation did not finish, or it is of a newer format.
        DamagedError: manifest.json is not what this program wrote, or the store holds a link.
    """
    found = read_manifest(root)
    written = generation_path(root, found.generation)
    if not is_regular_file(written):
        raise DamagedError(
            f"{written}, which holds the same as {root / MANIFEST}, is missing",
            tip="restore it from a backup, or copy manifest.json there if it is known to be right",
        )
    with os_errors("reading", written), written.open("rb") as file:
        if file.read(_MAX_BYTES + 1) != manifest_bytes(found):
            raise DamagedError(
                f"{root / MANIFEST} and {written} differ: one of them was changed",
                tip="compatctl check says what else is wrong; restore the changed one from a "
                "backup, or put the other in its place",
            )
    return found


def read_manifest(root: Path) -> Manifest:
    """The manifest in manifest.json, not compared with history/.

    Raises:
        InputError, DamagedError: as ``read_current``.
    """
    refuse_links(root)
    path = root / MANIFEST
    if not path.exists():
        refuse_missing_manifest(root)
        begun = (root / HISTORY).is_dir()
        what = "a store whose creation did not finish" if begun else "no store"
        raise InputError(f"{root}: {what}", tip="compatctl init (or import) makes one")
    try:
        return _read(path)
    except DamagedError as error:
        error.tip = _recovery_tip(root)
        raise
    except InputError as error:  # another format; damaged if its history has this one
        newest = max((root / HISTORY).glob("*.json"), default=path)
        try:
            _read(newest)
        except CompatError:
            raise error from None
        raise DamagedError(error.message, tip=_recovery_tip(root)) from None


def refuse_missing_manifest(root: Path) -> None:
    """Refuse a store without a manifest.json; a killed creation leaves at most one generation.

    Raises:
        DamagedError: history/ holds a second generation.
    """
    path = root / MANIFEST
    if not path.exists() and generation_path(root, 2).exists():
        raise DamagedError(f"{path} is missing", tip=_recovery_tip(root))


def older_manifest_problems(root: Path, current: Manifest) -> list[str]:
    """The problem that an older manifest.json replaced a newer one; empty if none did.

    A killed commit leaves one generation after the current one, never two that name each other:
    the first is committed before the second begins.
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
        f"an older manifest.json was put back over a newer one"
    ]


def refuse_older_manifest(root: Path, current: Manifest) -> None:
    """Refuse to write into a store whose manifest.json is an older one. Call under the lock.

    Raises:
        DamagedError: its history goes on after ``current``.
    """
    if problems := older_manifest_problems(root, current):
        raise DamagedError(
            problems[0],
            tip=f"{_recovery_tip(root)}; where the older one is meant, move the later files of "
            "history/ elsewhere",
        )


def _recovery_tip(root: Path) -> str:
    return (
        f"every generation is kept in {root / HISTORY}: the newest intact one, copied over "
        f"{root / MANIFEST}, is the store again"
    )


def read_generation(root: Path, generation: int) -> Manifest:
    """A generation from history/.

    Raises:
        InputError: it is of a newer format.
        DamagedError: it is missing, or not what this program wrote.
    """
    path = generation_path(root, generation)
    if not is_regular_file(path):
        raise DamagedError(f"{path} is missing", tip=_RESTORE_TIP)
    try:
        found = _read(path)
    except DamagedError as error:
        error.tip = _RESTORE_TIP
        raise
    if found.generation != generation:
        raise DamagedError(f"{path} holds generation {found.generation}", tip=_RESTORE_TIP)
    return found


def is_regular_file(path: Path) -> bool:
    """Whether the path is a regular file, not a link, device or pipe."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def refuse_links(root: Path) -> None:
    """Refuse links inside a store: reads and writes would go elsewhere.

    The store's folder itself may be a link.

    Raises:
        DamagedError: a folder of the store is a link or no folder, or a file no plain file.
    """
    for name in (HISTORY, ATTEMPTS, *KINDS):
        path = root / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _foreign_entry(path, "folder")
    for name in (MANIFEST, LOCK, f"{ATTEMPTS}/{LOCK}"):
        path = root / name
        if path.is_symlink() or (path.exists() and not is_regular_file(path)):
            raise _foreign_entry(path, "file")


def _foreign_entry(path: Path, what: str) -> DamagedError:
    return DamagedError(
        f"{path} is not a {what} of the store's own: a link, or something else",
        tip="put the real one in its place; to keep a store on another disk, move it whole",
    )


def _read(path: Path) -> Manifest:
    with os_errors("reading", path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DamagedError(f"{path}: larger than the {_MAX_BYTES} bytes a manifest may have")
    found = Manifest.from_json(parse_json(data, path, error=DamagedError), str(path))
    if manifest_bytes(found) != data:
        raise DamagedError(f"{path}: not the bytes that were written; was it edited by hand?")
    return found


def catalog_problems(root: Path, manifest: Manifest) -> list[str]:
    """Differences between a generation's catalogue and its manifest: rows, by model."""
    path = blob_path(root, "catalogs", manifest.catalog)
    try:
        counts = Catalog.read(path).counts()
    except CompatError as error:
        return [error.message]
    rows, wanted = sum(counts.values()), manifest.index.count
    found = [f"{path} has {rows} rows, the index {wanted}"] if rows != wanted else []
    for model in manifest.models:
        held = counts.pop(model.sha256, 0)
        if held != model.rows:
            found.append(f"{path} has {held} rows of model {model.name}, not {model.rows}")
    strangers = sorted(model for model, held in counts.items() if held)
    return found + [f"{path} has rows of a model {model} that is not listed" for model in strangers]


def erasure_problems(root: Path, manifest: Manifest) -> list[str]:
    """Problems: the catalogue of a generation contains rows that were erased before."""
    if manifest.erasures is None:
        return []
    try:
        listed = blob_path(root, "erasures", manifest.erasures)
        erased = Erasures.read(listed)
        if sha256_file(listed) != manifest.erasures:
            return [f"{listed} was changed: its bytes are not those of its name"]
        path = blob_path(root, "catalogs", manifest.catalog)
        back = erased.matching(Catalog.read(path).ids)
    except CompatError as error:
        return [error.message]
    return [f"{path} has {len(back)} rows that were erased: {', '.join(back[:5])}"] if back else []


def retained_blobs(one: Manifest, current: Manifest) -> Blobs:
    """(kind, sha256) of the kept files of a generation: all, none, or, if items were erased since,
    those of its query model."""
    if one.generation < current.oldest_restorable:
        return ()
    if one.generation >= current.oldest_gallery:
        return one.blobs()
    return current.model_blobs(one)


def require_blobs(root: Path, manifest: Manifest, blobs: Blobs | None = None) -> None:
    """Refuse a generation with a missing file; the files are not read.

    ``blobs``: the files that are needed. Default: all.

    Raises:
        DamagedError: a file is missing or empty.
    """
    for kind, digest in manifest.blobs() if blobs is None else blobs:
        path = blob_path(root, kind, digest)
        if not is_regular_file(path) or path.stat().st_size == 0:
            raise DamagedError(
                f"{path}, which generation {manifest.generation} needs, is missing or empty",
                tip="restore the file from a backup; compatctl check lists all that is wrong",
            )
