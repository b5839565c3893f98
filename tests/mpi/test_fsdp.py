"""fsdp gives the bits of one process, in however many parts."""

import pytest

from tests.mpi.runs import train


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        *(("cnn", 1), ("busy", 4)),
        *(("resnet", 2), ("blocks", 4)),
        *(("bfloat16", 2), ("six shards", 3)),
    ],
)
def test_the_bits_are_those_of_one_process(name, ranks, digits, single, tmp_path):
    assert train(digits, tmp_path, name, ranks, "--strategy", "fsdp") == single(name)


def test_the_bits_are_the_same_over_gloo(digits, single, tmp_path):
    how = ("--strategy", "fsdp", "--backend", "gloo")
    assert train(digits, tmp_path, "busy", 2, *how) == single("busy")
