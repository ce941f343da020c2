"""What each worker of the warm start runs: it joins the others, trains, and writes checkpoints and the policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.train.collective import broadcast_from_rank_zero

from affect_rl.algorithms.batching import turns_to_sequences
from affect_rl.config.learning import SftConfig
from affect_rl.config.load import Config
from affect_rl.files import replace_directory
from affect_rl.memory import release_memory
from affect_rl.network import open_store
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.model import AffectPolicy
from learners.engine import Engine, choose_device
from learners.meeting import Seat, join_group, node_address
from learners.sft import sft_steps
from learners.sft_job import STATE, checkpoint_of

_RELEASE_EVERY = 10
"""Steps after which free memory is given back: the holes between what lives become more with each. After every step it
would take a tenth of the time, for the next one needs the pages again."""


def work(given: dict[str, Any]) -> None:
    """Train as one of the workers of `learners.sft_job.run_sft`, which says what is `given`."""
    config: Config = given["config"]
    settings = config.sft
    device = _join(settings)
    torch.manual_seed(config.seed)
    policy = AffectPolicy.load(given["policy_in"], dtype=getattr(torch, config.model.dtype), verify=False)
    if (lora := config.model.lora).rank:
        policy.add_adapters(Lora(lora.rank, lora.alpha, lora.targets))
    engine = Engine(
        policy, device, zero_stage=settings.zero_stage, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm, autocast=settings.autocast,
        checkpoint_activations=config.model.unless_tiny(settings.checkpoint_activations),
    )  # fmt: skip
    checkpoint, done = checkpoint_of(given["policy_out"]), 0
    if checkpoint.exists():
        engine.load(checkpoint)
        done = int(json.loads((checkpoint / STATE).read_text())["step"])
    sequences = turns_to_sequences(ray.get(given["episodes"][0], timeout=settings.deadline_s))
    first = dist.get_rank() == 0
    for metrics in sft_steps(
        engine, sequences, settings, balance_weight=config.model.fusion.load_balance, seed=config.seed, done=done
    ):
        if first:
            given["steps"].put(metrics)
        step = int(metrics["step"])
        if step % _RELEASE_EVERY == 0:
            release_memory()
        if settings.checkpoint_every and step % settings.checkpoint_every == 0 and step < settings.steps:
            _write_checkpoint(engine, checkpoint, given["state"] | {"step": step})
    with engine.gathered():
        if first:
            policy.save(given["policy_out"], merge=TEAM)
    dist.destroy_process_group()


def _join(settings: SftConfig) -> torch.device:
    """Join the other workers; returns the device of this one."""
    worker, gpu = train.get_context(), settings.gpus_per_worker > 0
    rank, neighbours, address = worker.get_world_rank(), worker.get_local_world_size(), node_address()
    store = open_store(settings.deadline_s) if rank == 0 else None
    meeting = broadcast_from_rank_zero((address, store.port) if store else None)
    device = choose_device(gpu, settings.threads, neighbours)
    seat = Seat(rank, worker.get_world_size(), neighbours, address, meeting)
    join_group(seat, gpu=gpu, timeout_s=settings.deadline_s, store=store)
    return device


def _write_checkpoint(engine: Engine, directory: Path, state: dict[str, Any]) -> None:
    """Write all ranks' parts in the place of the checkpoint before; call on all ranks."""
    partial = directory.with_name(f"{directory.name}.partial")
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.save(partial)
    dist.barrier()
    if first:
        (partial / STATE).write_text(json.dumps(state, indent=1) + "\n")
        replace_directory(partial, directory)
