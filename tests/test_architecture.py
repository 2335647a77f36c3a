"""The layers of CONTRIBUTING.md, read from the imports."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compatctl"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "errors": 0,
    "progress": 0,
    "machine": 0,
    "pauses": 0,
    "printable": 0,
    "_version": 0,
    "notices": 1,
    "libraries": 1,
    "processes": 1,
    "core": 1,
    "files": 1,
    "data": 2,
    "manifest": 2,
    "recipe": 2,
    "engines": 2,
    "samples": 3,
    "text_samples": 4,
    "encoder": 3,
    "index": 3,
    "report": 3,
    "store": 3,
    "train": 3,
    "deployment": 4,
    "evaluation": 5,
    "migration": 6,
    "serving": 6,
    "commands": 7,
    "testing": 8,
    "pytest_plugin": 9,
    "render": 8,
    "cli": 9,
}
MAY_IMPORT_VERBS = {
    "commands/demo.py",
    "commands/demo_text.py",
    "commands/demo_vectors.py",
}
"""The demo runs other commands; no other command imports one."""
HOMES = {
    "typer": {"cli"},
    "rich": {"render"},
    "yaml": {"recipe"},
    "PIL": {"data", "samples", "train"},
    "onnx": {"encoder"},
    "onnxruntime": {"encoder"},
    "hnswlib": {"index"},
    "obstore": {"store"},
    "faiss": {"index"},
    "usearch": {"index"},
    "lancedb": {"index"},
    "chromadb": {"index"},
    "psycopg": {"engines"},
    "pymilvus": {"engines"},
    "torch": {"train"},
    "safetensors": {"train"},
    "pyarrow": {"data"},
    "onnxscript": {"train"},
    "timm": {"train"},
    "torchvision": {"train"},
    "open_clip": {"train"},
    "transformers": {"train"},
    "peft": {"train"},
    "tokenizers": {"encoder"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
    "ray": {"deployment"},
    "mlflow": {"commands"},
    "jinja2": {"report"},
    "pytest": {"pytest_plugin"},
}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 40
EXPORTS = 10


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _imports(path: Path, *, typing_only: bool) -> tuple[str, ...]:
    """The absolute names that a module imports; ``typing_only``: also in TYPE_CHECKING blocks."""
    tree = _tree(path)
    skipped: set[ast.AST] = set()
    if not typing_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                skipped.update(child for statement in node.body for child in ast.walk(statement))
    names: list[str] = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_imports_run_downward_only(path: Path) -> None:
    """A module imports from lower layers and from its own package, never sideways or up."""
    own = _layer(path)
    if own in {"__init__", "__main__"}:
        return
    for name in _imports(path, typing_only=False):
        if not name.startswith("compatctl."):
            continue
        other = name.split(".")[1]
        if other in {own, "__version__"}:
            continue
        assert LEVELS[other] < LEVELS[own], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=_relative)
def test_no_verb_imports_another(path: Path) -> None:
    """A command imports no other command; what two of them need is in a lower layer."""
    names = _imports(path, typing_only=True)
    verbs = [name for name in names if name.startswith("compatctl.commands")]
    assert not verbs or _relative(path) in MAY_IMPORT_VERBS, verbs


def test_no_modules_import_each_other_in_a_circle() -> None:
    """The imports among the modules of the package have no circle."""
    known = {_dotted(path): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        names = _imports(path, typing_only=False)
        graph[name] = {
            module for imported in names if (module := _module(imported, known)) != name
        } - {""}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(name: str, known: Mapping[str, Path]) -> str:
    """The module of an imported name: for ``a.b.c`` it is ``a.b.c`` or ``a.b``."""
    parent = name.rpartition(".")[0]
    return name if name in known else parent if parent in known else ""


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_each_heavy_library_has_one_home(path: Path) -> None:
    """typer, rich, yaml, pillow, onnx, hnswlib and torch are each imported in one layer only."""
    for name in _imports(path, typing_only=True):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or _layer(path) in homes, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_modules_and_functions_stay_short(path: Path) -> None:
    """No module has more than 500 lines, and no function body more than 40."""
    text = path.read_text()
    limit = MAX_MODULE_LINES
    assert len(text.splitlines()) <= limit
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef):
            statements = [part for part in node.body if not _is_docstring(part)]
            first = statements[0].lineno if statements else node.lineno
            assert (node.end_lineno or first) - first < MAX_FUNCTION_LINES, node.name


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_core_has_no_files_clock_or_global_random_state() -> None:
    """core/ imports only numpy and small helpers, opens no file, and uses no global generator."""
    allowed = {
        "__future__", "collections", "compatctl", "dataclasses", "functools", "hashlib",
        "itertools", "json", "math", "numpy", "statistics", "typing",
    }  # fmt: skip
    for path in (PACKAGE / "core").glob("*.py"):
        roots = {name.split(".")[0] for name in _imports(path, typing_only=True)}
        assert roots <= allowed, path.name
        text = path.read_text()
        assert "np.random." not in text.replace("np.random.Generator", ""), path.name
        assert "open(" not in text, path.name


def _loaded_by(arguments: str) -> set[str]:
    """The top-level modules that a new process has loaded after one command."""
    code = (
        "import sys\n"
        f"sys.argv = ['compatctl', *{arguments!r}.split()]\n"
        "from compatctl.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(process.stderr.split())


@pytest.mark.parametrize("arguments", ["--help", "verify --help", "status", "rollback", "history"])
def test_light_commands_load_no_heavy_library(arguments: str) -> None:
    """Help, status, history and rollback load neither numpy nor any model or index library."""
    heavy = {
        "numpy", "torch", "onnx", "onnxruntime", "hnswlib", "PIL", "safetensors", "pyarrow",
        "obstore",
    }  # fmt: skip
    assert not _loaded_by(arguments) & heavy


def test_the_public_api_is_nine_names() -> None:
    """The package exports ten names and its version, and each name resolves."""
    import compatctl

    names = [name for name in compatctl.__all__ if not name.startswith("__")]
    assert len(names) == EXPORTS
    for name in names:
        assert getattr(compatctl, name) is not None
