"""Training, the only layer that imports torch (``pip install 'compatctl[train]'``).

``train`` takes a recipe, a base checkpoint, data and the deployed gallery (``Reference``), and
returns a network and its training record; ``export`` writes the network as ONNX.
``fit_perceptron`` fits an adapter to the features of two models for the same items.
"""

from __future__ import annotations

from compatctl.data import Reference
from compatctl.train.checkpoint import remove as remove_checkpoint
from compatctl.train.exporting import (
    ExportedNetwork,
    ExportRequest,
    folder_backbone,
    input_spec,
    library_rows,
    load_network,
)
from compatctl.train.features import Features
from compatctl.train.grid_search import make_trials
from compatctl.train.images import preprocessing
from compatctl.train.mlp_adapter import FittedPerceptron, fit_perceptron, iter_perceptrons
from compatctl.train.network import Junction, Network, embed, embed_outputs, export
from compatctl.train.process_group import join
from compatctl.train.ready import ReadyModel
from compatctl.train.reference import items_to_encode
from compatctl.train.run import TrainResult, train
from compatctl.train.setup import Base
from compatctl.train.sources import PixelSpec
from compatctl.train.sources.text_folders import (
    TokenModel,
    export_token_model,
    load_token_model,
    pooled_rows,
)
from compatctl.train.texts import TextModel
from compatctl.train.weights import carried_record, files_digest, folder_files, save_weights

__all__ = [
    "Base",
    "ExportRequest",
    "ExportedNetwork",
    "Features",
    "FittedPerceptron",
    "Junction",
    "Network",
    "PixelSpec",
    "ReadyModel",
    "Reference",
    "TextModel",
    "TokenModel",
    "TrainResult",
    "carried_record",
    "embed",
    "embed_outputs",
    "export",
    "export_token_model",
    "files_digest",
    "fit_perceptron",
    "folder_backbone",
    "folder_files",
    "input_spec",
    "items_to_encode",
    "iter_perceptrons",
    "join",
    "library_rows",
    "load_network",
    "load_token_model",
    "make_trials",
    "pooled_rows",
    "preprocessing",
    "remove_checkpoint",
    "save_weights",
    "train",
]
