"""PNG files without their texts and colour profile, which pillow refuses beyond a size."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

MAX_BYTES = 1 << 30
"""Most bytes that are copied."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
_XMP = b"XML:com.adobe.xmp\0\0"
"""The begin of an uncompressed text that may hold the image's orientation."""
_MAX_XMP = 1 << 20
_CHUNK = struct.Struct(">I4s")
_CRC_BYTES = 4


def without_texts(file: BinaryIO) -> io.BytesIO | None:
    """A copy without texts and profile; None if there are none, or it is no PNG.

    A PNG is a signature and chunks: length, type, data, checksum (ISO 15948, 5.3). No pixel and no
    EXIF depends on a text chunk.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    copy, dropped = io.BytesIO(), 0
    copy.write(_SIGNATURE)
    while len(header := file.read(_CHUNK.size)) == _CHUNK.size:
        length, kind = _CHUNK.unpack(header)
        begin = file.read(min(length, len(_XMP))) if kind == b"iTXt" else b""
        if kind in _TEXTS and not (begin == _XMP and length <= _MAX_XMP):
            file.seek(length - len(begin) + _CRC_BYTES, io.SEEK_CUR)
            dropped += 1
            continue
        if copy.tell() + length > MAX_BYTES:
            return None
        copy.write(header + begin + file.read(length - len(begin) + _CRC_BYTES))
    copy.seek(0)
    return copy if dropped else None
