"""What vLLM is told when an engine starts, and what its process needs before that."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm import EngineArgs
from vllm.config import WeightTransferConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora, linear_modules, read_adapters
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import Base
from rollout_workers.vllm.lora import slot_rank
from rollout_workers.vllm.weight_sync import BACKEND


def prepare_process(threads: int) -> None:
    """Make this process ready for an engine with so many CPU threads."""
    # vLLM would otherwise take one thread for itself and all for loading.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    # On CPU vLLM looks into the namespace of everything that a loaded module holds. llvmlite's library (numba loads it,
    # and librosa numba) answers any name it has not yet heard with a function of C, this one too: engines would die.
    if llvmlite := sys.modules.get("llvmlite.binding.ffi"):
        llvmlite.lib._fntab.setdefault("__dict__", {})


def check_cpu_limits(policy: AffectConfig, config: RolloutConfig) -> None:
    """vLLM itself would only find out in the middle of the first request."""
    text = policy.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    widths = CPUAttentionBackend.get_supported_head_sizes()
    if width not in widths:
        raise AffectError(
            f"model: attention heads are {width} wide, vLLM on CPU has kernels for {widths}; "
            "choose model.tiny.dim / model.tiny.heads among them"
        )
    if config.block_size % 32:
        raise AffectError(f"rollout.block_size={config.block_size} is not a multiple of 32, as vLLM on CPU needs it")


def engine_sizes(config: RolloutConfig, context: int, *, on_gpu: bool) -> dict[str, Any]:
    """Arguments of any vLLM engine here that follow from `config`, for prompts and answers of `context` tokens."""
    return {
        "max_model_len": context,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(config.max_batched_tokens, context),
        "block_size": config.block_size,
        "enable_prefix_caching": config.prefix_caching,
        "kv_cache_memory_bytes": None if on_gpu else int(config.kv_cache_gib * 2**30),
        "gpu_memory_utilization": config.gpu_memory,
        "enforce_eager": config.enforce_eager,
        "generation_config": "vllm",
        # On CPU vLLM dies of "CPU Generator does not use offset" when it splits a seeded prompt.
        "enable_chunked_prefill": None if on_gpu else False,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": config.tensor_parallel,
        # Inside a placement group vLLM would make each rank an actor of its own, with resources of its own.
        "distributed_executor_backend": "mp" if config.tensor_parallel > 1 else "uni",
    }


def adapter_slots(policy_dir: Path, policy: AffectConfig, lora: Lora | None, adapters: int) -> dict[str, Any]:
    """Arguments of an engine that is to hold such adapters, and those of the policy that it starts with."""
    own = read_adapters(policy_dir)
    ranks = [adapter.rank for adapter in own] + ([lora.rank] if lora else [])
    if not ranks:
        return {}
    asked = [adapter.config["target_modules"] for adapter in own] + ([lora.targets] if lora else [])
    targets: set[str] = set()
    for names in asked:
        targets |= set(linear_modules(policy.text_config) if isinstance(names, str) else names)
    return {
        "enable_lora": True,
        "max_loras": max(len(own), adapters if lora else 0),
        "max_lora_rank": slot_rank(max(ranks)),
        # Without them vLLM gives slots to embeddings and head as well.
        "lora_target_modules": sorted({name.rpartition(".")[2] for name in targets}),
    }


def engine_args(
    policy_dir: Path,
    policy_config: AffectConfig,
    config: RolloutConfig,
    context: int,
    seed: int,
    slots: Mapping[str, Any],
) -> EngineArgs:
    base = Base.read(policy_dir)
    return EngineArgs(
        **engine_sizes(config, context, on_gpu=config.gpus_per_worker > 0),
        **slots,
        model=base.path if base else str(policy_dir),
        # Engines of one pool must not draw the same numbers; with ``deterministic`` each request brings its seed.
        seed=seed if config.deterministic else secrets.randbits(31),
        # vLLM's "auto" would serve float32 weights in half precision.
        dtype=str(policy_config.dtype).removeprefix("torch."),
        # Behaviour log-probs are those of the distribution sampled from, temperature included.
        logprobs_mode="processed_logprobs",
        # The next step is scheduled while the last one runs, on GPUs; on CPU vLLM does not.
        async_scheduling=not config.deterministic,
        mm_processor_cache_gb=0,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        disable_log_stats=not config.vllm_statistics,
    )
