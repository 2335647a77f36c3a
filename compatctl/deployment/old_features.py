"""A cache of the deployed encoder's features of unlabelled images, by the digest of the image.

It lies in the candidate's folder, so that a killed run, another seed or another recipe does not
embed the same images again. It belongs to one encoder and holds the images of the latest run. A
damaged or foreign file counts as none.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import NORM_TOLERANCE, Vectors
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.errors import CompatError
from compatctl.files import DIGEST_BYTES, make_folders, write_atomic
from compatctl.files.npz import read_npz
from compatctl.progress import Progress, silent

CACHE_FILE = "old-features.npz"
BLOCK = 2048
"""How many images are embedded at least before the file is written again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OldFeatures:
    """Features (n, D) float32, unit rows, of images with ``digests`` (n, 32) uint8."""

    digests: NDArray[np.uint8]
    features: Vectors

    @classmethod
    def read(cls, path: Path, encoder_sha256: str, dim: int) -> OldFeatures:
        """What the file holds of this encoder; nothing if it cannot be read, or is of another."""
        nothing = cls(
            digests=np.zeros((0, DIGEST_BYTES), np.uint8), features=np.zeros((0, dim), np.float32)
        )
        try:
            arrays = read_npz(path)
            known = cls(digests=arrays["digests"], features=arrays["features"])
            is_own = arrays["encoder"].tobytes().hex() == encoder_sha256
        except (CompatError, KeyError):
            return nothing
        return known if is_own and known._is_sound(dim) else nothing

    def _is_sound(self, dim: int) -> bool:
        n = len(self.digests)
        types = self.digests.dtype == np.uint8 and self.features.dtype == np.float32
        shapes = self.digests.shape == (n, DIGEST_BYTES) and self.features.shape == (n, dim)
        if not (types and shapes):
            return False
        norms = np.linalg.norm(self.features, axis=1)
        return bool((np.abs(norms - 1.0) <= NORM_TOLERANCE).all())

    def missing(self, items: Dataset) -> list[int]:
        """Rows of the items whose feature is not known."""
        known = {digest.tobytes() for digest in self.digests}
        rows = range(len(items))
        return [row for row in rows if bytes.fromhex(items.digest(row)) not in known]

    def of(self, items: Dataset) -> OldFeatures:
        """The known features of these items, in their order."""
        row_of = {digest.tobytes(): row for row, digest in enumerate(self.digests)}
        found = (row_of.get(bytes.fromhex(items.digest(row))) for row in range(len(items)))
        rows = np.array([row for row in found if row is not None], np.int64)
        return OldFeatures(digests=self.digests[rows], features=self.features[rows])

    def with_embedded(self, items: Dataset, encoder: Encoder) -> OldFeatures:
        """With the features of items, which are embedded now; errors as ``Encoder.embed``."""
        embedded = encoder.embed(items, looks=True)
        return OldFeatures(
            digests=np.concatenate([self.digests, embedded.digests]),
            features=np.concatenate([self.features, embedded.features]),
        )

    def write(self, path: Path, encoder_sha256: str) -> None:
        """Replace the file atomically."""
        buffer = io.BytesIO()
        encoder = np.frombuffer(bytes.fromhex(encoder_sha256), np.uint8)
        np.savez(buffer, encoder=encoder, digests=self.digests, features=self.features)
        make_folders(path.parent)
        write_atomic(path, buffer.getvalue())


def cached_features(
    items: Dataset, encoder: Encoder, path: Path, progress: Progress = silent
) -> Vectors:
    """(n, D) features of items by the deployed encoder; only those not in the file are embedded.

    The file is written again after ``BLOCK`` images or a quarter of those it has, whatever is more,
    and then holds no other images.

    Raises:
        InputError: an image does not decode, or its feature is not finite and of unit length.
        CompatError: no space or no permission.
    """
    known = OldFeatures.read(path, encoder.sha256, encoder.dim).of(items)
    rows = known.missing(items)

    done = 0
    while done < len(rows):
        block = items.take(rows[done : done + max(BLOCK, len(known.digests) // 4)])
        known = known.with_embedded(block, encoder)
        known.write(path, encoder.sha256)
        done += len(block)
        progress("unlabelled images by the old model", done, len(rows))
    return known.of(items).features
