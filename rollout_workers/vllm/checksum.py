"""What a live engine computes with, as one number that does not depend on how many ranks it lies on.

Under tensor parallelism a rank holds its own part of some tensors and a copy of the others. Each rank adds up its
tensors by who holds the same ones; of copies, which have to be equal, one counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from affect_rl.policy.checksum import multiset_checksum
from rollout_workers.vllm.model import AffectForCausalLM

Part = tuple[str, Tensor]
"""A tensor of a rank, and a name for the ranks that hold the same."""
_ALL = "all ranks"


class RanksDisagreeError(RuntimeError):
    """Ranks of an engine hold other copies of the same tensors."""


def part_sums(model: AffectForCausalLM) -> dict[str, int]:
    """`multiset_checksum` of what a rank holds, by the name of those who hold the same; runs on each rank."""
    dtype = next(model.fusion.parameters()).dtype
    sums: dict[str, int] = defaultdict(int)
    buffers = [(_ALL, buffer) for buffer in model.fusion.buffers()]
    for name, tensor in (*_parameters(model), *buffers, *_adapters(model)):
        sums[name] += multiset_checksum([tensor.to(dtype)])
    return dict(sums)


def joined(ranks: Sequence[Mapping[str, int]]) -> int:
    """The checksum of an engine from the `part_sums` of its ranks, in their order.

    Raises:
        RanksDisagreeError: one of them holds another copy than those before it.
    """
    sums: dict[str, int] = {}
    for rank, parts in enumerate(ranks):
        for name, value in parts.items():
            if sums.setdefault(name, value) != value:
                raise RanksDisagreeError(
                    f"checksum: rank {rank} of the engine holds other weights than the ranks before it where they hold "
                    f"the same ({name}); sync them again"
                )
    return sum(sums.values()) % 2**64


def _parameters(model: nn.Module) -> Iterator[Part]:
    """Each parameter once, as the engine computes with it.

    On CPU vLLM packs the weights of linear layers into its kernels and drops the originals; those are
    read through the kernel. A tied head whose packed copy is not what the embeddings are comes twice,
    so that the checksum shows it.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            packed = name == "weight" and hasattr(module, "cpu_linear")
            tensor = _unpacked(module, parameter) if packed else parameter
            if id(parameter) in seen and torch.equal(tensor, parameter):
                continue
            seen.add(id(parameter))
            yield from _parts(module, name, tensor)


def _parts(module: nn.Module, name: str, tensor: Tensor) -> Iterable[Part]:
    """A parameter of a layer, cut where its parts are held by others than the rest."""
    own = _rank(get_tensor_model_parallel_rank())
    match module:
        case QKVParallelLinear():
            return zip(_qkv_holders(module), tensor.split(module.output_partition_sizes), strict=True)
        case ColumnParallelLinear() | VocabParallelEmbedding():
            return [(own, tensor)]
        case RowParallelLinear():  # adds its bias once, on rank 0, but holds it everywhere
            return [(own if name == "weight" else _ALL, tensor)]
        case RoutedExperts():
            return [(_ALL if name == "w2_bias" else own, tensor)]
    return [(_ALL, tensor)]


def _adapters(model: Any) -> Iterator[Part]:
    """What a model computes with on behalf of its adapters: A and s B of each, padded with zeros."""
    manager = getattr(model, "lora_manager", None)
    if manager is None:
        return
    slots = [slot for slot, adapter in enumerate(manager.lora_index_to_id) if adapter is not None]
    own = _rank(get_tensor_model_parallel_rank())
    for layer in manager.modules.values():
        assert isinstance(layer, BaseLinearLayerWithLoRA)
        match layer.base_layer:
            case QKVParallelLinear():
                holders_a, holders_b = [_ALL] * 3, _qkv_holders(layer.base_layer)
            case ColumnParallelLinear():
                holders_a, holders_b = [_ALL] * layer.n_slices, [own] * layer.n_slices
            case RowParallelLinear():
                holders_a, holders_b = [own], [_ALL]
            case _:
                holders_a, holders_b = [_ALL], [_ALL]
        stacked = (*layer.lora_a_stacked, *layer.lora_b_stacked)
        yield from zip((*holders_a, *holders_b), (tensor[slots] for tensor in stacked), strict=True)


def _qkv_holders(layer: QKVParallelLinear) -> list[str]:
    """Who holds the queries, keys and values that a rank has: with more ranks than key-value heads several have one."""
    rank, copies = layer.tp_rank, layer.num_kv_head_replicas
    pairs = _rank(rank) if copies == 1 else f"key-value heads {rank // copies}"
    return [_rank(rank), pairs, pairs]


def _rank(number: int) -> str:
    return f"rank {number}"


@torch.no_grad()
def _unpacked(module: Any, weight: Tensor) -> Tensor:
    """The weight ``[out, in]`` inside a CPU kernel: what it makes of the identity (exact, as 0 x w + 1 x w is)."""
    width = weight.shape[1] if weight.numel() else module.input_size_per_partition
    return module.cpu_linear(torch.eye(width, dtype=weight.dtype), weight, None).T
