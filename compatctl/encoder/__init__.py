"""One ONNX file is the model: onnx and onnxruntime's one home."""

from __future__ import annotations

from compatctl.encoder.contract import EncoderInput
from compatctl.encoder.graph import admit, fuse, seal
from compatctl.encoder.runtime import BadItem, Embedded, Encoder, sealed_bytes

__all__ = [
    "BadItem",
    "Embedded",
    "Encoder",
    "EncoderInput",
    "admit",
    "fuse",
    "seal",
    "sealed_bytes",
]
