"""The backbone's module: a recipe names the code that makes it, and a recipe may be a stranger's.

So the project, and not the recipe, says which code a recipe may name. Everything else is refused
before it is imported. What may be named makes networks, and nothing else: a class of networks, or a
function that says that it returns one.
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

_MODULE = re.compile(r"_?[A-Za-z]\w*(\._?[A-Za-z]\w*)*", re.ASCII)
_CALLABLE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)?", re.ASCII)
_REFUSED_ARGUMENTS = {"trust_remote_code"}
MAX_SOURCE_BYTES = 16 << 20
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def make_backbone(recipe: Backbone) -> nn.Module:
    """The module that ``factory`` gives for ``args``, where ``factories`` permits it.

    Raises:
        InputError: the project does not permit the factory; no such module or callable; the call
            fails; what it gives is no torch module with the recipe's ``method``.
    """
    with _working_folder():
        factory = _factory(recipe)
        try:
            made = factory(**recipe.args)
        except Exception as error:
            raise InputError(f"backbone.factory {recipe.factory} failed: {error!r}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"backbone.factory gave {type(made).__name__}, not a torch module")
    _check_method(made, recipe.method)
    return made


def _factory(recipe: Backbone) -> Any:
    """The callable, imported only where the project permits its module."""
    name, _, attribute = recipe.factory.partition(":")
    if not _MODULE.fullmatch(name) or not _CALLABLE.fullmatch(attribute):
        raise InputError(
            f"backbone.factory {recipe.factory} names no callable",
            tip='write "module:callable" of an installed package or of a file in this folder',
        )
    refused = _REFUSED_ARGUMENTS & set(_keys(recipe.args))
    if refused:
        raise InputError(
            f"backbone.args: {min(refused)} runs code from elsewhere, which no recipe may ask for"
        )
    permitted = _Permitted(recipe.factories)
    permitted.check(recipe.factory)
    if is_local(name):
        _refuse_undefined(recipe.factory, name, attribute)
    try:
        found: Any = importlib.import_module(name)
        first, _, second = attribute.partition(".")
        found = getattr(found, first)
        if second:
            found = _method_of_class(recipe.factory, found, second)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"backbone.factory {recipe.factory}: {error}",
            tip='write "module:callable" of an installed package or of a file in this folder',
        ) from error
    permitted.check_home(recipe.factory, found)
    return found


class _Permitted:
    """The project's ``factories``: modules with all below them, callables, and ``LOCAL``."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        self._entries = entries

    def check(self, factory: str) -> None:
        """Refuse a factory of another module; nothing was imported.

        Raises:
            InputError: neither it nor its module is on the list, and it is no file here.
        """
        name = factory.split(":", maxsplit=1)[0]
        if factory in self._entries or self._holds(name):
            return
        if importlib.util.find_spec(name.split(".", maxsplit=1)[0]) is None:
            raise InputError(
                f"backbone.factory {factory}: there is no module {name}",
                tip="install its package, or put the file into this folder",
            )
        raise InputError(
            f"backbone.factory {factory} makes no network that this project permits: a recipe may "
            f"name {', '.join(self._entries) or 'nothing'}",
            tip=f"where you trust it, write it under factories: in compatctl.yaml, as {factory!r}; "
            f"{LOCAL!r} is the files of the working folder",
        )

    def _holds(self, module: str) -> bool:
        """Whether a module is on the list, by itself or by one above it, or is a file here."""
        parts = module.split(".")
        listed = {".".join(parts[: at + 1]) for at in range(len(parts))} & set(self._entries)
        return bool(listed) or (LOCAL in self._entries and is_local(module))

    def check_home(self, factory: str, found: Any) -> None:
        """Refuse what a permitted module merely holds, and what does not say it makes networks.

        Raises:
            InputError: neither a class of networks nor a function, or one of another module; or a
                function of a package that does not say that it returns a network.
        """
        function = getattr(found, "__func__", found)
        home = str(getattr(function, "__module__", None) or "")
        right = _is_network(found) or inspect.isfunction(function)
        if right and factory in self._entries:
            return
        if not right or not self._holds(home):
            raise InputError(
                f"backbone.factory {factory} makes no network",
                tip="name a class or function of that very module that gives a torch module",
            )
        bound = inspect.ismethod(found)  # a constructor of a class of networks
        if not (_is_network(found) or bound or is_local(home) or _returns_network(function)):
            raise InputError(
                f"backbone.factory {factory} makes no network: it does not say that it returns one",
                tip=f"where you trust it, write {factory!r} under factories: in compatctl.yaml",
            )


def is_local(module: str) -> bool:
    """Whether the module is a file of the working folder, and of no installed package."""
    top, folder = module.split(".", maxsplit=1)[0], Path.cwd().resolve()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or top in sys.stdlib_module_names:
        return False
    if spec.submodule_search_locations is not None:  # a package
        places = [Path(one).resolve().parent for one in spec.submodule_search_locations]
        return bool(places) and all(one == folder for one in places)
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return file is not None and file.suffix == ".py" and file.resolve().parent == folder


def _refuse_undefined(factory: str, module: str, attribute: str) -> None:
    """A file of the working folder must define the class or function itself: importing runs it.

    Raises:
        InputError: it does not, or it is no Python that can be read.
    """
    place = Path.cwd().joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    try:
        tree = ast.parse(read_bounded(file, MAX_SOURCE_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"backbone.factory {factory}: {file} is no Python: {error}") from error
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [one.name for one in tree.body if isinstance(one, kinds)]
    if attribute.split(".", maxsplit=1)[0] not in names:
        raise InputError(
            f"backbone.factory {factory} makes no network: {file.name} defines no class or "
            f"function of that name",
            tip="name a class or function that stands in that very file",
        )


def _method_of_class(factory: str, owner: Any, name: str) -> Any:
    """A class method of a class of networks."""
    static = inspect.getattr_static(owner, name, None)
    if not _is_network(owner) or not isinstance(static, classmethod | staticmethod):
        raise InputError(
            f"backbone.factory {factory} makes no network",
            tip="name a class, a function, or a class method of a class of torch modules",
        )
    return getattr(owner, name)


def _is_network(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, nn.Module)


def _returns_network(function: Any) -> bool:
    try:
        return _is_network(typing.get_type_hints(function).get("return"))
    except Exception:  # noqa: BLE001  whatever evaluating a package's own annotations raises
        return False


def _check_method(made: nn.Module, name: str) -> None:
    """The method must be one that the network adds to a module, or one of its parts."""
    own = name == "forward" or not hasattr(nn.Module, name)
    static = inspect.getattr_static(type(made), name, None)
    part = made._modules.get(name)
    if name.startswith("_") or not own or not (inspect.isfunction(static) or part is not None):
        raise InputError(f"backbone: {type(made).__name__} has no method {name}")


def _keys(value: Any) -> Iterator[str]:
    """Every key of nested mappings."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _keys(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _keys(one)


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """The working folder at the END of the import path, so that it never shadows a package; and
    ``torch.load`` takes nothing but tensors, whoever calls it."""
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
