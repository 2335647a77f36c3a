"""Hash order: the published values, on which splits, memory files and stores depend."""

import hashlib

import pytest

from compatctl.core.hash_order import hash_fraction, hash_key, hash_order


def test_values_are_the_published_ones():
    """Fractions come from sha1 and keys from sha256, as stored data expect."""
    assert hash_fraction("abc") == 0xA9993E364706816A / 2**64
    assert hash_key("abc").hex().startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("text", ["", "é", "人", "\udc80", "a" * 10_000])
def test_any_text_has_a_fraction_and_a_key(text):
    """Texts with lone surrogates, as file names may have, are hashed too."""
    assert 0.0 <= hash_fraction(text) < 1.0
    assert len(hash_key(text)) == 32


def test_order_depends_on_the_ids_alone():
    """The order of the input does not matter."""
    ids = [f"item {i}" for i in range(100)]
    expected = sorted(ids, key=lambda item: hashlib.sha256(item.encode()).hexdigest())
    assert hash_order(ids) == hash_order(reversed(ids)) == expected
