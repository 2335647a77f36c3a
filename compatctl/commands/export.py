"""export: a sealed ONNX file from a library's model, your own code, or another ONNX file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compatctl import encoder as onnx_files
from compatctl import samples
from compatctl._version import __version__
from compatctl.data import Dataset, load, prepare
from compatctl.deployment.data import load_data
from compatctl.deployment.text_export import is_text_folder, seal_text_folder
from compatctl.encoder import Encoder, ImageInput, check_steady
from compatctl.encoder.description import describe_onnx, preprocessing_template
from compatctl.encoder.import_onnx import ImportSpec, read_spec
from compatctl.errors import InputError, UsageError
from compatctl.files import canonical_json, require_place, write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import Project

if TYPE_CHECKING:
    from compatctl.train import ExportedNetwork, PixelSpec

CLOSE = 0.99
"""Below this cosine between embeddings by the library's preprocessing and ours there is a
warning."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export: see ``train.ExportRequest``; ``preprocessing`` is a preprocessing file."""

    source: str
    output: Path
    weights: Path | None = None
    part: str | None = None
    args: Mapping[str, Any]
    method: str = "forward"
    pooling: Literal["auto", "pooler", "cls", "mean"] = "auto"
    preprocessing: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The sealed file, and how it was checked.

    Attributes:
        origin: the library and its version, or the file that was sealed.
        weights_sha256: digest of the checkpoint; None where the source has its weights.
        tensors: how many tensors of the checkpoint the model has; ``left_out``: how many of the
            file it has not, such as a classifier.
        dim: D of the embedding.
        preprocessing: the entries of a preprocessing file that says the same.
        recipe_input: ``backbone.input`` of a recipe with the same preprocessing; None where a
            recipe cannot say it: for texts, files of ONNX, and models that take blue first.
        items: how many real images, or texts, the checks embedded.
        parity: largest absolute difference between components of an embedding by ONNX Runtime and
            by torch, over these items; None for an ONNX file.
        library_cosine: least cosine between embeddings by the library's own preprocessing and by
            this one; None if it has none.
        provenance: the file beside the model that says all this.
    """

    source: str
    origin: str
    output: str
    sha256: str
    dim: int
    weights_sha256: str | None
    tensors: int
    left_out: int
    preprocessing: dict[str, Any]
    recipe_input: dict[str, Any] | None
    items: int
    parity: float | None
    library_cosine: float | None
    provenance: str
    written: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at before the model is used."""
        if self.library_cosine is None or self.library_cosine >= CLOSE:
            return ()
        return (
            f"the library's own preprocessing gives other embeddings, to a cosine of "
            f"{self.library_cosine:.4f}: an index that it filled does not fit this model",
        )


def export(project: Project, options: ExportOptions, progress: Progress = silent) -> Exported:
    """Make the network, write it as ONNX, compare both on real images, and seal the file.

    The images are those of the project's data, else the shipped ones.

    Raises:
        UsageError: the source names nothing, or lacks weights or a preprocessing file.
        InputError: the model cannot be made, or its ONNX file differs from it.
    """
    if not options.dry_run:
        require_place(options.output)
    if options.source.endswith(".onnx") or Path(options.source).is_file():
        result, content = _from_onnx(project, options)
    elif (folder := _text_folder(options.source)) is not None:
        result, content = _from_text_folder(project, options, folder)
    else:
        result, content = _from_torch(project, options, progress)
    if not options.dry_run:
        write_atomic(options.output, content)
        record = {"tool": f"compatctl {__version__}", **asdict(result), "format": 1}
        write_atomic(Path(result.provenance), canonical_json(record))
    return result


def write_template(model: Path | None, output: Path | None) -> dict[str, Any]:
    """A preprocessing file with every entry, filled with what the ONNX file ``model`` says.

    It is written to ``output``, if one is named.

    Raises:
        UsageError: ``output`` exists.
        InputError: ``model`` is no ONNX file, has its preprocessing, or takes no images.
    """
    facts = describe_onnx(model) if model is not None else None
    if facts is not None and (facts.contract is not None or facts.modality not in {None, "image"}):
        found = "has its preprocessing" if facts.contract else f"takes {facts.modality}s"
        raise InputError(f"{model} {found}: it needs no preprocessing file of images")
    template = preprocessing_template(facts)
    if output is not None:
        if output.exists():
            raise UsageError(f"{output} exists", tip="name a new file, or delete it")
        write_atomic(output, (json.dumps(template, indent=2) + "\n").encode())
    return template


def provenance_path(output: Path) -> Path:
    """NAME.export.json beside an exported model."""
    return output.with_suffix(".export.json")


def _from_onnx(project: Project, options: ExportOptions) -> tuple[Exported, bytes]:
    """Seal an ONNX file with its preprocessing file."""
    path = Path(options.source)
    given = {"--weights": options.weights, "--part": options.part, "--arg": options.args or None}
    odd = [flag for flag, value in given.items() if value is not None]
    if odd:
        raise UsageError(
            f"an ONNX file has its weights: {odd[0]} has no effect", tip="leave it out"
        )
    content = onnx_files.read_model_bytes(path, options.preprocessing)
    encoder = Encoder.from_bytes(content, path)
    check_steady(encoder, load_data(project) if project.data else None)
    source = encoder.inputs[0]
    entries = asdict(source.preprocessing) if isinstance(source, ImageInput) else source.to_json()
    return _result(options, encoder, path.name, entries), content


def _text_folder(source: str) -> Path | None:
    """The folder of a text model that a source names."""
    library, _, name = source.partition(":")
    texts = library == "sentence-transformers" or (
        library == "transformers" and is_text_folder(Path(name))
    )
    return Path(name) if texts and name else None


def _from_text_folder(
    project: Project, options: ExportOptions, folder: Path
) -> tuple[Exported, bytes]:
    given = {
        "--weights": options.weights,
        "--part": options.part,
        "--arg": options.args or None,
        "--preprocessing": options.preprocessing,
    }
    odd = [flag for flag, value in given.items() if value is not None]
    if odd:
        raise UsageError(f"the folder of a text model says all: {odd[0]} has no effect")
    data = load_data(project) if project.data else None
    with tempfile.TemporaryDirectory() as scratch:
        sealed = seal_text_folder(folder, options.pooling, data, Path(scratch), options.output)
    check_steady(sealed.encoder, data)
    result = _result(options, sealed.encoder, sealed.origin, sealed.preprocessing)
    return replace(result, items=sealed.texts, parity=sealed.parity), sealed.content


def _from_torch(
    project: Project, options: ExportOptions, progress: Progress
) -> tuple[Exported, bytes]:
    from compatctl.train import ExportRequest, load_network
    from compatctl.train import export as export_onnx

    spec = read_spec(options.preprocessing) if options.preprocessing else None
    request = ExportRequest(
        source=options.source,
        weights=options.weights,
        part=options.part,
        args=options.args,
        method=options.method,
        pooling=options.pooling,
        pixels=_pixels(spec) if spec else None,
        factories=project.factories,
    )
    model = load_network(request)
    progress("model loaded", 1, 3)
    with tempfile.TemporaryDirectory() as scratch:
        raw, sealed = Path(scratch) / "raw.onnx", Path(scratch) / "sealed.onnx"
        export_onnx(model.network, raw, model.size.height, model.size.width)
        progress("ONNX written", 2, 3)
        onnx_files.seal(raw, sealed, (ImageInput(name="image", preprocessing=model.size),))
        content = sealed.read_bytes()
        encoder = Encoder.from_bytes(content, options.output)
        images = _images(project, Path(scratch))
        check_steady(encoder, images)
        result = replace(
            _result(options, encoder, model.origin, _entries(model)),
            weights_sha256=model.match.sha256,
            tensors=model.match.matched,
            left_out=len(model.match.unexpected),
            recipe_input=_recipe_input(model, spec),
        )
        result = _compared(result, model, encoder, images)
    progress("compared", 3, 3)
    return result, content


def _compared(
    result: Exported, model: ExportedNetwork, encoder: Encoder, images: Dataset
) -> Exported:
    """The result with the differences of the file from torch and from the library.

    Raises:
        InputError: an image does not decode, or the file differs from torch.
    """
    from compatctl.train import embed, library_rows

    opened = [images.read(row) for row in range(len(images))]
    pixels = np.stack([prepare(image, model.size) for image in opened])
    rows = embed(model.network, pixels)
    parity = onnx_files.check_parity(
        encoder.run({"image": pixels}),
        rows,
        f"the ONNX file of {result.source} differs from torch",
        tip="the model uses an operation that does not export faithfully",
    )
    cosine = None
    if model.transform is not None:
        cosine = float((library_rows(model, opened) * rows).sum(axis=1).min())
    return replace(result, items=len(opened), parity=parity, library_cosine=cosine)


def _result(
    options: ExportOptions, encoder: Encoder, origin: str, preprocessing: dict[str, Any]
) -> Exported:
    """The result before anything is compared."""
    return Exported(
        source=options.source,
        origin=origin,
        output=str(options.output),
        sha256=encoder.sha256,
        dim=encoder.dim,
        weights_sha256=None,
        tensors=0,
        left_out=0,
        preprocessing=preprocessing,
        recipe_input=None,
        items=0,
        parity=None,
        library_cosine=None,
        provenance=str(provenance_path(options.output)),
        written=not options.dry_run,
    )


def _pixels(spec: ImportSpec) -> PixelSpec:
    """The preprocessing file's entries for a network: mean and std on the scale 0 to 255.

    Raises:
        InputError: an entry that is about an ONNX file.
    """
    from compatctl.train import PixelSpec

    if spec.output is not None or spec.layout == "NHWC":
        raise InputError("output and layout NHWC in a preprocessing file are about an ONNX file")
    red, green, blue = (value / spec.scale for value in spec.mean)
    mean = (red, green, blue)
    red, green, blue = (value / spec.scale for value in spec.std)
    return PixelSpec(
        preprocessing=spec.preprocessing,
        mean=mean,
        std=(red, green, blue),
        bgr=spec.channels == "BGR",
    )


def _recipe_input(model: ExportedNetwork, spec: ImportSpec | None) -> dict[str, Any] | None:
    """``backbone.input`` of a recipe that trains on the same pixels; None if there is none.

    The exported file turns the channels itself where the model takes blue first; a recipe would
    feed the bare model.
    """
    from compatctl.train import input_spec

    if spec is not None and spec.channels == "BGR":
        return None
    return asdict(input_spec(model.pixels))


def _entries(model: ExportedNetwork) -> dict[str, Any]:
    """The preprocessing file that says the same as the model's source."""
    entries = {key: value for key, value in asdict(model.size).items() if value is not None}
    if model.size.fit != "pad":
        del entries["border"]
    scaled = {
        name: [value / 255 for value in getattr(model.pixels, name)] for name in ("mean", "std")
    }
    return {"format": 1, **entries, "scale": 1 / 255, **scaled}


def _images(project: Project, scratch: Path) -> Dataset:
    """Some real images: of the project's data, else those that ship with the package."""
    if project.data is not None:
        return onnx_files.parity_items(load_data(project))
    table = samples.unpack_emoji(samples.emoji_source(), scratch)
    return onnx_files.parity_items(load(table))
