"""An encoder's input: what it takes of an item, as one named tensor of the graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from compatctl.data import Content, ItemVectors, Modality, Role
from compatctl.errors import InputError

BATCH = "batch"
"""The name of the free first axis."""

InputArray = NDArray[Any]
"""What an input prepares of one item, or of a batch of them."""


@dataclass(frozen=True, kw_only=True)
class EncoderInput(ABC):
    """A named input of the graph; each modality has its own kind.

    Two inputs that are equal but for the name take the same of an item.
    """

    MODALITY: ClassVar[Modality]
    ELEMENT: ClassVar[int]
    """The type of the tensor, of ``onnx.TensorProto``."""

    name: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int | str, ...]:
        """The shape of one item's array; a name is a free axis."""

    @property
    @abstractmethod
    def item_bytes(self) -> int:
        """The most bytes of one item's array."""

    @abstractmethod
    def prepare(self, content: Content, role: Role | None) -> tuple[InputArray, bool]:
        """One item's array, and whether something of its content had to be cut off.

        Raises:
            InputError: the content is of another modality, or has not what the input takes.
        """

    def stack(self, arrays: Sequence[InputArray]) -> InputArray:
        """A batch of items' arrays (n, ...)."""
        return np.stack(arrays)

    @abstractmethod
    def samples(self, n: int) -> InputArray:
        """A batch (n, ...) of any items, to see what comes out."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The entry in an encoder's metadata."""

    def attachments(self) -> Mapping[str, str]:
        """Texts that are in metadata entries of their own, by a name that has their digest."""
        return {}

    def renamed(self, name: str) -> Self:
        """The same input under another name."""
        return replace(self, name=name)

    @property
    def signature(self) -> str:
        """Type and shape of a batch, as ``graphs.check_signature`` describes them."""
        sides = ", ".join(str(side) if isinstance(side, int) else "?" for side in self.shape)
        kind = TensorProto.DataType.Name(self.ELEMENT).lower()
        return f"{'float32' if kind == 'float' else kind} ({BATCH}, {sides})"

    def value_info(self) -> ValueInfoProto:
        """The input as a value of an ONNX graph."""
        return helper.make_tensor_value_info(self.name, self.ELEMENT, [BATCH, *self.shape])

    def refuse_other(self, content: object) -> InputError:
        """The error for content of another modality."""
        found = {str: "text", ItemVectors: "vector"}.get(type(content), "image")
        return InputError(
            f"the model takes {self.MODALITY}s, and the data has {found}s",
            tip="name data of the model's own kind, or another model",
        )
