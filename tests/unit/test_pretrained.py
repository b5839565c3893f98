"""Weights that a model begins with, the head that it gets anew, and what stays frozen."""

import hashlib
import io
import json
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from lockstep import tensors
from lockstep.optimizer import update
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import IMAGENET_MEAN, Manifest
from lockstep.pipeline.models import build
from lockstep.pipeline.models.pretrained import freeze, head_of, load, prepare, read
from lockstep.pipeline.optim import make_optimizer
from lockstep.pipeline.stages.download import fetch_weights
from lockstep.reduce.layout import copy_of

HEADS = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "squeezenet1_1": "classifier.1",
    "efficientnet_b0": "classifier.1",
    "convnext_tiny": "classifier.2",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "densenet121": "classifier",
    "googlenet": "fc",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_weights_of_torchvisions_models_fit_all_but_the_head(name, tmp_path):
    options = {"init_weights": True} if name == "googlenet" else {}
    others = torchvision.models.get_model(name, weights=None, num_classes=7, **options)
    torch.save(others.state_dict(), tmp_path / "w.pth")
    weights = read(tmp_path / "w.pth")
    like = {key: tuple(value.shape) for key, value in weights.items()}
    model = build(name, (3, 224, 224), 5, like=like)
    head = head_of(model, 5)
    assert head.names == {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert load(model, weights, head, tmp_path / "w.pth") == sorted(head.names)
    state = model.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in state.keys() - head.names)


def state(seed=1, classes=7):
    return build("cnn", (1, 28, 28), classes, seed).state_dict()


def test_every_form_of_a_file_is_read(tmp_path):
    known = state()
    tensors.save(known, tmp_path / "a.safetensors")
    torch.save(known, tmp_path / "b.pth")
    torch.save({"state_dict": known, "epoch": 3}, tmp_path / "c.pt")
    torch.save({f"module.{name}": value for name, value in known.items()}, tmp_path / "d.pth")
    for path in sorted(tmp_path.iterdir()):
        found = read(path)
        assert found.keys() == known.keys()
        assert all(torch.equal(found[name], known[name]) for name in known)


class Trap:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_file_that_would_run_code_or_is_none_is_refused(tmp_path, refused, capsys):
    path = tmp_path / "w.pth"
    for content in ({"weight": Trap()}, nn.Linear(1, 1)):
        torch.save(content, path)
        with refused("weights", path, "expected"):
            read(path)
    for content in (b"", b"text", b"PK\x03\x04" + bytes(100)):
        for name in ("w.pth", "w.safetensors"):
            (tmp_path / name).write_bytes(content)
            with refused("weights", tmp_path / name):
                read(tmp_path / name)
    for content in ([1, 2], {}, {"weight": 1}):
        torch.save(content, path)
        with refused("weights", path, "expected a state_dict"):
            read(path)
    with refused("weights", "nowhere.pth is not there"):
        read(tmp_path / "nowhere.pth")
    assert "it ran" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(tmp_path, refused):
    model = build("cnn", (1, 28, 28), 10)
    head = head_of(model, 10)
    before = tensors.digest(model.state_dict())
    known = state()
    for wrong, words in (
        ({**known, "0.weight": torch.zeros(10, 3, 5, 5)}, ["'0.weight'", "(10, 3, 5, 5) in the"]),
        ({n: v for n, v in known.items() if n != "3.bias"}, ["'3.bias'", "not in the file"]),
        ({**known, "11.weight": torch.zeros(3)}, ["'11.weight'", "not in the model"]),
        (build("linear", (1, 28, 28), 10).state_dict(), ["more differ"]),
    ):
        with refused("weights: w.pth is not of this model", *words):
            load(model, wrong, head, "w.pth")
    assert tensors.digest(model.state_dict()) == before


def test_a_resnet_begins_as_its_weights_do():
    for stem, shape in (((64, 3, 7, 7), (64, 3, 7, 7)), ((64, 3, 3, 3), (64, 3, 3, 3))):
        model = build("resnet18", (3, 32, 32), 10, like={"conv1.weight": stem})
        assert model.conv1.weight.shape == shape
    assert build("resnet18", (3, 32, 32), 10).conv1.weight.shape == (64, 3, 3, 3)


def test_frozen_parts_stay_and_so_do_their_statistics():
    model = build("resnet18", (3, 32, 32), 10)
    freeze(model, "backbone", head_of(model, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for one in (model, copy_of(model)):
        one.train()
        optimizer = make_optimizer(Run(), one)
        one(torch.randn(4, 3, 32, 32)).square().mean().backward()
        update(optimizer, 0.1, None)
        after = one.state_dict()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved == {"fc.weight", "fc.bias"}

    model = build("resnet18", (3, 32, 32), 10)
    freeze(model, "conv1, layer1.", head_of(model, 10))
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    model.train()
    assert model.bn1.training
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training


@pytest.mark.parametrize(("what", "stay"), [("backbone", [True, True]), ("0", [True, False])])
def test_statistics_of_a_layer_without_parameters_stay_with_the_part_that_it_is_in(what, stay):
    norms = [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False)]
    parts = [nn.Sequential(nn.Conv2d(3, 4, 3), norms[0]), nn.Conv2d(4, 4, 3), norms[1]]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))
    freeze(model, what, head_of(model, 10))
    model.train()
    assert [not norm.training for norm in norms] == stay


def test_a_stage_of_a_model_has_the_learning_rates_of_the_whole():
    first = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 10))
    head, run = head_of(model, 10), Run(backbone_lr=0.01)
    assert head.names == {"2.weight", "2.bias"}
    # In the stage, a layer of the backbone has the name that the head has in the model.
    parts = [nn.Sequential(*first), nn.Sequential(model[1], model[2])]
    for part, share in zip(parts, (0.01, 1.0), strict=True):
        groups = make_optimizer(run, part, head).param_groups
        assert {group["lr_share"] for group in groups} == {share}
    groups = make_optimizer(run, copy_of(model), head).param_groups
    shares = {tuple(p.shape): group["lr_share"] for group in groups for p in group["params"]}
    assert shares == {(3, 4): 0.01, (3, 3): 0.01, (3,): 0.01, (10, 3): 1.0, (10,): 1.0}


def test_what_cannot_be_frozen_is_refused(refused):
    model = build("resnet18", (3, 32, 32), 10)
    head = head_of(model, 10)
    with refused("freeze", "'layer5'", "layer"):
        freeze(model, "layer5", head)
    with refused("freeze", "leaves nothing"):
        freeze(model, "conv1,bn1,layer1,layer2,layer3,layer4,fc", head)
    with refused("freeze: backbone", "by prefixes"):
        freeze(model, "backbone", head_of(model, 11))
    with refused("backbone_lr"):
        prepare(model, Run(backbone_lr=0.1), 11, None)


def test_the_backbone_learns_by_its_share():
    model = build("cnn", (1, 28, 28), 10)
    run = Run(backbone_lr=0.1, weight_decay=0.5, optimizer="sgd", momentum=0, nesterov=False)
    head = prepare(model, run, 10, None)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for one in (model, model[7:]):  # the whole, or a part of it, with names of its own
        before = {name: p.detach().clone() for name, p in one.named_parameters()}
        optimizer = make_optimizer(run, one, head)
        update(optimizer, 0.2, None)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.2 * 0.1, 0.2]
        for name, p in one.named_parameters():
            share = 1.0 if p is model[9].weight else 0.1
            decay = 0.2 * share * 0.5 if p.ndim > 1 else 0.0
            torch.testing.assert_close(p.detach(), before[name] * (1 - decay))


def manifest(shape):
    values = {"task": "classification", "outputs": 2, "class_names": ["a", "b"]}
    numbers = {"mean": [0.5] * shape[0], "std": [0.2] * shape[0]}
    more = {"sha256": {}, "samples": {}, "counts": [1, 1]}
    return Manifest(name="x", shape=shape, **values, **numbers, **more)


def test_images_are_normalised_as_the_weights_want(refused):
    own, grey = manifest((3, 8, 8)), manifest((1, 8, 8))
    assert own.seen_by(Run()) == own.seen_by(Run(weights="w.pth")) == own
    assert own.seen_by(Run(weights="torchvision:DEFAULT", normalize="data")) == own
    for run in (Run(weights="torchvision:DEFAULT"), Run(normalize="imagenet")):
        assert own.seen_by(run).mean == IMAGENET_MEAN
        with refused("normalize", "(1, 8, 8)", "dataset.colour"):
            grey.seen_by(run)


def test_weights_of_torchvisions_come_over_http(tmp_path, site, monkeypatch, refused, litter):
    file = io.BytesIO()
    torch.save(state(), file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    names = f"cnn-{digest[:8]}.pth", f"cnn-{digest[::-1][:8]}.pth"
    for name in names:
        site.answer(f"/weights/{name}", file.getvalue())
    entries = {
        f"V{i}": SimpleNamespace(name=f"V{i}", url=f"https://unused.invalid/{name}")
        for i, name in enumerate(names)
    }
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda model: entries)
    monkeypatch.setattr("lockstep.pipeline.stages.download.PAUSE", 0)
    output = tmp_path / "weights" / "cnn-V0.pth"
    fetch_weights("cnn", "V0", f"{site.url}/weights/", output)
    assert output.read_bytes() == file.getvalue()
    with refused("weights", names[1], "SHA-256", "dataset.mirror"):
        fetch_weights("cnn", "V1", f"{site.url}/weights", tmp_path / "weights" / "other.pth")
    assert litter(tmp_path) == ["weights/cnn-V0.pth"]


def test_names_that_torchvision_does_not_have_are_refused(tmp_path, refused):
    with refused("weights: resnet18 has no 'V9'", "IMAGENET1K_V1"):
        fetch_weights("resnet18", "V9", None, tmp_path / "w.pth")
    with refused("model", "'cnn'"):
        fetch_weights("cnn", "V9", None, tmp_path / "w.pth")


def test_a_head_for_other_classes_is_drawn_anew_though_its_shape_is_the_same(tmp_path, capsys):
    model = build("cnn", (1, 28, 28), 3, seed=1)
    path = tmp_path / "w.safetensors"
    about = {"lockstep": json.dumps({"classes": ["bird", "dog", "truck"]})}
    tensors.save(model.state_dict(), path, about)
    run, weights = Run(weights=str(path), freeze="backbone"), read(path)

    def begun(classes):
        one = build("cnn", (1, 28, 28), 3, seed=2)
        head = prepare(one, run, 3, weights, classes)
        return head, one.state_dict()

    head, other = begun(["cat", "frog", "ship"])
    assert "drawn anew" in capsys.readouterr().err
    assert {n for n in other if not other[n].equal(weights[n])} == {*head.names}
    same = begun(["bird", "dog", "truck"])[1]
    assert all(same[name].equal(weights[name]) for name in same)
    assert "drawn anew" not in capsys.readouterr().err
