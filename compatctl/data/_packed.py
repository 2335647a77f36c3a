"""Rows of bytes as text: column by column, compressed, base64."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError

MAX_ROWS = 1 << 23
"""Most rows that are unpacked."""


def pack(rows: NDArray[np.uint8]) -> str:
    """Rows (n, width) uint8 as text. Columns of equal bytes take almost no room."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(rows.T).tobytes(), 6)).decode()


def unpack(text: str, n: int, width: int) -> NDArray[np.uint8]:
    """Rows (n, width) from what ``pack`` made of them; never more bytes than that.

    Raises:
        InputError: the text is damaged or of other rows, or ``n`` is over ``MAX_ROWS``.
    """
    if type(n) is not int or not 0 <= n <= MAX_ROWS or not isinstance(text, str):
        raise InputError(f"packed rows are at most {MAX_ROWS}; it says {n!r}")
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(base64.b64decode(text, validate=True), n * width + 1)
    except (ValueError, zlib.error) as error:
        raise InputError(f"packed rows do not unpack: {error}") from None
    if len(data) != n * width or not reader.eof or reader.unused_data:
        raise InputError(f"packed rows are not the {n} that they say")
    columns = np.frombuffer(data, np.uint8).reshape(width, n)
    return np.ascontiguousarray(columns.T)
