"""An answer of pymilvus to a query, as columns.

pymilvus makes a dictionary of each row, and its vector when the row is looked at, which takes most
of the time of a whole-gallery read. It keeps the server's message beside the rows: the vectors are
taken from there, all at once. Where a version of pymilvus keeps none, each row is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer = Any
"""A list of n dictionaries."""
_MESSAGES = "_lazy_field_data"
"""Where an answer keeps the columns that it has not put into its rows yet."""
_PACKED = b"\x0a"
"""How a serialised message of packed numbers begins."""


def vectors_of(answer: Answer, name: str, dim: int) -> NDArray[np.float32]:
    """The vectors (n, dim) float32 of a field."""
    import numpy as np

    found = _packed(answer, name, len(answer) * dim)
    if found is None:
        found = np.array([row[name] for row in answer], np.float32)
    return found.reshape(len(answer), dim)


def keys_of(answer: Answer, name: str) -> list[Any]:
    """The n values of a field of numbers or texts that has one in each row."""
    return [row[name] for row in list.__iter__(answer)]


def values_of(answer: Answer, name: str) -> list[Any]:
    """The n values of a field, also of a dynamic one, or None where a row has none."""
    later = any(column.field_name == name for column in getattr(answer, _MESSAGES, ()))
    if later or any(name not in row for row in list.__iter__(answer)):
        return [row.get(name) for row in answer]
    return [row[name] for row in list.__iter__(answer)]


def _packed(answer: Answer, name: str, size: int) -> NDArray[np.float32] | None:
    """The numbers (size,) of a column of vectors, from the message; None where there is none."""
    import numpy as np

    for column in getattr(answer, _MESSAGES, ()):
        if column.field_name == name and len(column.vectors.float_vector.data) == size:
            message: bytes = column.vectors.float_vector.SerializeToString()
            if message.startswith(_PACKED) and len(message) > 4 * size:
                return np.frombuffer(message, "<f4", offset=len(message) - 4 * size)
    return None
