"""A cable that takes its time and loses frames: joins two TAP devices, for kernels without netem.

Usage: slow_link.py NEAR FAR SECONDS LOSS; the devices are made here and end with this process, which ends when its
standard input closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST_FRAME = 65536


def open_tap(name: str) -> int:
    """Make a TAP device; frames that are sent into it can be read from the file, and the other way round."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def relay(near: int, far: int, seconds: float, loss: float) -> None:
    """Pass frames on, each `seconds` after it came, but for a share that is lost."""
    chance, under_way, count = random.Random(0), [], 0
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([near, far, sys.stdin], [], [], wait)
        if sys.stdin in ready:
            return
        for source in ready:
            try:
                frame = os.read(source, LARGEST_FRAME)
            except OSError:  # the device is not up yet
                continue
            if chance.random() >= loss:
                count += 1
                heapq.heappush(under_way, (time.monotonic() + seconds, count, near if source == far else far, frame))
        while under_way and under_way[0][0] <= time.monotonic():
            *_, target, frame = heapq.heappop(under_way)
            with contextlib.suppress(OSError):
                os.write(target, frame)


if __name__ == "__main__":
    ends = [open_tap(name) for name in sys.argv[1:3]]
    print("ready", flush=True)
    relay(*ends, float(sys.argv[3]), float(sys.argv[4]))
