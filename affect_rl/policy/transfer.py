"""The ways of the learner's tensors into engines: through a file, or by a broadcast in a group of processes.

A transfer has both ends in one class, so that they cannot disagree. `send` runs in the learner (rank 0), `receive` in
each rank of each engine.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from affect_rl.errors import AffectError
from affect_rl.network import LOOPBACK, interface_of
from affect_rl.policy.adapters import ADAPTERS, Adapter
from affect_rl.policy.directory import WEIGHTS, Base
from affect_rl.policy.publication import (
    DTYPES,
    VALUE_HEAD,
    Announcement,
    Layout,
    Named,
    TensorSpec,
    adapter_of,
    in_buckets,
    split_adapters,
)
from affect_rl.policy.tensors import tensor_files

Buckets = Iterable[Sequence[Tensor]]


class TransferError(RuntimeError):
    """A group has lost a member or waits for a late one, and is of no more use."""


class Transfer(ABC):
    """Moves tensors from the learner to engines."""

    @abstractmethod
    def send(self, announcement: Announcement, buckets: Buckets) -> None:
        """Give a publication away; each bucket is used up before the next is asked for."""

    @abstractmethod
    def receive(self, announcement: Announcement) -> Iterator[Named]:
        """Take the tensors in, as they are announced."""


class FileTransfer(Transfer):
    """A directory laid out as a policy directory is: engines may read it at any time, those that come late as well."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def send(self, announcement: Announcement, buckets: Buckets) -> None:
        """Write ``model.safetensors`` tensor by tensor (safetensors' own writer wants all at once), and adapters."""
        named = (
            (spec.name, tensor)
            for specs, tensors in zip(in_buckets(announcement.layout), buckets, strict=True)
            for spec, tensor in zip(specs, tensors, strict=True)
        )
        adapters: list[Adapter] = []
        header = _header(spec for spec in announcement.layout if not adapter_of(spec.name)[0])
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (self._directory / WEIGHTS).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in split_adapters(announcement, named, adapters):
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(_bytes_of(tensor.cpu()).numpy().data)
        for adapter in adapters:
            adapter.write(self._directory / ADAPTERS)
        if announcement.base:
            announcement.base.write(self._directory)

    def announcement(self, version: int) -> Announcement:
        """What the files hold, read from their headers; adapters lie in files of their own and are left out.

        Raises:
            AffectError: it is not there, or damaged.
        """
        try:
            with self._open() as files:
                slices = {name: file.get_slice(name) for name, file in files.items()}
                layout = tuple(
                    TensorSpec(name, part.get_dtype(), tuple(part.get_shape()))
                    for name, part in slices.items()
                    if not name.startswith(VALUE_HEAD)
                )
        except FileNotFoundError as error:
            raise AffectError(
                f"{self._directory / WEIGHTS}: no such file on this node; if learners and engines are on several, set "
                "rollout.weights_dir to a directory that all of them see"
            ) from error
        except (OSError, SafetensorError) as error:
            raise AffectError(
                f"{self._directory}: cannot be read as published weights: {error}; publish them again"
            ) from error
        return Announcement(version, layout, {}, Base.read(self._directory))

    def receive(self, announcement: Announcement) -> Iterator[Named]:
        with self._open() as files:
            for spec in announcement.layout:
                yield spec.name, files[spec.name].get_tensor(spec.name)

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """The open file of each tensor."""
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(file, framework="pt")) for file in tensor_files(self._directory)]
            yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a mapping)


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the members of a group must know to meet.

    Attributes:
        store: address and port of the store that the learner has opened.
        members: how many ranks there are; the learner is rank 0.
        backend: ``gloo``, or ``nccl`` where each rank has a card of its own.
        one_node: whether all are on one node, and talk over its loopback interface.
        timeout_s: a bucket that takes longer ends the group.
    """

    store: tuple[str, int]
    members: int
    backend: str
    one_node: bool
    timeout_s: float


class CollectiveTransfer(Transfer):
    """Broadcasts of buckets from the learner to all engine ranks at once.

    While one bucket is on its way, the learner packs the next and engines load the last. The group is none of
    `torch.distributed`'s global ones, for DeepSpeed and vLLM have made those of their processes already.

    Args:
        meeting: where the members meet.
        address: of this node in Ray.
        store: the learner's own; None: in an engine, which is given its rank as it comes.

    Raises:
        TransferError: not all members have come in time.
    """

    def __init__(self, meeting: Meeting, address: str, store: Store | None = None) -> None:
        self._timeout = timedelta(seconds=meeting.timeout_s)
        self._device = (
            torch.device("cuda", torch.cuda.current_device()) if meeting.backend == "nccl" else torch.device("cpu")
        )
        with _as_transfer_error("weights: the group did not come about"):
            if store is None:
                host, port = meeting.store
                store = TCPStore(LOOPBACK if meeting.one_node else host, port, is_master=False, timeout=self._timeout)
                rank = store.add("members", 1)
            else:
                rank = 0
            interface = interface_of(LOOPBACK if meeting.one_node else address)
            store.set_timeout(self._timeout)
            group = PrefixStore("weights", store)
            self._store = store  # lives as long as the group
            self._group = _BACKENDS[meeting.backend](group, rank, meeting.members, self._timeout, interface)
            self._broadcast(torch.zeros(1, dtype=torch.uint8, device=self._device))()  # NCCL connects only now

    def send(self, announcement: Announcement, buckets: Buckets) -> None:
        """As `Transfer.send`.

        Raises:
            TransferError: an engine was late or lost.
        """
        sent = None
        for specs, tensors in zip(in_buckets(announcement.layout), buckets, strict=True):
            packed = self._pack(specs, tensors)
            if sent:
                sent()
            sent = self._broadcast(packed)
        if sent:
            sent()

    def receive(self, announcement: Announcement) -> Iterator[Named]:
        """As `Transfer.receive`.

        Raises:
            TransferError: the learner or another engine was late or lost.
        """
        buckets = in_buckets(announcement.layout)
        coming = self._expect(buckets[0])
        for specs, following in zip(buckets, [*buckets[1:], None], strict=True):
            packed, arrived = coming
            arrived()
            if following:
                coming = self._expect(following)
            for spec, start in _places(specs):
                part = packed[start : start + spec.bytes].view(DTYPES[spec.dtype])
                yield spec.name, part.view(spec.shape)

    def close(self) -> None:
        """Leave the group; members that still wait for this one fail at once."""
        self._group.abort()

    def _pack(self, specs: Layout, tensors: Sequence[Tensor]) -> Tensor:
        packed = torch.empty(_size(specs), dtype=torch.uint8, device=self._device)
        for (spec, start), tensor in zip(_places(specs), tensors, strict=True):
            packed[start : start + spec.bytes].copy_(_bytes_of(tensor))
        return packed

    def _expect(self, specs: Layout) -> tuple[Tensor, Callable[[], None]]:
        packed = torch.empty(_size(specs), dtype=torch.uint8, device=self._device)
        return packed, self._broadcast(packed)

    def _broadcast(self, packed: Tensor) -> Callable[[], None]:
        """Begin a broadcast; what is returned waits for its end, and keeps the tensor until then."""
        with _as_transfer_error("weights"):
            work = self._group.broadcast(packed, 0, self._timeout)

        def wait() -> None:
            with _as_transfer_error(f"weights: a bucket of {packed.numel()} bytes did not arrive"):
                work.wait()

        return wait


def _gloo(store: Store, rank: int, members: int, timeout: timedelta, interface: str) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # Not through GLOO_SOCKET_IFNAME: the learner's own group may talk over another interface.
    options._devices = [dist.ProcessGroupGloo.create_device(interface=interface)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, members, options)


def _nccl(store: Store, rank: int, members: int, timeout: timedelta, interface: str) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    # Otherwise a wait only orders streams, and after a timeout NCCL's watchdog ends the process. Read as the group is
    # made; the process's own groups are left as they are. The interface is NCCL's own choice, once for a process.
    before = os.environ.get("TORCH_NCCL_BLOCKING_WAIT")
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    try:
        return dist.ProcessGroupNCCL(store, rank, members, options)
    finally:
        del os.environ["TORCH_NCCL_BLOCKING_WAIT"]
        if before is not None:
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = before


_BACKENDS = {"gloo": _gloo, "nccl": _nccl}


def _header(specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """Of a safetensors file; the largest types come first, so that each tensor stays aligned."""
    header: dict[str, Any] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: -DTYPES[spec.dtype].itemsize):
        start, end = end, end + spec.bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (start, end)}
    return header


def _places(specs: Layout) -> Iterator[tuple[TensorSpec, int]]:
    """The tensors of a bucket and where each begins in it, aligned to any type."""
    start = 0
    for spec in specs:
        yield spec, start
        start += -(-spec.bytes // 16) * 16


def _size(specs: Layout) -> int:
    return sum(-(-spec.bytes // 16) * 16 for spec in specs)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@contextmanager
def _as_transfer_error(stage: str) -> Iterator[None]:
    """What backends raise about members that are lost or late."""
    try:
        yield
    except RuntimeError as error:
        raise TransferError(f"{stage}: {error}") from error
