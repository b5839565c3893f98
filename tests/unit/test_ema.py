"""The moving average of weights: what it is after some steps, and what it is of."""

import pytest
import torch
from torch import nn

from lockstep.strategies.ema import Ema


class Net(nn.Module):
    """A weight under two names, one that is not trained, and a buffer."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("count", torch.zeros(1))


def walk(model, ema, steps):
    """Change a model at random, and return what its weight was after each step."""
    draw, seen = torch.Generator().manual_seed(0), []
    for step in steps:
        with torch.no_grad():
            model.one.weight.add_(torch.randn(2, 2, generator=draw))
            model.count.add_(1)
        ema.update(step)
        seen.append(model.one.weight.detach().double().clone())
    return seen


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_of_the_formula(decay):
    model = Net()
    expected = model.one.weight.detach().double().clone()
    ema = Ema(model, decay)
    for step, weight in enumerate(walk(model, ema, range(50))):
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight
    found = ema.model_state()
    assert torch.allclose(found["one.weight"].double(), expected, atol=1e-5)
    assert not torch.allclose(found["one.weight"], model.one.weight, atol=1e-2)
    assert torch.equal(found["two.weight"], found["one.weight"])
    assert found.keys() == model.state_dict().keys()
    assert found["frozen"].tolist() == [1, 1, 1]
    assert found["count"].tolist() == [50]


def test_what_is_kept_is_enough_to_go_on():
    whole, parts = Net(), Net()
    parts.load_state_dict(whole.state_dict())
    expected, first = Ema(whole, 0.9), Ema(parts, 0.9)
    walk(whole, expected, range(6))
    walk(parts, first, range(6))
    kept = {name: value.clone() for name, value in first.state().items()}
    assert kept.keys() == {"ema.one.weight"}
    second = Ema(parts, 0.9)
    second.load(kept)
    for model, ema in ((whole, expected), (parts, second)):
        walk(model, ema, range(6, 9))
    assert torch.equal(expected.averages[0], second.averages[0])
