"""Who takes part in ``iamcl2r.py``, and with which settings.

Sources: CVPR 2024 (arXiv 2405.02581); Shen et al. (CVPR 2020, arXiv 2003.11942) for the influence
loss; repository miccunifi/iamcl2r, ``src/iamcl2r/params.py``, and ``methods/`` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compatctl.train.losses import Contrast


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is kept compatible. ``weight`` is lambda; 1 is cross-entropy alone."""

    name: str
    fixed: bool
    """Whether the classifier is the frozen d-Simplex; else it learns, and grows with each task"""
    contrast: bool = False
    """Whether the higher-order term against a previous model's features is added"""
    deployed: bool = False
    """After a replacement, whether that model is the one that was deployed; else it is the one from
    elsewhere as it came, as in the authors' code"""
    influence: bool = False
    """Whether new features also go through the previous model's classifier (BCT)"""
    means: bool = False
    """Whether class means of the previous model's features are the classifier's rows"""
    form: Contrast = "hoc"
    weight: float | None = None
    """None: that of ``Settings``; as the next"""
    mu: float | None = None
    scale: float | None = None
    """None: the cross-entropy is over raw products"""


OURS = Method(
    name="defaults on vertices", fixed=True, contrast=True, form="infonce", weight=0.25, mu=16.0,
    scale=32.0,
)  # fmt: skip
"""The loss of ``recipes/default.yaml``"""
METHODS = (
    Method(name="d-Simplex-HOC", fixed=True, contrast=True),
    Method(name="d-Simplex-HOC deployed", fixed=True, contrast=True, deployed=True),
    Method(name="d-Simplex", fixed=True),
    Method(name="learnable HOC", fixed=False, contrast=True),
    Method(name="BCT-ER", fixed=False, influence=True),
    Method(name="ER", fixed=False),
    replace(OURS, name="defaults", means=True),
    replace(OURS, name="defaults deployed", means=True, deployed=True),
    OURS,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the whole run; the defaults are the authors' (``src/iamcl2r/params.py``, ``hoc.py``)."""

    K: int = 1024
    weight: float = 0.1
    """lambda, on the cross-entropy"""
    mu: float = 10.0
    epochs: int = 70
    """Of each task"""
    batch: int = 128
    memory: int = 20
    """Images of each class that are rehearsed"""
    lr: float = 0.001
    least_lr: float = 0.00001
    weight_decay: float = 0.0005
    momentum: float = 0.9
    elsewhere_epochs: tuple[int, ...] = (100, 100, 100)
    """Of each pre-training (not in the authors' repository: their models come ready)"""
    elsewhere_lr: float = 0.002
