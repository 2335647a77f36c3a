"""What a program prints on a terminal of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def printed(primary: int) -> Iterator[bytes]:
    """The bytes that come from a terminal's ``primary`` end, as they come, until the other end is
    closed; then this one is, too."""
    with suppress(OSError):  # Linux ends so where the other end is closed
        while chunk := os.read(primary, 65536):
            yield chunk
    os.close(primary)
