"""Models drawn at random: any strategy gives the bits of one process, or one line that refuses."""

import pytest

from tests.mpi.drawn_runs import train_drawn, verdicts

pytestmark = pytest.mark.thorough

# Between them, these have most kinds of blocks, and number 21 is refused; `make promise` has more.
NUMBERS = (*range(8), 21)


@pytest.fixture(scope="module")
def judged(digits, tmp_path_factory):
    return verdicts(train_drawn(NUMBERS, digits, tmp_path_factory.mktemp("drawn")))


def test_any_strategy_has_the_bits_of_one_process_or_refuses(judged):
    assert {key: text for key, text in judged.items() if text not in ("=", "refused")} == {}


def test_some_models_are_trained_by_every_strategy_and_some_by_none(judged):
    of = [{text for (number, _, _), text in judged.items() if number == n} for n in NUMBERS]
    assert {"="} in of
    assert {"refused"} in of
