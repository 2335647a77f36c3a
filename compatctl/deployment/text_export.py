"""A text model's folder as sealed bytes: its tokens from torch, its pooling from the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from compatctl import encoder as onnx_files
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.encoder.import_text import TextImportSpec, text_input, wrap_text
from compatctl.encoder.onnx_safety import parse_model, read_bytes
from compatctl.encoder.sentence_folder import SentenceFolder
from compatctl.encoder.texts import TEXT, TextInput, synthetic_text
from compatctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from compatctl.train import TokenModel

TEXTS = 32
"""How many synthetic texts are compared where there are no others."""

_POOLINGS = {"mean", "cls"}


@dataclass(frozen=True, kw_only=True, eq=False)
class SealedText:
    """A sealed text model, its preprocessing, and ``parity`` over ``texts`` texts."""

    content: bytes
    encoder: Encoder
    origin: str
    preprocessing: dict[str, Any]
    texts: int
    parity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFolder:
    """A text model in a folder: its network in torch, and how a text becomes its tokens.

    ``tokenizer``: the file tokenizer.json; ``origin``: the library and its version.
    """

    folder: Path
    model: TokenModel
    spec: TextImportSpec
    tokenizer: Path
    origin: str

    @classmethod
    def load(cls, folder: Path, pooling: str = "auto") -> Self:
        """The model in ``folder``; ``pooling`` is auto, what the folder says, or mean or cls.

        Raises:
            UsageError: the folder says no pooling, and none is given.
            InputError: the folder is incomplete, or has further modules.
        """
        from compatctl.train import load_token_model

        spec, tokenizer = _spec(folder, pooling)
        model, origin = load_token_model(_transformer_of(folder))
        return cls(folder=folder, model=model, spec=spec, tokenizer=tokenizer, origin=origin)

    @property
    def source(self) -> TextInput:
        """The input of its texts."""
        return text_input(self.spec, self.tokenizer)

    @property
    def sha256(self) -> str:
        """A digest over its weights and its tokenizer."""
        from compatctl.train import files_digest, folder_files

        return files_digest([*folder_files(_transformer_of(self.folder)), self.tokenizer])

    def seal(self, scratch: Path) -> bytes:
        """The sealed bytes of the model with its tokenizer, pooling and prompts.

        Raises:
            InputError: as ``wrap_text``.
        """
        from compatctl.train import export_token_model

        raw = scratch / "raw.onnx"
        export_token_model(self.model, raw)
        return wrap_text(raw, parse_model(raw, read_bytes(raw)), self.spec, self.tokenizer)


def is_text_folder(folder: Path) -> bool:
    """Whether a model's folder has a tokenizer and no image processor."""
    image = (folder / "preprocessor_config.json").is_file()
    return not image and any(
        (folder / name).is_file() for name in ("tokenizer.json", "modules.json")
    )


def seal_text_folder(
    folder: Path, pooling: str, data: Dataset | None, scratch: Path, output: Path
) -> SealedText:
    """Export the model in ``folder``, wrap it with its tokenizer, pooling and prompts, and compare.

    ``pooling`` is auto, what the folder says, or mean or cls. ``data``: texts to compare with;
    None: synthetic ones.

    Raises:
        UsageError: the folder says no pooling, and none is given.
        InputError: the folder is incomplete, has further modules, or its ONNX file differs.
    """
    from compatctl.train import pooled_rows

    found = TextFolder.load(folder, pooling)
    content = found.seal(scratch)
    encoder, source, spec = Encoder.from_bytes(content, output), found.source, found.spec
    tokens = [source.prepare(text, None)[0] for text in _texts(data)]
    parity = onnx_files.check_parity(
        encoder.run({TEXT: source.stack(tokens)}),
        pooled_rows(found.model, tokens, spec.pooling),
        f"the ONNX file of {folder} differs from torch",
        tip="the model uses an operation that does not export faithfully",
    )
    entries = {key: value for key, value in vars(spec).items() if value is not None}
    return SealedText(
        content=content,
        encoder=encoder,
        origin=found.origin,
        preprocessing=entries,
        texts=len(tokens),
        parity=parity,
    )


def _texts(data: Dataset | None) -> list[str]:
    if data is None:
        return [synthetic_text(number) for number in range(TEXTS)]
    sample = onnx_files.parity_items(data)
    contents = [sample.content(row) for row in range(len(sample))]
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) < len(contents):
        raise InputError("the model takes texts, and the data has images", tip="name other --data")
    return texts


def _spec(folder: Path, pooling: str) -> tuple[TextImportSpec, Path]:
    """What the folder says, and its tokenizer's file."""
    said = SentenceFolder.read(folder, beside=_transformer_of(folder))
    if said.other_modules:
        raise InputError(
            f"{folder}: its modules {', '.join(said.other_modules)} cannot be exported",
            tip="export the model with its own tools, to an output sentence_embedding",
        )
    chosen = said.pooling if pooling == "auto" else pooling
    if chosen is None or pooling not in {"auto", *_POOLINGS}:
        raise UsageError(
            f"{folder} says no pooling of the tokens of a text",
            tip="compatctl export --pooling mean, or cls",
        )
    if said.max_length is None:
        raise InputError(
            f"{folder}: its files do not say the most tokens of a text",
            tip="write max_seq_length into sentence_bert_config.json",
        )
    spec = TextImportSpec(
        format=1,
        modality="text",
        max_length=said.max_length,
        pooling=chosen,  # type: ignore[arg-type]
        query_prefix=said.query_prefix,
        document_prefix=said.document_prefix,
    )
    return spec, said.tokenizer


def _transformer_of(folder: Path) -> Path:
    """The folder of the transformer: this one, or the one that older folders have below."""
    below = folder / "0_Transformer"
    return below if (below / "config.json").is_file() else folder
