"""Training: torch's one home (``pip install 'compatctl[train]'``).

``train`` takes a recipe, a base checkpoint, data and the deployed gallery (``Reference``), and
gives a network with a record of all that went into it; ``export`` writes the network as ONNX.
``fit_perceptron`` needs no images and no labels: features of two models, of the same items.
"""

from __future__ import annotations

from compatctl.train.features import Features
from compatctl.train.grid_search import make_trials
from compatctl.train.mlp_adapter import FittedPerceptron, fit_perceptron, iter_perceptrons
from compatctl.train.network import Network, embed, export
from compatctl.train.reference import Reference, items_to_encode
from compatctl.train.run import TrainResult, train
from compatctl.train.weights import save_weights

__all__ = [
    "Features",
    "FittedPerceptron",
    "Network",
    "Reference",
    "TrainResult",
    "embed",
    "export",
    "fit_perceptron",
    "items_to_encode",
    "iter_perceptrons",
    "make_trials",
    "save_weights",
    "train",
]
