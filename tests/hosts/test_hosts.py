"""Ranks on several hosts by a hostfile: where they are, how they meet, and the same bits.

On every host the own name is at 127.0.1.1, and an interface has one address on all hosts.
"""

import json

import pytest

from tests.hosts.runs import SETTINGS, flags, hashes, launch, places, record


@pytest.mark.parametrize("backend", ["mpi4py", "gloo"])
def test_ranks_are_where_the_hostfile_says_and_give_the_bits_of_one_process(
    backend, network, digits, reference, tmp_path
):
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=2\nnode3 slots=1\n")
    words = [*launch(4), *flags(digits, tmp_path, 4, "--backend", backend)]
    done = network.hosts[0].run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert places(tmp_path) == ["node1", "node2", "node2", "node3"]
    assert record(tmp_path)["backend"] == backend
    assert hashes(tmp_path) == reference


def test_a_network_that_leads_nowhere_can_be_left_out(network, digits, reference, tmp_path):
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\nnode3 slots=1\n")
    for host in network.hosts:
        host.ip("link", "add", "eth1", "type", "bridge")
        host.ip("address", "add", f"10.0.0.{host.number}/24", "dev", "eth1")
        host.ip("link", "set", "eth1", "up")
    include = ["env", "OMPI_MCA_btl_tcp_if_include=10.77.0.0/24"]
    words = [*include, *launch(3), *flags(digits, tmp_path, 3, "--backend", "gloo")]
    done = network.hosts[0].run(words, tmp_path)
    for host in network.hosts:
        host.ip("link", "delete", "eth1")
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path) == reference


def test_the_workflow_runs_on_the_hosts_of_its_hostfile(network, reference, workspace):
    workspace.write("hostfile", "node1 slots=1\nnode2 slots=1\nnode3 slots=2\n")
    workspace.write("config/hosts.tsv", "run\tranks\nhosts\t4\n")
    workspace.write(
        "config/hosts.yaml",
        f"runs: config/hosts.tsv\ncheck_seconds: 0\ndefaults: {json.dumps(SETTINGS)}\n",
    )
    words = ["python", "-m", "snakemake", "--cores", 4, "evaluate", "--printshellcmds"]
    done = network.hosts[0].run([*words, "--configfile", "config/hosts.yaml"], workspace.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lockstep launch -n 4 train" in done.stderr
    assert places(workspace.folder / "results/hosts/hosts") == ["node1", "node2", "node3", "node3"]
    assert hashes(workspace.folder / "results/hosts/hosts") == reference
