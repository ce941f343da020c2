"""What a weight sync is made of: a version, a place to read the tensors from, and a checksum."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.files import whole_directory
from affect_rl.policy.adapters import ADAPTERS, Adapter
from affect_rl.policy.directory import WEIGHTS, Base

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
        path: directory that holds them as a policy directory does: ``model.safetensors`` and, with adapters, these and
            the name of their base. A policy directory will do.
        bytes: its size, of which a base is no part.
        checksum: `multiset_checksum` of all that an engine then computes with, so without the value head; 0: nobody
            computed one.
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


def stored_weights(directory: Path, version: int) -> WeightsHandle:
    """The weights of a policy directory as version `version`."""
    return WeightsHandle(version, str(directory.resolve()), _size(directory), checksum=0)


def publish_weights(
    named: Iterable[tuple[str, Tensor]],
    version: int,
    directory: Path,
    adapters: Sequence[Adapter] = (),
    base: tuple[Base, int] | None = None,
) -> WeightsHandle:
    """Write tensors as version `version` for engines to read, whole or not at all.

    The version before stays, for an engine may still be reading it; older ones are deleted first, so that there is
    room for two at the most.

    Args:
        named: names and tensors as `AffectPolicy.export` yields them, without or with the value head.
        version: version that generated tokens will carry; grows from call to call.
        directory: where to write, see `new_weights_dir`.
        adapters: in the type that engines compute in.
        base: what the adapters stand on, and the checksum of its language model.
    """
    kept = {name: tensor.detach() for name, tensor in named if not name.startswith(VALUE_HEAD)}
    for other in directory.glob("[0-9]*"):
        if other.name.isdigit() and int(other.name) < version - 1:
            shutil.rmtree(other)
    checksum = multiset_checksum(kept.values())
    with whole_directory(directory / str(version), replace=True) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, partial / WEIGHTS)
        for adapter in adapters:
            adapter.write(partial / ADAPTERS)
            checksum += multiset_checksum(adapter.served())
        if base:
            base[0].write(partial)
            checksum += base[1]
    path = directory / str(version)
    return WeightsHandle(version, str(path), _size(path), checksum % 2**64)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors"))


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
