"""How the ranks of a process group meet: through a store of rank 0, on the interfaces of their Ray addresses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from affect_rl.network import LOOPBACK, interface_of


@dataclass(frozen=True, slots=True)
class Seat:
    """What a rank must know to join the others.

    Attributes:
        rank: its number.
        world: how many ranks there are.
        neighbours: ranks on its node, itself included.
        address: of its node in Ray.
        store: address of rank 0's node, and the port of the store there.
    """

    rank: int
    world: int
    neighbours: int
    address: str
    store: tuple[str, int]


def seats(addresses: Sequence[str], port: int) -> list[Seat]:
    """Seats of all ranks, by the addresses of their nodes and the port of rank 0's store."""
    return [
        Seat(rank, len(addresses), addresses.count(address), address, (addresses[0], port))
        for rank, address in enumerate(addresses)
    ]


def node_address() -> str:
    """Address of this process's node in Ray; without Ray, which a learner alone does not need, that of the loopback."""
    try:
        import ray
    except ImportError:
        return LOOPBACK
    return ray.util.get_node_ip_address()


def join_group(seat: Seat, *, gpu: bool, timeout_s: float, store: Store | None = None) -> None:
    """Join the process group; a collective that takes longer than `timeout_s` fails.

    Args:
        seat: place in the group.
        gpu: speak through NCCL, with the only GPU that this process sees; otherwise through gloo.
        timeout_s: also how long to wait for the others.
        store: on rank 0, the one that it opened.

    Raises:
        AffectError: this machine does not have the address.
    """
    address, (host, port) = seat.address, seat.store
    if seat.neighbours == seat.world:  # the loopback interface stays when a laptop changes its network
        address = host = LOOPBACK
    use_interface(address, seat.address if gpu else address)
    timeout = timedelta(seconds=timeout_s)
    # DeepSpeed takes all of these for granted.
    place = {"RANK": seat.rank, "WORLD_SIZE": seat.world, "LOCAL_RANK": 0, "MASTER_ADDR": host, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    store = store or TCPStore(host, port, is_master=False, timeout=timeout)
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.world, timeout=timeout)


def use_interface(address: str, cards_address: str) -> None:
    """Let gloo and NCCL talk over the interfaces that hold their addresses, unless their own variables say otherwise.

    NCCL's choice holds for all groups of the process, also for those with engines on other nodes.

    Raises:
        AffectError: this machine does not have the address.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(address)
    if "NCCL_SOCKET_IFNAME" not in os.environ:
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface_of(cards_address)}"  # without the = it is a prefix of names
