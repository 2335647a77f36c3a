"""The list of what was erased from a store, as salted digests that do not reveal the items."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from compatctl.errors import DamagedError
from compatctl.files.npz import read_npz

_SALT_BYTES = 16
_ID_BYTES = 16
"""Length of the digest of an id: 128 bits, so that no other id is mistaken for an erased one."""


@dataclass(frozen=True, kw_only=True)
class Erasures:
    """The ids that must not be in a store any more.

    Attributes:
        salt: drawn once for each store, so that neither a precomputed table nor another store's
            list matches.
        ids: the first 16 bytes of sha256(salt, id) for each id. Somebody who has the file and
            guesses an id can confirm the guess: guessable ids are pseudonyms here, not secrets.
    """

    salt: bytes
    ids: frozenset[bytes]

    @classmethod
    def empty(cls) -> Self:
        """An empty list with a new salt."""
        return cls(salt=secrets.token_bytes(_SALT_BYTES), ids=frozenset())

    def matching(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The ids that were erased, in their order."""
        return tuple(item for item in ids if self._digest(item) in self.ids)

    def extended(self, ids: Iterable[str]) -> Erasures:
        """This list with more ids."""
        return replace(self, ids=self.ids | {self._digest(item) for item in ids})

    def drop(self, ids: Iterable[str]) -> Erasures:
        """This list without ids that were added again."""
        return replace(self, ids=self.ids - {self._digest(item) for item in ids})

    def write(self, path: Path) -> None:
        """Write an npz to a new file; its bytes depend on the content only."""
        import numpy as np

        with path.open("xb") as file:
            np.savez(
                file,
                salt=np.frombuffer(self.salt, np.uint8),
                ids=np.frombuffer(b"".join(sorted(self.ids)), np.uint8),
            )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            DamagedError: it is missing, or no list of erasures.
        """
        columns = read_npz(path, error=DamagedError)
        kinds = {name: (str(column.dtype), column.ndim) for name, column in columns.items()}
        if kinds != {"salt": ("uint8", 1), "ids": ("uint8", 1)} or (
            len(columns["salt"]) != _SALT_BYTES or len(columns["ids"]) % _ID_BYTES
        ):
            raise DamagedError(
                f"{path} is not a list of erasures", tip="restore the file from a backup"
            )
        raw = columns["ids"].tobytes()
        ids = frozenset(raw[i : i + _ID_BYTES] for i in range(0, len(raw), _ID_BYTES))
        return cls(salt=columns["salt"].tobytes(), ids=ids)

    def _digest(self, item: str) -> bytes:
        text = item.encode("utf-8", "surrogatepass")
        return hashlib.sha256(self.salt + text).digest()[:_ID_BYTES]
