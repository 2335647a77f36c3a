"""What is known of images that were read, so that no file is opened again only to learn it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Bytes, PerceptualHashes, Rows, as_rows
from compatctl.core.perceptual_hash import WIDTH
from compatctl.files import DIGEST_BYTES


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFacts:
    """The digests (N, 32) and looks (N, 24) of images; a row of zeros is not known yet.

    ``rows`` (n,): the images of this view. Views share what they learn. An image takes 56 bytes
    once both are known, and 8 for each view of it.
    """

    digests: Bytes
    looks: PerceptualHashes
    rows: Rows

    @classmethod
    def unknown(cls, n: int) -> Self:
        """Nothing is known of ``n`` images. Memory is taken when a row is written."""
        digests, looks = (np.zeros((n, width), np.uint8) for width in (DIGEST_BYTES, WIDTH))
        return cls(digests=digests, looks=looks, rows=np.arange(n))

    @classmethod
    def joined(cls, parts: Sequence[ImageFacts]) -> Self:
        """A copy of what several views know, one after the other."""
        parts = [cls.unknown(0), *parts]
        return cls(
            digests=np.concatenate([part.digests[part.rows] for part in parts]),
            looks=np.concatenate([part.looks[part.rows] for part in parts]),
            rows=np.arange(sum(len(part.rows) for part in parts)),
        )

    def take(self, rows: Iterable[int]) -> Self:
        """A view of some of the images."""
        return replace(self, rows=self.rows[as_rows(rows)])

    def digest(self, row: int) -> Bytes:
        """The sha256 (32,) of an image, to read or to write."""
        digest: Bytes = self.digests[self.rows[row]]
        return digest

    def look(self, row: int) -> PerceptualHashes:
        """The look (24,) of an image, to read or to write."""
        look: PerceptualHashes = self.looks[self.rows[row]]
        return look
