"""``compatctl.yaml`` and the policies: which files the commands work on, and what a pass is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.errors import InputError
from compatctl.recipe._recipe import FACTORIES, _refuse_newer
from compatctl.recipe._typed import between, build, load_yaml

if TYPE_CHECKING:
    from compatctl.core.policy import Policy

PROJECT_FILE = "compatctl.yaml"
POLICIES = Path(__file__).parent.parent / "policies"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of the CLASSES that train and that choose settings; what is left tests.

    ``hold_out_items``: share of the images of training classes that test as well.
    """

    train: float = field(default=0.6, metadata=between(0.0, 1.0))
    validation: float = field(default=0.1, metadata=between(0.0, 1.0))
    hold_out_items: float = field(default=0.0, metadata=between(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How ``verify`` is asked, beside the entries that have a place of their own: deploy takes no
    report that was made otherwise.

    ``data_sha256`` is the report's ``data.evaluation_set_sha256``: with it deploy needs no data.
    With ``require_signature`` deploy takes no report that is not signed with its key.
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
        """The same with every relative path taken from ``folder``."""
        return replace(self, **_paths(self, folder))


@dataclass(frozen=True, kw_only=True)
class Project:
    """What ``compatctl.yaml`` says. Paths in the file are relative to it; here they are resolved.

    ``data_root`` is a folder besides that of the data in which its images may lie;
    ``policy`` is the name of a shipped policy or the path of a file; ``slices`` are columns of the
    data whose values are judged one by one; ``cluster`` are columns whose values are resampled as
    units, besides classes; ``ignore_same`` are columns whose value a gallery item of the query's
    label may not share with it, or it does not count; ``threshold`` is the cosine at which the
    deployed system accepts, and ``calibrate`` keeps what it means by a map of the scores;
    ``junit``, ``markdown``, ``metrics`` and ``queries`` are files that verify writes besides;
    ``factories`` is the code that a recipe may name, modules and callables; ``gate`` is how verify
    is asked besides.
    """

    format: int = field(default=1, metadata=between(1, 1))
    store: Path = Path("store")
    data: Path | None = None
    data_root: Path | None = None
    recipe: Path | None = None
    policy: str = "default"
    candidate: Path = Path("build/candidate")
    output: Path = Path("new.onnx")
    report: Path = Path("report.json")
    junit: Path | None = None
    markdown: Path | None = None
    metrics: Path | None = None
    queries: Path | None = None
    slices: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()
    ignore_same: tuple[str, ...] = ()
    threshold: float | None = field(default=None, metadata=between(-1.0, 1.0))
    calibrate: bool = False
    split: Split = Split()
    factories: tuple[str, ...] = FACTORIES
    gate: Gate = Gate()

    @classmethod
    def load(cls, path: Path) -> Project:
        """The project in a file; ``InputError`` for an unknown key, a wrong type, a bad split."""
        value = load_yaml(path)
        _refuse_newer(value, path, 1)
        project = build(cls, {} if value is None else value, str(path))
        split = project.split
        if split.train + split.validation > 1.0:
            raise InputError(
                f"{path}: split: train {split.train} + validation {split.validation} is more than 1"
            )
        return project.resolved(path.parent)

    @classmethod
    def find(cls, folder: Path) -> Project:
        """``compatctl.yaml`` of ``folder``, or the defaults where there is none."""
        path = folder / PROJECT_FILE
        return cls.load(path) if path.is_file() else cls().resolved(folder)

    def resolved(self, folder: Path) -> Project:
        """The same project with every relative path taken from ``folder``."""
        named = self.policy in shipped_policies()
        return replace(
            self,
            **_paths(self, folder),
            policy=self.policy if named else str(folder / self.policy),
            gate=self.gate.resolved(folder),
        )


def _paths(entries: Project | Gate, folder: Path) -> dict[str, Any]:
    """Every path among the entries, a relative one taken from ``folder``."""
    return {
        one.name: folder / getattr(entries, one.name)
        for one in fields(entries)
        if isinstance(getattr(entries, one.name), Path)
    }


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies that come with the package."""
    return tuple(sorted(one.stem for one in POLICIES.glob("*.yaml")))


def load_policy(name_or_path: str | Path) -> Policy:
    """A shipped policy by name, else the policy in a YAML file.

    Raises ``InputError`` for an unknown name, an unknown key or a wrong type.
    """
    from compatctl.core.policy import POLICY_FORMAT, Policy

    name = str(name_or_path)
    known = shipped_policies()
    path = POLICIES / f"{name}.yaml" if name in known else Path(name)
    if not path.exists() and re.fullmatch(r"[\w-]+", name):
        raise InputError(
            f"no policy called {name}", tip=f"shipped: {', '.join(known)}; or give a file's path"
        )
    value = load_yaml(path)
    _refuse_newer(value, path, POLICY_FORMAT)
    return build(Policy, value, str(path))
