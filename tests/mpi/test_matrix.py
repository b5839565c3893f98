"""The promise's matrix: points that have every pair of two axes' values, through real mpirun."""

import itertools

import pytest

from tests.conftest import FEW_RANKS, thorough
from tests.mpi.matrix import (
    Configuration,
    Point,
    all_points,
    make_table,
    pairs,
    pairwise,
    references,
    train,
)

POINTS = pairwise(all_points())


def test_the_points_have_every_pair_of_values():
    points = all_points()
    assert set(POINTS) <= set(points)
    assert set().union(*map(pairs, points)) == set().union(*map(pairs, POINTS))
    for point in POINTS:  # each is needed, or was when it was chosen
        earlier = POINTS[: POINTS.index(point)]
        assert pairs(point) - set().union(*map(pairs, earlier))
    # Where the ranks do not divide the shards, there is no point; else every pair there is.
    found = {(point.configuration.shards, point.ranks) for point in POINTS}
    assert found == {
        (s, p) for s, p in itertools.product((4, 8, 12), (1, 2, 3, 4, 6, 8)) if s % p == 0
    }


@pytest.fixture(scope="module")
def expected(digits, tmp_path_factory):
    """Return the hashes of each configuration, trained by one process."""
    configurations = dict.fromkeys(point.configuration for point in POINTS)
    return references(configurations, digits, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    """Return a function that gives a point's hashes; points with its number of ranks come along."""
    known = {}

    def of(point: Point) -> dict[str, str | None]:
        if point not in known:
            alike = [some for some in POINTS if some.ranks == point.ranks]
            known.update(train(alike, digits, tmp_path_factory.mktemp("points")))
        return known[point]

    return of


@pytest.mark.parametrize(
    "point",
    [point if point.ranks in FEW_RANKS else thorough(point) for point in POINTS],
    ids=lambda point: "-".join(map(str, point.values)),
)
def test_every_part_of_a_result_is_that_of_one_process(point, expected, found):
    assert found(point) == expected[point.configuration]


def test_no_two_configurations_have_the_same_result(expected):
    for part in ("weights", "optimizer state", "history", "predictions"):
        assert len({parts[part] for parts in expected.values()}) == len(expected), part
    for configuration, parts in expected.items():
        normed = configuration.model == "ResNet with BatchNorm"
        assert (parts["BatchNorm statistics"] is not None) == normed


def test_the_table_shows_what_differs():
    configuration = Configuration(4, "CNN", "SGD", "off")
    one, other = {"weights": "1" * 64}, {"weights": "2" * 64}
    points = [Point(configuration, ranks, "MPI") for ranks in (2, 4)]
    head, _, row = make_table(
        dict(zip(points, (one, other), strict=True)), {configuration: one}
    ).splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["MPI 2"] == f"= {cells['one process']}"
    assert cells["MPI 4"].startswith("**other** `")
    assert cells["MPI 3"] == ""
