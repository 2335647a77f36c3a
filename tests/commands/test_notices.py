"""What is left out, merged, guessed or changed in data: on stderr, in JSON, and with --strict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shop_kit import run, write_encoder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed encoder."""
    return write_encoder(tmp_path_factory.mktemp("model") / "old.onnx", noise=0.1)


def draw(path: Path, seed: int) -> None:
    """A file of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def items(folder: Path, head: str = "id,path,label,role") -> Path:
    """A table of four items, two of them queries."""
    lines = [head]
    for row in range(4):
        draw(folder / f"{row}.png", row)
        lines.append(f"{row},{row}.png,c{row % 2},{'query' if row < 2 else 'gallery'}")
    path = folder / "items.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_notice_is_on_stderr_and_in_json(old: Path, tmp_path: Path) -> None:
    """The items are as without it, and the count and names are there for people and programs."""
    data = items(tmp_path, "id,path,label,Role")
    made = run("init", "--model", old, "--data", data, "--store", tmp_path / "s", "--json")
    assert (made.code, made.json["rows"]) == (0, 2)
    (entry,) = made.json["notices"]
    assert (entry["kind"], entry["count"]) == ("similar-column", 1)
    assert entry["names"] == ["'Role' as role"]
    assert f"compatctl: warning: {entry['message']}" in made.stderr


def test_good_data_have_no_notices(old: Path, tmp_path: Path) -> None:
    """--strict then changes nothing."""
    data, store = items(tmp_path), tmp_path / "s"
    made = run("init", "--model", old, "--data", data, "--store", store, "--json", "--strict")
    assert (made.code, made.stderr) == (0, "")
    assert "notices" not in made.json


@pytest.mark.parametrize("flag", [True, False])
def test_strict_refuses_before_anything_is_written(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: bool
) -> None:
    """As an option and in the environment; exit 5, and no store."""
    data, store = items(tmp_path, "id,path,label,Role"), tmp_path / "s"
    if not flag:
        monkeypatch.setenv("COMPATCTL_STRICT", "1")
    strict = ["--strict"] if flag else []
    refused = run("init", "--model", old, "--data", data, "--store", store, "--json", *strict)
    assert refused.code == 5
    assert "'Role' as role" in refused.json["error"]["message"]
    assert not store.exists()


@pytest.mark.parametrize("command", ["init", "add", "finetune", "plan", "verify"])
def test_commands_that_read_data_have_the_option(command: str) -> None:
    """It is said in their help."""
    assert "--strict" in run(command, "--help").stdout


def test_new_items_that_are_near_to_stored_ones_are_said(old: Path, tmp_path: Path) -> None:
    """A table in which a spreadsheet dropped the zeros of ids and put blanks behind classes."""
    for name, width, blank in (("first", 3, ""), ("second", 1, " ")):
        lines = ["id,path,label"]
        for row in range(4):
            draw(tmp_path / f"{row}.png", row)
            lines.append(f"{row + 1:0{width}d},{row}.png,c{row % 2}{blank}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    store = tmp_path / "s"
    made = run("init", "--model", old, "--data", tmp_path / "first.csv", "--store", store)
    assert made.code == 0, made.stderr
    options = ("--data", tmp_path / "second.csv", "--store", store, "--json")
    assert run("add", *options, "--strict").code == 5
    added = run("add", *options)
    assert [(entry["kind"], entry["count"]) for entry in added.json["notices"]] == [
        ("outer-blanks", 2),
        ("near-equal-ids", 4),
        ("near-equal-labels", 2),
    ]
    assert "'1' and '001'" in added.stderr
    assert added.json["added"] == 4


def test_items_without_a_direction_are_skipped_as_bad_ones(old: Path, tmp_path: Path) -> None:
    """An image whose vector is zero: refused by name, and with --skip-bad listed, in init and add.

    The rows behind it in its batch stay those of their own items.
    """
    data, store = tmp_path / "d", tmp_path / "s"
    for row in range(5):
        draw(data / "a" / f"{row}.png", row)
    Image.new("RGB", (20, 20), (200, 200, 200)).save(data / "a" / "2.png")
    options = ("--data", data, "--store", store)
    refused = run("init", "--model", old, *options)
    assert refused.code == 5
    assert "a/2.png" in refused.stderr
    assert "--skip-bad" in refused.stderr
    made = run("init", "--model", old, *options, "--skip-bad", "--json")
    assert (made.code, made.json["rows"], made.json["skipped"]) == (0, 4, ["a/2.png"])
    for row in (0, 1, 3, 4):
        found = run("search", "--store", store, data / "a" / f"{row}.png", "-k", 1, "--json")
        hit = found.json["queries"][0]["hits"][0]
        assert (hit["id"], round(hit["score"], 4)) == (f"a/{row}.png", 1.0)
    Image.new("RGB", (9, 9), (200, 200, 200)).save(data / "a" / "5.png")
    assert run("add", *options).code == 5
    added = run("add", *options, "--skip-bad", "--json")
    assert (added.json["added"], added.json["skipped"]) == (0, ["a/2.png", "a/5.png"])


def test_query_images_have_notices_too(old: Path, tmp_path: Path) -> None:
    """Twelve bits in sixteen find the item of eight; --strict refuses them."""
    draw(tmp_path / "d" / "a" / "1.png", 1)
    draw(tmp_path / "d" / "b" / "2.png", 2)
    grey = np.asarray(Image.open(tmp_path / "d" / "a" / "1.png").convert("L"))
    Image.fromarray(grey).save(tmp_path / "d" / "a" / "1.png")
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    store = tmp_path / "s"
    assert run("init", "--model", old, "--data", tmp_path / "d", "--store", store).code == 0
    query = ("search", "--store", store, tmp_path / "deep.png", "-k", 1, "--json")
    found = run(*query)
    assert found.json["queries"][0]["hits"][0]["id"] == "a/1.png"
    assert [entry["kind"] for entry in found.json["notices"]] == ["pixel-depth"]
    assert run(*query, "--strict").code == 5
