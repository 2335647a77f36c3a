"""Canaries: a few images and what a model made of them when it was taken into a store.

The same file can give other vectors: another ONNX Runtime, another processor, another pillow that
resizes. A gallery of one and queries of the other are two models in one index, and nothing in the
files shows it. So the images are embedded again before anything is served, and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.data import Dataset, Item
from compatctl.encoder.runtime import Encoder
from compatctl.encoder.steadiness import SIZES, synthetic_image
from compatctl.errors import DamagedError, InputError
from compatctl.files.npz import read_npz

LIMIT = 1e-3
"""The largest L2 distance between a canary's unit rows then and now; a cosine of 0.9999995."""

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Canary:
    """``images``: n arrays (H, W, 3) uint8; ``rows`` (n, D) float32, what the model made of them;
    ``runtime``: the libraries that did it, for people."""

    images: tuple[NDArray[np.uint8], ...]
    rows: NDArray[np.float32]
    runtime: str

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """The canary of an encoder, as it embeds here and now.

        Raises:
            InputError: the encoder does not give finite unit rows.
        """
        images = tuple(synthetic_image(at, *size) for at, size in enumerate(SIZES))
        return cls(images=images, rows=_embed(encoder, images), runtime=_runtime())

    def write(self, path: Path) -> None:
        """Write an npz to a new file."""
        arrays: dict[str, Any] = {f"image_{at}": image for at, image in enumerate(self.images)}
        with path.open("xb") as file:
            np.savez(file, rows=self.rows, runtime=np.array(self.runtime), **arrays)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            DamagedError: it is not a canary.
        """
        found = read_npz(path, max_bytes=_MAX_BYTES, error=DamagedError)
        rows, runtime = found.pop("rows", None), found.pop("runtime", None)
        images = tuple(found.get(f"image_{at}", np.zeros(0)) for at in range(len(found)))
        if (
            not images
            or any(one.dtype != np.uint8 or one.ndim != 3 or not one.size for one in images)
            or any(one.shape[-1] != 3 for one in images)
            or rows is None
            or runtime is None
            or rows.dtype != np.float32
            or rows.shape[:1] != (len(images),)
            or rows.ndim != 2
        ):
            raise DamagedError(
                f"{path} is not a model's canary", tip="restore the file from a backup"
            )
        return cls(images=images, rows=rows, runtime=str(runtime))

    def difference(self, encoder: Encoder) -> float:
        """The largest L2 distance between a row as it was and as ``encoder`` makes it now, of the
        images together or each alone.

        Raises:
            InputError: the encoder gives rows of another length, or none that are finite and unit.
        """
        if encoder.dim != self.rows.shape[1]:
            raise InputError(f"{encoder.name} ends in {encoder.dim}, not {self.rows.shape[1]}")
        together = _embed(encoder, self.images)
        alone = np.concatenate([_embed(encoder, (image,)) for image in self.images])
        return max(
            float(np.linalg.norm(rows - self.rows, axis=1).max()) for rows in (together, alone)
        )

    def check_unchanged(self, encoder: Encoder) -> None:
        """Refuse to serve with an encoder that gives other vectors than it once did.

        Raises:
            InputError: it differs by more than ``LIMIT``; the message has the difference.
        """
        difference = self.difference(encoder)
        if not difference <= LIMIT:
            raise InputError(
                f"{encoder.name} gives other vectors here than when it was taken into the store: "
                f"its canary differs by {difference:.3g}, the limit is {LIMIT:g} "
                f"(then {self.runtime}; now {_runtime()})",
                tip="use the libraries of then; or measure what it costs (compatctl verify) and "
                "deploy the model again",
            )


def _embed(encoder: Encoder, images: tuple[NDArray[np.uint8], ...]) -> NDArray[np.float32]:
    items = tuple(
        Item(id=f"canary {at}", label="", split="test", role="query") for at in range(len(images))
    )
    return encoder.embed(Dataset(items=items, sources=images)).features


def _runtime() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "pillow"))
