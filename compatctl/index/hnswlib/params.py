"""How an hnswlib index is built and searched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from compatctl.errors import DamagedError, InputError
from compatctl.index.hnswlib.layout import HnswHeader


@dataclass(frozen=True, kw_only=True)
class HnswParams:
    """The settings of an index, by hnswlib's names (its ALGO_PARAMS.md).

    ``dim`` is a row's length, ``M`` the links of a row on each upper level (2 M on level 0),
    ``ef_construction`` and ``ef_search`` the sizes of the candidate lists, ``seed`` that of the
    levels. New indexes use the space ``ip``, which is the cosine of unit rows. ``cosine`` and
    ``l2`` are for adopted files; on unit rows all three give the same order.

    Raises:
        InputError: a value is out of range.
    """

    dim: int
    space: str = "ip"
    M: int = 16
    ef_construction: int = 200
    ef_search: int = 64
    seed: int = 100

    def __post_init__(self) -> None:
        if self.space not in ("ip", "cosine", "l2"):
            raise InputError(f"the space must be ip, cosine or l2, got {self.space!r}")
        minima = {"dim": 1, "M": 2, "ef_construction": 1, "ef_search": 1, "seed": 0}
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
        if self.M > 10000:
            raise InputError(f"M must be at most 10000, got {self.M}")

    @classmethod
    def from_header(cls, header: HnswHeader, *, space: str, ef_search: int = 64) -> Self:
        """The parameters of an adopted file, whose header has all but space, ef_search and seed."""
        return cls(
            space=space,
            dim=header.dim,
            M=header.M,
            ef_construction=header.ef_construction,
            ef_search=ef_search,
        )

    def check_header(self, header: HnswHeader, count: int | None, path: Path) -> None:
        """Refuse a file whose header has other parameters or not ``count`` rows (None: any).

        Raises:
            DamagedError: the header differs.
        """
        expected = {
            "dim": self.dim,
            "M": self.M,
            "ef_construction": max(self.ef_construction, self.M),
            "count": header.count if count is None else count,
        }
        for name, value in expected.items():
            if getattr(header, name) != value:
                raise DamagedError(
                    f"{path} has {name} {getattr(header, name)}, expected {value}",
                    tip="is it another store's index?",
                )
