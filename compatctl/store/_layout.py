"""Where a store keeps what, and how a generation is read: strictly, and only as it was written."""

from __future__ import annotations

from pathlib import Path

from compatctl.errors import DamagedError, InputError
from compatctl.files import canonical_json, clear_errors, parse_json, sha256_bytes
from compatctl.manifest import Manifest

KINDS = {
    "models": ".onnx",
    "indexes": ".hnsw",
    "catalogs": ".npz",
    "reports": ".json",
    "registries": ".json",
}
"""The kinds of files: each kind's folder, and how its files' names end."""

LOCK = "LOCK"
MANIFEST = "manifest.json"
HISTORY = "history"
_MAX_BYTES = 16 << 20


def blob_path(root: Path, kind: str, sha256: str) -> Path:
    """Where a file of this kind and digest is, or would be."""
    return root / kind / f"{sha256}{KINDS[kind]}"


def generation_path(root: Path, generation: int) -> Path:
    """Where a generation's manifest is kept for ever."""
    return root / HISTORY / f"{generation:06d}.json"


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of the manifest's file, the same in manifest.json and in history/."""
    return canonical_json(manifest.to_json())


def manifest_digest(manifest: Manifest) -> str:
    """What the next generation records as its ``parent``."""
    return sha256_bytes(manifest_bytes(manifest))


def read_current(root: Path) -> Manifest:
    """The current generation.

    Raises:
        InputError: there is no store, its creation did not finish, or it is of a newer format.
        DamagedError: manifest.json is not what this program wrote.
    """
    path = root / MANIFEST
    if not path.exists():
        begun = (root / HISTORY).is_dir()
        what = "a store whose creation did not finish" if begun else "no store"
        raise InputError(f"{root}: {what}", tip="compatctl init (or import) makes one")
    try:
        return _read(path)
    except DamagedError as error:
        error.tip = (
            f"every generation is kept in {root / HISTORY}: the newest intact one, copied over "
            f"{path}, is the store again"
        )
        raise


def read_generation(root: Path, generation: int) -> Manifest:
    """A generation from history/.

    Raises:
        InputError: it is of a newer format.
        DamagedError: it is missing, or not what this program wrote.
    """
    path = generation_path(root, generation)
    if not path.is_file():
        raise DamagedError(f"{path} is missing", tip="restore it from a backup")
    found = _read(path)
    if found.generation != generation:
        raise DamagedError(f"{path} holds generation {found.generation}")
    return found


def _read(path: Path) -> Manifest:
    with clear_errors("reading", path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DamagedError(f"{path}: larger than the {_MAX_BYTES} bytes a manifest may have")
    found = Manifest.from_json(parse_json(data, path, error=DamagedError), str(path))
    if manifest_bytes(found) != data:
        raise DamagedError(f"{path}: not the bytes that were written; was it edited by hand?")
    return found


def need_blobs(root: Path, manifest: Manifest) -> None:
    """Refuse a generation one of whose files is not there; their bytes are not read.

    Raises:
        DamagedError: a file is missing or empty.
    """
    for kind, digest in manifest.blobs():
        path = blob_path(root, kind, digest)
        if not path.is_file() or path.stat().st_size == 0:
            raise DamagedError(
                f"{path}, which generation {manifest.generation} needs, is missing or empty",
                tip="restore the file from a backup; compatctl check lists all that is wrong",
            )
