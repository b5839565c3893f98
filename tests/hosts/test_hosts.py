"""Ranks on several hosts by a hostfile: where they are, how they meet, and the same bits.

On every host the own name is at 127.0.1.1, and an interface has one address on all hosts.
"""

import json

import pytest

from tests.hosts.runs import flags, hashes, launch, places


@pytest.mark.parametrize("backend", ["mpi4py", "gloo"])
def test_ranks_are_where_the_hostfile_says_and_give_the_bits_of_one_process(
    backend, network, digits, reference, tmp_path
):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node1 slots=1\nnode2 slots=2\nnode3 slots=1\n")
    words = [*launch(4, hostfile), *flags(digits, tmp_path, 4, "--backend", backend)]
    done = network.hosts[0].run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert places(tmp_path) == ["node1", "node2", "node2", "node3"]
    assert json.loads((tmp_path / "train.json").read_text())["backend"] == backend
    assert hashes(tmp_path) == reference


def test_the_workflow_runs_on_the_hosts_of_its_hostfile(network, workspace):
    workspace.write("hostfile", "node1 slots=1\nnode2 slots=1\nnode3 slots=2\n")
    workspace.write("config/hosts.tsv", "run\tranks\nhosts\t4\nalone\t1\n")
    experiment = "runs: config/hosts.tsv\ncheck_seconds: 0\ndefaults:\n  epochs: 3\n"
    workspace.write("config/hosts.yaml", experiment)
    words = ["python", "-m", "snakemake", "--cores", 4, "evaluate"]
    done = network.hosts[0].run([*words, "--configfile", "config/hosts.yaml"], workspace.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    results = workspace.folder / "results"
    assert places(results / "hosts") == ["node1", "node2", "node3", "node3"]
    assert places(results / "alone") == ["node1"]
    assert hashes(results / "hosts") == hashes(results / "alone")
