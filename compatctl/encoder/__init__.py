"""The encoder: one self-contained ONNX file. onnx's and onnxruntime's one home."""

from __future__ import annotations

from compatctl.encoder.bridging import bridge
from compatctl.encoder.canary import LIMIT as CANARY_LIMIT
from compatctl.encoder.canary import Canary
from compatctl.encoder.carrying import read_record, with_record
from compatctl.encoder.contract import EncoderInput
from compatctl.encoder.fusing import fuse
from compatctl.encoder.held_vectors import HeldVectors, held_vectors, without_vectors
from compatctl.encoder.import_onnx import read_model_bytes
from compatctl.encoder.parity import check_parity, parity_images
from compatctl.encoder.runtime import BadItem, Embedded, Encoder, embed_together
from compatctl.encoder.sealing import seal
from compatctl.encoder.steadiness import refuse_unsteady

__all__ = [
    "CANARY_LIMIT",
    "BadItem",
    "Canary",
    "Embedded",
    "Encoder",
    "EncoderInput",
    "HeldVectors",
    "bridge",
    "check_parity",
    "embed_together",
    "fuse",
    "held_vectors",
    "parity_images",
    "read_model_bytes",
    "read_record",
    "refuse_unsteady",
    "seal",
    "with_record",
    "without_vectors",
]
