"""Durable files: atomic writes, digests, strict JSON, the lock.

A blob is a file named by the sha256 of its bytes. A killed process leaves the old file or the new
one, and at most a temporary file whose name starts with ``.new-``. Only ``files.npz`` loads numpy.
"""

from __future__ import annotations

from compatctl.files._digest_cache import cache_folder, has_digest, is_remembered, remember
from compatctl.files._errors import os_errors, temporary_folder_errors
from compatctl.files._json import canonical_json, json_safe, parse_json, read_json
from compatctl.files._lock import Lock
from compatctl.files._pointers import MAX_POINTER_BYTES, absence, other_kind, refuse_pointer
from compatctl.files._url import store_url
from compatctl.files._write import (
    DIGEST_BYTES,
    FOLDER_MODE,
    TEMPORARY,
    Blob,
    append,
    copy,
    make_folder,
    make_folders,
    refuse_replacing,
    require_place,
    sha256_bytes,
    sha256_file,
    sync,
    write_atomic,
    write_blob,
)
from compatctl.files.tensors import TensorFile, TensorShape, describe_tensors

__all__ = [
    "DIGEST_BYTES",
    "FOLDER_MODE",
    "MAX_POINTER_BYTES",
    "TEMPORARY",
    "Blob",
    "Lock",
    "TensorFile",
    "TensorShape",
    "absence",
    "append",
    "cache_folder",
    "canonical_json",
    "copy",
    "describe_tensors",
    "has_digest",
    "is_remembered",
    "json_safe",
    "make_folder",
    "make_folders",
    "os_errors",
    "other_kind",
    "parse_json",
    "read_json",
    "refuse_pointer",
    "refuse_replacing",
    "remember",
    "require_place",
    "sha256_bytes",
    "sha256_file",
    "store_url",
    "sync",
    "temporary_folder_errors",
    "write_atomic",
    "write_blob",
]
