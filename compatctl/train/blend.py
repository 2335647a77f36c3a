"""Weights between the base's and the fine-tuned ones: what the base knew is kept, the gain as well.

Source: Wortsman et al., CVPR 2022 (arXiv 2109.01903).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compatctl.train.loop import TrialContext, validate
from compatctl.train.setup import Setup

SHARES = tuple(tenths / 10 for tenths in range(10, 0, -1))
"""Of the fine-tuned weights; of equal hit rates the first is taken."""

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The ``share`` of the fine-tuned weights that was kept, in (0, 1], and hit@1 of validation
    queries on the deployed gallery at every share."""

    share: float
    hit_rates: dict[float, float]

    @property
    def hit_rate(self) -> float:
        """At the share that was kept."""
        return self.hit_rates[self.share]


def wants_blend(setup: Setup) -> bool:
    """Whether the base is a whole model, junction included, and validation queries can choose."""
    validation = setup.training_set.validation
    return setup.recipe.blend == "auto" and setup.base_match.junction and validation is not None


def blend_weights(context: TrialContext, base: State) -> Blend:
    """Give the trained network the blend with the best validation hit rate; ``base``: its weights
    before the training."""
    network = context.setup.network
    tuned = {key: value.clone() for key, value in network.state_dict().items()}
    hit_rates = dict[float, float]()
    for share in SHARES:
        network.load_state_dict(_between(base, tuned, share))
        hit_rates[share] = validate(context) or 0.0
    best = max(hit_rates, key=hit_rates.__getitem__)
    network.load_state_dict(_between(base, tuned, best))
    return Blend(share=best, hit_rates=hit_rates)


def _between(first: State, last: State, share: float) -> State:
    """Counters, which are no weights, are those of ``last``."""
    return {
        key: torch.lerp(first[key], value, share) if value.is_floating_point() else value
        for key, value in last.items()
    }
