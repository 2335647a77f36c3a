"""``compatctl.yaml``, which names the files that commands work on, and the policies."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.errors import InputError
from compatctl.files import store_url
from compatctl.notices import notice
from compatctl.recipe._recipe import FACTORIES
from compatctl.recipe._typed import between, build, load_yaml

if TYPE_CHECKING:
    from compatctl.core.policy import Policy

PROJECT_FILE = "compatctl.yaml"
POLICIES = Path(__file__).parent.parent / "policies"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of the CLASSES for training and validation; the rest are test classes.

    ``hold_out_items`` is the share of images of training classes that are test items, too.
    """

    train: float = field(default=0.6, metadata=between(0.0, 1.0))
    validation: float = field(default=0.1, metadata=between(0.0, 1.0))
    hold_out_items: float = field(default=0.0, metadata=between(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Options of ``verify`` without a key of their own; deploy refuses a report made with others.

    ``data_sha256`` is the report's ``data.evaluation_set_sha256``: with it, deploy needs no data.
    ``qrels``: relevance judgments of every command that measures; they stand in for labels.
    With ``require_signature``, deploy refuses a report that is not signed with its key.
    """

    new_threshold: float | None = field(default=None, metadata=between(-1.0, 1.0))
    pairs: Path | None = None
    qrels: Path | None = None
    training: Path | None = None
    allow_seen: bool = False
    skip_bad: bool = False
    self_test: bool = True
    seed: int = field(default=0, metadata=between(0))
    data_sha256: str | None = None
    require_signature: bool = False

    def resolved(self, folder: Path) -> Gate:
        """The same options with relative paths taken from ``folder``."""
        return replace(self, **_paths(self, folder))


@dataclass(frozen=True, kw_only=True)
class Project:
    """Content of ``compatctl.yaml``, with paths resolved relative to the file.

    ``store`` is a folder or, as a path spells it, ``s3://BUCKET/PREFIX``.
    ``data_root`` is a second folder that may hold the images of the data; ``policy`` is the name of
    a shipped policy or a path. ``columns`` (id, path, text, label, split or role -> column) says
    which columns of the data have other names. ``vectors`` (space -> file) are tables of ids and
    vectors of models behind an API; with them ``data`` only describes the items, and may be left
    out. Columns of the data: ``slices`` are judged value by
    value, ``cluster`` values are resampled as units (in addition to classes), and a gallery item
    that shares an ``ignore_same`` value with the query is no match for it. ``threshold`` is the
    cosine from which the deployed system accepts a match; ``calibrate`` keeps its meaning by a map
    of the scores. ``rescore`` answers of a query are ranked again by free vectors; a query embeds
    at most ``passes`` of them (default: all), and none more after ``max_ms`` milliseconds.
    ``junit``, ``markdown``, ``metrics``, ``queries`` and ``html`` are optional outputs of verify.
    ``max_gallery_pass`` is the largest share of the gallery's rows, labelled training items aside,
    that may go through a new model to make a candidate; every command keeps it or refuses.
    ``factories`` lists the modules and callables that a recipe may name. ``old_model_gone`` says
    that queries can no longer run the deployed model: then no candidate may run it. ``ray`` is a
    cluster that embeds galleries: its address, or local, which starts one on this machine.
    """

    format: int = field(default=1, metadata=between(1, 1))
    store: Path = Path("store")
    data: Path | None = None
    data_root: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)
    recipe: Path | None = None
    policy: str = "default"
    candidate: Path = Path("build/candidate")
    output: Path = Path("new.onnx")
    report: Path = Path("report.json")
    junit: Path | None = None
    markdown: Path | None = None
    metrics: Path | None = None
    queries: Path | None = None
    html: Path | None = None
    slices: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()
    ignore_same: tuple[str, ...] = ()
    threshold: float | None = field(default=None, metadata=between(-1.0, 1.0))
    calibrate: bool = False
    rescore: int | None = field(default=None, metadata=between(1, 100))
    passes: int | None = field(default=None, metadata=between(0, 100))
    max_ms: float | None = field(default=None, metadata=between(0.0))
    old_model_gone: bool = False
    ray: str | None = None
    max_gallery_pass: float = field(default=0.0, metadata=between(0.0, 1.0))
    split: Split = Split()
    factories: tuple[str, ...] = FACTORIES
    gate: Gate = Gate()

    @property
    def source(self) -> Path | None:
        """What describes the items: the data, or the first table of vectors."""
        first = next(iter(self.vectors.values()), None)
        return self.data or (None if first is None else Path(first))

    @classmethod
    def load(cls, path: Path) -> Project:
        """Read a file; ``InputError`` for an unknown key, a wrong type or a bad split."""
        value = load_yaml(path, newest=1)
        project = build(cls, {} if value is None else value, str(path))
        split = project.split
        if split.train + split.validation > 1.0:
            raise InputError(
                f"{path}: split: train {split.train} + validation {split.validation} is more than 1"
            )
        return project.resolved(path.parent)

    @classmethod
    def find(cls, folder: Path) -> Project:
        """``compatctl.yaml`` of ``folder``, or the defaults if there is none."""
        path = folder / PROJECT_FILE
        return cls.load(path) if path.is_file() else cls().resolved(folder)

    def allowed_rows(self, rows: int) -> int:
        """How many of these gallery rows ``max_gallery_pass`` allows to pass."""
        return math.floor(self.max_gallery_pass * rows + 1e-9)

    def resolved(self, folder: Path) -> Project:
        """The same project with relative paths taken from ``folder``."""
        shipped = self.policy in shipped_policies()
        return replace(
            self,
            **_paths(self, folder),
            vectors={space: str(folder / file) for space, file in self.vectors.items()},
            policy=self.policy if shipped else str(folder / self.policy),
            gate=self.gate.resolved(folder),
        )


def _paths(entries: Project | Gate, folder: Path) -> dict[str, Any]:
    """Every path among the entries, relative ones taken from ``folder``; the URL of a store stays
    as it is."""
    return {
        entry.name: folder / value if entry.name != "store" or not store_url(value) else value
        for entry in fields(entries)
        if isinstance(value := getattr(entries, entry.name), Path)
    }


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies in the package."""
    return tuple(sorted(path.stem for path in POLICIES.glob("*.yaml")))


def load_policy(name_or_path: str | Path) -> Policy:
    """A shipped policy by name, or the policy in a YAML file.

    Raises ``InputError`` for an unknown name, an unknown key or a wrong type.
    """
    from compatctl.core.policy import Policy

    name = str(name_or_path)
    known = shipped_policies()
    path = POLICIES / f"{name}.yaml" if name in known else Path(name)
    if not path.exists() and re.fullmatch(r"[\w-]+", name):
        raise InputError(
            f"no policy called {name}", tip=f"shipped: {', '.join(known)}; or give a file's path"
        )
    policy = build(Policy, _policy_entries(path), str(path))
    if policy.max_gallery_pass is not None:
        raise InputError(
            f"{path}: max_gallery_pass is no key of a policy file",
            tip=f"write it into {PROJECT_FILE}: every command keeps it, not only the gate",
        )
    return policy


def _policy_entries(path: Path) -> Any:
    """The entries of a policy file; those of format 3 with their names of today, and a notice."""
    from compatctl.core.policy import POLICY_FORMAT, RENAMED, upgrade_policy

    raw = load_yaml(path, newest=POLICY_FORMAT)
    if not isinstance(raw, dict):
        return raw
    unclear = [key for key in RENAMED if key in raw]
    if unclear and "format" not in raw:
        raise InputError(
            f"{path}: {', '.join(unclear)}, and no format: expected one, because format 3 and "
            f"{POLICY_FORMAT} mean different measures by recall",
            tip=f"write format: {POLICY_FORMAT} and hit for the hit rate, as the shipped policies",
        )
    if raw.get("format") != POLICY_FORMAT - 1:
        return raw
    if unclear:
        notice(
            "policy-format",
            path,
            f"keys of format 3 that are read as those of format {POLICY_FORMAT}",
            [f"{key} as {RENAMED[key]}" for key in unclear],
            "what was called recall is the hit rate",
        )
    return upgrade_policy(raw)


def gate_policy(project: Project) -> Policy:
    """The project's policy with the project's ``max_gallery_pass``, as verify and deploy judge.

    The default one requires no training record of a model behind an API, which has none.

    Raises ``InputError`` as ``load_policy``.
    """
    policy = load_policy(project.policy)
    if project.vectors and project.policy == "default":
        policy = replace(policy, name=f"{policy.name} (vectors)", require_training_record=False)
    return replace(policy, max_gallery_pass=project.max_gallery_pass)
