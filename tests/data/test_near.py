"""Ids and labels that people take for one: found, named, and left as they are."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from compatctl.data import load, load_features
from compatctl.data._near import forms, near_equal, near_pairs
from compatctl.notices import collected

ALIKE = [
    ("caf\u00e9 1", "cafe\u0301 1"),
    ("a b", "a  b", "a\u00a0b", "ab", " a b"),
    ("007", "7", "7.0"),
    ("img/07.png", "img/7.png", "IMG/7.PNG"),
    ("cam_01", "cam_1"),
    ("Stra\u00dfe", "STRASSE"),
    ("\uff21\uff22", "ab"),
    ("x\u200by", "xy"),
    ("1 5", "1\t5"),
    ("t-shirt", "t\u2013shirt", "T\u2011Shirt", "t\u2212shirt"),
    ("it's", "it\u2019s"),
    ("cop", "\u0441\u043e\u0440", "c\u03bfp"),
    ("./a/7.png", "a/7.png", "a\\07.png"),
    ("1000", "1E+03", "1e3"),
    ("120000", "1.20E+05"),
]
DIFFERENT = [
    "1.25e1",
    "12.5",
    "1e3a",
    "../a/7.png",
    "a/7.png",
    "1.05",
    "1.5",
    "1 11",
    "11 1",
    "a00b",
    "a0b",
    "10",
    "100",
    "caf\u00e9",
    "cafe",
    "0",
]


@pytest.mark.parametrize("texts", ALIKE, ids=ascii)
def test_texts_that_people_take_for_one_are_a_group(texts: tuple[str, ...]) -> None:
    """Forms, case, blanks, invisible characters, zeros; among any other texts."""
    others = ["other", "caf\u00e9 2", "a c", "77"]
    (group,) = near_equal({*texts, *others})
    assert set(group) == set(texts)


def test_other_texts_are_no_group() -> None:
    """Decimals, digits between blanks, zeros inside a word, accents."""
    assert near_equal(set(DIFFERENT)) == []


def test_forms_together_are_the_forms_of_each() -> None:
    """Many texts are brought into one form at once; alone each has the same."""
    rng = random.Random(0)
    letters = "aB0 1.\t\u00e9e\u0301/_\u200b\u00df\n\0"
    texts = ["".join(rng.choices(letters[:-1], k=rng.randrange(7))) for _ in range(20_000)]
    alone = [next(forms([text])) for text in texts]
    assert list(forms(texts)) == alone
    assert list(forms([*texts, "a\0b"]))[:-1] == alone
    groups = {frozenset(group) for group in near_equal(set(texts))}
    slow: dict[str, set[str]] = {}
    for text, form in zip(texts, alone, strict=True):
        slow.setdefault(form, set()).add(text)
    assert groups == {frozenset(group) for group in slow.values() if len(group) > 1}


def test_new_texts_are_compared_with_known_ones() -> None:
    """A text that is known as it is written is no pair."""
    assert near_pairs(["7", "a", "b"], ["007", "a", "c"]) == [("7", "007")]


def test_a_table_keeps_its_labels_and_says_which_are_near(tmp_path: Path) -> None:
    """Counted and named, so that one sees the difference; nothing is merged."""
    path = tmp_path / "t.csv"
    rows = [
        "id,path,label",
        "1,a.png,caf\u00e9",
        "2,b.png,cafe\u0301",
        "02,c.png,Cup",
        "3,d.png,cup",
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    with collected() as notices:
        data = load(path)
    assert len(set(data.labels)) == 4
    by_kind = {entry["kind"]: entry for entry in notices.entries()}
    assert by_kind["near-equal-labels"]["count"] == 2
    assert set(by_kind["near-equal-labels"]["names"]) == {
        "'Cup' and 'cup'",
        "'cafe\\u0301' and 'caf\\xe9'",
    }
    assert by_kind["near-equal-ids"]["names"] == ["'2' and '02'"]


def test_a_feature_table_follows_the_same_rule(tmp_path: Path) -> None:
    """The arrays ids and labels."""
    rows = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "t.npz", features=rows, ids=["a", "A", "b"], labels=["x", "x ", "y"])
    with collected() as notices:
        assert load_features(tmp_path / "t.npz").labels == ("x", "x ", "y")
    assert [(entry["kind"], entry["count"]) for entry in notices.entries()] == [
        ("near-equal-ids", 1),
        ("outer-blanks", 1),
        ("near-equal-labels", 1),
    ]
