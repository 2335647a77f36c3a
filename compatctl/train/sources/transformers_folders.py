"""transformers: an image model in a folder on disk, and its preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from compatctl.data import Preprocessing
from compatctl.errors import InputError
from compatctl.files import read_json
from compatctl.train.sources._model import (
    BY_PREPROCESSING_FILE,
    ImageModel,
    PixelSpec,
    centre_crop,
    library,
    offline,
    resize_filter,
    triple,
)

Pooling = Literal["auto", "pooler", "cls", "mean"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_CONFIG_BYTES = 1 << 20

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""

_WITHOUT_EFFECT = {
    "auto_map", "crop_pct", "crop_size", "data_format", "device", "disable_grouping",
    "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize",
    "feature_extractor_type", "image_mean", "image_processor_type", "image_seq_length",
    "image_std", "input_data_format", "processor_class", "resample", "rescale_factor",
    "return_tensors", "size", "size_divisor", "valid_processor_keys", "default_to_square",
    "pad_size",
}  # fmt: skip
"""Entries that are read, or change no pixel. Any other must be off."""


class FolderModel(nn.Module):
    """Features of a model of transformers: its image features, its pooled output, or tokens."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        """(N, F), or (N, F, 1, 1), for float32 (N, 3, H, W)."""
        image_features: Any = getattr(self.model, "get_image_features", None)
        if image_features is not None:
            found = image_features(pixel_values=images)
            features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
            return features
        out = self.model(pixel_values=images)
        pooled = getattr(out, "pooler_output", None)
        if self.pooling in {"auto", "pooler"} and pooled is not None:
            return pooled  # type: ignore[no-any-return]
        tokens: Tensor = out.last_hidden_state
        if tokens.ndim == 4:
            return tokens
        return tokens.mean(1) if self.pooling == "mean" else tokens[:, 0]


def load(folder: Path, pooling: Pooling = "auto") -> ImageModel:
    """The image model in ``folder``, with its weights from safetensors files there.

    ``pooling``: the model's pooled output, its first token, or the mean of its tokens; ``auto`` is
    the pooled output if the folder has its weights, else the first token.

    Raises:
        InputError: transformers is not installed; the folder has no image model or not all of its
            weights; its preprocessing cannot be said by a preprocessing file.
    """
    where = f"transformers:{folder}"
    check_config(folder, where)
    transformers = library("transformers", "transformers")
    model, missing = from_folder(transformers, folder, where)
    if missing and all("pooler" in name for name in missing) and pooling in {"auto", "cls", "mean"}:
        pooling = "cls" if pooling == "auto" else pooling
        missing = []
    if missing:
        raise InputError(
            f"{where}: the folder lacks {len(missing)} tensors of the model: "
            f"{', '.join(missing[:3])}",
            tip="save the whole model with save_pretrained of transformers",
        )
    return ImageModel(
        module=FolderModel(model.eval(), pooling),
        derive=lambda: pixels_of(_json(folder / PREPROCESSOR), where),
        transform=_transform(transformers, folder),
        origin=f"transformers {transformers.__version__}",
    )


def check_config(folder: Path, where: str) -> None:
    """Refuse a folder without a configuration, or with code of its own."""
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{where}: there is no {CONFIG} in it",
            tip="save the model there with save_pretrained of transformers",
        )
    if "auto_map" in _json(folder / CONFIG):
        raise InputError(
            f"{where}: it needs code of its own (auto_map), which is not run",
            tip="write a function that makes the model, and export it as module:callable",
        )


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected one JSON object")
    return content


def from_folder(transformers: Any, folder: Path, where: str) -> tuple[nn.Module, list[str]]:
    """The model, and the names of its tensors that the folder lacks."""
    try:
        transformers.utils.logging.disable_progress_bar()
        with offline():
            model, loading = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:  # the library's errors share no base class
        raise InputError(f"{where}: cannot be read: {error}") from error
    return model, sorted(loading["missing_keys"])


def _transform(transformers: Any, folder: Path) -> Any:
    """The library's own preprocessing; None where it cannot be made here."""
    try:
        with offline():
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # noqa: BLE001  it is for comparison alone; its errors share no base class
        return None
    return lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]


def pixels_of(config: Mapping[str, Any], where: str) -> PixelSpec:
    """The preprocessing of a preprocessor_config.json.

    Raises:
        InputError: it cannot be said by a preprocessing file.
    """
    odd = [key for key, value in config.items() if key not in _WITHOUT_EFFECT and value]
    if odd:
        raise InputError(
            f"{where}: {PREPROCESSOR} has {', '.join(sorted(odd)[:5])}, which is not known here",
            tip=BY_PREPROCESSING_FILE,
        )
    rescale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1
    normalise = config.get("do_normalize", True)
    return PixelSpec(
        preprocessing=_preprocessing(config, where),
        mean=triple(
            config["image_mean"] if normalise else 0.0, 1 / rescale, f"{where}: image_mean"
        ),
        std=triple(config["image_std"] if normalise else 1.0, 1 / rescale, f"{where}: image_std"),
    )


def _preprocessing(config: Mapping[str, Any], where: str) -> Preprocessing:
    size, crop = _sides(config.get("size")), _sides(config.get("crop_size"))
    interpolation = _RESAMPLE.get(config.get("resample", 2), str(config.get("resample")))
    cropped = bool(config.get("do_center_crop")) and "height" in crop
    if not config.get("do_resize", True):
        size = {}
    shortest = size.get("shortest_edge")
    if shortest is not None and "crop_pct" in config and shortest < 384:  # ConvNeXT's rule
        resized = int(shortest / float(config["crop_pct"]))
        return centre_crop(resized, shortest, interpolation, "floor", where)
    square = crop.get("height") == crop.get("width")
    if shortest is not None and cropped and square:
        return centre_crop(shortest, crop["height"], interpolation, "floor", where)
    if "height" in size and (not cropped or crop == size):
        return Preprocessing(
            height=size["height"],
            width=size["width"],
            resize=resize_filter(interpolation, where),
            fit="stretch",
        )
    cut = config.get("crop_size") if cropped else None
    raise InputError(
        f"{where}: its preprocessing (size {config.get('size')}, crop_size {cut}) is none that a "
        "preprocessing file can say",
        tip=BY_PREPROCESSING_FILE,
    )


def _sides(size: Any) -> dict[str, int]:
    """A size as named sides: earlier versions wrote one number for a square."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    known = {"height", "width", "shortest_edge"}
    named = dict(size) if isinstance(size, Mapping) else {}
    return {key: int(value) for key, value in named.items() if key in known and value is not None}
