"""The URL of a store in a bucket, as a path spells it."""

from __future__ import annotations

import re
from pathlib import Path

from compatctl.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+]+):(?:/|$)")
_CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*:/{1,2}[^/@]*:[^@]*@")
"""How a URL with a password begins, whatever its scheme."""
_S3 = re.compile(r"s3:/{1,2}([^/]+)(?:/(.*))?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*(/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*)*")
_OTHERS = {
    "abfs", "abfss", "adl", "az", "azure", "b2", "cos", "file", "ftp", "gcs", "gs", "hdfs", "http",
    "https", "milvus", "minio", "nfs", "obs", "oss", "postgres", "postgresql", "r2", "s3a", "s3n",
    "sftp", "smb", "ssh", "swift", "wasb", "wasbs",
}  # fmt: skip
"""Schemes of places that no store can lie in."""


def store_url(path: Path | str) -> str | None:
    """``s3://BUCKET/PREFIX`` if that is what ``path`` spells; None for a folder.

    A ``Path`` has one slash where the URL has two.

    Raises:
        UsageError: a URL of another scheme, or with a bucket or prefix that S3 does not name so.
    """
    text = str(path)
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    known = scheme.partition("+")[0] in {"s3", *_OTHERS}
    if not known and not _CREDENTIALS.match(text):
        return None
    if scheme != "s3":
        raise UsageError(
            f"a store is a folder or s3://BUCKET/PREFIX, got {_without_user(text)!r}",
            tip="other object stores that speak S3 are reached by AWS_ENDPOINT_URL; docs/stores.md",
        )
    match = _S3.fullmatch(scheme + text[len(scheme) :].rstrip("/"))
    bucket, prefix = (match[1], match[2] or "") if match else ("", "")
    if not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
        raise UsageError(
            f"a store in a bucket is s3://BUCKET/PREFIX, got {_without_user(text)!r}",
            tip="a bucket has 3 to 63 of a-z, 0-9, dot and hyphen, a prefix letters, digits and "
            "._=+- between slashes; credentials come from the environment, never from the URL",
        )
    return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"


def _without_user(text: str) -> str:
    """A URL as messages show it: without what may be keys, before an @ or behind a ?."""
    scheme, _, rest = text.partition(":/")
    place, mark, _ = rest.rpartition("@")[2].partition("?")
    shown = f"{'...@' if '@' in rest else ''}{place}{'?...' if mark else ''}"
    return f"{scheme}:/{shown}" if rest else text
