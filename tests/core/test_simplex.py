"""The fixed simplex, its rotation onto a gallery, and the registry of vertices."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core.simplex import (
    Registry,
    cosine_spread,
    frame_digest,
    frame_in,
    rotate_onto,
    simplex,
)
from compatctl.errors import InputError


def simplex_by_loop(K):
    """The published construction, one number at a time."""
    d = K - 1
    alpha = (1 - (d + 1) ** 0.5) / d
    rows = [[1.0 if i == j else 0.0 for j in range(d)] for i in range(d)] + [[alpha] * d]
    mean = [sum(row[j] for row in rows) / K for j in range(d)]
    centred = [[row[j] - mean[j] for j in range(d)] for row in rows]
    lengths = [sum(x * x for x in row) ** 0.5 for row in centred]
    return [[x / n for x in row] for row, n in zip(centred, lengths, strict=True)]


@given(K=st.integers(2, 60))
@settings(max_examples=25, deadline=None)
def test_rows_are_the_published_construction(K):
    """Rows, in order, are those of the construction written out."""
    rows = simplex(K)
    assert rows.shape == (K, K - 1)
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, simplex_by_loop(K), atol=1e-14)


@pytest.mark.parametrize("K", [2, 3, 10, 1024])
def test_rows_are_unit_with_equal_cosines(K):
    """Unit rows, every pairwise cosine -1/(K-1), and a sum of zero."""
    rows = simplex(K)
    expected = np.full((K, K), -1.0 / (K - 1))
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-13)
    np.testing.assert_allclose(rows.sum(axis=0), 0.0, atol=1e-12)


def test_frame_in_more_dimensions_is_padded_with_zeros():
    """The first K - 1 columns are the simplex, the rest are zero."""
    frame = frame_in(5, 9)
    assert np.array_equal(frame[:, :4], simplex(5))
    assert not frame[:, 4:].any()
    assert np.array_equal(frame_in(5, 4), simplex(5))
    with pytest.raises(InputError, match="does not fit in 3"):
        frame_in(5, 3)


@pytest.mark.parametrize("K", [1, 0, -3, True, 4.0, "4", 16_385])
def test_vertices_out_of_range_are_refused(K):
    """A simplex has 2 to 16,384 vertices, given as a whole number."""
    with pytest.raises(InputError, match="2 to 16384 vertices"):
        simplex(K)


def random_rotation(rng, D):
    """An orthogonal (D, D) matrix."""
    return np.linalg.qr(rng.normal(size=(D, D)))[0]


@pytest.mark.parametrize(("K", "D"), [(6, 5), (6, 8)])
def test_rotation_finds_a_hidden_one(K, D):
    """Means that are a rotated, scaled frame in any order are met exactly, in D >= K - 1."""
    rng = np.random.default_rng(K + D)
    hidden = frame_in(K, D) @ random_rotation(rng, D)
    index = rng.permutation(K)
    means = hidden[index] * rng.uniform(0.5, 3.0, size=(K, 1))
    rotated = rotate_onto(simplex(K), means, index)
    assert rotated.shape == (K, D)
    np.testing.assert_allclose(rotated, hidden, atol=1e-12)


def test_rotation_keeps_the_frame_rigid_with_few_means():
    """With fewer means than dimensions all cosines of the frame stay -1/(K-1)."""
    rng = np.random.default_rng(2)
    rotated = rotate_onto(frame_in(7, 10), rng.normal(size=(2, 10)), np.array([6, 1]))
    expected = np.full((7, 7), -1 / 6)
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(rotated @ rotated.T, expected, atol=1e-12)


def test_no_other_rotation_comes_nearer():
    """None of 2,000 random rotations, nor small turns of the found one, has higher cosines."""
    rng = np.random.default_rng(4)
    K, D, index = 5, 4, np.array([0, 3, 4, 1])
    means = rng.normal(size=(4, D))
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    result = rotate_onto(simplex(K), means, index)
    best = (result[index] * unit).sum()
    rivals = [simplex(K) @ random_rotation(rng, D) for _ in range(2000)]
    for _ in range(200):
        turn = np.linalg.qr(np.eye(D) + 0.01 * rng.normal(size=(D, D)))
        rivals.append(result @ (turn[0] * np.sign(np.diag(turn[1]))))
    assert best > max((rival[index] * unit).sum() for rival in rivals)
    assert best > (simplex(K)[index] * unit).sum() + 0.5


GOOD = np.eye(4)[:2] + 0.1


@pytest.mark.parametrize(
    ("frame", "means", "index", "message"),
    [
        (simplex(5), GOOD, np.array([0]), "cannot rotate"),
        (simplex(5), GOOD[:0], np.array([], dtype=np.int64), "cannot rotate"),
        (simplex(5)[0], GOOD, np.array([0, 1]), "cannot rotate"),
        (simplex(5), GOOD, np.array([0, 5]), "no row 5"),
        (simplex(5), GOOD, np.array([-1, 0]), "no row -1"),
        (simplex(5), GOOD, np.array([1, 1]), "its own frame row"),
        (simplex(5), GOOD, np.array([0.0, 1.0]), "its own frame row"),
        (simplex(6), GOOD, np.array([0, 1]), "does not fit in 4"),
        (simplex(5), GOOD * [[0], [1]], np.array([0, 1]), "not zero"),
        (simplex(5), GOOD * [[np.nan], [1]], np.array([0, 1]), "finite"),
        (simplex(5) * np.inf, GOOD, np.array([0, 1]), "finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rotation_refuses(frame, means, index, message):
    """Shapes that do not fit, rows that are not there and means without a direction are refused."""
    with pytest.raises(InputError, match=message):
        rotate_onto(frame, means, index)


def test_frame_digest_pins_size_order_and_rotation():
    """Another K, order, padding or rotation is another digest; the same rows are the same one."""
    frame = frame_in(5, 6)
    turned = frame @ random_rotation(np.random.default_rng(0), 6)
    kinds = [frame, frame_in(6, 6), frame_in(5, 7), frame[::-1], turned]
    assert len({frame_digest(rows) for rows in kinds}) == len(kinds)
    assert frame_digest(frame.copy(order="F")) == frame_digest(frame)
    assert frame_digest(frame.astype(np.float32)) == frame_digest(frame)
    written = b"(5, 6)" + frame.astype("<f4").tobytes()
    assert frame_digest(frame) == hashlib.sha256(written).hexdigest()
    with pytest.raises(InputError, match="finite"):
        frame_digest(frame * np.nan)


def test_registry_appends_and_never_moves_a_class():
    """New classes take the next free vertices in the order given; old ones keep theirs."""
    first = Registry(()).extend(["cat", "ant"], 5)
    second = first.extend(["bee"], 5)
    assert first.vertices == ("cat", "ant")
    assert second.vertex_of == {"cat": 0, "ant": 1, "bee": 2}
    assert second.K == 5
    assert second.extend([], 5) == second


@given(
    parts=st.lists(st.lists(st.text(min_size=1, max_size=4), max_size=4), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_registry_survives_json_and_growth(parts):
    """However it grew, every class keeps its first vertex, and JSON gives the same registry."""
    registry, seen = Registry((), 40), []
    for part in parts:
        new = [label for label in dict.fromkeys(part) if label not in seen]
        if any("\ud800" <= char <= "\udfff" for label in new for char in label):
            continue  # not writable as UTF-8: refused, as another test shows
        registry = registry.extend(new, 40)
        seen += new
        assert [registry.vertex_of[label] for label in seen] == list(range(len(seen)))
    assert Registry.from_json(registry.to_json()) == registry


def test_registry_without_classes_survives_json():
    """A registry that has no K yet still has none after a round trip, and can be given one."""
    back = Registry.from_json(Registry(()).to_json())
    assert back == Registry(())
    assert back.extend(["a"], 3).K == 3


def test_registry_digest_pins_order_and_size():
    """The same classes in another order, or in another simplex, are another registry."""
    kinds = [
        Registry(("a", "b"), 4),
        Registry(("b", "a"), 4),
        Registry(("a", "b"), 5),
        Registry(("a", "b", "c"), 4),
        Registry(("ab",), 4),
    ]
    assert len({kind.digest for kind in kinds}) == len(kinds)
    assert Registry(("a", "b"), 4).digest == kinds[0].digest
    assert kinds[0].digest == hashlib.sha256(kinds[0].to_json().encode()).hexdigest()


def test_running_out_of_vertices_gives_a_tip():
    """One class more than K is an error that names both numbers and a way on."""
    full = Registry(("a", "b", "c"), 3)
    with pytest.raises(InputError, match="4 classes do not fit on 3 vertices") as caught:
        full.extend(["d"], 3)
    assert "prototypes" in caught.value.tip


@pytest.mark.parametrize(
    ("labels", "K", "message"),
    [
        (["a"], 5, "'a' is listed twice"),
        (["x", "x"], 5, "'x' is listed twice"),
        (["x"], 6, "of a simplex of 5 vertices, not 6"),
        ([""], 5, "not empty"),
        ([3], 5, "got 3"),
        (["\udcff"], 5, "UTF-8"),
        ("xy", 5, "sequence of classes"),
    ],
)
def test_extension_refuses(labels, K, message):
    """Existing, repeated or non-text classes, and another K, are refused."""
    with pytest.raises(InputError, match=message):
        Registry(("a", "b"), 5).extend(labels, K)


@pytest.mark.parametrize(
    "change",
    [
        {"vertices": ["a", "a"]},
        {"vertices": "ab"},
        {"vertices": ["a", 1]},
        {"vertices": ["a", "b", "c", "d"]},
        {"K": True},
        {"K": 3.0},
        {"K": 1},
        {"construction": "another"},
        {"rotation": "unknown key"},
    ],
)
def test_a_changed_registry_file_is_refused(change):
    """Each field is checked, and an unknown one is not overlooked."""
    good = json.loads(Registry(("a", "b"), 3).to_json())
    assert Registry.from_json(json.dumps(good)) == Registry(("a", "b"), 3)
    with pytest.raises(InputError):
        Registry.from_json(json.dumps({**good, **change}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"K": 3}', "[" * 100_000])
def test_text_that_is_not_a_registry_is_refused(text):
    """Text that is not the JSON of a registry is bad input, not a crash."""
    with pytest.raises(InputError, match="registry"):
        Registry.from_json(text)


def test_angles_tell_a_simplex_from_other_class_means() -> None:
    """The spread of cosines is 0 for a rotated, scaled simplex and 1/sqrt(D) for random rows."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((7, 5))
    cosines = [
        float(rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert cosine_spread(rows) == pytest.approx((np.mean(cosines), np.std(cosines)))
    turn = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    mean, spread = cosine_spread(frame_in(20, 30) @ turn * rng.uniform(0.5, 2.0, (20, 1)))
    assert mean == pytest.approx(-1 / 19)
    assert spread < 1e-9
    _, apart = cosine_spread(rng.standard_normal((300, 64)))
    assert apart == pytest.approx(64**-0.5, rel=0.05)
    for wrong in (rows[:1], np.zeros((3, 4)), np.full((3, 4), np.nan)):
        with pytest.raises(InputError, match="two or more rows"):
            cosine_spread(wrong)
