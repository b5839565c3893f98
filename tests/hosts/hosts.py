"""Several hosts on one Linux machine, for tests: each has its own network, name and processes.

A host is a process in namespaces of its own: sshd, its first process, and all that is started
there. Cables (veth pairs) lead from the hosts to a switch (a bridge, in one more namespace without
any uplink). Nothing has a name outside of the namespaces, so that two networks do not meet; and the
kernel ends a host, with all that is in it, when the process that made it ends, however that ends.
What the hosts share is the machine's disk, as the hosts of a cluster do, but for /dev/shm, /run and
/var/tmp.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.conftest import environment
from tests.hosts import wire

# Debian's packages, by a program of each.
PACKAGES = {"ip": "iproute2", "ssh": "openssh-client", "/usr/sbin/sshd": "openssh-server"}

SSHD = """\
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
SetEnv TMPDIR=/var/tmp
"""

SSH = """\
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
"""

# What a host does when it starts: "$1" is its name, "$2" the folder of the network. sshd is the
# namespace's first process: it reaps orphans, and all others end with it. docker0 is there to
# mislead: Docker gives it the same address on every host.
BOOT = """
set -e
hostname "$1"
mount --bind "$2/hosts.$1" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
for private in /dev/shm /run /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $private; done
mkdir -m 755 /run/sshd
ip link set lo up
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
echo ready
exec /usr/sbin/sshd -D -f "$2/sshd_config" -E "$2/$1.log"
"""

SWITCH = "ip link add switch type bridge && ip link set switch up && echo ready && exec sleep inf"


def missing() -> str:
    """Return why there cannot be hosts here, or nothing."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-nmp", "true"]).returncode:
        return "hosts in namespaces want Linux, and root"
    packages = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    return f"Debian's {', '.join(packages)} is missing: make hosts-test" if packages else ""


def _begin(*words: str) -> subprocess.Popen[str]:
    """Start what says that it is ready, and ends when this process does."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert (said := process.stdout.readline()) == "ready\n", said
    return process


class Host:
    """One host: `name`, at `address`, by one cable in the switch."""

    def __init__(self, network: "Network", number: int) -> None:
        self.network, self.number = network, number
        self.name, self.address = f"node{number}", f"10.77.0.{number}"
        self.port = f"port{number}"

    def boot(self) -> None:
        """Start the host and plug it in."""
        namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
        boot = ["sh", "-c", BOOT, "boot", self.name, str(self.network.folder)]
        self.process = _begin("unshare", *namespaces, "--kill-child", *boot)
        (self.first,) = psutil.Process(self.process.pid).children()
        # The same address of the card at each boot: the others still know it.
        card = [
            "eth0",
            "address",
            f"02:00:00:00:00:{self.number:02x}",
            "netns",
            str(self.first.pid),
        ]
        self.network.ip("link", "add", self.port, "type", "veth", "peer", "name", *card)
        self.network.ip("link", "set", self.port, "master", "switch", "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")

    def crash(self) -> None:
        """Take the power away: all processes are killed at once, and the cable hangs loose."""
        self.first.kill()
        self.process.wait()  # it waits for the first, and the kernel for all the others
        with suppress(subprocess.CalledProcessError):  # or the kernel takes the card away later
            self.network.ip("link", "delete", self.port)

    def words(self, words: list[object], cwd: Path) -> list[str]:
        """Return the words by which a command is run on this host from outside."""
        enter = ["nsenter", "-t", str(self.first.pid), "-m", "-u", "-n", "-i", "-p"]
        # What a crash leaves of MPI goes with it, or the next process of that number would find it.
        own = ["TMPDIR=/var/tmp", "PRTE_MCA_prte_tmpdir_base=/var/tmp"]
        return [*enter, "env", "-C", str(cwd), *own, *map(str, words)]

    def run(
        self, words: list[object], cwd: Path = Path("/"), timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end; its output and errors are kept as text."""
        return subprocess.run(
            self.words(words, cwd),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ip(self, *words: str) -> None:
        """Run iproute2's `ip` on this host."""
        done = self.run(["ip", *words])
        assert done.returncode == 0, done.stderr

    def processes(self, *names: str) -> list[psutil.Process]:
        """Return the processes on this host that have one of these names."""
        if self.process.poll() is not None:
            return []  # it has crashed
        space = Path(f"/proc/{self.first.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            try:
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == space:
                    found += [process] if process.name() in names else []
            except (OSError, psutil.NoSuchProcess):  # it has just ended
                continue
        return found

    @contextmanager
    def link_down(self) -> Iterator[None]:
        """Switch the host's network card off, and on again."""
        self.ip("link", "set", "eth0", "down")
        try:
            yield
        finally:
            self.ip("link", "set", "eth0", "up")

    @contextmanager
    def bad_cable(self, delay: float = 0.0, loss: float = 0.0) -> Iterator[None]:
        """Plug the host in by a cable that keeps frames for `delay` seconds and loses some."""
        plug, socket, ip = f"plug{self.number}", f"socket{self.number}", self.network.ip
        ip("link", "add", plug, "up", "type", "veth", "peer", "name", socket)
        ip("link", "set", socket, "master", "switch", "up")
        ip("link", "set", self.port, "nomaster")
        words = [sys.executable, wire.__file__, self.port, plug, str(delay), str(loss)]
        cable = _begin("nsenter", "-t", str(self.network.switch.pid), "-n", *words)
        try:
            yield
        finally:
            cable.kill()
            cable.wait()
            ip("link", "delete", plug)
            ip("link", "set", self.port, "master", "switch")


class Network:
    """A switch and hosts: use it as a context."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.hosts = [Host(self, number) for number in range(1, count + 1)]

    def __enter__(self) -> "Network":
        key = self.folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        names = ",".join(host.name for host in self.hosts)
        (self.folder / "known_hosts").write_text(f"{names} {key.with_suffix('.pub').read_text()}")
        (self.folder / "sshd_config").write_text(SSHD.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        for host in self.hosts:
            # As Debian does it: a host's own name is at a loopback address.
            others = [f"{other.address} {other.name}" for other in self.hosts if other != host]
            lines = ["127.0.0.1 localhost", f"127.0.1.1 {host.name}", *others]
            (self.folder / f"hosts.{host.name}").write_text("\n".join(lines) + "\n")
        self.switch = _begin("unshare", "--net", "sh", "-c", SWITCH)
        for host in self.hosts:
            host.boot()
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            if host.process.poll() is None:
                host.crash()
        self.switch.kill()
        self.switch.wait()

    def ip(self, *words: str) -> None:
        """Run iproute2's `ip` in the switch."""
        subprocess.run(["nsenter", "-t", str(self.switch.pid), "-n", "ip", *words], check=True)
