"""What a weight sync is made of: a version, a place to read the tensors from, and a checksum."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.files import whole_file

VALUE_HEAD = "value_head."
"""Name prefix of the tensors that engines have no use for."""

_INTEGER = {2: torch.int16, 4: torch.int32}
# Elements mixed at a time: on CPU what stays in a core's cache (20 times faster than whole tensors).
_CHUNK = {"cpu": 2**14}
_MEMORY_FILE_SYSTEM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """A published set of weights.

    Attributes:
        version: grows by one with each publication; generated tokens carry it.
        path: safetensors file that holds the tensors (see `new_weights_dir`).
        bytes: its size.
        checksum: `multiset_checksum` of its tensors, the value head left out (engines have none).
    """

    version: int
    path: str
    bytes: int
    checksum: int


def weights_parent(setting: str, run_dir: Path, nodes: int) -> str:
    """Where to make the directory to publish to: as ``rollout.weights_dir`` says, else where all nodes can read it.

    On one node that is memory (empty, see `new_weights_dir`). On several, driver, learner and engines may each be on
    another, so it is the run directory, which they share; it is made if need be.
    """
    if setting or nodes < 2:
        return setting
    run_dir.mkdir(parents=True, exist_ok=True)
    return str(run_dir)


def new_weights_dir(parent: str = "") -> Path:
    """A new directory to publish to, under `parent`; empty: in memory where the system offers it, else on disk.

    The caller owns it and removes it.

    Raises:
        AffectError: `parent` is not a directory.
    """
    if parent and not Path(parent).is_dir():
        raise AffectError(f"rollout.weights_dir={parent}: no such directory; make it, where all nodes see it")
    memory = str(_MEMORY_FILE_SYSTEM) if _MEMORY_FILE_SYSTEM.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="affect-rl-weights-", dir=parent or memory)).resolve()


def stored_weights(path: Path, version: int) -> WeightsHandle:
    """The weights of a policy directory's file as version `version`; without a checksum, for nobody computed one."""
    return WeightsHandle(version, str(path.resolve()), path.stat().st_size, checksum=0)


def publish_weights(named: Iterable[tuple[str, Tensor]], version: int, directory: Path) -> WeightsHandle:
    """Write tensors as version `version` for engines to read, whole or not at all.

    The version before stays, for an engine may still be reading it; older ones are deleted first, so that there is
    room for two at the most.

    Args:
        named: names and tensors as `AffectPolicy.export` yields them, without or with the value head.
        version: version that generated tokens will carry; grows from call to call.
        directory: where to write, see `new_weights_dir`.
    """
    kept = {name: tensor.detach() for name, tensor in named if not name.startswith(VALUE_HEAD)}
    for other in directory.glob("*.safetensors"):
        if int(other.stem) < version - 1:
            other.unlink(missing_ok=True)
    path = directory / f"{version}.safetensors"
    with whole_file(path) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, partial)
    return WeightsHandle(version, str(path), path.stat().st_size, multiset_checksum(kept.values()))


def multiset_checksum(tensors: Iterable[Tensor]) -> int:
    """64-bit checksum of all elements' bits, the same however they are split, fused or zero-padded.

    Engines fuse projections and pad vocabularies, so learner and engine hold the same numbers in
    different tensors. Each element's bits are mixed (multiply, shift, multiply) and the results
    summed modulo 2**64: one changed bit changes the sum, zeros add nothing, order does not matter.
    """
    total = 0
    for tensor in tensors:
        for part in tensor.detach().flatten().split(_CHUNK.get(tensor.device.type, 2**26)):
            # Adding 0 turns -0 into 0: the two compute the same, and not every path preserves the sign.
            mixed = (part + 0).view(_INTEGER[part.element_size()]).to(torch.int64)
            mixed.mul_(0x1B873593)
            mixed.bitwise_xor_(mixed >> 15).mul_(0x2C1B3C6D)
            mixed.bitwise_xor_(mixed >> 12).mul_(0x297A2D39)
            total += int(mixed.sum())
    return total % 2**64
