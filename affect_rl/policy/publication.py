"""A version of a policy's weights on its way to the engines: what it holds, and its tensors bucket by bucket.

Nobody holds a second copy of the model for it. Where ZeRO has parted the parameters, a bucket is whole only until the
next one is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affect_rl.policy.adapters import ADAPTERS, Adapter
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.directory import Base

VALUE_HEAD = "value_head."
"""Name prefix of the tensors that engines have no use for."""
BUCKET_BYTES = 2**26
"""Tensors travel in buckets of no more than this, or alone if they are larger."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of tensors by the names that safetensors has for them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Named = tuple[str, Tensor]
Gather = Callable[[Iterable[Sequence[Named]]], Iterator[Sequence[Named]]]
"""Makes parted tensors whole, bucket by bucket; a collective of all ranks."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be.

    Attributes:
        name: under `AffectPolicy.export`; of an adapter: ``adapters/<adapter>/<name in PEFT>``.
        dtype: its type, as safetensors calls it.
        shape: its shape when whole.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


Layout = tuple[TensorSpec, ...]


def layout_of(named: Iterable[Named], dtype: torch.dtype | None = None) -> Layout:
    """What tensors are when whole, in `dtype` if it is given. ZeRO stage 3 leaves an empty one, with a note of its
    shape."""
    return tuple(
        TensorSpec(name, _NAMES[dtype or tensor.dtype], tuple(getattr(tensor, "ds_shape", tensor.shape)))
        for name, tensor in named
    )


def in_buckets(layout: Layout, limit: int = BUCKET_BYTES) -> list[Layout]:
    """The tensors in their order, in buckets of at most `limit` bytes; both ends of a broadcast cut alike."""
    buckets: list[list[TensorSpec]] = []
    size = 0
    for spec in layout:
        if not buckets or size + spec.bytes > limit:
            buckets.append([])
            size = 0
        buckets[-1].append(spec)
        size += spec.bytes
    return [tuple(bucket) for bucket in buckets]


def buckets_of(named: Sequence[Named], layout: Layout | None = None) -> Iterator[Sequence[Named]]:
    """Tensors in the buckets of their layout, see `layout_of`."""
    start = 0
    for bucket in in_buckets(layout or layout_of(named)):
        yield named[start : start + len(bucket)]
        start += len(bucket)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What engines have to know of a version before they receive it.

    Attributes:
        version: see `WeightsHandle`.
        layout: the tensors, in the order in which they come.
        adapters: by name, the fields of PEFT's ``adapter_config.json``; their tensors are a part of the layout.
        base: the policy that the adapters stand on.
        checksum: see `WeightsHandle`; 0: nobody computed one yet.
    """

    version: int
    layout: Layout
    adapters: Mapping[str, Mapping[str, Any]]
    base: Base | None
    checksum: int = 0

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.layout)


class Publication:
    """The tensors of a version. Under ZeRO stage 3 all ranks have to make one and to go through it at the same time.

    Args:
        version: version that generated tokens will carry.
        named: as `AffectPolicy.export` yields them, without or with the value head.
        adapters: go to the engines beside them.
        dtype: in which engines compute with the adapters; None: as they are.
        base: what the adapters stand on, and the checksum of its language model.
        gather: makes buckets whole; by default they are.

    Attributes:
        version: as above.
        checksum: `multiset_checksum` of all that an engine then computes with, the base included, see `tallied`.
    """

    def __init__(
        self,
        version: int,
        named: Iterable[Named],
        adapters: Sequence[Adapter] = (),
        base: tuple[Base, int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        gather: Gather = iter,
    ) -> None:
        own = [(name, tensor) for name, tensor in named if not name.startswith(VALUE_HEAD)]
        theirs = [
            (f"{ADAPTERS}/{adapter.name}/{name}", tensor)
            for adapter in adapters
            for name, tensor in adapter.tensors.items()
        ]
        self.version, self._named, self._gather = version, own + theirs, gather
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._base, self.checksum = base, 0
        self._layout = layout_of(own) + layout_of(theirs, dtype)

    def announcement(self) -> Announcement:
        """What engines have to know."""
        configs = {name: adapter.config for name, adapter in self._adapters.items()}
        return Announcement(self.version, self._layout, configs, self._base[0] if self._base else None, self.checksum)

    def buckets(self) -> Iterator[list[Tensor]]:
        """The tensors as the layout says; a bucket is whole until the next is asked for."""
        whole = self._gather(buckets_of(self._named, self._layout))
        for specs, named in zip(in_buckets(self._layout), whole, strict=True):
            yield [tensor.detach().to(DTYPES[spec.dtype]) for spec, (_, tensor) in zip(specs, named, strict=True)]

    def tallied(self) -> Iterator[list[Tensor]]:
        """`buckets`; after the last one `checksum` is known."""
        total = self._base[1] if self._base else 0
        for specs, tensors in zip(in_buckets(self._layout), self.buckets(), strict=True):
            total += multiset_checksum(map(self._served, specs, tensors))
            yield tensors
        self.checksum = total % 2**64

    def pass_by(self) -> None:
        """Take part in gathering, on a rank that sends nothing."""
        for _ in self.buckets():
            pass

    def count(self) -> None:
        """Find out the checksum, before anything is sent."""
        for _ in self.tallied():
            pass

    def _served(self, spec: TensorSpec, tensor: Tensor) -> Tensor:
        """A tensor as engines compute with it: they fold an adapter's scale into B."""
        adapter, name = adapter_of(spec.name)
        return tensor * self._adapters[adapter].scaling if adapter and ".lora_A." not in name else tensor


def adapter_of(name: str) -> tuple[str, str]:
    """The adapter that a tensor is of, and its name in PEFT; of the policy itself: empty, and its name."""
    folder, _, rest = name.partition("/")
    adapter, _, inner = rest.partition("/")
    return (adapter, inner) if folder == ADAPTERS else ("", name)


def split_adapters(announcement: Announcement, named: Iterable[Named], adapters: list[Adapter]) -> Iterator[Named]:
    """Pass on the tensors of the policy itself, and put those of adapters into `adapters`, which is empty before."""
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in announcement.adapters}
    for path, tensor in named:
        adapter, name = adapter_of(path)
        if adapter:
            tensors[adapter][name] = tensor.cpu()
        else:
            yield path, tensor
    adapters += [Adapter(name, config, tensors[name]) for name, config in announcement.adapters.items()]
