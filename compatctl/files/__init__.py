"""Files that survive: atomic writes, digests, strict JSON, the lock.

Every byte that a store holds passes through here. Identity is content: a blob's name is the sha256
of its bytes. A process that is killed anywhere leaves the old file or the new one, and at most a
temporary whose name starts with ``.new-``. Nothing here loads numpy.
"""

from __future__ import annotations

from compatctl.files._errors import clear_errors
from compatctl.files._json import canonical_json, json_safe, parse_json, read_json
from compatctl.files._lock import Lock
from compatctl.files._seen import has_digest, note, noted
from compatctl.files._write import (
    FOLDER_MODE,
    TEMPORARY,
    Blob,
    copy,
    make_folder,
    publish,
    sha256_bytes,
    sha256_file,
    sync,
    write_atomic,
)

__all__ = [
    "FOLDER_MODE",
    "TEMPORARY",
    "Blob",
    "Lock",
    "canonical_json",
    "clear_errors",
    "copy",
    "has_digest",
    "json_safe",
    "make_folder",
    "note",
    "noted",
    "parse_json",
    "publish",
    "read_json",
    "sha256_bytes",
    "sha256_file",
    "sync",
    "write_atomic",
]
