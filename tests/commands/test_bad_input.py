"""Bad input: a clear message, its exit code, and nothing half-written."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from shop_kit import DIM, Shop, run, write_encoder

from compatctl.data import from_texts, load
from compatctl.errors import InputError


def _init(tmp_path: Path, model: Path, data: Path, *more: object) -> tuple[int, str]:
    result = run("init", "--model", model, "--data", data, "--store", tmp_path / "store", *more)
    return result.code, result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small encoder."""
    return write_encoder(tmp_path / "old.onnx", noise=0.3)


@pytest.fixture
def folder(tmp_path: Path, emoji: Path) -> Path:
    """A folder of three classes with two images each."""
    for position, path in enumerate(sorted((emoji / "images" / "noto").iterdir())[:6]):
        target = tmp_path / "images" / f"class{position // 2}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"{position}.png")
    return tmp_path / "images"


def test_missing_files_are_named(tmp_path: Path, model: Path, folder: Path) -> None:
    """No model, no data, no project, no store: exit 5 and the path in the message."""
    for arguments in (
        ("init", "--model", tmp_path / "none.onnx", "--data", folder),
        ("init", "--model", model, "--data", tmp_path / "none"),
        ("status", "--store", tmp_path / "none"),
        ("status", "--project", tmp_path / "none.yaml"),
    ):
        result = run(*arguments, *(() if "status" in arguments else ("--store", tmp_path / "s")))
        assert (result.code, "none" in result.stderr) == (5, True), result.stderr
    assert not (tmp_path / "s").exists()


def test_a_text_is_no_query_of_a_store_of_images(tmp_path: Path, model: Path, folder: Path) -> None:
    """The message says which file is missing, and what the store's queries are."""
    assert _init(tmp_path, model, folder)[0] == 0
    result = run("search", "a red bicycle", "--store", tmp_path / "store")
    assert result.code == 5
    assert "a red bicycle: there is no such file, and the store's query model takes images" in (
        result.stderr
    )


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, folder: Path) -> None:
    """A text file under the name of a model is refused."""
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    code, stderr = _init(tmp_path, path, folder)
    assert (code, "ONNX" in stderr) == (5, True)


def test_external_data_is_refused(tmp_path: Path, model: Path, folder: Path) -> None:
    """Weights in another file are not covered by the digest: exit 5 at admission."""
    path = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(model), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    code, stderr = _init(tmp_path, path, folder)
    assert (code, not (tmp_path / "store").exists()) == (5, True), stderr


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_nan_and_zero_embeddings_are_refused(
    tmp_path: Path, model: Path, folder: Path, value: float
) -> None:
    """A model whose weights give NaN or zero rows never fills a store."""
    spoilt = onnx.load(model)
    for tensor in spoilt.graph.initializer:
        if tensor.name in {"project", "noise"}:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))
    path = tmp_path / "spoilt.onnx"
    onnx.save(spoilt, path)
    code, _ = _init(tmp_path, path, folder)
    assert code == 5
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_an_image_that_does_not_decode_is_refused_or_skipped(
    tmp_path: Path, model: Path, folder: Path
) -> None:
    """It is named; with --skip-bad it is left out and counted."""
    (folder / "class1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    code, stderr = _init(tmp_path, model, folder)
    assert (code, "broken.png" in stderr) == (5, True)
    result = run(
        "init",
        "--model",
        model,
        "--data",
        folder,
        "--store",
        tmp_path / "s",
        "--skip-bad",
        "--json",
    )
    assert (result.code, result.json["skipped"], result.json["rows"]) == (
        0,
        ["class1/broken.png"],
        6,
    )


def test_malformed_tables_are_refused(tmp_path: Path, model: Path, folder: Path) -> None:
    """A duplicate id, an unknown split and role, an empty label, a table without lines: exit 5."""
    image = next(folder.rglob("*.png"))
    for position, (text, word) in enumerate(
        [
            (f"id,path,label\na,{image},x\na,{image},y\n", "'a'"),
            (f"id,path,label,split\na,{image},x,later\n", "later"),
            (f"id,path,label,role\na,{image},x,judge\n", "judge"),
            (f"id,path,label\na,{image},\n", "label"),
            ("id,path,label\n", ""),
        ]
    ):
        table = tmp_path / f"{position}.csv"
        table.write_text(text)
        code, stderr = _init(tmp_path, model, table)
        assert (code, word in stderr) == (5, True), stderr


def test_an_empty_folder_and_an_existing_store_are_refused(
    tmp_path: Path, model: Path, folder: Path
) -> None:
    """No image at all is an error; a second init finds its work done, another one is an error."""
    (tmp_path / "empty").mkdir()
    assert _init(tmp_path, model, tmp_path / "empty")[0] == 5
    assert _init(tmp_path, model, folder)[0] == 0
    assert _init(tmp_path, model, folder)[0] == 0
    next(folder.rglob("*.png")).unlink()
    code, stderr = _init(tmp_path, model, folder)
    assert (code, "already a store" in stderr) == (5, True)


def test_one_image_per_class_is_inconclusive(tmp_path: Path, emoji: Path) -> None:
    """Leave-one-out with nothing to find ends in exit 4."""
    old = write_encoder(tmp_path / "old.onnx", noise=0.3)
    new = write_encoder(tmp_path / "new.onnx", noise=0.1)
    rows = load(emoji / "items.csv").filter(split="test", role="gallery").items
    lines = [f"{item.id},{emoji}/images/{item.id}.png,{item.label},test" for item in rows]
    table = tmp_path / "single.csv"
    table.write_text("id,path,label,split\n" + "\n".join(lines) + "\n")
    flags = ("--data", table, "--data-root", emoji)
    result = run("verify", old, new, *flags, "--report", tmp_path / "r.json")
    assert result.code == 4, result.stderr


def test_models_of_different_dimension_are_refused(tmp_path: Path, shop: Shop) -> None:
    """verify refuses a candidate that does not end in the gallery's dimension."""
    wide = onnx.load(shop.path("new.onnx"))
    for tensor in wide.graph.initializer:
        if tensor.name in {"project", "spoil"}:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.hstack([array, array]), tensor.name))
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2 * DIM
    for entry in wide.metadata_props:
        entry.value = entry.value.replace(f'"dim": {DIM}', f'"dim": {2 * DIM}').replace(
            f'"dim":{DIM}', f'"dim":{2 * DIM}'
        )
    path = tmp_path / "wide.onnx"
    onnx.save(wide, path)
    result = shop.run("verify", shop.path("old.onnx"), path)
    assert (result.code, str(2 * DIM) in result.stderr) == (5, True), result.stderr


def test_malformed_yaml_is_refused(tmp_path: Path, shop: Shop) -> None:
    """An unknown key or a wrong type in compatctl.yaml or a policy ends in exit 5."""
    project = shop.path("compatctl.yaml")
    good = project.read_text()
    for line in ("stoer: x\n", "report: 3\n"):
        project.write_text(good + line)
        result = shop.run("status")
        assert (result.code, line.split(":")[0] in result.stderr) == (5, True), result.stderr
    project.write_text(good)
    policy = tmp_path / "policy.yaml"
    policy.write_text("format: 1\nname: x\nmin_querys: 3\n")
    result = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--policy", policy)
    assert (result.code, "min_querys" in result.stderr) == (5, True), result.stderr


def test_a_locked_store_is_exit_6(shop: Shop) -> None:
    """While another process holds the lock a writer gives up with advice and changes nothing."""
    before = shop.manifest()
    shop.run(
        "verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", shop.path("r.json")
    )
    lock = os.open(shop.path("store/LOCK"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = shop.run(
            "deploy", "--report", shop.path("r.json"), "--model", shop.path("new.onnx")
        )
    finally:
        os.close(lock)
    assert result.code == 6
    assert shop.manifest() == before


def test_a_damaged_index_is_exit_5_without_a_crash(shop: Shop, emoji: Path) -> None:
    """A flipped bit, a truncated file and another store's index are found before use."""
    info = shop.manifest()["index"]
    index = shop.path(f"store/indexes/{info['sha256']}.hnsw")
    good = index.read_bytes()
    image = next((emoji / "images" / "noto").iterdir())
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    for bad in (bytes(flipped), good[: len(good) // 2], b""):
        index.write_bytes(bad)
        assert shop.run("search", image).code == 5
        assert shop.run("check").code == 5
    index.write_bytes(good)
    assert shop.run("check").code == 0


def test_a_checkpoint_cannot_run_code(shop: Shop, tmp_path: Path) -> None:
    """A pickle with a payload is refused with exit 5, and the payload did not run."""
    marker = tmp_path / "ran"
    base = tmp_path / "evil.ckpt"
    base.write_bytes(pickle.dumps(_Payload(marker)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "format: 1\nbackbone:\n  factory: torch.nn:Flatten\n  input: {height: 16, width: 16}\n"
        "objective: {frame: prototypes, lambda: 1.0, scale: 16.0}\n"
    )
    result = shop.run("finetune", "--base", base, "--recipe", recipe)
    assert result.code == 5, result.stderr
    assert not marker.exists()


class _Payload:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def test_usage_errors_are_exit_2_and_help_is_0() -> None:
    """An unknown option ends in 2 in a real process, help in 0, both without a traceback."""
    for arguments, code in ((["verify", "--nope"], 2), (["--help"], 0), (["--version"], 0)):
        result = subprocess.run(
            [sys.executable, "-m", "compatctl", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("check", "--dry-run"), "--dry-run"),
        (("finetune", "--base", "x.pt", "--dry-run", "--resume"), "--resume"),
        (("finetune", "--base", "x.pt", "--dry-run", "--skip-bad"), "--skip-bad"),
        (("verify", "old.npz", "new.npz", "--store", "store"), "--store"),
        (("verify", "old.npz", "new.npz", "--data", "items.csv"), "--data"),
        (("verify", "old.npz", "new.npz", "--data-root", "images"), "--data-root"),
        (("verify", "old.npz", "new.npz", "--skip-bad"), "--skip-bad"),
        (("verify", "old.npz", "new.npz", "--allow-seen"), "--allow-seen"),
    ],
)
def test_options_without_effect_are_refused(
    shop: Shop, arguments: tuple[str, ...], flag: str
) -> None:
    """An option that could do nothing is a usage error that names it."""
    for name in ("old.npz", "new.npz"):
        np.savez(shop.path(name), ids=["a"], labels=["x"], features=np.eye(1, dtype=np.float32))
    outcome = shop.run(*(shop.path(a) if a.endswith(".npz") else a for a in arguments))
    assert outcome.code == 2
    assert flag in outcome.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_bytes_that_are_no_utf8_in_a_query_or_a_path_are_refused(
    tmp_path: Path, model: Path, folder: Path
) -> None:
    """As a terminal of another encoding passes them: a message, and nothing is written."""
    store = tmp_path / os.fsdecode(b"st\xf6re")
    result = run("init", "--model", model, "--data", folder, "--store", store)
    assert (result.code, "is no UTF-8" in result.stderr, store.exists()) == (5, True, False)
    with pytest.raises(InputError, match="a query is no text in UTF-8"):
        from_texts(["red car", os.fsdecode(b"caf\xe9")])


def test_init_with_a_project_that_is_not_there_is_told_to_leave_it_out(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tip does not name the very command that was refused, and what it says works."""
    monkeypatch.chdir(tmp_path)
    words = ("init", "--model", model, "--data", folder)
    refused = run(*words, "--project", "none.yaml")
    assert refused.code == 5
    assert "next: look at the path; without --project and COMPATCTL_PROJECT" in refused.stderr
    assert run(*words).code == 0
    assert (tmp_path / "compatctl.yaml").is_file()
