"""A SLURM cluster on this machine: munged, slurmctld and a slurmd for each node.

A node is a tree of processes with a host name and process numbers of its own, by Linux namespaces:
MPI takes nodes for different hosts, and a node that is killed loses all it runs at once, as by a
power cut. The cluster has a network of its own, so its ports disturb nobody. All files are in one
folder, and nothing outlives the process that started the cluster.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ["n1", "n2", "n3"]

# Debian's SLURM loads PMIx by a name that only the package for developers has.
PMIX = next(Path("/usr/lib").glob("*/pmix2/lib"), None)

# The daemons lie where a user's PATH may not lead.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NAMESPACES = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]

ADDRESS = "10.77.0.1"

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=login({address})
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/slurmctld
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
TmpFS={folder}/%n
# Neither systemd nor cgroups are needed, and nodes may claim more cores than there are.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# There is no database of jobs: Snakemake asks slurmctld, which remembers them for a while.
AccountingStorageType=accounting_storage/none
MinJobAge=600
MailProg=/bin/true
# Decide quickly, and miss a node soon.
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdTimeout=10
KillWait=10
ReturnToService=2
PartitionName=main Nodes=ALL Default=YES
"""

# The network first: its loopback, and an address by which nodes reach one another as hosts do.
LOGIN = f"""\
hostname "$0"
mount --bind hosts /etc/hosts
ip link set lo up
ip link add net0 type veth peer name net1
ip address add {ADDRESS}/24 dev net0
ip link set net0 up
ip link set net1 up
mkdir slurmctld
munged --force --key-file=munge.key --socket=munge.socket --pid-file=munged.pid \
    --log-file=munged.log --seed-file=munge.seed
slurmctld -D -f "$PWD/slurm.conf" & wait
"""

# `wait` in a shell, since the first process of a namespace gets every orphan in it.
NODE = """\
hostname "$0"
mount --bind hosts /etc/hosts
test -e "$1/libpmix.so" || mount --bind pmix "$1"
slurmd -D -f "$PWD/slurm.conf" -N "$0" & wait
"""


def why_not() -> str:
    """Say why there can be no cluster here, or nothing."""
    if os.geteuid():
        return "a SLURM cluster needs root"
    programs = ["munged", "slurmctld", "slurmd", "sbatch", "ip"]
    absent = [name for name in programs if not shutil.which(name, path=PATH)]
    if PMIX is None:
        absent.append("libpmix2")
    if absent:
        return f"not installed: {', '.join(absent)}; `make slurm-test` does that"
    if subprocess.run([*NAMESPACES, "--net", "true"], capture_output=True).returncode:
        return "a SLURM cluster needs namespaces, and this container forbids them"
    return ""


class Cluster:
    """A running cluster; `nodes` has the process of each node."""

    def __init__(self, folder: Path) -> None:
        """Start all daemons, and wait until every node is idle."""
        self.folder = folder
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=folder, address=ADDRESS)
            + "".join(
                f"NodeName={name} NodeAddr={ADDRESS} Port={port} CPUs=4 RealMemory=8000\n"
                for port, name in enumerate(NODES, 6818)
            )
        )
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} login {' '.join(NODES)}\n")
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        shutil.copytree(PMIX, folder / "pmix")
        shutil.copy(PMIX / "libpmix.so.2", folder / "pmix/libpmix.so")
        self.login = self._start([*NAMESPACES, "--net"], "login", LOGIN)
        self._wait_until("slurmctld answers", lambda: "UP" in self.call("scontrol", "ping"))
        for name in NODES:
            self.boot(name)

    def boot(self, name: str) -> None:
        """Start a node, and wait until it is idle."""
        (self.folder / name).mkdir(exist_ok=True)
        self.nodes[name] = self._start([*self._inside, *NAMESPACES], name, NODE)
        state = ["sinfo", "--noheader", "--nodes", name, "--format", "%t"]
        self._wait_until(f"{name} is idle", lambda: self.call(*state).strip() == "idle")

    def kill(self, name: str) -> None:
        """Kill a node: its slurmd and all that runs there."""
        node = self.nodes.pop(name)
        node.kill()
        node.wait()

    def stop(self) -> None:
        """Kill all nodes, and the daemons."""
        for name in list(self.nodes):
            self.kill(name)
        self.login.kill()
        self.login.wait()

    def command(self, *words: object) -> list[str]:
        """Return the words that run a command where users log in."""
        return [*self._inside, "env", f"SLURM_CONF={self.folder}/slurm.conf", *map(str, words)]

    def call(self, *words: object) -> str:
        """Run a command of SLURM's and return what it says."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.login.pid}/ns/net"]

    def _start(self, words: list[str], name: str, script: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("ab") as log:
            return subprocess.Popen(
                # It ends with us, and all that it has started ends with it.
                ["setpriv", "--pdeathsig", "KILL", *words, "sh", "-ec", script, name, PMIX],
                cwd=self.folder,
                env={"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_until(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not happened():
            if time.monotonic() > deadline:
                logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))]
                raise TimeoutError("\n".join([f"not within 30 s: {what}", *logs]))
            time.sleep(0.1)
