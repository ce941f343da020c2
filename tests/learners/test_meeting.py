"""Ranks meet at an address, on its interface; in processes of their own, for a process makes a group once."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from affect_rl.errors import AffectError
from affect_rl.network import LOOPBACK, interface_of, open_store
from learners.meeting import Seat, join_group, seats


def own_address() -> tuple[str, str]:
    """An address of this machine that is not the loopback's, and its interface."""
    for interface, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return entry.address, interface
    pytest.skip("this machine has the loopback interface only")


def test_an_address_leads_to_its_interface() -> None:
    address, interface = own_address()
    assert interface_of(address) == interface
    assert interface_of(LOOPBACK) == next(name for name in psutil.net_if_addrs() if name.startswith("lo"))
    with pytest.raises(AffectError, match=r"holds 203\.0\.113\.9, its address in Ray .* start Ray with --node-ip-addr"):
        interface_of("203.0.113.9")


def test_seats_count_the_ranks_of_a_node() -> None:
    assert seats(["10.0.0.1", "10.0.0.2", "10.0.0.1"], 5000) == [
        Seat(0, 3, 2, "10.0.0.1", ("10.0.0.1", 5000)),
        Seat(1, 3, 1, "10.0.0.2", ("10.0.0.1", 5000)),
        Seat(2, 3, 2, "10.0.0.1", ("10.0.0.1", 5000)),
    ]


def rank_of_two(rank: int, ports: Any, results: Any, address: str, neighbours: int) -> None:
    store = open_store(60) if rank == 0 else None
    if store:
        ports.put(store.port)
    seat = Seat(rank, 2, neighbours, address, (address, store.port if store else ports.get()))
    join_group(seat, gpu=False, timeout_s=60, store=store)
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    talking = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    ends = {connection.laddr.ip.removeprefix("::ffff:") for connection in talking}
    results.put((int(total), ends, os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]))
    dist.barrier()


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_talk_over_the_interface_of_their_nodes_address(nodes: int) -> None:
    """Whatever this machine's name resolves to; on one node over the loopback interface."""
    address, interface = own_address()
    used, name = (address, interface) if nodes == 2 else (LOOPBACK, interface_of(LOOPBACK))
    context = torch.multiprocessing.get_context("spawn")
    ports, results = context.SimpleQueue(), context.SimpleQueue()
    torch.multiprocessing.spawn(rank_of_two, (ports, results, address, 2 // nodes), nprocs=2)
    for total, ends, gloo, nccl in (results.get() for _ in range(2)):
        assert total == 3
        assert used in ends
        assert ends <= {used, LOOPBACK}  # rank 0 asks its own store over the loopback interface
        assert (gloo, nccl) == (name, f"={name}")


def test_two_jobs_on_a_machine_get_ports_of_their_own() -> None:
    stores = [open_store(5) for _ in range(2)]
    assert stores[0].port != stores[1].port
    stores[0].set("key", "0")
    stores[1].set("key", "1")
    assert [store.get("key") for store in stores] == [b"0", b"1"]
