"""Small networks whose weights are changed by matrices of low rank."""

from __future__ import annotations

import torch

from benchmarks.common import cnn, low_rank


def test_a_low_rank_change_starts_at_the_base_and_trains_nothing_else() -> None:
    """The first output is the base's; steps leave its weights, and change each by the rank."""
    torch.manual_seed(0)
    base = cnn.build(4, 8).eval()
    network = low_rank.build(2, 4, 8).eval()
    network.load_state_dict(base.state_dict(), strict=False)
    images, goal = torch.randn(6, 3, 32, 32), torch.randn(6, 8)
    assert torch.equal(network(images), base(images))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        (network(images) - goal).square().mean().backward()
        optimiser.step()
    assert not torch.allclose(network(images), base(images))
    weights = base.state_dict()
    layers = {
        name: module for name, module in network.named_modules()
        if isinstance(module, low_rank.LowRank)
    }  # fmt: skip
    assert len(layers) == 5  # four convolutions and a linear layer
    for name, layer in layers.items():
        assert torch.equal(layer.weight, weights[f"{name}.weight"])
        assert 1 <= int(torch.linalg.matrix_rank(layer.up @ layer.down)) <= 2
