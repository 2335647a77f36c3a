"""The benchmark of a sequence with replacements: its data, its protocol, its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.common import cnn, resnet
from benchmarks.common import sequence as protocol
from benchmarks.common import sequence_data as given
from benchmarks.common import sequence_docs as docs
from benchmarks.common import sequence_methods as methods
from benchmarks.studies import iamcl2r
from compatctl.core.matrix import summarise
from compatctl.core.simplex import simplex
from compatctl.errors import InputError
from compatctl.recipe import Augmentation, InputSpec

SIDE = given.SIDE


def test_a_binary_cifar_file_is_read_plane_by_plane(tmp_path: Path) -> None:
    """The class is the last label byte, and a pixel's colours are a plane apart in the file."""
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (3, 2 + 3 * SIDE * SIDE), dtype=np.uint8)
    records[:, :2] = [[1, 11], [2, 99], [0, 0]]
    path = tmp_path / "train.bin"
    path.write_bytes(records.tobytes())
    images = given.read_cifar(path, labels=2)
    assert images.labels.tolist() == [11, 99, 0]
    for at, row, column, colour in ((0, 0, 0, 0), (1, 5, 31, 1), (2, 31, 2, 2)):
        byte = 2 + colour * SIDE * SIDE + row * SIDE + column
        assert images.pixels[at, row, column, colour] == records[at, byte]


@pytest.mark.parametrize("content", [b"", b"\0" * 3073, None])
def test_a_file_that_is_no_cifar_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Empty, of another number of label bytes, or not there."""
    path = tmp_path / "train.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError):
        given.read_cifar(path, labels=2)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Both data sets in small: 5 images of each of 100 classes, 2 of each of ten."""
    rng = np.random.default_rng(0)

    def write(name: str, labels: list[int], first: list[int]) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (len(labels), 3 * SIDE * SIDE), dtype=np.uint8)
        heads = np.array([[*first, label] for label in labels], np.uint8)
        path.write_bytes(np.hstack([heads, pixels]).tobytes())

    for name in given.FILES_100:
        write(name, [*range(100)] * 5, [0])
    for name in (*given.FILES_10, given.GALLERY_10):
        write(name, [*range(10)] * 2, [])
    return tmp_path


def test_cifar_is_shared_out_between_here_and_elsewhere(cifar: Path) -> None:
    """No image of a local class trains elsewhere, and the gallery's images train nobody."""
    setup = given.cifar(cifar, 0, per_class=3)
    assert (setup.classes, setup.others, setup.first) == (40, 60, 10)
    assert [len(element.labels) for element in setup.elsewhere] == [60, 120, 180]
    local = {pixel.tobytes() for pixel in setup.local.pixels}
    assert len(local) == 120
    for images in (*setup.elsewhere, setup.tests["all"].gallery, setup.tests["all"].queries):
        assert not local & {pixel.tobytes() for pixel in images.pixels}
    assert len(setup.tests["all"].gallery.labels) == 80
    assert len(setup.tests["ten"].queries.labels) == 100
    assert [len(task) for task in protocol.tasks(40, 10, 31)] == [10, *[1] * 30]


@pytest.mark.parametrize("count", [7, 31])
def test_tasks_are_disjoint_and_hold_every_class(count: int) -> None:
    """As many as were asked for; replacements begin at the authors' tasks."""
    tasks = protocol.tasks(300, 30, count)
    assert len(tasks) == count
    assert [element for part in tasks for element in part] == [*range(300)]
    assert len({len(element) for element in tasks[1:]}) == 1
    assert protocol.replacements(count) == {7: (2, 4), 31: (10, 20)}[count]


def test_classes_that_cannot_be_shared_out_are_refused() -> None:
    """Two hundred and seventy others make no seven equal tasks."""
    with pytest.raises(InputError):
        protocol.tasks(300, 30, 8)


def test_no_vertex_is_shared() -> None:
    """Classes elsewhere fill the table from its start, local ones from its end; it may be full."""
    elsewhere, local = protocol.vertices(1024, 700, 324)
    assert sorted([*elsewhere, *local]) == [*range(1024)]
    assert (elsewhere[0], local[0]) == (0, 1023)
    with pytest.raises(InputError):
        protocol.vertices(1024, 701, 324)


def _material() -> given.Material:
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (16, SIDE, SIDE, 3))

    def images(classes: range, shift: int) -> given.Images:
        labels = np.repeat(np.arange(len(classes)), 4)
        pixels = looks[np.repeat(classes, 4)] + rng.integers(-30, 30, (len(labels), SIDE, SIDE, 3))
        return given.Images(pixels=np.clip(pixels + shift, 0, 255).astype(np.uint8), labels=labels)

    test = given.Test(queries=images(range(12, 16), 9), gallery=images(range(12, 16), 0), ways=2)
    return given.Material(
        name="kanji",
        elsewhere=tuple(images(range(n), 0) for n in (2, 3, 4)),
        local=images(range(4, 12), 0),
        first=2,
        tests={"ten": test, "all": replace(test, ways=0)},
        spec=InputSpec(height=SIDE, width=SIDE, mean=(127.5,) * 3, std=(127.5,) * 3),
        augmentation=Augmentation(rotate=5.0, shift=0.06, flip=True),
    )


@pytest.fixture(scope="module")
def setup() -> protocol.SequenceSetup:
    """Sixteen noise patterns, a tiny network, two epochs."""
    settings = methods.Settings(K=16, epochs=2, batch=8, elsewhere_epochs=(2, 2, 2), memory=1)
    build: Callable[[], torch.nn.Module] = partial(cnn.build, width=4, features=8, pool=False)
    return protocol.SequenceSetup(
        material=_material(), settings=settings, build=build, seed=0, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def base(setup: protocol.SequenceSetup) -> dict[bool, list[protocol.Network]]:
    """The three models from elsewhere of either kind."""
    return {
        fixed: [protocol.pretrained(setup, stage, fixed=fixed) for stage in range(3)]
        for fixed in (True, False)
    }


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda one: one.name)
def test_every_method_walks_the_sequence_alike_twice(
    setup: protocol.SequenceSetup, base: dict[bool, list[protocol.Network]], method: methods.Method
) -> None:
    """The lower triangle holds hit rates, the upper nothing; models elsewhere stay as they came."""
    before = [
        element.state_dict()["backbone.head.1.weight"].clone() for element in base[method.fixed]
    ]
    walks = [protocol.walk(setup, method, 4, base[method.fixed]) for _ in range(2)]
    assert set(walks[0]) == {"ten", "all"}
    for name, matrix in walks[0].items():
        assert np.array_equal(matrix, walks[1][name])
        assert ((matrix >= 0) & (matrix <= 1)).all()
        assert not np.triu(matrix, 1).any()
    assert (walks[0]["ten"] >= walks[0]["all"]).all()
    after = [element.state_dict()["backbone.head.1.weight"] for element in base[method.fixed]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_deployed_model_is_the_other_reference(
    setup: protocol.SequenceSetup, base: dict[bool, list[protocol.Network]]
) -> None:
    """Until the first replacement both references are one model; then they are two."""
    kinds = [method for method in methods.METHODS if method.fixed and method.form == "hoc"]
    kinds = [method for method in kinds if method.contrast]
    setup = replace(setup, settings=replace(setup.settings, lr=0.1))
    alone, deployed = (protocol.walk(setup, kind, 7, base[True])["all"] for kind in kinds)
    assert np.array_equal(alone[:2], deployed[:2])
    assert not np.array_equal(alone[2:], deployed[2:])


def test_class_means_of_the_previous_model_are_another_target(
    setup: protocol.SequenceSetup, base: dict[bool, list[protocol.Network]]
) -> None:
    """The loss of the default recipe, towards vertices and towards means."""
    named = {method.name: method for method in methods.METHODS}
    kinds = ("defaults on vertices", "defaults", "defaults deployed")
    setup = replace(setup, settings=replace(setup.settings, lr=0.1))
    vertices, means, deployed = (
        protocol.walk(setup, named[kind], 7, base[True])["all"] for kind in kinds
    )
    assert not np.array_equal(vertices, means)
    assert np.array_equal(means[:2], deployed[:2])


def test_the_influence_loss_begins_with_the_second_task(
    setup: protocol.SequenceSetup, base: dict[bool, list[protocol.Network]]
) -> None:
    """BCT-ER is ER until there is a previous classifier."""
    setup = replace(setup, settings=replace(setup.settings, lr=0.1))
    named = {method.name: method for method in methods.METHODS}
    alone, pulled = (
        protocol.walk(setup, named[name], 7, base[False])["all"] for name in ("ER", "BCT-ER")
    )
    assert alone[0, 0] == pulled[0, 0]
    assert not np.array_equal(alone[1:], pulled[1:])


def test_models_from_elsewhere_are_kept(setup: protocol.SequenceSetup, tmp_path: Path) -> None:
    """The same model comes from its file; another seed, or another classifier, is another file."""
    first, again = (
        iamcl2r.elsewhere(setup, 1, fixed=True, work=tmp_path).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    fresh = protocol.pretrained(setup, 1, fixed=True).state_dict()
    assert all(torch.equal(first[key], fresh[key]) for key in first)
    assert len([*tmp_path.iterdir()]) == 1
    iamcl2r.elsewhere(replace(setup, seed=1), 1, fixed=True, work=tmp_path)
    iamcl2r.elsewhere(setup, 1, fixed=False, work=tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_pretraining_pulls_classes_to_their_own_vertices(setup: protocol.SequenceSetup) -> None:
    """The vertex nearest to a class elsewhere is the one of its number."""
    longer = replace(setup.settings, elsewhere_epochs=(30, 30, 30), elsewhere_lr=0.01)
    still = replace(setup.material, augmentation=Augmentation())
    setup = replace(setup, settings=longer, material=still)
    images = setup.material.elsewhere[2]
    features = protocol.embedded(setup, protocol.pretrained(setup, 2, fixed=True), images)
    assert ((features @ simplex(16).T).argmax(axis=1) == images.labels).all()


def test_a_change_leaves_images_in_their_range() -> None:
    """No change is the image itself; a mirror is its mirror; a turn interpolates."""
    images = torch.rand(6, SIDE, SIDE, 3) * 255.0
    rng = np.random.default_rng(0)
    assert torch.allclose(protocol.changed(images, Augmentation(), rng), images, atol=1e-2)
    flipped = protocol.changed(images, Augmentation(flip=True), rng)
    kinds = [
        [torch.allclose(element, image if side else image.flip(1), atol=1e-2) for side in (0, 1)]
        for element, image in zip(flipped, images, strict=True)
    ]
    assert all(sum(kind) == 1 for kind in kinds)
    assert len({tuple(kind) for kind in kinds}) == 2
    turned = protocol.changed(images, Augmentation(rotate=20.0, shift=0.1), rng)
    assert not torch.allclose(turned, images, atol=1.0)
    assert (turned.min() >= 0) & (turned.max() <= 255.001)


def test_the_resnet_gives_512_numbers() -> None:
    """And has the 11.2 million weights of a ResNet-18 without its classifier."""
    network = resnet.build().eval()
    assert network(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, resnet.FEATURES)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_176_512


def _result(method: str, seed: int, win: float, tasks: int = 3) -> docs.Result:
    matrix = [[0.5, 0.0, 0.0], [0.5 + win, 0.6, 0.0], [0.55, 0.6 + win, 0.7]]
    return docs.Result(
        data="kanji", method=method, tasks=tasks, seed=seed, settings={"K": 16}, seconds=60.0,
        matrices={"ten": matrix, "all": matrix},
    )  # fmt: skip


def test_the_page_says_what_the_matrices_say() -> None:
    """AC, AA and ACA are those of core, a mean with every seed's beside it, and the SVG is one."""
    results = [_result("d-Simplex-HOC", 0, 0.1), _result("d-Simplex-HOC", 1, -0.1),
               _result("ER", 0, -0.5)]  # fmt: skip
    text = docs.page(results, "iamcl2r.svg")
    first, second = (summarise(result.matrix("ten")) for result in results[:2])
    assert first.ac == 1.0
    assert second.ac == pytest.approx(1 / 3)
    assert ".67 (1.00, .33)" in text
    assert f"{(first.aa + second.aa) / 2:.3f}".removeprefix("0") in text
    assert "(iamcl2r.svg)" in text
    root = ElementTree.fromstring(docs.figure(results))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2 + len(results) * 2 * 2


def test_pairs_across_a_replacement_are_counted_apart() -> None:
    """Of three tasks, each begins with another model; of four, the third continues the second."""
    values = _result("ER", 0, 0.1).matrix("ten")
    assert np.isnan(docs.crossed(values)[0])
    four = np.tril(np.full((4, 4), 0.5))
    four[2, 1] = 0.9
    assert protocol.replacements(4) == (1, 2)
    assert docs.crossed(four) == (0.0, pytest.approx(1 / 5))
