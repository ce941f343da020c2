"""Several nodes on one machine, each with what a node has of its own: address, host name, processes, /dev/shm.

A node is a process in namespaces of its own (network, mounts, host name, processes); the nodes hang on a bridge in a
further network namespace, and nothing of all this is in the machine's own. Namespaces have no names: they end with the
first process in them, and that ends when the pipe to it closes. So nothing is left behind, whatever ends the tests.

Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
GCS_PORT, DASHBOARD_PORT = 6379, 8265
START_S = 300
NODE = """
set -e
hostname {name}
mount -t tmpfs -o size={shm} tmpfs /dev/shm
mount --bind {folder}/hosts /etc/hosts
mkdir -p /tmp/ray
mount --bind {folder}/ray /tmp/ray
ip link set lo up
"""
SWITCH = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size={disk} tmpfs {folder}/runs
mount -t tmpfs -o size={disk} tmpfs {folder}/weights
ip link set lo up
ip link add switch type bridge
ip link set switch up
"""


class NoNodesError(RuntimeError):
    """This machine does not let us make nodes; the message says why."""


@dataclass
class Space:
    """A process that keeps namespaces open.

    Attributes:
        keeper: what was started; its child is the first process inside.
        pid: of that first process, as the machine numbers it.
    """

    keeper: subprocess.Popen[str]
    pid: int

    @classmethod
    def make(cls, namespaces: Sequence[str], script: str, inside: Space | None = None) -> Space:
        """New namespaces, set up by `script`; the others are those of `inside`.

        Raises:
            NoNodesError: a command failed.
        """
        # `read` returns when the pipe closes: when we close it, or when this process is no more. The shell also takes
        # in orphans, which daemons are.
        waits = f"{script}\necho ready\nread -r\n"
        unshare = ["unshare", "--fork", "--kill-child", *namespaces, "bash", "-c", waits]
        command = [*inside.enter("--mount"), *unshare] if inside else unshare
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        keeper = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        if keeper.stdout.readline() != "ready\n":
            raise NoNodesError(f"{' '.join(unshare[:-1])}: {keeper.communicate()[1].strip()}")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        return cls(keeper, int(children[0]))

    def enter(self, *namespaces: str) -> list[str]:
        """Beginning of a command that runs in these namespaces."""
        return ["nsenter", "--target", str(self.pid), *namespaces]

    def close(self) -> None:
        """End all processes inside, and wait until they have."""
        if self.keeper.poll() is None:
            first = psutil.Process(self.pid)
            self.keeper.kill()  # its child, the first process of the namespaces, is killed with it
            self.keeper.wait()
            first.wait(timeout=60)


@dataclass
class Node:
    """One node of a `Cluster`.

    Attributes:
        cluster: it belongs to.
        number: 0 is the head.
        cpus: logical CPUs that it offers.
        space: its namespaces.
        environment: of commands that run on it.
    """

    cluster: Cluster
    number: int
    cpus: int
    space: Space
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return _address(self.number)

    @property
    def link(self) -> str:
        """The switch's end of its cable."""
        return f"cable{self.number}"

    def command(self, *command: str) -> list[str]:
        """A command line that runs on this node."""
        variables = [f"{name}={value}" for name, value in {**self.cluster.environment, **self.environment}.items()]
        return [*self.space.enter("--net", "--mount", "--uts", "--pid"), "env", *variables, *command]

    def run(self, *command: str, timeout: float = START_S) -> str:
        """What a command on this node prints.

        Raises:
            RuntimeError: it failed; the message holds what it printed.
        """
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} on {self.address}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def start_ray(self) -> None:
        """Start Ray and wait for it; the head first."""
        self.launch_ray()
        self.await_ray()

    def launch_ray(self) -> None:
        """Begin to start Ray."""
        head = ["--head", f"--port={GCS_PORT}", f"--dashboard-host={self.address}", "--include-dashboard=true"]
        join = [f"--address={_address(0)}:{GCS_PORT}"]
        own = [
            f"--node-ip-address={self.address}", f"--num-cpus={self.cpus}", "--num-gpus=0", "--disable-usage-stats",
            f"--object-store-memory={self.cluster.object_store}",
        ]  # fmt: skip
        self._starting = subprocess.Popen(
            self.command("ray", "start", *(join if self.number else head), *own),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        )  # fmt: skip

    def await_ray(self) -> None:
        """Wait until the start that was begun has ended."""
        said, _ = self._starting.communicate(timeout=START_S)
        if self._starting.returncode:
            raise RuntimeError(f"ray start on {self.address}: {said}")

    def processes(self, *words: str) -> list[int]:
        """Processes on this node, as it numbers them, whose command lines hold all the words."""
        found = []
        for process in Path(f"/proc/{self.space.pid}/root/proc").glob("[0-9]*/cmdline"):
            try:
                line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # ended meanwhile
                continue
            if all(word in line for word in words):
                found.append(int(process.parent.name))
        return sorted(found)

    def signal(self, process: int, signum: signal.Signals) -> None:
        """Send a signal to a process, by the number that it has on this node."""
        self.run("kill", f"-{signum.value}", str(process), timeout=60)

    def kill_raylet(self) -> None:
        """Kill Ray's daemon; its workers end with it."""
        for process in self.processes("raylet/raylet", "--raylet_socket_name"):
            self.signal(process, signal.SIGKILL)

    def stop_ray(self) -> None:
        """End what is left of Ray here, as someone would before starting it anew."""
        self.run("ray", "stop", "--force", timeout=120)

    def cut(self) -> None:
        """Pull the cable."""
        self.cluster.ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Put it back."""
        self.cluster.ip("link", "set", self.link, "up")

    @contextmanager
    def delay(self, round_trip_ms: float, loss: float) -> Iterator[None]:
        """Let the cable take time, and lose this share of the frames each way."""
        relay, island = Path(__file__).with_name("slow_link.py"), f"island{self.number}"
        taps = [f"near{self.number}", f"far{self.number}"]
        arguments = [*taps, str(round_trip_ms / 2000), str(loss)]
        process = subprocess.Popen(
            [*self.cluster.switch.enter("--net"), sys.executable, str(relay), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout and process.stdout.readline() == "ready\n", "no TAP devices; is /dev/net/tun there?"
            self.cluster.ip("link", "add", island, "type", "bridge")
            for device, bridge in ((taps[0], island), (self.link, island), (taps[1], "switch")):
                self.cluster.ip("link", "set", device, "master", bridge)
            for device in (island, *taps):
                self.cluster.ip("link", "set", device, "up")
            yield
        finally:
            process.kill()
            process.wait()
            self.cluster.ip("link", "set", self.link, "master", "switch")
            self.cluster.ip("link", "delete", island)


@dataclass
class Cluster:
    """Nodes on a switch, with two disks that all of them see: `runs` and `weights`.

    Attributes:
        folder: for what the nodes leave behind; Ray's files are in ``node-<number>/ray``.
        switch: the namespaces of bridge and disks.
        environment: of all commands on all nodes.
        object_store: bytes of each node's object store.
    """

    folder: Path
    switch: Space
    environment: dict[str, str]
    object_store: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        return self.nodes[1:]

    @property
    def runs(self) -> Path:
        """A disk, by the path that nodes know it by."""
        return self.folder / "runs"

    @property
    def weights(self) -> Path:
        """Another."""
        return self.folder / "weights"

    def seen(self, path: Path) -> Path:
        """A path on one of the disks, by which we see it from outside."""
        return Path(f"/proc/{self.switch.pid}/root{path}")

    def ip(self, *arguments: str) -> None:
        """Configure the switch."""
        subprocess.run([*self.switch.enter("--net"), "ip", *arguments], check=True, timeout=30)

    @contextmanager
    def full(self, disk: Path) -> Iterator[None]:
        """Fill a disk."""
        filler = self.seen(disk) / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(2**20)):
                        pass
                except OSError:
                    pass
            yield
        finally:
            filler.unlink(missing_ok=True)

    def submit(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """``ray job submit`` as the README has it; what the job prints goes to `log`."""
        submit = ["ray", "job", "submit", "--address", f"http://{self.head.address}:{DASHBOARD_PORT}"]
        line = self.head.command(*submit, "--working-dir", str(REPOSITORY), "--", *command)
        with log.open("a") as out:
            return subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY)

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Ray's own list of ``actors``, ``nodes`` or ``jobs``."""
        asked = ["ray", "list", kind, "--format=json", "--detail", "--limit=1000", "--timeout=60"]
        printed = self.head.run(*asked, f"--address=http://{self.head.address}:{DASHBOARD_PORT}")
        return json.loads(printed[printed.index("[") :])


@contextmanager
def make_cluster(
    folder: Path,
    cpus: Sequence[int] = (0, 4, 4, 4),
    *,
    shm: str = "256m",
    disk: str = "256m",
    object_store: int = 100 * 2**20,
    debian_names: bool = False,
) -> Iterator[Cluster]:
    """Nodes with these logical CPUs, the head first; Ray is not started.

    Args:
        folder: for what the nodes leave behind.
        cpus: of each node.
        shm: size of each node's ``/dev/shm``.
        disk: size of each shared disk.
        object_store: bytes of each node's object store.
        debian_names: let each node's host name resolve to 127.0.1.1, as Debian has it, not to its address.

    Raises:
        NoNodesError: it cannot be done on this machine.
    """
    _check_machine()
    for name in ("runs", "weights"):
        (folder / name).mkdir(parents=True)
    with ExitStack() as open_spaces:
        switch = Space.make(["--net", "--mount"], SWITCH.format(folder=folder, disk=disk))
        open_spaces.callback(switch.close)
        cluster = Cluster(folder, switch, _environment(), object_store)
        for number, count in enumerate(cpus):
            own, name = folder / f"node-{number}", f"node-{number}"
            (own / "ray").mkdir(parents=True)
            (own / "hosts").write_text(_hosts(name, range(len(cpus)), debian_names))
            script = NODE.format(name=name, shm=shm, folder=own)
            space = Space.make(["--net", "--mount", "--uts", "--pid", "--mount-proc"], script, inside=switch)
            open_spaces.callback(space.close)
            node = Node(cluster, number, count, space)
            cluster.nodes.append(node)
            plug = ["type", "veth", "peer", "name", "eth0", "netns", str(space.pid)]
            cluster.ip("link", "add", node.link, *plug)
            cluster.ip("link", "set", node.link, "master", "switch", "up")
            node.run("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
            node.run("ip", "link", "set", "eth0", "up")
        yield cluster


def start_ray(cluster: Cluster) -> None:
    """Start Ray on all nodes and wait until all have joined."""
    cluster.head.start_ray()
    for node in cluster.workers:
        node.launch_ray()
    for node in cluster.workers:
        node.await_ray()


def wait_for(condition: Any, timeout: float, what: str, every: float = 0.1) -> float:
    """Seconds until `condition()` is true.

    Raises:
        TimeoutError: it does not come true.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - began


def _check_machine() -> None:
    if os.geteuid():
        raise NoNodesError("only root may make network namespaces")
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        raise NoNodesError(f"{', '.join(missing)}: not installed (Debian: iproute2, util-linux)")


def _environment() -> dict[str, str]:
    """Ray with token authentication, spreading actors over nodes where the default would fill one first."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_scheduler_spread_threshold": "0",
        "OMP_NUM_THREADS": "1",
    }


def _address(number: int) -> str:
    return f"10.0.0.{number + 1}"


def _hosts(name: str, numbers: Sequence[int], debian: bool) -> str:
    own = [f"127.0.1.1 {name}"] if debian else [f"{_address(n)} node-{n}" for n in numbers]
    return "\n".join(["127.0.0.1 localhost", *own]) + "\n"
