"""One model under DeepSpeed: forward passes that accumulate, optimiser steps, exact checkpoints.

Supervised training, the MAPPO actor and a separate critic all run on `Engine`. DeepSpeed picks its
accelerator when it is imported, so that import waits until the process has joined its group.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.batches import PolicyOutput, TokenBatch
from affect_rl.policy.model import AffectPolicy

WEIGHTS = "weights.safetensors"
LARGE_BLOCK = 2**22


def choose_device(gpu: bool, threads: int, workers: int) -> torch.device:
    """The device of this process, and on how many CPU threads it runs (0: the cores divided by `workers`).

    Ray shows an actor its own GPUs only; Ray Train shows a worker its neighbours' too and sets LOCAL_RANK.
    """
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // workers))
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    if not gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.setdefault("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def give_memory_back() -> None:
    """From now on a large tensor in main memory gets pages of its own, which the system has back when it is freed.

    From its heap glibc would hand out aligned blocks and not reuse the holes that they leave: a pass of a model of
    30 blocks then holds several times what lives at any moment, and more after each step. The price is fresh pages
    for each tensor.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        mallopt(-3, LARGE_BLOCK)  # M_MMAP_THRESHOLD


def join_group(rank: int, world: int, address: str, port: int, *, gpu: bool, timeout_s: float) -> None:
    """Join the process group of a training job; a collective that takes longer than `timeout_s` fails."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    if not gpu and address == "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout_s))


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether hardware computes bfloat16; without it, matrix products take a hundred times longer than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def deepspeed_config(
    device: torch.device, dtype: torch.dtype, *, zero_stage: int, max_grad_norm: float, autocast: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration for a model with weights of `dtype`, the largest gradient norm included.

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
            "overlap_comm": device.type == "cuda" and zero_stage >= 2,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16"},
        "steps_per_print": None,
    }


class Engine:
    """A policy with its AdamW, sharded over the ranks as the ZeRO stage says.

    Losses given to `backward` are parts of one whole: they are summed over passes and ranks, never
    averaged. Dropout is off. `checkpoint_activations` trades time for memory and changes no number.

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
            give_memory_back()
        self._norm = torch.zeros(())
        trained = [p for p in policy.parameters() if p.requires_grad]
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(group_of(name), []).append(parameter)
        self._groups = list(groups)
        # A second moment that remembers 1,000 steps answers a sudden gradient with a step that breaks the policy.
        params = [{"params": members} for members in groups.values()]
        self._optimizer = torch.optim.AdamW(params, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
        if self._stage == 0:
            # DeepSpeed clips unsharded gradients itself but keeps their norm for itself as well.
            def clip(*_: Any) -> None:
                self._norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)

            self._optimizer.register_step_pre_hook(clip)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        self._engine = deepspeed.initialize(
            model=policy,
            optimizer=self._optimizer,
            config=deepspeed_config(
                device,
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
        for name, group in zip(self._groups, self._optimizer.param_groups, strict=True):
            group["lr"] = lr[name] if isinstance(lr, Mapping) else lr
        self._engine.step()
        return float(self._norm if self._stage == 0 else self._engine.get_global_grad_norm())

    @contextmanager
    def gathered(self, modifier: int | None = None) -> Iterator[None]:
        """Inside, all ranks hold whole parameters; changes made by rank `modifier` reach the others."""
        if self._stage < 3:
            yield
            return
        with _deepspeed().zero.GatheredParameters(list(self.policy.parameters()), modifier_rank=modifier):
            yield

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write weights (rank 0) and this rank's shard of master weights and moments; call on all ranks."""
        with self.gathered():
            if dist.get_rank() == 0:
                weights = {name: p.detach().cpu().contiguous() for name, p in self._trained()}
                save_file(weights, directory / WEIGHTS)
        shard: dict[str, Tensor] = {}
        for number, master in enumerate(self._masters()):
            for name, tensor in {"master": master, **self._optimizer.state.get(master, {})}.items():
                shard[f"{number}.{name}"] = tensor.detach().cpu().contiguous()
        save_file(shard, directory / _shard_name())

    def load(self, directory: Path) -> None:
        """Continue exactly where `save` left off; call on all ranks.

        Raises:
            AffectError: the checkpoint was written with other parameters, ranks or ZeRO stage.
        """
        weights, shard = load_file(directory / WEIGHTS), load_file(directory / _shard_name())
        masters = self._masters()
        sizes = {f"{number}.master": master.shape for number, master in enumerate(masters)}
        if {n for n, _ in self._trained()} != set(weights) or sizes != {
            name: tensor.shape for name, tensor in shard.items() if name.endswith(".master")
        }:
            raise AffectError(
                f"{directory}: holds other parameters or shards than this learner; resume with the run's config"
            )
        with torch.no_grad(), self.gathered(modifier=0):
            if self._stage < 3 or dist.get_rank() == 0:
                for name, parameter in self._trained():
                    parameter.copy_(weights[name])
        with torch.no_grad():
            for number, master in enumerate(masters):
                state = {n.removeprefix(f"{number}."): t for n, t in shard.items() if n.startswith(f"{number}.")}
                master.copy_(state.pop("master"))
                self._optimizer.state[master] = {n: t.to(self.device) for n, t in state.items()}

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)

    def _masters(self) -> list[Tensor]:
        """The tensors that AdamW updates on this rank: fp32, flat and sharded from stage 1 on."""
        if self._stage == 3:  # there the optimiser sees them only while it steps
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [master for group in self._optimizer.param_groups for master in group["params"]]


def _deepspeed() -> Any:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its own CPU all-reduce is compiled on first use; gloo's needs no compiler on the user's machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]
    return deepspeed


def _shard_name() -> str:
    return f"rank-{dist.get_rank()}-of-{dist.get_world_size()}.safetensors"
