"""inspect: what a file or folder is, its contract, and what is missing to use it."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.data import describe_table
from compatctl.errors import CompatError
from compatctl.files import (
    describe_tensors,
    os_errors,
    other_kind,
    read_json,
    refuse_pointer,
    store_url,
)
from compatctl.files.tensors import PICKLE

if TYPE_CHECKING:
    from compatctl.index import Form

MAX_JSON = 64 << 20
SHOWN = 12
"""Most tensors, and most entries of a group, that are listed."""

_HEAD = 256
_NOTHING = ("an HTML page", "an XML text", "a gzip file", "a compressed file", "a PDF document")
"""Kinds of files that are none of ours, whatever their name."""
_FAISS = re.compile(rb"I[A-Za-z][A-Za-z0-9][A-Za-z0-9+]")
_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson", ".npz", ".npy", ".parquet"}
_WRAPPERS = ("module", "model", "_orig_mod", "state_dict", "net", "backbone", "encoder", "ema")
_ITEM_COLUMNS = ("path", "text", "label")


@dataclass(frozen=True, kw_only=True)
class FileToWrite:
    """A file that is missing, with what is known of it."""

    name: str
    content: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a file or folder is.

    Attributes:
        kind: in words.
        facts: what it says of itself, by name.
        contract: what it takes and gives, or what it can be used as; empty if for nothing.
        missing: what is missing to use it.
        write: the missing file, filled with what is known; None if none is missing.
        next: commands that take it.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    contract: str = ""
    missing: tuple[str, ...] = ()
    write: FileToWrite | None = None
    next: tuple[str, ...] = ()


def inspect(path: Path) -> Inspection:
    """Look at a file or folder by its content; nothing of it runs.

    Raises:
        InputError: there is none, it cannot be read, or it is damaged.
    """
    if store_url(path):
        return _store(path)
    if path.is_dir():
        return _folder(path)
    with os_errors("reading", path), path.open("rb") as file:
        head = file.read(_HEAD)
    refuse_pointer(path, head)
    found = other_kind(head)
    if found and found[0] in _NOTHING:
        return _unusable(path, *found)
    return _by_content(path, head)(path)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Files that were checked, and those of them of which something is missing to use them."""

    files: tuple[Inspection, ...]
    unusable: int


def check_files(paths: list[Path]) -> Checked:
    """Inspect each file; what cannot be read is one of which something is missing.

    A project is checked with the recipe and the policy that it names.
    """
    files = tuple(_checked(path) for path in paths)
    return Checked(files=files, unusable=sum(bool(found.missing) for found in files))


def _checked(path: Path) -> Inspection:
    from compatctl.recipe import Project, Recipe, gate_policy

    try:
        found = inspect(path)
        if found.kind == "project" and not found.missing:
            project = Project.load(path)
            gate_policy(project)
            if project.recipe is not None:
                Recipe.load(project.recipe)
    except CompatError as error:
        return Inspection(path=str(path), kind="file", missing=(error.message,))
    return found


def _unusable(path: Path, kind: str, tip: str) -> Inspection:
    """What a file is that no command takes, and what to do about it."""
    return Inspection(
        path=str(path), kind=kind.removeprefix("a ").removeprefix("an "), missing=(tip,)
    )


def _by_content(path: Path, head: bytes) -> Callable[[Path], Inspection]:
    suffix = path.suffix.lower()
    if head[:4] == b"PK\x03\x04":
        return _checkpoint if _has_pickle(path) else _table
    if PICKLE.match(head) or suffix == ".safetensors":
        return _checkpoint
    if head[:4] == b"PAR1" or head[:6] == b"\x93NUMPY" or suffix in _TABLES:
        return _table
    if suffix == ".onnx":
        return _onnx
    if _FAISS.match(head):
        return _faiss
    by_suffix = {".json": _json, ".yaml": _yaml, ".yml": _yaml}
    return by_suffix.get(suffix, _by_trial)


def _has_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _by_trial(path: Path) -> Inspection:
    """A file without a known beginning: an index, ONNX or a checkpoint says so inside."""
    from compatctl.index import is_usearch

    if is_usearch(path):
        return _usearch(path)
    for kind in (_hnswlib, _onnx, _checkpoint):
        try:
            return kind(path)
        except CompatError:
            continue
    return Inspection(
        path=str(path),
        kind="unknown",
        missing=(
            "no model, checkpoint, index, table, store, recipe, project or policy is recognised "
            "by its content",
        ),
    )


def _onnx(path: Path) -> Inspection:
    from compatctl.encoder.description import describe_onnx, preprocessing_template
    from compatctl.encoder.metadata import sidecar_path

    facts = describe_onnx(path)
    shown = {
        key: value
        for key, value in asdict(facts).items()
        if key not in {"contract", "inputs", "outputs"}
    }
    shown |= {
        "inputs": [f"{t.name}: {t.dtype} {_sides(t.shape)}" for t in facts.inputs],
        "outputs": [f"{t.name}: {t.dtype} {_sides(t.shape)}" for t in facts.outputs],
    }
    if facts.contract is not None:
        takes = "; ".join(
            f"{source.MODALITY}s, {json.dumps(source.to_json())}"
            for source in facts.contract.inputs
        )
        gives = ", ".join(f"{n} of {d} dimensions" for n, d in facts.contract.outputs.items())
        return Inspection(
            path=str(path),
            kind="sealed model",
            facts=shown,
            contract=f"takes {takes}; gives unit rows: {gives}",
            next=(f"compatctl init --model {path} --data DATA",),
        )
    sidecar = sidecar_path(path)
    if facts.modality == "text" or sidecar.is_file():
        return _other_onnx(path, shown, facts.modality == "text", sidecar)
    unknown = "how pixels are scaled (scale, mean, std) and images resized: see docs/models.md"
    return Inspection(
        path=str(path),
        kind="ONNX file of another tool",
        facts=shown,
        contract="takes images, once its preprocessing is known" if facts.modality else "",
        missing=(f"its preprocessing file; the file cannot say {unknown}",),
        write=FileToWrite(name=str(sidecar), content=preprocessing_template(facts)),
        next=(f"compatctl export {path} -o sealed.onnx",),
    )


def _other_onnx(path: Path, facts: dict[str, Any], texts: bool, sidecar: Path) -> Inspection:
    """An ONNX file with its preprocessing file, or one that takes texts."""
    needs = texts and not sidecar.is_file()
    content = {
        "format": 1,
        "modality": "text",
        "tokenizer": "tokenizer.json",
        "max_length": 256,
        "pooling": "mean",
    }
    return Inspection(
        path=str(path),
        kind="ONNX file of another tool",
        facts=facts,
        contract=f"takes {'texts' if texts else 'images'}, as {sidecar.name} says",
        missing=(
            "its preprocessing file, unless the folder of sentence-transformers around it says "
            "tokenizer, length and pooling",
        )
        * needs,
        write=FileToWrite(name=str(sidecar), content=content) if needs else None,
        next=(f"compatctl export {path} -o sealed.onnx",),
    )


def _sides(shape: tuple[int | None, ...] | None) -> str:
    return "unknown" if shape is None else f"({', '.join(str(side or '?') for side in shape)})"


def _checkpoint(path: Path) -> Inspection:
    found = describe_tensors(path)
    groups = Counter(name.split(".", maxsplit=1)[0] for name in found.tensors)
    wrappers = [name for name in groups if name in _WRAPPERS]
    shapes = {name: f"{t.dtype} {list(t.shape)}" for name, t in found.tensors.items()}
    facts = {
        "form": found.form,
        "tensors": len(found.tensors),
        "values": sum(_size(tensor.shape) for tensor in found.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in found.tensors.values())),
        "groups": dict(groups.most_common(SHOWN)),
        "wrappers": wrappers,
        "first": dict([*shapes.items()][:SHOWN]),
        "objects": list(found.objects),
    }
    missing = ["the architecture: the library and the name that it was made with"]
    if not found.tensors:
        missing = ["tensors by name: this is no checkpoint"]
    if found.objects:
        missing.append(
            "a file without objects: torch.load would need code for "
            f"{', '.join(found.objects[:3])}; save the state dict alone"
        )
    return Inspection(
        path=str(path),
        kind="checkpoint" if found.tensors else "pickle",
        facts=facts,
        contract="weights of a model" if found.tensors else "",
        missing=tuple(missing),
        next=(
            f"compatctl export timm:NAME --weights {path} -o old.onnx",
            f"compatctl finetune --base {path}",
        )
        * bool(found.tensors),
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _table(path: Path) -> Inspection:
    facts = describe_table(path)
    shown = {key: value for key, value in asdict(facts).items() if value not in (None, {}, ())}
    columns = {name.lower() for name in facts.columns}
    if {"ids", "labels", "features"} <= columns:
        return Inspection(
            path=str(path),
            kind="feature table",
            facts=shown,
            contract="vectors with ids and labels",
            next=(f"compatctl verify {path} new.npz", f"compatctl power {path}"),
        )
    if not facts.columns:
        return Inspection(
            path=str(path), kind="array", facts=shown,
            missing=("ids and labels of its rows: a feature table is an .npz of ids, labels, "
                     "features",),
        )  # fmt: skip
    items = bool(columns & {"path", "text", "image", "images", "texts"})
    lacks = [] if items else ["a column of images (path) or texts (text)"]
    lacks += [] if columns & {"label", "labels", "y"} else ["a column label"]
    hint = "name the columns that hold them: compatctl init --column label=COLUMN"
    return Inspection(
        path=str(path),
        kind="table",
        facts=shown,
        contract="items of a gallery, or queries" if not lacks else "",
        missing=(*lacks, *(hint for _ in lacks[:1])),
        next=(f"compatctl init --model old.onnx --data {path}",) * (not lacks),
    )


def _faiss(path: Path) -> Inspection:
    from compatctl.index import read_faiss_header

    facts = read_faiss_header(path)
    return Inspection(
        path=str(path),
        kind="FAISS index",
        facts=asdict(facts),
        contract=f"{facts.rows} rows of {facts.dim} dimensions",
        missing=("the encoder that made its rows, and the items behind its keys",),
        next=(_import_command(path),),
    )


def _usearch(path: Path) -> Inspection:
    return Inspection(
        path=str(path),
        kind="usearch index",
        missing=("the encoder that made its rows, and the items behind its keys",),
        next=(_import_command(path),),
    )


def _import_command(path: Path) -> str:
    return f"compatctl import {path} --model old.onnx --items items.csv --data items.csv"


def _hnswlib(path: Path) -> Inspection:
    from compatctl.index import read_header

    facts = read_header(path)
    return Inspection(
        path=str(path),
        kind="hnswlib index",
        facts={**asdict(facts), "space": "unknown: the file does not say it"},
        contract=f"{facts.count} rows of {facts.dim} dimensions",
        missing=(
            "its space (ip, cosine or l2), the encoder that made its rows, and a table "
            "key,id,label of the items behind its keys",
        ),
        next=(f"compatctl import {path} --model old.onnx --items items.csv --space ip",),
    )


def _json(path: Path) -> Inspection:
    """A machine's file, told by its entries."""
    content = read_json(path, MAX_JSON)
    keys = set(content) if isinstance(content, dict) else set()
    kinds: tuple[tuple[set[str], str], ...] = (
        ({"format", "height", "width"}, "preprocessing file"),
        ({"format", "modality"}, "preprocessing file"),
        ({"verdict", "checks"}, "report of verify"),
        ({"models", "items"}, "training record"),
        ({"library_cosine", "parity"}, "record of an export"),
        ({"architectures", "model_type"}, "configuration of a model of transformers"),
    )
    kind = next((name for needed, name in kinds if needed <= keys), "JSON file")
    contract = ""
    if kind == "preprocessing file" and "height" in keys:
        from compatctl.encoder.import_onnx import read_spec

        contract = f"how images become a model's input: {json.dumps(asdict(read_spec(path)))}"
    return Inspection(path=str(path), kind=kind, facts={"entries": sorted(keys)}, contract=contract)


def _yaml(path: Path) -> Inspection:
    """A recipe, a project or a policy, as most of its keys say."""
    from compatctl.recipe import nearest_kind, read_settings

    kind = "YAML file"
    try:
        kind = nearest_kind(path)
        settings = read_settings(path)
    except CompatError as error:
        lacks = (error.message, error.tip) if error.tip else (error.message,)
        return Inspection(path=str(path), kind=kind, missing=lacks)
    facts = json.loads(json.dumps(asdict(settings.content), default=str))
    next_step = _SETTINGS_NEXT[settings.kind].format(path=path)
    return Inspection(path=str(path), kind=settings.kind, facts=facts, next=(next_step,))


_SETTINGS_NEXT = {
    "recipe": "compatctl finetune --base new.ckpt --recipe {path}",
    "policy": "compatctl verify old.onnx new.onnx --policy {path}",
    "project": "compatctl status --project {path}",
}


def _folder(path: Path) -> Inspection:
    from compatctl.index import database_of

    if (path / "manifest.json").is_file():
        return _store(path)
    database = database_of(path)
    if database is not None:
        return _database(path, database)
    names = {part.name for part in path.iterdir()}
    if "modules.json" in names or "config.json" in names:
        kind = "sentence-transformers" if "modules.json" in names else "transformers"
        return Inspection(
            path=str(path),
            kind=f"model folder of {kind}",
            facts={"files": sorted(names)[:SHOWN]},
            contract="a model with its weights and configuration",
            next=(f"compatctl export {kind}:{path} -o old.onnx",),
        )
    suffixes = Counter(part.suffix.lower() for part in path.rglob("*") if part.is_file())
    return Inspection(
        path=str(path),
        kind="folder",
        facts={"files": dict(suffixes.most_common(SHOWN))},
        contract="a gallery, if images lie in class folders",
        next=(f"compatctl init --model old.onnx --data {path}",),
    )


def _database(path: Path, form: Form) -> Inspection:
    from compatctl.index import tables_of

    tables = tables_of(path, form)
    command = f"compatctl import {path} --model old.onnx --data items.csv"
    several = f"compatctl import {path} --table NAME --model old.onnx --data items.csv"
    return Inspection(
        path=str(path),
        kind=f"{form.value} folder",
        facts={"names": sorted(tables)[:SHOWN], "count": len(tables)},
        contract="vectors with ids, once the model behind them is known" if tables else "",
        missing=("the encoder that made its rows",) if tables else ("a table or a collection",),
        next=(command if len(tables) == 1 else several,) * bool(tables),
    )


def _store(path: Path) -> Inspection:
    from compatctl.store import Store

    store = Store.open(path)
    manifest = store.manifest
    facts = {
        "generation": manifest.generation,
        "operation": str(manifest.operation),
        "created_at": manifest.created_at,
        "rows": manifest.index.count,
        "dim": manifest.index.dim,
        "query_model": manifest.query_model,
        "models": {model.name: model.rows for model in manifest.models},
    }
    return Inspection(
        path=store.name,
        kind="store",
        facts=facts,
        contract=f"{manifest.index.count} rows of {manifest.index.dim} dimensions",
        next=(f"compatctl status --store {store.name}", f"compatctl check --store {store.name}"),
    )
