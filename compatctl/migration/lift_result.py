"""What a lift tells: the map, the files, the gain, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.migration.adapters import MapTrial
from compatctl.migration.lift_trial import LiftTrial
from compatctl.migration.lifted_models import LiftedModel
from compatctl.migration.rewrite_gate import RewriteOutcome


@dataclass(frozen=True, kw_only=True)
class LiftMap:
    """The map, and how it was chosen: recall@1 of validation queries, the new model's on the lifted
    gallery, beside the deployed model's own on the stored one (``old_recall``).

    ``pairs``: by where the source is from, the gallery or the deployed encoder; ``anchors``: those
    of them that are no training items. ``left_out``: kinds that were not tried, and why.
    """

    kind: str
    setting: str
    recall: float
    old_recall: float
    validation_queries: int
    pairs: dict[str, int]
    anchors: int
    trials: tuple[MapTrial, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lifted(RewriteOutcome):
    """``rows`` rows of ``dim_before`` numbers become (for a dry run and a refusal: would become)
    rows of ``dim``.

    ``models``: the files that they then are of. ``map`` is None where there was nothing to do,
    ``measured`` besides where no query was held out. ``skipped``: ids of images
    that do not decode.
    """

    query_model_before: str
    query_model: str
    rows: int
    dim_before: int
    dim: int
    map: LiftMap | None
    models: tuple[LiftedModel, ...]
    measured: LiftTrial | None
    index_sha256: str
    skipped: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was found and what was done, for people."""
        if self.outcome == "nothing to do":
            return "nothing to do: the gallery is lifted to this model already"
        return self._summary(
            f"{self.rows} rows of {self.dim_before} numbers "
            f"{'were' if self.written else 'would be'} mapped to {self.dim}",
        )

    @property
    def next_step(self) -> str:
        """What can be done about a refusal; empty where there was none."""
        if not self.exit_code:
            return ""
        if self.outcome == "fail":
            return "keep the old model; compatctl plan tries the other routes"
        return "more held-out classes and images"
