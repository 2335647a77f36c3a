"""The options of one verification, beyond the project's entries and the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from compatctl.core.calibration import ScoreMap
from compatctl.core.policy import Policy
from compatctl.errors import UsageError
from compatctl.evaluation.acceptance import CalibrationRequest, Thresholds
from compatctl.evaluation.verdict import Outputs
from compatctl.files import sha256_file
from compatctl.recipe import Project

MAX_RESCORED = 100
"""The most answers of a query that are re-scored."""

PRESENTATION = ("latency", "dry_run", "outputs")
"""Options that change no verdict; every other one is compared by deploy."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The fields are named like the options of ``verify``.

    ``threshold``: the cosine at which the deployed system accepts; ``new_threshold``: the one for
    new queries (default: the same). ``calibrate``: map new scores to the scale of the old ones.
    ``slices``, ``cluster``, ``ignore_same``: columns of the data. ``pairs``, ``qrels``: files of
    judgments. ``self_test``: the new model embeds the gallery too. ``rescore``: the answers that
    are re-scored; ``passes``: those of them that a query may embed (default: all).
    ``similarity``: that of feature tables that do not name one.
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
    rescore: int | None = None
    passes: int | None = None
    seed: int | None = None
    """None: the project's."""
    dry_run: bool = False
    outputs: Outputs = field(default_factory=Outputs)

    def __post_init__(self) -> None:
        for name in ("threshold", "new_threshold"):
            value = getattr(self, name)
            if value is not None and not -1.0 <= value <= 1.0:
                raise UsageError(f"a similarity threshold lies between -1 and 1, got {value}")
        if self.rescore is not None and not 1 <= self.rescore <= MAX_RESCORED:
            raise UsageError(f"--rescore takes 1 to {MAX_RESCORED} answers, got {self.rescore}")
        if self.passes is not None and not 0 <= self.passes <= MAX_RESCORED:
            raise UsageError(f"--passes takes 0 to {MAX_RESCORED} items, got {self.passes}")
        if self.seed is not None and (self.seed < 0 or not math.isfinite(self.seed)):
            raise UsageError(f"a seed is a whole number of at least 0, got {self.seed}")

    def within(self, project: Project) -> VerifyOptions:
        """These options, and the project's where one is not given."""
        here, gate, new_threshold = project, project.gate, self.new_threshold
        rescore, passes = rescored_and_passes(
            here.rescore if self.rescore is None else self.rescore,
            here.passes if self.passes is None else self.passes,
        )
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
            rescore=rescore,
            passes=passes,
            outputs=self.outputs.within(project),
        )

    def bound(self) -> dict[str, Any]:
        """Every option that can change a verdict, as JSON values.

        A file is the sha256 of its bytes; a list is sorted.

        Raises:
            InputError: a file cannot be read.
        """
        names = [option.name for option in fields(self) if option.name not in PRESENTATION]
        return {name: _json_value(getattr(self, name)) for name in names}

    def check(self, policy: Policy) -> None:
        """Raise a UsageError for ``--no-self-test`` if the policy decides by the self-test."""
        keys = ("min_self_test_gain", "min_mixed_gain")
        needed = [key for key in keys if getattr(policy, key) is not None]
        if needed and not self.self_test:
            raise UsageError(
                f"--no-self-test, but policy {policy.name} decides by {', '.join(needed)}",
                tip="leave the flag out, or name a policy in which these are null",
            )

    def check_models(self) -> None:
        """Raise a UsageError for options of feature tables."""
        if self.similarity is not None:
            raise UsageError(
                "--similarity is about feature tables: models give unit rows, compared by cosine",
                tip="leave the flag out",
            )

    def check_cosines(self, policy: Policy, similarity: str) -> None:
        """Raise a UsageError for options and policy keys that are defined by cosines."""
        given = {"--threshold": self.threshold is not None, "--pairs": self.pairs is not None}
        given["--calibrate"] = self.calibrate
        margins = ("same_class_margin", "different_class_margin")
        given |= {f"policy key {key}": getattr(policy, key) is not None for key in margins}
        for name, is_given in given.items():
            if is_given:
                raise UsageError(
                    f"{name} is about cosines, and these tables are compared by {similarity}",
                    tip="leave it out (a policy: null); hit rate and its checks are of the ranking",
                )

    def check_features(self) -> None:
        """Raise a UsageError for options of models."""
        if self.rescore is not None:
            raise UsageError(
                "--rescore is about a model with free vectors, and feature tables have none",
                tip="verify the ONNX files, or leave the flag out",
            )
        if self.latency or self.training is not None:
            flag = "--latency" if self.latency else "--training"
            raise UsageError(
                f"{flag} is about a model, and feature tables have none",
                tip="verify the ONNX files, or leave the flag out",
            )

    @property
    def queries_file(self) -> Path | None:
        """The file with a line for each query; None: it is not written."""
        return None if self.dry_run else self.outputs.queries

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data that an option names, once."""
        return tuple(dict.fromkeys((*self.slices, *self.cluster, *self.ignore_same)))

    @property
    def grouping(self) -> tuple[str, ...]:
        """The columns in which an item without a value shares it with none."""
        return (*self.cluster, *self.ignore_same)

    def thresholds(self, scale: ScoreMap | None = None) -> Thresholds | None:
        """The thresholds of old and new queries, on the ``scale`` of the store's scores."""
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
        """The request to calibrate scores; None without ``--calibrate``."""
        return CalibrationRequest(scale=scale) if self.calibrate else None

    def unchecked(self) -> tuple[str, ...]:
        """What is not checked because its option is not given."""
        notes = []
        if self.threshold is None:
            notes.append("false accepts, false rejects: no --threshold")
        elif self.qrels is not None:
            notes.append(
                "false accepts of items of the query's label that nobody judged; those of another "
                "label count as false"
            )
        if not self.slices:
            notes.append("slices: no --slice")
        if not self.self_test:
            notes.append("self-test, mixed gallery: --no-self-test")
        return tuple(notes)


def rescored_and_passes(rescore: int | None, passes: int | None) -> tuple[int | None, int | None]:
    """Answers to re-score and images that a query may embed; by default as many.

    Raises:
        UsageError: passes without re-scoring.
    """
    if rescore is None and passes is not None:
        raise UsageError("--passes goes with --rescore: nothing is re-scored", tip="leave it out")
    return rescore, rescore if passes is None else passes


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return sha256_file(value)
    if isinstance(value, tuple):
        return sorted(_json_value(item) for item in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"an option of type {type(value).__name__} cannot be recorded")
    return value
