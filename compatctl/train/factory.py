"""The backbone's module, made by the code that a recipe names; the recipe is not trusted.

The project lists the code that recipes may name; anything else is refused before it is imported.
Only code that makes networks is called: a class of torch modules, or a function whose return
annotation is one.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from compatctl.errors import InputError
from compatctl.recipe import LOCAL, Backbone, read_bounded
from compatctl.train.sources import ARCHITECTURES, TRANSFORMERS, Source
from compatctl.train.sources import load as load_source

_MODULE = re.compile(r"_?[A-Za-z]\w*(\._?[A-Za-z]\w*)*", re.ASCII)
_CALLABLE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)?", re.ASCII)
_REFUSED_ARGUMENTS = {"trust_remote_code"}
MAX_SOURCE_BYTES = 16 << 20
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_SYNTAX = 'write "module:callable" of an installed package or of a file in this folder'


def make_backbone(recipe: Backbone) -> nn.Module:
    """Call ``factory`` with ``args``, if ``factories`` allows it.

    ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME`` and ``transformers:FOLDER`` make a
    library's architecture; a folder's has its weights.

    Raises:
        InputError: the project does not allow the factory; no such module, callable or
            architecture; the call fails, or returns something else than a torch module with the
            recipe's ``method``.
    """
    prefixes = tuple(f"{library}:" for library in (*ARCHITECTURES, TRANSFORMERS))
    if recipe.factory.startswith(prefixes) and (source := Source.parse(recipe.factory)).library:
        _AllowList(recipe.factories).check_library(source.library, recipe.factory)
        module = load_source(source, recipe.args).module
        _check_method(module, recipe.method)
        return module
    with _working_folder_importable():
        factory = _find_factory(recipe)
        try:
            network = factory(**recipe.args)
        except Exception as error:
            raise InputError(f"backbone.factory {recipe.factory} failed: {error!r}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"backbone.factory gave {type(network).__name__}, not a torch module")
    _check_method(network, recipe.method)
    return network


def _find_factory(recipe: Backbone) -> Any:
    """The callable; its module is imported only if the project allows it."""
    name, _, attribute = recipe.factory.partition(":")
    if not _MODULE.fullmatch(name) or not _CALLABLE.fullmatch(attribute):
        raise InputError(f"backbone.factory {recipe.factory} names no callable", tip=_SYNTAX)
    refused = _REFUSED_ARGUMENTS & set(_keys(recipe.args))
    if refused:
        raise InputError(f"backbone.args: {min(refused)} runs code from elsewhere: refused")
    allowed = _AllowList(recipe.factories)
    allowed.check_name(recipe.factory)
    if is_local(name):
        _check_defined(recipe.factory, name, attribute)
    try:
        owner, _, method = attribute.partition(".")
        factory = getattr(importlib.import_module(name), owner)
        if method:
            factory = _constructor(recipe.factory, factory, method)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"backbone.factory {recipe.factory}: {error}", tip=_SYNTAX) from error
    allowed.check_factory(recipe.factory, factory)
    return factory


class _AllowList:
    """The project's ``factories``: modules with their submodules, callables, and ``LOCAL``."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        self._entries = entries

    def check_name(self, factory: str) -> None:
        """Raise ``InputError`` unless the factory or its module is allowed; imports nothing."""
        name = factory.split(":", maxsplit=1)[0]
        if factory in self._entries or self._holds(name):
            return
        if importlib.util.find_spec(name.split(".", maxsplit=1)[0]) is None:
            raise InputError(
                f"backbone.factory {factory}: there is no module {name}",
                tip="install its package, or put the file into this folder",
            )
        raise self._refusal(factory)

    def check_library(self, library: str, factory: str) -> None:
        """Raise ``InputError`` unless an entry is of that library."""
        if library not in {re.split(r"[.:]", entry)[0] for entry in self._entries}:
            raise self._refusal(factory)

    def _refusal(self, factory: str) -> InputError:
        return InputError(
            f"backbone.factory {factory} makes no network that this project permits: a recipe may "
            f"name {', '.join(self._entries) or 'nothing'}",
            tip=f"if you trust it, add {factory!r} to factories in compatctl.yaml; {LOCAL!r} "
            "allows the files of the working folder",
        )

    def _holds(self, module: str) -> bool:
        """Whether the module or a parent is listed, or it is local and ``LOCAL`` is listed."""
        parts = module.split(".")
        listed = {".".join(parts[: i + 1]) for i in range(len(parts))} & set(self._entries)
        return bool(listed) or (LOCAL in self._entries and is_local(module))

    def check_factory(self, factory: str, value: Any) -> None:
        """Raise ``InputError`` unless an allowed module defines the value, to make networks.

        It is a class of networks or a function; a package's function needs the annotation.
        """
        function = getattr(value, "__func__", value)
        home = str(getattr(function, "__module__", None) or "")
        callable_kind = _is_network(value) or inspect.isfunction(function)
        if callable_kind and factory in self._entries:
            return
        if not callable_kind or not self._holds(home):
            raise InputError(
                f"backbone.factory {factory} makes no network",
                tip="name a class or function, defined in that module, that returns a torch module",
            )
        constructor = inspect.ismethod(value)
        if not (_is_network(value) or constructor or is_local(home) or _returns_network(function)):
            raise InputError(
                f"backbone.factory {factory} makes no network: its return annotation is not one",
                tip=f"if you trust it, add {factory!r} to factories in compatctl.yaml",
            )


def is_local(module: str) -> bool:
    """Whether the module is a file in the working folder, not part of an installed package."""
    top, folder = module.split(".", maxsplit=1)[0], Path.cwd().resolve()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or top in sys.stdlib_module_names:
        return False
    if spec.submodule_search_locations is not None:  # a package
        parents = {Path(path).resolve().parent for path in spec.submodule_search_locations}
        return parents == {folder}
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return file is not None and file.suffix == ".py" and file.resolve().parent == folder


def _check_defined(factory: str, module: str, attribute: str) -> None:
    """Raise ``InputError`` unless a local file defines the class or function: importing runs it."""
    path = Path.cwd().joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        tree = ast.parse(read_bounded(file, MAX_SOURCE_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"backbone.factory {factory}: {file} is not Python: {error}") from error
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    if attribute.split(".", maxsplit=1)[0] not in names:
        raise InputError(
            f"backbone.factory {factory} makes no network: {file.name} defines no class or "
            f"function of that name",
            tip="name a class or function that is defined in that file",
        )


def _constructor(factory: str, owner: Any, name: str) -> Any:
    """A class method or static method of a class of networks."""
    static = inspect.getattr_static(owner, name, None)
    if not _is_network(owner) or not isinstance(static, classmethod | staticmethod):
        raise InputError(
            f"backbone.factory {factory} makes no network",
            tip="name a class, a function, or a class method of a class of torch modules",
        )
    return getattr(owner, name)


def _is_network(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _returns_network(function: Any) -> bool:
    try:
        return _is_network(typing.get_type_hints(function).get("return"))
    except Exception:  # noqa: BLE001  evaluating annotations runs the package's code
        return False


def _check_method(network: nn.Module, name: str) -> None:
    """The method must be one that the network adds to ``nn.Module``, or a submodule."""
    own = name == "forward" or not hasattr(nn.Module, name)
    static = inspect.getattr_static(type(network), name, None)
    part = network._modules.get(name)
    if name.startswith("_") or not own or not (inspect.isfunction(static) or part is not None):
        raise InputError(f"backbone: {type(network).__name__} has no method {name}")


def _keys(value: Any) -> Iterator[str]:
    """Every key of nested mappings."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _keys(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _keys(entry)


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Put the working folder at the END of the import path, where it shadows no package, and limit
    every ``torch.load`` to tensors."""
    folder, before = str(Path.cwd()), os.environ.get(_ONLY_WEIGHTS)
    sys.path.append(folder)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        yield
    finally:
        sys.path.remove(folder)
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before
