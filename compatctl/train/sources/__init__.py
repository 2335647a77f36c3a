"""Models of images from libraries: timm, torchvision, open_clip, transformers, and your own code.

A source is written LIBRARY:NAME. The architecture comes from the library, weights only from a file
or a folder on disk, and the preprocessing from the library's own configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from compatctl.errors import InputError, UsageError
from compatctl.train.sources._model import ImageModel, PixelSpec
from compatctl.train.sources.transformers_folders import Pooling

__all__ = [
    "ARCHITECTURES",
    "FOLDERS",
    "TRANSFORMERS",
    "ImageModel",
    "PixelSpec",
    "Pooling",
    "Source",
    "load",
]

ARCHITECTURES = ("timm", "torchvision", "open_clip")
"""Libraries that make an architecture by its name."""

TRANSFORMERS = "transformers"

FOLDERS = (TRANSFORMERS, "sentence-transformers")
"""Libraries that read a folder."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """LIBRARY:NAME, taken apart; ``library`` is "" for a callable of your own."""

    library: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The source that a text names.

        Raises:
            UsageError: it is not of the form LIBRARY:NAME.
        """
        library, colon, name = text.partition(":")
        if not (library and colon and name):
            raise UsageError(
                f"{text!r} names no model",
                tip=f"write {', '.join((*ARCHITECTURES, *FOLDERS))} or your own module, a colon, "
                "and the name, folder or callable",
            )
        known = library in (*ARCHITECTURES, *FOLDERS) and name != "create_model"
        return cls(library=library if known else "", name=name if known else text)


def load(source: Source, args: Mapping[str, Any], pooling: Pooling = "auto") -> ImageModel:
    """The model of a library's source: with its weights if that is a folder, else random ones.

    Raises:
        InputError: the library is not installed, has no such model, or its preprocessing cannot be
            said by a preprocessing file.
    """
    if source.library == "timm":
        from compatctl.train.sources import timm_models

        return timm_models.load(source.name, args)
    if source.library == "torchvision":
        from compatctl.train.sources import torchvision_models

        return torchvision_models.load(source.name, args)
    if source.library == "open_clip":
        from compatctl.train.sources import open_clip_models

        return open_clip_models.load(source.name, args)
    from compatctl.train.sources import transformers_folders

    if args:
        raise InputError("a folder of transformers says its own arguments: --arg has no effect")
    return transformers_folders.load(Path(source.name), pooling)
