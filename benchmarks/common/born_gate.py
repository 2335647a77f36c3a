"""What the default gate says of a model on the groups of ``simplex_frames.py``, and its table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from benchmarks.common.born_data import SeedImages
from benchmarks.common.born_docs import GROUPS
from benchmarks.common.pages import head, row, share
from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Rows, Vectors
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.core.policy import Policy
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.comparison import PairedEmbeddings, compare
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import WEIGHTS

SEEN = "seen"
"""Both groups of trained classes together"""
CANDIDATES = ("simplex", "prototypes")
"""Variants that ``frame: [simplex, prototypes]`` trains"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Old features (N, D) of ``images.everything``, whose gallery rows are stored."""

    images: SeedImages
    old: Vectors

    def groups(self, new: Vectors) -> dict[str, dict[str, Any]]:
        """Of new features (N, D), for each group and all seen classes: hit@1 on the deployed
        gallery, its gain, the 95% interval of that, the gate, and hit rate on a gallery of its own.
        Where new classes are not stored, each model adds its vectors of them, their gate is
        ``none``, and seen classes are the deployed model's.
        """
        if len(self.images.later):
            groups = {name: self.images.groups[name] for name in (GROUPS[0], GROUPS[2])}
            judged = {name: self._judged(rows, new) for name, rows in groups.items()}
            return judged | {SEEN: judged[GROUPS[0]], GROUPS[1]: self._added(new)}
        both = np.concatenate([self.images.groups[name] for name in GROUPS[:2]])
        rows = self.images.groups | {SEEN: np.sort(both)}
        return {name: self._judged(rows[name], new) for name in (*GROUPS, SEEN)}

    def validation(self, new: Vectors) -> float:
        """hit@1 of validation queries, by which a frame or a weight is chosen."""
        gallery = np.concatenate([self.images.gallery, self.images.validation_gallery])
        return self._hit_rate(self.images.validation, gallery, new, self.old)

    def fused(self, new: Vectors) -> tuple[float, Vectors]:
        """The weight of the new feature that validation classes choose, and the fused features."""
        fused = {weight: fuse_rows(self.old, new, weight) for weight in WEIGHTS}
        best = max(WEIGHTS, key=lambda weight: (self.validation(fused[weight]), -abs(weight - 0.5)))
        return best, fused[best]

    def _judged(self, rows: Rows, new: Vectors) -> dict[str, Any]:
        gallery, policy = self.images.gallery, Policy()
        embeddings = PairedEmbeddings(
            old_queries=self.old[rows], new_queries=new[rows], old_gallery=self.old[gallery]
        )
        result = compare(DECIDING_GROUP, self._truth(rows, gallery), embeddings, policy)
        verdict = adaptive_verdict(policy, [result], (), (), sampling(policy, 0, 0, 0))
        (gain,) = (check for check in verdict.checks if check.name == "hit_gain")
        interval = [nan if end is None else end for end in (gain.estimate, gain.low, gain.high)]
        figures = {
            "hit_rate": self._hit_rate(rows, gallery, new, self.old),
            **dict(zip(("gain", "low", "high"), interval, strict=True)),
            "own": self._hit_rate(rows, gallery, new, new),
        }
        rounded = {name: round(figure, 4) for name, figure in figures.items()}
        return rounded | {"gate": verdict.outcome}

    def _added(self, new: Vectors) -> dict[str, Any]:
        """New classes, whose vectors each model adds to the deployed gallery."""
        rows, later = self.images.groups[GROUPS[1]], self.images.later
        gallery = np.concatenate([self.images.gallery, later])
        grown = self.old.copy()
        grown[later] = new[later]
        hit_rate = self._hit_rate(rows, gallery, new, grown)
        gain = hit_rate - self._hit_rate(rows, gallery, self.old, self.old)
        return {"hit_rate": round(hit_rate, 4), "gain": round(gain, 4), "gate": "none"}

    def _truth(self, rows: Rows, gallery: Rows) -> GroundTruth:
        ids, labels = self.images.everything.ids, self.images.everything.labels
        return GroundTruth.from_labels(
            query_ids=[ids[i] for i in rows],
            query_labels=[labels[i] for i in rows],
            gallery_ids=[ids[i] for i in gallery],
            gallery_labels=[labels[i] for i in gallery],
        )

    def _hit_rate(self, rows: Rows, gallery: Rows, queries: Vectors, stored: Vectors) -> float:
        truth = self._truth(rows, gallery)
        return retrieval(truth, queries[rows], stored[gallery], (1,), map_k=1).hit_rate[1]


def table(lines: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A row for each variant; of ``CANDIDATES``, the one that validation classes choose is bold."""
    yield from head(
        "images", "setting", "born", "seed", "variant", "validation", "seen", "unseen",
        "fused, seen", "fused, unseen",
    )  # fmt: skip
    runs = defaultdict(list)
    for line in lines:
        runs[tuple(line[key] for key in ("images", "setting", "born", "seed"))].append(line)
    for key, members in runs.items():
        frames = [line for line in members if line["variant"] in CANDIDATES]
        chosen = max(frames, key=lambda line: line["validation"], default=None)
        for line in members:
            bold = line is chosen and len(frames) > 1
            yield row(
                *map(str, key),
                f"**{line['variant']}**" if bold else line["variant"],
                share(line["validation"]),
                *(
                    f"{part[group]['gain']:+.3f} {part[group]['gate']}"
                    for part in (line["groups"], line["fused"])
                    for group in (SEEN, "unseen")
                ),
            )
