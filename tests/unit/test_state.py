"""state: weights in files, and hashes that tell values apart."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lockstep import tensors as state
from lockstep.files import sha256


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_what_is_read_is_what_was_saved(tmp_path):
    values = make().state_dict() | {"half": torch.randn(3).bfloat16(), "one": torch.tensor(True)}
    state.save(values, tmp_path / "a")
    found = state.read(tmp_path / "a")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_the_same_values_give_the_same_bytes(tmp_path):
    model = make()
    state.save(model.state_dict(), tmp_path / "a")
    state.save(dict(reversed(model.state_dict().items())), tmp_path / "b")
    state.save(model.to(memory_format=torch.channels_last).state_dict(), tmp_path / "c")
    assert len({sha256(tmp_path / name) for name in "abc"}) == 1
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-6
    state.save(model.state_dict(), tmp_path / "d")
    assert sha256(tmp_path / "d") != sha256(tmp_path / "a")


def test_tied_weights_can_be_saved(tmp_path):
    weight = torch.randn(2, 2)
    state.save({"a": weight, "b": weight}, tmp_path / "a")
    assert torch.equal(state.read(tmp_path / "a")["b"], weight)


@pytest.mark.parametrize("keep", [None, 0, 4, 100, -1])
def test_a_damaged_file_is_named(tmp_path, refused, keep):
    path = tmp_path / "a.safetensors"
    state.save(make().state_dict(), path)
    whole = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(whole[:keep])
    with refused(path, "train again"):
        state.read(path)


def test_a_file_of_something_else_is_named(tmp_path, refused):
    path = tmp_path / "a.safetensors"
    path.write_text("<html>\nnot\nthis\n</html>" * 10)
    with refused(path, "train again"):
        state.read(path)
    with refused(tmp_path):
        state.read(tmp_path)


def test_weights_go_into_a_model_of_their_own_kind(tmp_path):
    state.save(make(0).state_dict(), tmp_path / "a")
    other = make(1)
    state.load(other, tmp_path / "a")
    assert state.digest(other.state_dict()) == state.digest(make(0).state_dict())


def test_weights_of_another_model_are_refused(tmp_path, refused):
    path = tmp_path / "a"
    state.save(make().state_dict(), path)
    with refused(path, "not the weights of this model"):
        state.load(nn.Linear(2, 2), path)
    with refused(path, "not the weights of this model", "size mismatch"):
        state.load(nn.Sequential(*list(make())[:-1], nn.Linear(16, 3)), path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-20, 20)
    | st.floats(allow_nan=False)
    | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 3) | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_digests_are_equal_only_where_values_are(one, other):
    assert (state.digest(one) == state.digest(other)) == (repr_of(one) == repr_of(other))


def repr_of(value):
    """Return text that tells values apart, whatever the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{k!r}:{repr_of(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)


def test_digests_tell_nestings_apart():
    different = [
        [1, 23],
        [12, 3],
        [[1], 23],
        [1, [23]],
        "123",
        {"a": {"b": 1}},
        {"ab": 1},
        {"a": 1, "b": 2},
        {"a": [1, "b", 2]},
        {1: 2},
        {"1": 2},
        [torch.tensor([1.0, 2.0])],
        [torch.tensor([1.0]), torch.tensor([2.0])],
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([1.0, 2.0]).double(),
        torch.tensor([1.0, 2.0]).view(torch.int32),
        torch.tensor([0.0]),
        torch.tensor([-0.0]),
        torch.tensor(0.0),
        torch.empty(0),
        torch.empty(0, 2),
    ]
    assert len({state.digest(value) for value in different}) == len(different)


def test_digests_do_not_see_layout_or_the_order_of_keys():
    value = torch.randn(2, 3, 4, 5)
    assert state.digest(value) == state.digest(value.to(memory_format=torch.channels_last))
    assert state.digest({"a": 1, "b": 2}) == state.digest({"b": 2, "a": 1})
    assert state.digest([1, 2]) == state.digest((1, 2))
    assert state.digest(nn.Parameter(value)) == state.digest(value)


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells of the parent there")
def test_the_most_memory_of_a_process_is_its_own_and_not_its_parents():
    held = bytearray(600_000_000)
    held[::4096] = b"1" * len(held[::4096])
    del held
    code = "from lockstep.checkpoint.state import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50_000_000 < int(done.stdout) < 600_000_000
