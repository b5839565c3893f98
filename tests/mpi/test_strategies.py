"""fsdp, pipeline and hybrid give the bits of one process, wherever the model is cut."""

import pytest

from tests.conftest import REPOSITORY, mpirun, thorough
from tests.crew import run_shared
from tests.mpi.runs import train_all

SINGLE = ("--strategy", "single")
FSDP = ("--strategy", "fsdp")
GPIPE = ("--strategy", "pipeline", "--pipeline-schedule", "gpipe")
ONE_F_ONE_B = ("--strategy", "pipeline", "--pipeline-schedule", "1f1b")
HYBRID = ("--strategy", "hybrid", "--stages", 2)
GLOO = ("--backend", "gloo")

CASES = [
    *(("cnn", 1, FSDP), ("busy", 4, FSDP), ("resnet", 2, FSDP), ("blocks", 4, FSDP)),
    *(("bfloat16", 2, FSDP), ("six shards", 3, FSDP), ("busy", 2, (*FSDP, *GLOO))),
    *(("shared", 1, FSDP), ("shared", 2, FSDP), ("shared", 2, ONE_F_ONE_B)),
    *(("busy", 1, GPIPE), ("cnn", 4, ONE_F_ONE_B), ("busy", 2, ONE_F_ONE_B), ("busy", 4, GPIPE)),
    *(("resnet", 2, GPIPE), ("blocks", 4, ONE_F_ONE_B), ("bfloat16", 2, ONE_F_ONE_B)),
    *(("busy", 3, (*ONE_F_ONE_B, *GLOO)), ("busy", 3, GPIPE)),
    *(("six shards", 4, HYBRID), ("six shards", 6, (*HYBRID, *GPIPE[2:]))),
]


@pytest.fixture(scope="module")
def expected(digits, tmp_path_factory):
    """Return the hashes of each run on one process."""
    cases = [(name, 1, SINGLE) for name, _, _ in CASES]
    found = train_all(cases, digits, tmp_path_factory.mktemp("single"))
    return {name: hashes for (name, _, _), hashes in found.items()}


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    """Return a function that gives a case's hashes; cases with its number of ranks come along."""
    known = {}

    def of(case):
        if case not in known:
            alike = [some for some in CASES if some[1] == case[1]]
            known.update(train_all(alike, digits, tmp_path_factory.mktemp("cases")))
        return known[case]

    return of


@pytest.mark.parametrize(
    "case",
    [case if case[1] == 4 else thorough(case) for case in CASES],
    ids=lambda case: f"{case[0]}-{case[1]}-{'-'.join(map(str, case[2][1::2]))}",
)
def test_the_bits_are_those_of_one_process(case, expected, found):
    assert found(case) == expected[case[0]]


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        ("linear", GPIPE, "1 blocks with parameters to train, too few for 2 stages"),
        ("tests.mpi.models:left_out", ("--strategy", "ddp"), "left_out.weight, left_out.bias were"),
    ],
)
def test_a_model_that_a_strategy_cannot_train_is_refused(digits, tmp_path, model, flags, said):
    words = ["train", "--data", digits, "--partition", digits / "4" / "shards.csv"]
    words += ["--output", tmp_path / "out", "--model", model, "--ranks", 2, "--oversubscribe"]
    done = run_shared([*mpirun(2), "-m", "lockstep", *words, *flags], REPOSITORY)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "train.json").exists()
