"""The code that a recipe names: what the project allows runs, nothing else is imported."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compatctl.errors import InputError
from compatctl.recipe import FACTORIES, Backbone, InputSpec, Project, Recipe
from compatctl.train.factory import make_backbone

NET = """
import os, pathlib, pickle
from os import system
from pathlib import Path
from subprocess import run
from torch import load, nn
pathlib.Path("imported").touch()
opened = Path
class Net(nn.Module):
    harm = staticmethod(system)
    def __init__(self, file=None):
        super().__init__()
        self.part = nn.Identity()
        if file:
            load(file, weights_only=False)
    def forward(self, x): return x
    @classmethod
    def of(cls): return cls()
    @property
    def touching(self): pathlib.Path("touched").touch()
class Plain:
    pass
def build(): return Net()
def other(): return 3
wrapped = lambda: pathlib.Path("touched").touch()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a Python file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netfile.py").write_text(NET)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"netfile", "inner", "nettwin"}:
            del sys.modules[name]


def backbone(
    factory: str,
    *,
    factories: tuple[str, ...] = FACTORIES,
    method: str = "forward",
    **arguments: Any,
) -> nn.Module:
    """The backbone that a recipe with this factory makes."""
    size = InputSpec(height=8, width=8)
    return make_backbone(
        Backbone(factory=factory, args=arguments, method=method, input=size, factories=factories)
    )


@pytest.mark.parametrize("factory", ["netfile:Net", "netfile:build", "netfile:Net.of"])
def test_a_file_of_the_working_folder_makes_a_network(folder: Path, factory: str) -> None:
    """A class, a function, a class method; the import path is restored afterwards."""
    before = list(sys.path)
    assert isinstance(backbone(factory), nn.Module)
    assert sys.path == before
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_local_files_are_allowed_by_a_dot_or_by_name(folder: Path) -> None:
    """``.`` allows all files of the working folder, a module's name allows that module."""
    (folder / "inner").mkdir()
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "net.py").write_text(NET)
    assert isinstance(backbone("inner.net:Net"), nn.Module)
    assert isinstance(backbone("inner.net:Net", factories=("inner",)), nn.Module)
    (folder / "imported").unlink()
    for allowed in ((), ("timm.models",), ("netfiles",), ("inner.other",)):
        with pytest.raises(InputError, match="makes no network that this project permits"):
            backbone("netfile:Net", factories=allowed)
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    "factory",
    [
        "numpy:load",
        "pickle:load",
        "os:system",
        "builtins:exec",
        "subprocess:run",
        "torch:load",
        "torch.hub:load",
        "torch.serialization:load",
        "torch.utils.cpp_extension:load_inline",
        "onnx:load",
        "safetensors.torch:load_file",
        "transformers:AutoModel.from_pretrained",
        "compatctl.files.npz:read_npz",
        "runpy:run_path",
        "antigravity:x",
        "this:d",
    ],
)
def test_everything_else_is_refused_before_it_is_imported(folder: Path, factory: str) -> None:
    """The module that the recipe names is not imported."""
    sys.modules.pop("this", None)
    with pytest.raises(InputError, match=r"makes no network|no module"):
        backbone(factory, path="netfile.py", file="x")
    assert "this" not in sys.modules
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "factory",
    [
        "netfile:system",
        "netfile:run",
        "netfile:load",
        "netfile:Path",
        "netfile:opened",
        "netfile:wrapped",
        "netfile:pathlib",
        "netfile:nothing",
    ],
)
def test_a_file_that_only_imports_the_name_is_not_run(folder: Path, factory: str) -> None:
    """A local file must define the class or function itself."""
    with pytest.raises(InputError, match="makes no network"):
        backbone(factory)
    assert not (folder / "imported").exists()
    assert not (folder / "touched").exists()


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("netfile:Plain", "makes no network"),
        ("netfile:other", "not a torch module"),
        ("netfile:Net.harm", "makes no network"),
        ("netfile:Net.forward", "makes no network"),
        ("netfile:Net.touching", "makes no network"),
        ("netfile:Net.__init__", "names no callable"),
        ("netfile:Net.of.__func__", "names no callable"),
        ("netfile:os.system", "makes no network"),
        ("netfile:__builtins__", "names no callable"),
        ("../netfile:Net", "names no callable"),
        (".netfile:Net", "names no callable"),
        ("netfile", "names no callable"),
        ("torch.nn:Module.__reduce__", "names no callable"),
        ("torch.nn:init.kaiming_normal_", "makes no network"),
        ("torch.nn.modules.module:torch.load", "makes no network"),
        ("torch.nn.modules.module:register_module_forward_hook", "makes no network"),
        ("torch.nn.functional:relu", "makes no network"),
        ("torch.nn:factory_kwargs", "makes no network"),
    ],
)
def test_no_attribute_reaches_other_code(folder: Path, factory: str, says: str) -> None:
    """Nested modules, bound functions, dunder names, functions that return no network."""
    with pytest.raises(InputError, match=says):
        backbone(factory)


@pytest.mark.parametrize(
    "method", ["harm", "touching", "load_state_dict", "register_forward_hook", "__class__", "apply"]
)
def test_a_method_is_one_that_the_network_adds(folder: Path, method: str) -> None:
    """Methods that every torch module has, and attributes that are no functions, are refused."""
    with pytest.raises(InputError, match=f"has no method {method}"):
        backbone("netfile:Net", method=method)
    assert not (folder / "touched").exists()
    assert isinstance(backbone("netfile:Net", method="part"), nn.Module)


def test_a_factory_can_load_only_tensors(folder: Path) -> None:
    """A pickle does not run, even if the factory calls torch.load with weights_only=False."""

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(folder / "harm"),)

    torch.save({"x": Harm()}, folder / "x.pt")
    (folder / "y.pt").write_bytes(pickle.dumps(Harm()))
    for name in ("x.pt", "y.pt"):
        with pytest.raises(InputError, match="failed"):
            backbone("netfile:Net", file=str(folder / name))
    assert not (folder / "harm").exists()


def test_remote_code_is_refused(folder: Path) -> None:
    """trust_remote_code is refused at any depth of the arguments."""
    for arguments in ({"trust_remote_code": True}, {"a": [{"trust_remote_code": True}]}):
        with pytest.raises(InputError, match="runs code from elsewhere"):
            backbone("netfile:Net", **arguments)
    assert not (folder / "imported").exists()


def test_the_project_lists_what_a_recipe_may_name(folder: Path) -> None:
    """``factories`` is a key of compatctl.yaml and an unknown key in a recipe."""
    (folder / "compatctl.yaml").write_text("format: 1\nfactories: ['timm.models', 'my.nets:Net']\n")
    assert Project.find(folder).factories == ("timm.models", "my.nets:Net")
    text = "format: 1\nbackbone: {{factory: 'a:b', input: {{height: 8, width: 8}}{more}}}\n"
    (folder / "recipe.yaml").write_text(text.format(more=""))
    assert Recipe.load(folder / "recipe.yaml", ("x",)).backbone.factories == ("x",)
    (folder / "recipe.yaml").write_text(text.format(more=", factories: ['numpy']"))
    with pytest.raises(InputError, match="unknown key factories"):
        Recipe.load(folder / "recipe.yaml")
