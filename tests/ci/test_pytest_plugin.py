"""The gate as an assertion in somebody's own tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shop_kit import Shop

from compatctl.errors import InputError, UsageError
from compatctl.testing import NotCompatibleError, assert_compatible

PLUGIN = ("-p", "no:compatctl", "-p", "compatctl.pytest_plugin", "-p", "no:cacheprovider")
"""Loaded by its module, so that it need not be installed."""


def run_tests(folder: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run one test file in a process of its own."""
    (folder / "test_model.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    command = [sys.executable, "-m", "pytest", *PLUGIN, *flags, "test_model.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_test_is_as_red_as_the_gate(shop: Shop) -> None:
    """One that asserts compatibility passes for a better model, and fails for a worse one and where
    the gate cannot tell, with the verdict and what to do next; no file is written."""
    before = {path.name for path in shop.folder.rglob("*")}
    done = run_tests(
        shop.folder,
        "import pytest\n"
        "@pytest.mark.parametrize('new', ['new.onnx', 'worse.onnx', 'old.onnx'])\n"
        "def test_swap(assert_compatible, new):\n"
        "    assert assert_compatible(None, new).verdict.outcome == 'pass'\n",
        "-rA",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "2 failed" in done.stdout
    assert "compatctl verify: fail. The new model must not be deployed" in done.stdout
    assert "compatctl verify: inconclusive." in done.stdout
    assert "next: " in done.stdout
    written = {path.name for path in shop.folder.rglob("*")} - before
    assert {name for name in written if not name.endswith(".pyc")} <= {
        "test_model.py",
        "pytest.ini",
        "__pycache__",
    }


def test_the_project_can_be_configured(shop: Shop, tmp_path: Path) -> None:
    """``compatctl_project`` of the configuration names a project elsewhere."""
    done = run_tests(
        tmp_path,
        "from pathlib import Path\n"
        f"HERE = Path({str(shop.folder)!r})\n"
        "def test_swap(assert_compatible):\n"
        "    assert_compatible(HERE / 'old.onnx', HERE / 'new.onnx', slices=('vendor',))\n",
        "-o",
        f"compatctl_project={shop.path('compatctl.yaml')}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_assertion_carries_its_report(shop: Shop) -> None:
    """Outside of pytest it is a function whose error is an AssertionError with the report."""
    report = assert_compatible(shop.path("old.onnx"), shop.path("new.onnx"), project=shop.folder)
    assert report.verdict.outcome == "pass"
    with pytest.raises(NotCompatibleError) as caught:
        assert_compatible(None, shop.path("worse.onnx"), project=shop.path("compatctl.yaml"))
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.verdict.outcome == "fail"


def test_bad_arguments_are_no_failed_assertion(shop: Shop) -> None:
    """An option that there is not, and a model that is missing, are errors of their own."""
    with pytest.raises(UsageError, match="slice_"):
        assert_compatible(None, shop.path("new.onnx"), project=shop.folder, slice_=("vendor",))
    with pytest.raises(InputError, match="none"):
        assert_compatible(None, shop.path("none.onnx"), project=shop.folder)


def test_the_plugin_costs_nothing_until_it_is_used() -> None:
    """Every run of pytest loads it: it loads neither numpy nor ONNX."""
    code = (
        "import sys, compatctl.pytest_plugin\n"
        "assert not {'numpy', 'onnx', 'onnxruntime', 'typer'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
