"""models: what is built, from which seed, and the one line for what cannot be."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lockstep import tensors as state
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.models import build, load, rehearse


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_the_cnn_is_the_small_one_of_the_examples():
    model = build("cnn", (1, 28, 28), 10)
    assert count(model) == 21_840
    features = next(layer for layer in model if isinstance(layer, nn.Linear)).in_features
    assert features == 320
    assert model(torch.zeros(5, 1, 28, 28)).shape == (5, 10)
    assert model.training


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 40), (2, 33, 17)])
def test_the_cnn_takes_images_of_16_pixels_and_more(shape):
    assert build("cnn", shape, 4)(torch.zeros(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 15, 28), (1, 28, 15), (1, 2, 2)])
def test_smaller_images_are_refused_by_the_cnn(refused, shape):
    with refused("model", "cnn", "16 x 16", f"{shape[1]} x {shape[2]}"):
        build("cnn", shape, 10)


def test_the_linear_model_has_a_weight_for_each_pixel_and_class():
    assert count(build("linear", (3, 4, 5), 7)) == 3 * 4 * 5 * 7 + 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "linear", "resnet18"])
def test_the_seed_alone_decides_on_the_weights(name):
    def digest(seed):
        return state.digest(build(name, (1, 28, 28), 10, seed).state_dict())

    known = digest(0)
    torch.rand(7)
    assert digest(0) == known
    assert len({known, digest(1), digest(2**63 - 1)}) == 3


def test_building_leaves_the_statistics_of_batchnorm_as_they_begin():
    layers = build("resnet18", (3, 32, 32), 10).modules()
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 20
    for norm in norms:
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))


@pytest.mark.parametrize("channels", [1, 3])
def test_resnets_start_gently_on_small_images(channels):
    shape = (channels, 32 if channels == 3 else 28, 32 if channels == 3 else 28)
    model = build("resnet18", shape, 10)
    assert model.conv1.weight.shape == (64, channels, 3, 3)
    assert model.conv1.stride == (1, 1)
    # As on large ones, but for the first convolution and the last layer.
    assert count(model) == 11_689_512 - 64 * 3 * 49 + 64 * channels * 9 - 513_000 + 5_130
    seen = []
    model.layer1.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    model(torch.zeros(2, *shape))
    assert seen == [(2, 64, *shape[1:])]


def test_resnets_are_torchvisions_on_large_images():
    model = build("resnet18", (3, 64, 64), 1000)
    assert count(model) == 11_689_512
    assert model.conv1.kernel_size == (7, 7)
    assert build("resnet18", (4, 64, 64), 10).conv1.weight.shape == (64, 4, 7, 7)


def test_other_classifiers_get_a_first_layer_for_their_channels():
    model = build("mobilenet_v3_small", (1, 32, 32), 10)
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.shape == (16, 1, 3, 3)
    assert first.stride == (2, 2)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "name", ["resnet", "ResNet18", "", "fasterrcnn_resnet50_fpn", "raft_small"]
)
def test_an_unknown_model_is_named(refused, name):
    with refused("model", repr(name), "resnet50", "package.module:function"):
        build(name, (3, 32, 32), 10)


def test_a_model_that_cannot_take_the_images_is_named(refused):
    with refused("model", "vit_b_16", "(3, 32, 32)"):
        build("vit_b_16", (3, 32, 32), 10)


OWN = """
import torch
from torch import nn

def good(shape, classes):
    assert shape == (1, 4, 4)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

def wrong_classes(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes + 1))

class Pair(nn.Module):
    def forward(self, images):
        return images, images

def pair(shape, classes):
    return Pair()

def nothing(shape, classes):
    pass

def broken(shape, classes):
    raise RuntimeError("no\\nsuch\\nlayer")

def takes_none():
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's module zoo.own, below the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "own.py").write_text(OWN)
    yield tmp_path
    for name in ("zoo", "zoo.own"):
        sys.modules.pop(name, None)


def test_a_model_of_the_users_is_found_below_the_working_directory(own):
    one, other = (build("zoo.own:good", (1, 4, 4), 3, seed=1) for _ in range(2))
    assert one(torch.zeros(5, 1, 4, 4)).shape == (5, 3)
    assert state.digest(one.state_dict()) == state.digest(other.state_dict())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zoo.own:gone", ["zoo.own:gone", "cannot be imported", "gone"]),
        ("zoo.gone:good", ["zoo.gone:good", "cannot be imported", "zoo.gone"]),
        ("gone:good", ["gone:good", "cannot be imported", "installed packages"]),
        ("zoo.own:wrong_classes", ["zoo.own:wrong_classes", "(2, 4)", "expected (2, 3)"]),
        ("zoo.own:pair", ["zoo.own:pair", "tuple", "expected (2, 3)"]),
        ("zoo.own:nothing", ["zoo.own:nothing", "NoneType"]),
        ("zoo.own:broken", ["zoo.own:broken", "(1, 4, 4)", "no"]),
        ("zoo.own:takes_none", ["zoo.own:takes_none", "argument"]),
        ("zoo.own:number", ["zoo.own:number", "cannot be called"]),
        ("os:system", ["os:system", "cannot be called", "argument"]),
    ],
)
def test_a_wrong_model_of_the_users_is_one_line(own, refused, name, words):
    with refused("model", *words):
        build(name, (1, 4, 4), 3)


def test_a_rehearsal_finds_what_training_would(refused):
    shape = (1, 28, 28)
    for name in ("cnn", "linear"):
        rehearse(name, build(name, shape, 10), shape, 1)
    pooled = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))
    rehearse("pooled", pooled, shape, 2)
    with refused("model: pooled cannot be trained on 1 images"):
        rehearse("pooled", pooled, shape, 1)


def test_the_name_that_was_probably_meant_is_said(refused):
    with refused("model: no 'resnet8'; did you mean 'resnet18'? Or take cnn"):
        build("resnet8", (3, 32, 32), 10)


def test_a_file_that_does_not_say_which_model_it_is_is_refused(tmp_path, refused):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with refused(path, "does not say which model it is"):
        load(path)


def test_a_model_that_ends_with_a_softmax_is_refused_where_it_is_to_give_logits(refused):
    shape = (1, 8, 8)
    twice = nn.Sequential(build("linear", shape, 3), nn.Softmax(1))
    with refused("mine", "probabilities", "expected logits"):
        rehearse("mine", twice, shape, 4)
    rehearse("mine", twice, shape, 4, TASKS["regression"])
    rehearse("mine", nn.Sequential(build("linear", shape, 3), nn.LogSoftmax(1)), shape, 4)
    rehearse("mine", nn.Sequential(build("linear", shape, 3), nn.ReLU()), shape, 4)
