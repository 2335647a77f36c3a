"""What a user may ask of one verification, besides what the project and the policy say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from compatctl.core.calibration import ScoreMap
from compatctl.core.policy import Policy
from compatctl.core.similarity import SIMILARITIES
from compatctl.errors import UsageError
from compatctl.evaluation.acceptance import CalibrationRequest, Thresholds
from compatctl.evaluation.verdict import Outputs
from compatctl.files import sha256_file
from compatctl.recipe import Project

PRESENTATION = ("latency", "dry_run", "outputs")
"""Options that change no verdict: every other one is bound, a new one too."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """``training``: the candidate's record; ``threshold``: the cosine at which the deployed system
    accepts, ``new_threshold`` the one that new queries will be used with (default: the same);
    ``calibrate``: map new scores to the scale of the old ones, so that thresholds keep their
    meaning; ``slices``: columns of the data; ``cluster``: columns whose values are resampled as
    units; ``ignore_same``: columns in which a gallery item of the query's label may not be like the
    query, or it does not count; ``pairs``, ``qrels``: files of judgments. Without ``self_test`` the
    new model embeds no gallery item. ``similarity``: of feature tables that do not say theirs.
    """

    training: Path | None = None
    allow_seen: bool = False
    skip_bad: bool = False
    threshold: float | None = None
    new_threshold: float | None = None
    calibrate: bool = False
    slices: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()
    ignore_same: tuple[str, ...] = ()
    pairs: Path | None = None
    qrels: Path | None = None
    latency: bool = False
    self_test: bool = True
    similarity: str | None = None
    seed: int | None = None
    """Null: the project's."""
    dry_run: bool = False
    outputs: Outputs = field(default_factory=Outputs)

    def __post_init__(self) -> None:
        for name in ("threshold", "new_threshold"):
            value = getattr(self, name)
            if value is not None and not -1.0 <= value <= 1.0:
                raise UsageError(f"a similarity threshold lies between -1 and 1, got {value}")
        if self.seed is not None and (self.seed < 0 or not math.isfinite(self.seed)):
            raise UsageError(f"a seed is a whole number of at least 0, got {self.seed}")

    def within(self, project: Project) -> VerifyOptions:
        """These options, and the project's where none was given."""
        kept, here, gate = self.outputs, project, project.gate
        new_threshold = self.new_threshold
        return replace(
            self,
            training=self.training or gate.training,
            allow_seen=self.allow_seen or gate.allow_seen,
            skip_bad=self.skip_bad or gate.skip_bad,
            slices=self.slices or here.slices,
            cluster=self.cluster or here.cluster,
            ignore_same=self.ignore_same or here.ignore_same,
            threshold=here.threshold if self.threshold is None else self.threshold,
            new_threshold=gate.new_threshold if new_threshold is None else new_threshold,
            pairs=self.pairs or gate.pairs,
            qrels=self.qrels or gate.qrels,
            self_test=self.self_test and gate.self_test,
            seed=gate.seed if self.seed is None else self.seed,
            calibrate=self.calibrate or here.calibrate,
            outputs=Outputs(
                junit=kept.junit or here.junit,
                markdown=kept.markdown or here.markdown,
                metrics=kept.metrics or here.metrics,
                queries=kept.queries or here.queries,
            ),
        )

    def bound(self) -> dict[str, Any]:
        """The question, as JSON values: every option that can change a verdict.

        A file is named by the sha256 of its bytes, a list is sorted.

        Raises:
            InputError: a file cannot be read.
        """
        names = [one.name for one in fields(self) if one.name not in PRESENTATION]
        return {name: _json_value(getattr(self, name)) for name in names}

    def check(self, policy: Policy) -> None:
        """Refuse to leave out what the policy decides by.

        Raises:
            UsageError: no self-test, and a policy that asks for it or for the mixed gallery.
        """
        asked = [
            key
            for key in ("min_self_test_gain", "min_mixed_gain")
            if getattr(policy, key) is not None
        ]
        if asked and not self.self_test:
            raise UsageError(
                f"--no-self-test, but policy {policy.name} decides by {', '.join(asked)}",
                tip="leave the flag out, or name a policy in which these are null",
            )

    def check_models(self) -> None:
        """Refuse what models cannot answer.

        Raises:
            UsageError: the similarity was said.
        """
        if self.similarity is not None:
            raise UsageError(
                "--similarity is about feature tables: models give unit rows, compared by cosine",
                tip="leave the flag out",
            )

    def check_cosines(self, policy: Policy, similarity: str) -> None:
        """Refuse what is defined by cosines, where vectors are compared otherwise.

        Raises:
            UsageError: a threshold, pairs, or a policy that decides by an inequality.
        """
        given = {"--threshold": self.threshold is not None, "--pairs": self.pairs is not None}
        given["--calibrate"] = self.calibrate
        margins = ("same_class_margin", "different_class_margin")
        given |= {f"policy key {key}": getattr(policy, key) is not None for key in margins}
        for name, there in given.items():
            if there:
                raise UsageError(
                    f"{name} is about cosines, and these tables are compared by {similarity}",
                    tip="leave it out (a policy: null); recall and its checks are of the ranking",
                )

    def check_features(self) -> None:
        """Refuse what feature tables cannot answer.

        Raises:
            UsageError: latency or a training record was asked about, or another similarity.
        """
        if self.similarity is not None and self.similarity not in SIMILARITIES:
            raise UsageError(f"--similarity is {', '.join(SIMILARITIES)}, got {self.similarity!r}")
        if self.latency or self.training is not None:
            flag = "--latency" if self.latency else "--training"
            raise UsageError(
                f"{flag} is about a model, and feature tables have none",
                tip="verify the ONNX files, or leave the flag out",
            )

    @property
    def queries_file(self) -> Path | None:
        """Where to write a line for each query; None: nowhere."""
        return None if self.dry_run else self.outputs.queries

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data that is asked about, once."""
        return tuple(dict.fromkeys((*self.slices, *self.cluster, *self.ignore_same)))

    def thresholds(self, scale: ScoreMap | None = None) -> Thresholds | None:
        """The thresholds of old and new queries, where one was given, on the ``scale`` of the
        store's scores."""
        if self.calibrate and self.new_threshold is not None:
            raise UsageError(
                "--calibrate keeps the threshold, and --new-threshold names another",
                tip="leave one of them out",
            )
        if self.threshold is None and self.new_threshold is not None:
            raise UsageError("--new-threshold needs --threshold, the one that is deployed")
        if self.threshold is None:
            return None
        new = self.threshold if self.new_threshold is None else self.new_threshold
        return Thresholds(old=self.threshold, new=new, scale=scale)

    def calibration(self, scale: ScoreMap | None = None) -> CalibrationRequest | None:
        """How scores are to be calibrated, where that was asked for."""
        return CalibrationRequest(scale=scale) if self.calibrate else None

    def unchecked(self) -> tuple[str, ...]:
        """What was not asked for."""
        found = []
        if self.threshold is None:
            found.append("false accepts, false rejects: no --threshold")
        elif self.qrels is not None:
            found.append(
                "false accepts of items of the query's label that nobody judged; those of another "
                "label count as false"
            )
        if not self.slices:
            found.append("slices: no --slice")
        if not self.self_test:
            found.append("self-test, mixed gallery: --no-self-test")
        return tuple(found)


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return sha256_file(value)
    if isinstance(value, tuple):
        return sorted(_json_value(one) for one in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"an option of type {type(value).__name__} cannot be bound")
    return value
