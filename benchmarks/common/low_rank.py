"""The CNNs with fixed weights and a trained low-rank change of each: LoRA (arXiv 2106.09685).

Tensors of the plain network have the same names here, so its checkpoint is the base of this one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.cnn import build as plain
from benchmarks.common.whole import small_network_recipe
from compatctl.recipe import Recipe

FACTORY = "benchmarks.common.low_rank:build"


class LowRank(nn.Module):
    """A convolution or a linear layer with weight ``W + up down``; ``up`` starts at 0."""

    weight: Tensor
    """W, as the base has it"""

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach())
        self.bias = layer.bias
        self.padding = layer.padding if isinstance(layer, nn.Conv2d) else None
        inputs = layer.weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(len(layer.weight), rank))

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, with the changed weight."""
        weight = self.weight + (self.up @ self.down).view_as(self.weight)
        if self.padding is None:
            return functional.linear(x, weight, self.bias)
        return functional.conv2d(x, weight, self.bias, padding=self.padding)


def build(rank: int, width: int, features: int) -> nn.Module:
    """The CNN of ``benchmarks.common.cnn`` with low-rank changes."""
    network = plain(width, features)
    for module in [*network.modules()]:
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                setattr(module, name, LowRank(layer, rank))
    return network


def low_rank_recipe(recipe: Recipe, rank: int, weight: float) -> Recipe:
    """The recipe for small networks, with changes of this rank and one lambda.

    BatchNorm trains as it does there. The base has less than half of the tensors.
    """
    whole = small_network_recipe(recipe)
    backbone = replace(
        whole.image_backbone,
        factory=FACTORY,
        factories=(FACTORY,),
        args={**whole.image_backbone.args, "rank": rank},
        least_share=0.1,
    )
    return replace(
        whole,
        backbone=backbone,
        objective=replace(whole.objective, lambda_=(weight,)),
        optimiser=replace(whole.optimiser, backbone_lr=0.003),
    )
