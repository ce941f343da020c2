"""Where processes on several machines meet: stores, and the interfaces of their nodes' addresses in Ray.

Nobody asks for host names: Debian maps a machine's own to 127.0.1.1, where no other machine finds it. And nobody looks
for a free port beforehand, for it may be taken before it is used.
"""

from __future__ import annotations

from datetime import timedelta

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from affect_rl.errors import AffectError

LOOPBACK = "127.0.0.1"


def open_store(timeout_s: float) -> TCPStore:
    """A store in this process, on a port that the system chooses, see its ``port``; it lives as long as the object."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timeout)


def interface_of(address: str) -> str:
    """Name of the network interface of this machine that holds an IP address.

    Raises:
        AffectError: there is none.
    """
    held = {
        entry.address.partition("%")[0]: name for name, entries in psutil.net_if_addrs().items() for entry in entries
    }
    if address not in held:
        raise AffectError(
            f"no network interface of this node holds {address}, its address in Ray (found: {', '.join(held)}); start "
            "Ray with --node-ip-address, or name the interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
    return held[address]
