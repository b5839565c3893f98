"""Links that break and hosts that are lost in the middle of a run: mpirun ends, and goes on later.

`lockstep launch` goes on at once, without them, and so does the workflow.
"""

import json
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.hosts.hosts import Host
from tests.hosts.runs import EPOCHS, SETTINGS, Job, flags, hashes, launch, places, record


def packets_lost(host):
    return host.bad_cable(loss=1)


@contextmanager
def crash(host):
    host.crash()
    try:
        yield
    finally:
        host.boot()


@contextmanager
def daemon_killed(host):
    for daemon in host.processes("prted"):
        daemon.kill()
    yield


HOSTFILE = "node1 slots=1\nnode2 slots=1\nnode3 slots=1\n"


def words(data, folder, *more):
    """Return the words that train on a rank on each host, from `folder`, and into it."""
    (folder / "hostfile").write_text(HOSTFILE)
    return [*launch(3), *flags(data, folder, 3, *more)]


def wait_for_line(text, log, job):
    """Return when a stage of a workflow has printed a text to its log."""
    while not log.exists() or text not in log.read_text(errors="replace"):
        assert job.process.poll() is None, job.said()
        time.sleep(0.02)


def wait_for_the_end(network):
    """Return when no rank and no mpirun is left on any host."""
    deadline = time.monotonic() + 30
    while left := [p for host in network.hosts for p in host.processes("python", "prterun")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def hosts_one_after_another(output):
    """Return the hosts of each start, which went on where the one before had saved.

    When mpirun ends, it may leave a rank the time to go on alone, until it is told to stop.
    """
    segments = record(output)["segments"]
    for before, after in pairwise(segments):
        assert 0 < before["last_step"] == after["first_step"]
    return [part["hosts"] for part in segments if "lost" not in part]


# A timeout of 3 s would be over before mpirun notices anything; one of 600 s is the default.
@pytest.mark.parametrize(
    ("fault", "backend", "timeout"),
    [
        (Host.link_down, "mpi4py", 3),
        (Host.link_down, "gloo", 600),
        (packets_lost, "mpi4py", 600),
        (crash, "mpi4py", 600),
        (daemon_killed, "gloo", 600),
    ],
)
def test_a_run_that_loses_a_host_ends_by_its_name_and_goes_on_when_it_is_back(
    fault, backend, timeout, network, digits, reference, tmp_path
):
    command = words(digits, tmp_path, "--backend", backend, "--timeout", timeout)
    job = Job(network.hosts[0], command, tmp_path)
    job.wait_for("epoch 2/")
    with fault(network.hosts[2]):
        job.process.wait(timeout=60)
        wait_for_the_end(network)
        assert "node3" in job.said()
        assert not (tmp_path / "train.json").exists()
    done = network.hosts[0].run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = record(tmp_path)["segments"]
    assert first["last_step"] == second["first_step"] > 0
    assert hashes(tmp_path) == reference


@pytest.mark.parametrize("fault", [Host.link_down, packets_lost, crash])
def test_lockstep_launch_goes_on_without_a_host_that_is_lost(
    fault, network, digits, reference, tmp_path
):
    (tmp_path / "hostfile").write_text(HOSTFILE)
    command = ["lockstep", "launch", "-n", 3, *flags(digits, tmp_path, 3)]
    job = Job(network.hosts[0], command, tmp_path)
    job.wait_for("epoch 2/")
    with fault(network.hosts[2]):
        assert job.process.wait(timeout=120) == 0, job.said()
        line = "node3 does not answer; 2 ranks go on from the last checkpoint, on node1, node2\n"
        assert f"lockstep launch: {line}" in job.said()
        wait_for_the_end(network)
    assert hashes(tmp_path) == reference
    assert places(tmp_path) == ["node1", "node2"]
    assert hosts_one_after_another(tmp_path) == [["node1", "node2", "node3"], ["node1", "node2"]]


def test_the_workflow_goes_on_until_one_host_is_left(network, reference, workspace):
    workspace.write("hostfile", HOSTFILE)
    workspace.write("config/hosts.tsv", "run\tranks\nhosts\t3\n")
    defaults = SETTINGS | {"oversubscribe": True, "checkpoint_every": "10 steps"}
    workspace.write(
        "config/hosts.yaml",
        f"runs: config/hosts.tsv\ncheck_seconds: 0\ndefaults: {json.dumps(defaults)}\n",
    )
    words = ["python", "-m", "snakemake", "--cores", 4, "evaluate"]
    words += ["--configfile", "config/hosts.yaml"]
    job = Job(network.hosts[0], words, workspace.folder)
    log, results = (workspace.folder / name for name in ("logs/hosts", "results/hosts"))
    wait_for_line("epoch 2/", log / "train/hosts.log", job)
    with crash(network.hosts[2]):
        wait_for_line("2 ranks go on", log / "train/hosts.log", job)
        wait_for_line("epoch 5/", log / "train/hosts.log", job)
        with crash(network.hosts[1]):
            assert job.process.wait(timeout=200) == 0, job.said()
    assert hashes(results / "hosts") == reference
    assert places(results / "hosts") == ["node1"]
    assert hosts_one_after_another(results / "hosts") == [
        ["node1", "node2", "node3"],
        ["node1", "node2"],
        ["node1"],
    ]
    assert (results / "hosts/metrics.json").exists()
    assert "does not answer" in (log / "evaluate/hosts.log").read_text()


@pytest.mark.parametrize("backend", ["mpi4py", "gloo"])
def test_a_bad_link_changes_nothing(backend, network, digits, reference, tmp_path):
    job = Job(network.hosts[0], words(digits, tmp_path, "--backend", backend), tmp_path)
    job.wait_for(f"epoch {EPOCHS - 2}/")
    with network.hosts[2].bad_cable(delay=0.02, loss=0.01):
        assert job.process.wait(timeout=300) == 0, job.said()
    assert hashes(tmp_path) == reference


def test_ranks_that_die_on_other_hosts_are_survived(network, digits, reference, tmp_path):
    launcher, *others = words(digits, tmp_path)
    faults = "LOCKSTEP_FAULT=step:15:0:kill,step:25:2:kill-later"
    told = [launcher, "--with-ft", "ulfm", "-x", faults, *others]
    done = network.hosts[0].run(told, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path) == reference
    assert [part["lost"] for part in record(tmp_path)["segments"][1:]] == [
        ["rank 0 (node1)"],
        ["rank 1 (node3)"],
    ]
    wait_for_the_end(network)
