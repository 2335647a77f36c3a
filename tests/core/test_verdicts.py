"""Verdicts on encoders of known quality, on real emoji and kanji features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from compatctl.cli.app import app

FEATURES = Path(__file__).parents[1] / "fixtures" / "features"
SETS = ("emoji", "kanji")
CODE = {"pass": 0, "fail": 3, "inconclusive": 4}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


WORSE = {"emoji": 0.45, "kanji": 0.35}
"""Length of the noise that costs a few points of hit@1."""


class Real:
    """Items, labels and the deployed encoder's unit features of (some classes of) a data set."""

    def __init__(self, name, classes=None):
        with np.load(FEATURES / f"{name}.npz") as archive:
            labels = archive["labels"]
            names = np.unique(labels)
            kept = np.isin(labels, names[:classes] if classes else names)
            self.ids, self.labels = archive["ids"][kept], labels[kept]
            self.old = unit(archive["lite0"][kept].astype(np.float64))
            self.other = unit(archive["lite2"][kept].astype(np.float64))
        self.code = np.unique(self.labels, return_inverse=True)[1]

    @property
    def means(self):
        """(N, D) each item's class mean of the deployed features."""
        totals = np.zeros((self.code.max() + 1, self.old.shape[1]))
        np.add.at(totals, self.code, self.old)
        return unit(totals)[self.code]

    def better(self, share=0.15):
        """Every feature moved towards its class mean: the same space, cleaner."""
        return unit(self.old + share * self.means)

    def worse(self, noise, seed=0):
        """Every feature with noise of that length."""
        rng = np.random.default_rng(seed)
        return unit(self.old + noise * unit(rng.normal(size=self.old.shape)))

    def random(self):
        """Features that have nothing to do with the items."""
        return unit(np.random.default_rng(1).normal(size=self.old.shape))

    def rotated(self):
        """The same model in another basis: as good by itself, useless on the deployed gallery."""
        turn = np.linalg.qr(np.random.default_rng(2).normal(size=(self.old.shape[1],) * 2))[0]
        return unit(self.old @ turn)

    def drifted(self, share):
        """A share of the classes moved as a whole to where another class is."""
        means = dict(zip(self.code, self.means, strict=True))
        moved = np.random.default_rng(3).permutation(len(means))[: int(share * len(means))]
        rows = self.better(0.05).copy()
        for at, code in enumerate(moved):
            target = means[moved[(at + 1) % len(moved)]]
            rows[self.code == code] = unit(0.3 * rows[self.code == code] + target)
        return rows


def verdict(tmp_path, real, new, *more):
    """Exit code and report of ``compatctl verify old.npz new.npz``."""
    for name, rows in (("old", real.old), ("new", new)):
        np.savez(tmp_path / f"{name}.npz", ids=real.ids, labels=real.labels, features=rows)
    report = tmp_path / "report.json"
    command = ["verify", tmp_path / "old.npz", tmp_path / "new.npz", "--report", report, *more]
    result = CliRunner().invoke(app, [*map(str, command)])
    written = json.loads(report.read_bytes())
    assert result.exit_code == CODE[written["verdict"]["outcome"]], result.output
    return written


def gain(report):
    """The deciding check."""
    return next(check for check in report["verdict"]["checks"] if check["name"] == "hit_gain")


@pytest.mark.parametrize("name", SETS)
def test_a_clearly_better_encoder_passes(tmp_path, name):
    """Cleaner features of the same space pass, and the interval of the gain is above zero."""
    real = Real(name)
    report = verdict(tmp_path, real, real.better())
    assert report["verdict"]["outcome"] == "pass"
    assert 0 < gain(report)["low"] <= gain(report)["estimate"] <= gain(report)["high"]


@pytest.mark.parametrize("name", SETS)
def test_the_identical_encoder_never_passes(tmp_path, name):
    """The same features, with the default and with the strict policy: no gain was shown."""
    real = Real(name)
    for policy in ("default", "strict"):
        report = verdict(tmp_path, real, real.old, "--policy", policy)
        assert report["verdict"]["outcome"] != "pass"
        assert gain(report)["estimate"] == 0.0


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["random", "rotated"])
def test_an_encoder_of_another_space_fails(tmp_path, name, kind):
    """Random and rotated features fail, under the lenient policy too."""
    real = Real(name)
    for policy in ("default", "lenient"):
        report = verdict(tmp_path, real, getattr(real, kind)(), "--policy", policy)
        assert report["verdict"]["outcome"] == "fail"
    group = report["groups"][0]
    if kind == "rotated":  # by itself it is as good as the old one
        assert group["hit_rate"]["new_new"]["1"] == pytest.approx(
            group["hit_rate"]["old_old"]["1"], abs=0.01
        )
    assert group["hit_rate"]["new_old"]["1"] < 0.05


@pytest.mark.parametrize("name", SETS)
def test_a_real_backbone_swapped_naively_fails(tmp_path, name):
    """EfficientNet-lite2 against the gallery of lite0 finds nothing, though as good by itself."""
    real = Real(name)
    report = verdict(tmp_path, real, real.other)
    assert report["verdict"]["outcome"] == "fail"


@pytest.mark.parametrize("name", SETS)
def test_drifted_classes_fail_where_both_inequalities_hold(tmp_path, name):
    """If a fifth of the classes drifts, the means hold, and the hit rate criterion fails."""
    real = Real(name)
    report = verdict(tmp_path, real, real.drifted(0.2))
    checks = {check["name"]: check for check in report["verdict"]["checks"]}
    assert report["verdict"]["outcome"] == "fail"
    assert checks["hit_gain"]["outcome"] == "fail"
    assert checks["different_class"]["estimate"] > -0.05


@pytest.mark.parametrize("name", SETS)
def test_a_slightly_worse_encoder_is_settled_by_enough_classes(tmp_path, name):
    """A loss of a few points is inconclusive on 12 classes, fails on all, and never passes."""
    few, every = Real(name, 12), Real(name)
    small = verdict(tmp_path, few, few.worse(WORSE[name]), "--policy", policy_of_few(tmp_path))
    large = verdict(tmp_path, every, every.worse(WORSE[name]))
    assert -0.12 < gain(large)["estimate"] < -0.01
    assert (small["verdict"]["outcome"], large["verdict"]["outcome"]) == ("inconclusive", "fail")


@pytest.mark.parametrize("name", SETS)
def test_a_slightly_better_encoder_is_settled_by_enough_classes(tmp_path, name):
    """A small gain is inconclusive on 30 classes, which says how many it needs, and then passes."""
    few, every = Real(name, 30), Real(name)
    small = verdict(tmp_path, few, few.better(0.03), "--policy", policy_of_few(tmp_path))
    large = verdict(tmp_path, every, every.better(0.03))
    assert 0.0 < gain(large)["estimate"] < 0.06
    assert (small["verdict"]["outcome"], large["verdict"]["outcome"]) == ("inconclusive", "pass")
    needed = gain(small)["needed"]
    assert needed is None or needed["classes"] > 30


@pytest.mark.parametrize("name", SETS)
def test_a_slightly_worse_encoder_passes_a_margin_that_allows_it(tmp_path, name):
    """The same loss passes a margin of fifteen points: non-inferiority."""
    policy = tmp_path / "margin.yaml"
    policy.write_text("format: 4\nname: margin\nmin_hit_gain: -0.15\n")
    real = Real(name)
    report = verdict(tmp_path, real, real.worse(WORSE[name]), "--policy", policy)
    assert report["verdict"]["outcome"] == "pass"
    assert gain(report)["margin"] == 0.15


def policy_of_few(folder):
    """The default policy, but for small sets."""
    path = folder / "few.yaml"
    path.write_text("format: 4\nname: few\nmin_queries: 20\nmin_classes: 5\n")
    return path


def test_much_better_with_other_neighbours_passes(tmp_path):
    """An encoder that finds other, correct neighbours passes: quality is judged, not overlap."""
    real = Real("emoji")
    old = real.worse(1.2)
    better = unit(real.old + 0.3 * real.means)
    for name, rows in (("old", old), ("new", better)):
        np.savez(tmp_path / f"{name}.npz", ids=real.ids, labels=real.labels, features=rows)
    nearest = [np.argsort(-(rows @ old.T), axis=1)[:, 1:11] for rows in (old, better)]
    overlap = np.mean([len({*a} & {*b}) / 10 for a, b in zip(*nearest, strict=True)])
    assert overlap < 0.5
    result = CliRunner().invoke(
        app,
        ["verify", str(tmp_path / "old.npz"), str(tmp_path / "new.npz"),
         "--report", str(tmp_path / "r.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
