"""One model under DeepSpeed: forward passes that accumulate, optimiser steps, exact checkpoints.

Supervised training, the MAPPO actor and a separate critic all run on `Engine`. DeepSpeed picks its
accelerator when it is imported, so that import waits until the process has joined its group.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from joblib import cpu_count
from safetensors.torch import load_file, save_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.memory import map_large_blocks
from affect_rl.policy.batches import PolicyOutput, TokenBatch
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.publication import VALUE_HEAD, Named
from learners.pieces import Master, Piece, cut, load_pieces, save_pieces, whole
from learners.value_head import HeadTrainer, trains_apart, value_head_apart

WEIGHTS = "weights.safetensors"


def choose_device(gpu: bool, threads: int, neighbours: int) -> torch.device:
    """The device of this process, and on how many CPU threads it runs.

    Args:
        gpu: whether it has one; Ray shows it no other.
        threads: CPU threads; 0: its share of the cores that affinity and cgroup leave to this machine's processes.
        neighbours: ranks on this machine, itself included, which share the cores.
    """
    torch.set_num_threads(threads or max(1, cpu_count() // neighbours))
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    if not gpu:
        return torch.device("cpu")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    return device


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether hardware computes bfloat16; without it, matrix products take a hundred times longer than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def deepspeed_config(
    dtype: torch.dtype, *, zero_stage: int, max_grad_norm: float, autocast: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration for a model with weights of `dtype`, the same on GPUs and on the CPU.

    Gradients add up in float32 whatever the weights are: a sum of many passes outgrows bfloat16's 3 digits.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        # Ranks accumulate as many passes as the token budget asks for; `Engine.step` ends the batch.
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm if zero_stage else 0.0,
        "zero_optimization": {
            "stage": zero_stage,
            # With batches that the caller ends, only stages that reduce gradients in each pass can do so meanwhile.
            # On the CPU nothing overlaps.
            "overlap_comm": zero_stage >= 2,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16"},
        "steps_per_print": None,
    }


class Engine:
    """A policy with its AdamW, sharded over the ranks as the ZeRO stage says.

    Losses given to `backward` are parts of one whole: they are summed over passes and ranks, never
    averaged. Dropout is off. `checkpoint_activations` trades time for memory and changes no number. The
    value head of a bfloat16 policy stays float32, see `learners.value_head`.

    Attributes:
        policy: the module; under ZeRO stage 3 its parameters are whole only inside `gathered`.
        device: where it lives.
    """

    def __init__(
        self,
        policy: AffectPolicy,
        device: torch.device,
        *,
        zero_stage: int,
        weight_decay: float,
        max_grad_norm: float,
        autocast: bool = False,
        group_of: Callable[[str], str] = lambda name: "policy",
        checkpoint_activations: bool = False,
    ) -> None:
        """`group_of`: by a parameter's name, the group it belongs to; each group has a learning rate of its own."""
        deepspeed = _deepspeed()
        self.policy, self.device = policy.to(device).eval(), device
        dtype = next(policy.parameters()).dtype
        # DeepSpeed keeps no float32 weights behind bfloat16 ones at stage 0. Stage 1 does, and shards only them.
        self._stage = max(zero_stage, 1) if dtype == torch.bfloat16 else zero_stage
        if checkpoint_activations:
            policy.checkpoint_activations()
            map_large_blocks()
        self._norm = torch.zeros(())
        trained = [p for p in policy.parameters() if p.requires_grad]
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and not (trains_apart(policy) and name.startswith(VALUE_HEAD)):
                groups.setdefault(group_of(name), []).append(parameter)

        def adamw(params: Iterable[Any]) -> torch.optim.AdamW:
            # A second moment that remembers 1,000 steps answers a sudden gradient with a step that breaks the policy.
            return torch.optim.AdamW(params, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)

        self._members = list(groups.values())
        self._optimizer = adamw([{"params": members} for members in self._members])
        self._head = None
        if trains_apart(policy) and policy.value_head.weight.requires_grad:
            self._head = HeadTrainer(policy.value_head, adamw(policy.value_head.parameters()), max_grad_norm)
        self._groups = [*groups] + ([group_of(f"{VALUE_HEAD}weight")] if self._head else [])
        if self._stage == 0:
            # DeepSpeed clips unsharded gradients itself but keeps their norm for itself as well.
            def clip(*_: Any) -> None:
                self._norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                if not self._norm.isfinite():
                    for parameter in trained:  # which AdamW then leaves as they are, as DeepSpeed does at other stages
                        parameter.grad = None

            self._optimizer.register_step_pre_hook(clip)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        with value_head_apart(policy):
            self._engine = deepspeed.initialize(
                model=policy,
                optimizer=self._optimizer,
                config=deepspeed_config(
                    dtype,
                    zero_stage=self._stage,
                    max_grad_norm=max_grad_norm,
                    autocast=autocast and has_bfloat16_units(device),
                ),
                dist_init_required=False,
            )[0]
        if self._stage == 3:
            # DeepSpeed wants equally many module calls on all ranks, but their heads have unequal numbers of chunks.
            # So the head belongs to the whole policy: gathered once for a pass, and called without its own hooks.
            for parameter in policy.head.parameters():
                deepspeed.zero.register_external_parameter(policy, parameter)

    def __call__(self, batch: TokenBatch, temperature: float | Tensor = 1.0, **asked: bool) -> PolicyOutput:
        """A forward pass; `asked` are the switches of `AffectPolicy.forward`."""
        return self._engine(batch, temperature, **asked)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a part of the loss."""
        self._engine.backward(loss * dist.get_world_size())  # DeepSpeed averages over ranks; this undoes it

    def step(self, lr: float | Mapping[str, float]) -> float:
        """Sum the gradients over ranks, clip, update, clear. Returns their norm before clipping.

        Args:
            lr: learning rate of all parameters, or of each group.
        """
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        for name, group in zip(self._groups, groups, strict=True):
            group["lr"] = lr[name] if isinstance(lr, Mapping) else lr
        with value_head_apart(self.policy):
            self._engine.step()
        norm = float(self._norm if self._stage == 0 else self._engine.get_global_grad_norm())
        return self._head.step(norm) if self._head else norm

    @contextmanager
    def gathered(self, modifier: int | None = None) -> Iterator[None]:
        """Inside, all ranks hold whole parameters; changes made by rank `modifier` reach the others."""
        if self._stage < 3:
            yield
            return
        with _deepspeed().zero.GatheredParameters(list(self.policy.parameters()), modifier_rank=modifier):
            yield

    def gather(self, buckets: Iterable[Sequence[Named]]) -> Iterator[Sequence[Named]]:
        """Yield tensors of the policy bucket by bucket, each whole until the next is asked for; call on all ranks."""
        for bucket in buckets:
            parted = [tensor for _, tensor in bucket if hasattr(tensor, "ds_id")]
            with _deepspeed().zero.GatheredParameters(parted) if self._stage == 3 else nullcontext():
                yield bucket

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write weights (rank 0) and this rank's part of master weights and moments; call on all ranks."""
        with self.gathered():
            if dist.get_rank() == 0:
                weights = {name: p.detach().cpu().contiguous() for name, p in self._trained()}
                save_file(weights, directory / WEIGHTS)
        file = directory / f"rank-{dist.get_rank()}-of-{dist.get_world_size()}.safetensors"
        save_pieces(list(self._masters()), file, first_rank=dist.get_rank() == 0)

    def load(self, directory: Path) -> None:
        """Continue where `save` left off, with any number of ranks; with the same number exactly. Call on all ranks.

        Raises:
            AffectError: the checkpoint was written with other parameters.
        """
        weights = load_file(directory / WEIGHTS)
        if {n for n, _ in self._trained()} != set(weights):
            raise AffectError(f"{directory}: holds other parameters than this learner; resume with the run's config")
        with torch.no_grad(), self.gathered(modifier=0):
            if self._stage < 3 or dist.get_rank() == 0:
                for name, parameter in self._trained():
                    parameter.copy_(weights[name])
        load_pieces(list(self._masters()), sorted(directory.glob("rank-*-of-*.safetensors")))

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)

    def _optimizers(self) -> list[torch.optim.AdamW]:
        return [self._optimizer, *([self._head.optimizer] if self._head else [])]

    def _masters(self) -> Iterator[Master]:
        """The tensors that are updated on this rank: fp32, flat and sharded from stage 1 on.

        A value head of its own is float32 and whole.
        """
        names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
        zero, rank = self._engine.optimizer, dist.get_rank()
        if self._stage == 3:  # each parameter is cut by itself
            for flat, members in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
                pieces, offset = list[Piece](), 0
                for p in members:
                    size = p.partition_numel()
                    own = cut([(names[id(p)], 0, p.ds_numel)], rank * size, size)
                    pieces += [replace(piece, offset=offset) for piece in own]
                    offset += size
                yield Master(flat, self._optimizer, tuple(pieces))
        elif self._stage:  # the parameters of a group are laid end to end and cut as one
            for group, members in zip(self._optimizer.param_groups, self._members, strict=True):
                (flat,) = group["params"]
                ends = accumulate(p.numel() for p in members)
                placed = [(names[id(p)], end - p.numel(), p.numel()) for p, end in zip(members, ends, strict=True)]
                yield Master(flat, self._optimizer, tuple(cut(placed, rank * flat.numel(), flat.numel())))
        for optimizer in self._optimizers() if self._stage == 0 else self._optimizers()[1:]:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                yield Master(parameter, optimizer, whole(names[id(parameter)], parameter), everywhere=True)


def _deepspeed() -> Any:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its own CPU all-reduce is compiled on first use; gloo's needs no compiler on the user's machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]
    return deepspeed
