"""Models of timm, torchvision, open_clip and transformers become sealed files that equal them.

These tests run where the libraries are installed: ``make libraries-test``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shop_kit import run

from compatctl.data import prepare
from compatctl.encoder import Encoder, ImageInput

torch = pytest.importorskip("torch")

TIMM = ("resnet18", "test_vit", "test_byobnet.r160_in1k")
TORCHVISION = ("mobilenet_v3_small", "resnet18:IMAGENET1K_V1", "squeezenet1_0")


def unit(rows: Any) -> NDArray[np.float32]:
    """Torch rows of unit length, as an array."""
    array: NDArray[np.float32] = torch.nn.functional.normalize(rows.float(), dim=1).numpy()
    return array


def embedded(path: Path, images: list[Image.Image]) -> NDArray[np.float32]:
    """The sealed file's rows of images, by its own preprocessing."""
    encoder = Encoder.load(path)
    source = encoder.inputs[0]
    assert isinstance(source, ImageInput)
    return encoder.run({"image": np.stack([prepare(i, source.preprocessing) for i in images])})


def least_cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The least cosine between rows."""
    return float((first * second).sum(axis=1).min())


def export(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    """Export to old.onnx, and the result."""
    result = run("export", *arguments, "-o", tmp_path / "old.onnx", "--json")
    assert result.code == 0, result.stderr
    found: dict[str, Any] = result.json
    assert found["parity"] < 1e-4
    return found


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_gives_what_timm_gives(
    tmp_path: Path, data: Path, images: list[Image.Image], name: str
) -> None:
    """By timm's own transform on images of any shape, with the checkpoint's weights."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    result = export(tmp_path, f"timm:{name}", "--weights", tmp_path / "w.pt", "--data", data)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        batch = torch.stack([transform(image) for image in images])
        expected = unit(model.forward_head(model.forward_features(batch), pre_logits=True))
    assert least_cosine(embedded(tmp_path / "old.onnx", images), expected) > 0.9995
    assert result["library_cosine"] > 0.9995
    assert result["items"] == len(images)
    assert json.loads((tmp_path / "old.export.json").read_text())["sha256"] == result["sha256"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_model_of_torchvision_gives_the_input_of_its_last_layer(
    tmp_path: Path, data: Path, images: list[Image.Image], name: str
) -> None:
    """By the transform of the named weights; a classifier without a last linear layer is refused
    by name."""
    torchvision = pytest.importorskip("torchvision")
    model_name, _, weights_name = name.partition(":")
    torch.manual_seed(1)
    model = torchvision.models.get_model(model_name, weights=None).eval()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    source = (f"torchvision:{name}", "--weights", tmp_path / "w.pt", "--data", data)
    if model_name == "squeezenet1_0":
        refused = run("export", *source, "-o", tmp_path / "old.onnx")
        assert refused.code == 5
        assert "no last linear layer" in refused.stderr
        return
    export(tmp_path, *source)
    weights = torchvision.models.get_model_weights(model_name)
    transform = (weights[weights_name] if weights_name else weights.DEFAULT).transforms()
    seen = []
    last = [part for part in model.modules() if isinstance(part, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.stack([transform(image) for image in images]))
    assert least_cosine(embedded(tmp_path / "old.onnx", images), unit(seen[0])) > 0.9995


def test_weights_with_several_preprocessings_are_named(tmp_path: Path, data: Path) -> None:
    """Without a name torchvision's default decides, and a notice lists the others."""
    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "w.pt")
    found = export(
        tmp_path, "torchvision:mobilenet_v2", "--weights", tmp_path / "w.pt", "--data", data
    )
    # An untrained network gives nearly one vector for all images, which is another notice.
    (notice,) = (
        entry for entry in found["notices"] if "torchvision:mobilenet_v2:NAME" in entry["message"]
    )
    assert notice["names"] == ["IMAGENET1K_V2"]
    assert found["preprocessing"]["crop_share"] == pytest.approx(224 / 232, abs=2e-3)


def test_the_image_tower_of_open_clip_gives_its_features(
    tmp_path: Path, data: Path, images: list[Image.Image]
) -> None:
    """By open_clip's own transform; text weights of the checkpoint are left out."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(1)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    sizes = {"vision_cfg": vision, "text_cfg": text, "embed_dim": 24}
    model, _, transform = open_clip.create_model_and_transforms("RN50", pretrained=None, **sizes)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    small = [
        part for name, size in sizes.items() for part in ("--arg", f"{name}={json.dumps(size)}")
    ]
    weights = ("--weights", tmp_path / "w.pt")
    found = export(tmp_path, "open_clip:RN50", *weights, "--data", data, *small)
    assert found["left_out"] > 0
    with torch.no_grad():
        expected = unit(model.eval().encode_image(torch.stack([transform(i) for i in images])))
    assert least_cosine(embedded(tmp_path / "old.onnx", images), expected) > 0.9995


def save_image_folder(kind: str, folder: Path) -> Any:
    """A small untrained model of transformers and its image processor, saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    size = {"height": 64, "width": 64}
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size,
        "resample": 2, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "do_rescale": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**small))
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
        settings |= {
            "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 72},
            "do_center_crop": True, "crop_size": size, "resample": 3,
        }  # fmt: skip
    else:
        text = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
        }
        config = transformers.CLIPConfig(vision_config=small, text_config=text, projection_dim=24)
        model = transformers.CLIPModel(config)
        settings |= {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64},
            "do_center_crop": True, "crop_size": size, "do_convert_rgb": True, "resample": 3,
        }  # fmt: skip
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_a_folder_of_transformers_gives_its_features(
    tmp_path: Path, data: Path, images: list[Image.Image], kind: str
) -> None:
    """By the folder's own image processor: the pooled output, or CLIP's image features."""
    model = save_image_folder(kind, tmp_path / "m")
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(
        tmp_path / "m"
    )
    found = export(tmp_path, f"transformers:{tmp_path / 'm'}", "--data", data)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if kind == "clip":
            out = model.get_image_features(pixel_values=pixels)
            out = out if isinstance(out, torch.Tensor) else out.pooler_output
        else:
            out = model(pixel_values=pixels).pooler_output
    assert least_cosine(embedded(tmp_path / "old.onnx", images), unit(out)) > 0.999
    assert found["library_cosine"] > 0.999


def test_a_folder_without_a_pooler_gives_its_first_token(
    tmp_path: Path, data: Path, images: list[Image.Image]
) -> None:
    """A checkpoint of a classifier has no weights for it, and random ones are never used; another
    tensor that is missing is refused by name."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = save_image_folder("vit", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = safetensors.load_file(file)
    kept = {key: value for key, value in state.items() if "pooler" not in key}
    safetensors.save_file(kept, file, {"format": "pt"})
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(
        tmp_path / "m"
    )
    source = f"transformers:{tmp_path / 'm'}"
    export(tmp_path, source, "--data", data)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
    assert least_cosine(embedded(tmp_path / "old.onnx", images), unit(tokens[:, 0])) > 0.999
    export(tmp_path, source, "--data", data, "--pooling", "mean")
    assert least_cosine(embedded(tmp_path / "old.onnx", images), unit(tokens.mean(1))) > 0.999
    refused = run("export", source, "--pooling", "pooler", "-o", tmp_path / "no.onnx")
    assert refused.code == 5
    assert "lacks" in refused.stderr
    kept.popitem()
    safetensors.save_file(kept, file, {"format": "pt"})
    refused = run("export", source, "-o", tmp_path / "no.onnx")
    assert refused.code == 5
    assert "lacks" in refused.stderr
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("timm:no_such_net", "--weights", "w.pt"), 5, "no such architecture"),
        (("timm:resnet18",), 2, "architecture without weights"),
        (("timm:resnet18", "--weights", "w.pt"), 5, "required. Missing"),
        (("timm:resnet18", "--weights", "w.pt", "--arg", "pretrained=true"), 5, "fetches weights"),
        (("timm:hf-hub:timm/resnet18", "--weights", "w.pt"), 5, "no such architecture"),
        (("torchvision:no_net", "--weights", "w.pt"), 5, "no classifier of that name"),
        (("torchvision:resnet18:V9", "--weights", "w.pt"), 5, "no weights 'V9'"),
        (("transformers:gone",), 5, "there is no config.json"),
        (("resnet18",), 2, "names no model"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int,
    message: str,
) -> None:  # fmt: skip
    """Nothing is written, and nothing is fetched."""
    for name in ("timm", "torchvision", "transformers"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    torch.save({"other.weight": torch.zeros(3)}, "w.pt")
    refused = run("export", *arguments, "-o", "old.onnx")
    assert refused.code == code, refused.stderr
    assert message in refused.stderr
    assert not Path("old.onnx").exists()
