"""What a route costs the whole store, by what a plan measured on a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.migration.preflight import Preflight
from compatctl.migration.routes import PlanningInputs, Route
from compatctl.migration.selection import RESCORED, RouteResult

ADAPTED = (Route.BRIDGE, Route.BRIDGE_FUSE, Route.LIFT)
"""Routes of adapters, whose pairs are gallery items."""


@dataclass(frozen=True, kw_only=True)
class Milliseconds:
    """Milliseconds that each encoder takes for one image."""

    old: float
    new: float


@dataclass(frozen=True, kw_only=True)
class RouteCost:
    """What a route costs the whole store, from each encoder's milliseconds an image.

    ``rows`` are the store's, ``training`` all training items, each of which the new backbone embeds
    in ``views`` variants, ``encoded`` those of them whose old feature is not stored. ``paired`` is
    the share of the gallery that adapters are fitted on beside the labelled training items,
    ``trained`` the share of the training items that the plan uses.
    ``today``: the images that a query may embed where the store re-scores its answers.
    """

    old_ms: float
    new_ms: float
    rows: int
    training: int
    views: int = 1
    encoded: int = 0
    paired: float = 1.0
    trained: float = 1.0
    today: int = 0

    @classmethod
    def measure(
        cls,
        inputs: PlanningInputs,
        facts: Preflight,
        data: Dataset,
        deployed: DeployedGallery,
        ms: Milliseconds,
    ) -> RouteCost:
        """``data`` are all items."""
        stored = set(deployed.catalog.ids)
        training = [item.id for item in data.items if item.split == "train"]
        planned = {item.id for item in inputs.data.items if item.split == "train"}
        pairs = {inputs.data.ids[int(row)] for row in inputs.pair_rows} - planned
        return cls(
            old_ms=ms.old,
            new_ms=ms.new,
            rows=facts.gallery_rows,
            training=len(training),
            views=inputs.views,
            encoded=sum(item not in stored for item in training),
            paired=len(pairs & stored) / max(1, facts.gallery_images),
            trained=len(planned) / max(1, len(training)),
            today=settings.passes if (settings := deployed.manifest.rescoring) else 0,
        )

    def gallery_passed(self, result: RouteResult) -> float:
        """The share of the gallery that the new backbone embeds, beside labelled training items."""
        untrained = result.name == Route.LAZY and result.variant.trained is None
        if result.name in ADAPTED or untrained:  # an adapter finds what lazy re-scores
            return self.paired
        return result.rewritten

    def passes(self, result: RouteResult) -> int:
        """Images that the new backbone embeds."""
        if result.name == Route.KEEP:
            return 0
        return self.views * self.training + round(self.gallery_passed(result) * self.rows)

    def query_ms(self, result: RouteResult) -> float:
        milliseconds = {"old": self.old_ms, "new": self.new_ms}
        images = 1 + {Route.LAZY: RESCORED, Route.KEEP: self.today}.get(Route(result.name), 0)
        return images * sum(milliseconds[encoder] for encoder in result.variant.encoders)

    def one_time_s(self, result: RouteResult) -> float:
        if result.name == Route.KEEP:
            return 0.0
        old_passes = 0 if result.name == Route.REEMBED else self.encoded
        if "old" in result.variant.encoders:
            old_passes += round(result.rewritten * self.rows)
        milliseconds = self.passes(result) * self.new_ms + old_passes * self.old_ms
        return result.variant.seconds / self.trained + milliseconds / 1000

    def rewritten_bytes(self, result: RouteResult) -> int:
        dim: int = result.queries.shape[1]
        return round(result.rewritten * self.rows) * 4 * dim
