"""Models by name: current, previous, candidate, and what the store calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shop_kit import Shop, run

from compatctl.data import load
from compatctl.recipe import Project


def test_a_store_calls_its_model_as_it_was_told(shop: Shop, tmp_path: Path) -> None:
    """init --name is what status and history show, beside 12 characters of the digest."""
    store = tmp_path / "named"
    done = shop.run(
        "init", "--model", shop.path("old.onnx"), "--name", "lite0 2026", "--store", store
    )
    assert done.code == 0, done.stderr
    shown = run("status", "--store", store).stdout
    digest = done.json["query_model"]
    assert f"lite0 2026 ({digest[:12]})" in shown
    assert digest not in shown
    history = run("history", "--store", store, "--json").json["generations"]
    assert [entry["query_model_name"] for entry in history] == ["lite0 2026"]


@pytest.mark.parametrize("name", ["", " a", "a/b", "a\nb", "x" * 101])
def test_what_is_no_name_is_refused(shop: Shop, tmp_path: Path, name: str) -> None:
    """Empty, with blanks at an end, slashes or control characters, or too long: exit code 2."""
    store = tmp_path / "s"
    done = shop.run("init", "--model", shop.path("old.onnx"), "--name", name, "--store", store)
    assert done.code == 2
    assert "--name" in done.stderr
    assert not store.exists()


def test_verify_takes_names_for_models(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """current, the stored name and a part of the digest are the query model; candidate is the
    project's output."""
    monkeypatch.chdir(shop.folder)
    digest = shop.manifest()["query_model"]
    assert shop.run("verify", "old.onnx", "new.onnx").code == 0
    expected = json.loads(shop.path("report.json").read_text())
    shop.path("old.onnx").unlink()
    for old in ("current", "old.onnx", digest[:12], digest):
        done = shop.run("verify", old, "candidate")
        assert done.code == 0, done.stderr
        report = json.loads(shop.path("report.json").read_text())
        for entry in ("old", "new"):
            assert report[entry]["sha256"] == expected[entry]["sha256"]


def test_previous_is_the_model_before(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a deploy the old model is previous, by which it can be deployed again."""
    monkeypatch.chdir(shop.folder)
    first = shop.manifest()["query_model"]
    done = shop.run("deploy", "--model", "previous", "--force", "--reason", "drill")
    assert done.code == 5
    assert "no other query model" in done.stderr
    force = ("--force", "--reason", "drill")
    assert shop.run("deploy", "--model", "candidate", *force).code == 0
    second = shop.manifest()["query_model"]
    assert second != first
    assert shop.run("deploy", "--model", "previous", *force).code == 0
    assert shop.manifest()["query_model"] == first
    assert shop.run("search", "--model", "current", _image(shop)).code == 0
    done = shop.run("search", "--model", "previous", _image(shop))
    assert done.code != 0


def _image(shop: Shop) -> Path:
    """A picture of the project's data."""
    data = load(Project.load(shop.path("compatctl.yaml")).data)
    return Path(str(data.sources[0]))


def test_a_file_of_that_name_comes_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is called like an alias is that file."""
    monkeypatch.chdir(shop.folder)
    shop.path("worse.onnx").rename(shop.path("current"))
    assert shop.run("verify", "current").code == 3


def test_two_models_of_one_name_are_told_apart(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that two models of the store have is refused with their digests; a digest is not."""
    monkeypatch.chdir(shop.folder)
    first = shop.manifest()["query_model"]
    shop.path("elsewhere").mkdir()
    shop.path("new.onnx").rename(shop.path("elsewhere") / "old.onnx")
    force = ("--force", "--reason", "drill")
    assert shop.run("deploy", "--model", "elsewhere/old.onnx", *force).code == 0
    shop.path("old.onnx").unlink()
    done = shop.run("verify", "current", "old.onnx")
    assert done.code == 2
    assert first[:12] in done.stderr
    assert shop.manifest()["query_model"][:12] in done.stderr
    assert "no such" not in done.stderr
    assert shop.run("search", "--model", first[:8], _image(shop)).code != 2


def test_a_name_of_nothing_is_a_missing_file(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor a model of the store: exit code 5, with the name."""
    monkeypatch.chdir(shop.folder)
    done = shop.run("verify", "nobody.onnx")
    assert done.code == 5
    assert "nobody.onnx" in done.stderr
    shop.path("new.onnx").unlink()
    done = shop.run("verify", "candidate")
    assert done.code == 5
    assert "no candidate" in done.stderr


def test_init_says_which_project_file_it_wrote(shop: Shop, tmp_path: Path) -> None:
    """Path and content of a first compatctl.yaml are shown; where there is one, it stays."""
    data = Project.load(shop.path("compatctl.yaml")).data
    place = tmp_path / "fresh"
    place.mkdir()
    command = [sys.executable, "-m", "compatctl", "init", "--model", shop.path("old.onnx")]
    command += ["--data", str(data)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    written = (place / "compatctl.yaml").read_text()
    assert "wrote compatctl.yaml" in done.stdout
    assert all(f"    {line}" in done.stdout for line in written.splitlines())
    again = subprocess.run([*command, "--json"], cwd=place, capture_output=True, check=True)
    assert json.loads(again.stdout)["project_file"] is None
    assert (place / "compatctl.yaml").read_text() == written
