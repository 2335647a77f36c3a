"""The encoder: one self-contained ONNX file. The only layer that imports onnx and onnxruntime."""

from __future__ import annotations

from compatctl.encoder.canary import LIMIT as CANARY_LIMIT
from compatctl.encoder.canary import Canary
from compatctl.encoder.composition import bridge, free_alone, fuse
from compatctl.encoder.images import ImageInput
from compatctl.encoder.import_onnx import read_model_bytes
from compatctl.encoder.inputs import EncoderInput
from compatctl.encoder.metadata import FREE, read_record, with_record
from compatctl.encoder.metadata import OUTPUT as EMBEDDING
from compatctl.encoder.parity import check_parity, parity_items
from compatctl.encoder.runtime import Embedded, Encoder, embed_together
from compatctl.encoder.sealing import seal
from compatctl.encoder.session import use_threads
from compatctl.encoder.steadiness import check_steady, sampled_items
from compatctl.encoder.texts import TextInput
from compatctl.encoder.vector_models import space_encoder
from compatctl.encoder.vectors import VectorInput

__all__ = [
    "CANARY_LIMIT",
    "EMBEDDING",
    "FREE",
    "Canary",
    "Embedded",
    "Encoder",
    "EncoderInput",
    "ImageInput",
    "TextInput",
    "VectorInput",
    "bridge",
    "check_parity",
    "check_steady",
    "embed_together",
    "free_alone",
    "fuse",
    "parity_items",
    "read_model_bytes",
    "read_record",
    "sampled_items",
    "seal",
    "space_encoder",
    "use_threads",
    "with_record",
]
