"""The exported graph, and augmentation of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import train_kit as kit
from PIL import Image

from compatctl.errors import InputError
from compatctl.recipe import Augmentation
from compatctl.recipe import Junction as JunctionRecipe
from compatctl.train import embed, export, train
from compatctl.train.images import augment
from compatctl.train.network import Junction


def test_the_exported_file_computes_what_torch_computes(tmp_path: Path) -> None:
    """One file, uint8 images in, unit rows out, any batch size, the same values."""
    data = kit.dataset(tmp_path, per_class=4)
    trained = train(
        recipe=kit.recipe(tmp_path, junction="junction: {kind: mlp, hidden: 16, dropout: 0.5}"),
        base=kit.base(tmp_path),
        data=data,
        reference=kit.gallery(data),
        work=tmp_path,
    )
    folder = tmp_path / "out"
    folder.mkdir()
    export(trained.network, folder / "raw.onnx", 16, 16)
    assert [path.name for path in folder.iterdir()] == ["raw.onnx"]
    session = onnxruntime.InferenceSession(folder / "raw.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [16, 16, 3])
    assert isinstance(image.shape[0], str)
    images = kit.pixels(data)
    for n in (1, 3, len(images)):
        (embedding,) = session.run(["embedding"], {"image": images[:n]})
        assert embedding.dtype == np.float32
        assert np.abs(embedding - embed(trained.network, images[:n])).max() < 1e-5
        assert np.abs(np.linalg.norm(embedding, axis=1) - 1).max() < 1e-5


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    """A broken file among the training images ends training with its id."""
    from compatctl.data import load

    for label in ("a", "b", "c", "d", "e", "f"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (16, 16), (40 * i, 9, 7)).save(tmp_path / "set" / label / f"{i}.png")
    data = load(tmp_path / "set")
    bad = data.filter(split="train").ids[0]
    reference = kit.gallery(data, dim=4, every=1)
    (tmp_path / "set" / bad).write_bytes(b"no image")
    with pytest.raises(InputError, match=bad):
        train(
            recipe=kit.recipe(tmp_path),
            base=kit.base(tmp_path),
            data=data,
            reference=reference,
            work=tmp_path,
        )


def test_a_backbone_that_does_not_fit_its_input_is_refused(tmp_path: Path) -> None:
    """A method that cannot run on the recipe's input is an error about the recipe."""
    data = kit.dataset(tmp_path, per_class=2)
    recipe = kit.recipe(
        tmp_path,
        backbone="backbone: {factory: 'torch.nn:Linear', args: {in_features: 5, out_features: 2},"
        " input: {height: 16, width: 16}}",
        text="format: 1\nobjective: {lambda: 1.0}\n",
    )
    with pytest.raises(InputError, match="does not run on images 16 x 16"):
        train(recipe=recipe, base=None, data=data, reference=kit.gallery(data), work=tmp_path)


def test_augmentation_is_decided_by_its_generator() -> None:
    """The same generator state gives the same image, another one another image."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    change = Augmentation(flip=True, crop=0.5, rotate=30.0, shift=0.1, colour=0.4)
    first, same, other = (
        np.asarray(augment(image, change, np.random.default_rng(seed)).resize((16, 16)))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    unchanged = augment(image, Augmentation(), np.random.default_rng(1))
    assert np.array_equal(np.asarray(unchanged), np.asarray(image))


def test_flip_mirrors_about_half_of_the_images() -> None:
    """With flip alone, 60 seeds give 15 to 45 mirror images."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    plain = np.asarray(image)
    mirrored = [
        bool(
            (
                np.asarray(augment(image, Augmentation(flip=True), np.random.default_rng(i)))
                == plain[:, ::-1]
            ).all()
        )
        for i in range(60)
    ]
    assert 15 < sum(mirrored) < 45


@pytest.mark.parametrize("kind", ["residual", "linear", "mlp"])
def test_a_junction_is_the_same_map_as_layers(kind: str) -> None:
    """Its layers with a ReLU between them give what torch gives, the standardisation of the
    features included, for every kind."""
    torch.manual_seed(0)
    junction = Junction(JunctionRecipe(kind=kind, hidden=7), 5, 3).eval()
    x = torch.randn(40, 5) * torch.tensor([1.0, 9.0, 0.1, 2.0, 1.0]) + 3.0
    x[:, 4] = 0.25  # constant, and left out
    junction.standardise(x)
    with torch.no_grad():
        expected = junction(x).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(junction.as_adapter()(x.numpy()), expected, atol=1e-5)
