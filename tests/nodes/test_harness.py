"""The nodes themselves, without Ray: what each has of its own, and how they are parted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, NoNodesError, make_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with make_cluster(tmp_path_factory.mktemp("nodes"), (0, 1), shm="64m", debian_names=True) as made:
            yield made
    except NoNodesError as error:
        pytest.skip(str(error))


def _round_trip_ms(cluster: Cluster) -> float | None:
    """Of a small TCP exchange between the nodes; None: they do not reach each other."""
    probe = (
        "import socket; s = socket.create_server(('10.0.0.1', 5000)); s.settimeout(4); print('up', flush=True);"
        "c = s.accept()[0]; [c.sendall(c.recv(1)) for _ in range(5)]"
    )
    ask = (
        "import socket, time; c = socket.create_connection(('10.0.0.1', 5000), 3); t = time.monotonic();"
        "[(c.sendall(b'x'), c.recv(1)) for _ in range(5)]; print((time.monotonic() - t) * 200)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(cluster.head.command("python", "-c", probe), text=True, **pipes)  # type: ignore[call-overload]
    try:
        assert server.stdout and server.stdout.readline() == "up\n"
        return float(cluster.workers[0].run("python", "-c", ask, timeout=60))
    except RuntimeError:
        return None
    finally:
        server.wait(timeout=30)


def test_a_node_has_address_name_shm_and_processes_of_its_own(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.run("hostname").strip() == f"node-{node.number}"
        assert node.run("getent", "hosts", f"node-{node.number}").split()[0] == "127.0.1.1"
        assert node.run("df", "--output=size", "/dev/shm").split()[-1] == str(64 * 1024)
        assert f"{node.address}/24" in node.run("ip", "-brief", "address")
        assert len(node.run("ps", "-e", "-o", "pid=").split()) <= 3
    assert not any(line.split()[0].startswith("cable") for line in _own_links())


def _own_links() -> list[str]:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout.splitlines()


def test_nodes_share_disks_that_can_be_full(cluster: Cluster) -> None:
    cluster.head.run("bash", "-c", f"echo hello > {cluster.runs}/file")
    assert cluster.workers[0].run("cat", f"{cluster.runs}/file") == "hello\n"
    assert (cluster.seen(cluster.runs) / "file").read_text() == "hello\n"
    assert not any(cluster.runs.iterdir())
    with cluster.full(cluster.runs), pytest.raises(RuntimeError, match="No space left on device"):
        cluster.head.run("bash", "-c", f"yes | head -c 100000 > {cluster.runs}/more")
    cluster.head.run("bash", "-c", f"yes | head -c 100000 > {cluster.runs}/more")


@pytest.mark.parametrize("kind, part", [("whole_file", "p"), ("whole_directory", "p / 'part'")])
def test_a_full_disk_is_named(cluster: Cluster, kind: str, part: str) -> None:
    lines = [
        "from pathlib import Path",
        f"from affect_rl.files import {kind}",
        f"with {kind}(Path('{cluster.runs}/{kind}')) as p: ({part}).write_bytes(b'x' * 9999)",
    ]
    full = rf"{kind}\.partial: its disk of 0\.2 GiB is full; make room there"
    with cluster.full(cluster.runs), pytest.raises(RuntimeError, match=full):
        cluster.head.run("python", "-c", "\n".join(lines))
    cluster.head.run("python", "-c", "\n".join(lines))


def test_a_link_can_be_cut_and_mended_and_slow(cluster: Cluster) -> None:
    quick = _round_trip_ms(cluster)
    assert quick is not None and quick < 100
    cluster.workers[0].cut()
    assert _round_trip_ms(cluster) is None
    cluster.workers[0].mend()
    assert _round_trip_ms(cluster) is not None
    with cluster.workers[0].delay(200, 0.0):
        slow = _round_trip_ms(cluster)
    assert slow is not None and 200 <= slow < 400
    again = _round_trip_ms(cluster)
    assert again is not None and again < 100


def test_nothing_is_left_of_a_node_that_was_closed(tmp_path: Path) -> None:
    try:
        with make_cluster(tmp_path, (0,)) as made:
            sleeper = subprocess.Popen(made.head.command("sleep", "1000"))
            seen = made.seen(made.runs)
            assert seen.is_dir() and sleeper.poll() is None
    except NoNodesError as error:
        pytest.skip(str(error))
    assert sleeper.wait(timeout=30) != 0
    assert not seen.exists() and not any(
        str(tmp_path) in line for line in Path("/proc/mounts").read_text().splitlines()
    )
