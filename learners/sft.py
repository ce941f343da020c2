"""Supervised warm start on demonstrations, as a Ray Train job.

`sft_steps` is the training itself; Ray Train only brings the workers together around it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from affect_rl.algorithms.batching import TokenSequence, collate, flatten, group_batches, schedule, turns_to_sequences
from affect_rl.config.load import Config
from affect_rl.config.sections import SftConfig
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.fusion import load_balance
from affect_rl.policy.model import AffectPolicy, TokenBatch
from affect_rl.trajectory import ROLES, Turn
from learners.engine import Engine, choose_device

OnStep = Callable[[dict[str, float]], None]
POLL_S = 0.2


def learning_rate(settings: SftConfig, step: int) -> float:
    """Linear warm-up to `lr` over `warmup` steps, then a cosine down to 0 at the end (steps from 0)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def sft_steps(
    engine: Engine, sequences: Sequence[TokenSequence], settings: SftConfig, *, balance_weight: float, seed: int
) -> Iterator[dict[str, float]]:
    """Train on demonstrations, one optimiser step an iteration; run on all ranks at once.

    The loss is the mean over agents of the cross entropy of their answers' tokens (a planner writes three
    times what a generator does, and is not three times as important), plus `prompt_weight` times the
    cross entropy of the prompts' text, plus the load-balance loss of MB-MoE averaged over its percepts.
    Tokens are counted over the step on all ranks.

    Args:
        engine: the policy.
        sequences: demonstrations; those of one group (a sample) stay together.
        settings: steps, batch, learning rate.
        balance_weight: weight of the load-balance loss.
        seed: of the order of samples.

    Yields:
        ``loss``, ``balance``, ``lr``, ``grad_norm`` and, per agent, ``<role>/loss`` and ``<role>/accuracy``
        (share of answer tokens that the policy would have chosen greedily, given those before).
    """
    flat, lengths = flatten(sequences), list(map(len, sequences))
    policy, rank, world = engine.policy, dist.get_rank(), dist.get_world_size()
    roles, percept_id = flat.roles.to(engine.device), policy.config.percept_token_id
    batches = group_batches([s.group for s in sequences], settings.batch_samples, seed)
    for step, chosen in enumerate(itertools.islice(batches, settings.steps)):
        counts = torch.zeros(len(ROLES), device=engine.device)
        for i in chosen:
            counts[ROLES.index(sequences[i].role)] += len(sequences[i].response)
        share = 1 / (counts.clamp(min=1) * (counts > 0).sum())  # [3] weight of an answer token by role
        prompts = sum(_text_tokens(sequences[i].prompt.token_ids, percept_id) for i in chosen)
        percepts = max(1, sum(p.fused for i in chosen for p in sequences[i].prompt.percepts))
        sums = torch.zeros(len(ROLES) + 1, 3, device=engine.device)  # tokens, loss, greedy; last row: balance
        for rows in schedule(lengths, chosen, world, settings.tokens_per_microbatch)[rank]:
            batch = collate(sequences, flat, rows, policy.fusion.shape, policy.tokenizer.pad_token_id).to(engine.device)
            answers = batch.tokens.response_mask
            learned = answers | _prompt_text(batch.tokens, percept_id) if settings.prompt_weight else answers
            output = engine(batch.tokens._replace(response_mask=learned), with_entropies=False)
            is_answer = answers[learned]
            logprobs, role = output.logprobs[is_answer], roles[batch.places]
            balance = load_balance(output.router, output.weights) * output.router.shape[0] / percepts
            loss = balance_weight * balance - (share[role] * logprobs).sum()
            if settings.prompt_weight:
                loss = loss - settings.prompt_weight * output.logprobs[~is_answer].sum() / prompts
            engine.backward(batch.weight * loss)
            seen = torch.stack([torch.ones_like(logprobs), -logprobs, output.greedy[is_answer].float()], dim=-1)
            sums.index_add_(0, role, batch.weight * seen.detach())
            sums[-1, 1] += batch.weight * balance.detach()
        lr = learning_rate(settings, step)
        norm = engine.step(lr)
        dist.all_reduce(sums)
        yield {**_metrics(sums), "step": float(step + 1), "lr": lr, "grad_norm": norm}


def _text_tokens(prompt: Sequence[int], percept_id: int) -> int:
    """Tokens of a prompt that a language model can learn to predict: text, after the first token."""
    return sum(token != percept_id for token in prompt[1:])


def _prompt_text(tokens: TokenBatch, percept_id: int) -> torch.Tensor:
    """Mask ``[B, L]`` of the prompts' text: before the answer, no placeholder, not the first token."""
    before_answer = tokens.response_mask.int().cumsum(dim=1) == 0
    mask = before_answer & (tokens.input_ids != percept_id)
    mask[:, 0] = False
    return mask


def _metrics(sums: torch.Tensor) -> dict[str, float]:
    *rows, (_, balance, _) = sums.tolist()
    metrics = {"loss": sum(row[1] for row in rows) / sum(row[0] for row in rows), "balance": balance}
    for role, (tokens, loss, greedy) in zip(ROLES, rows, strict=True):
        if tokens:
            metrics |= {f"{role}/loss": loss / tokens, f"{role}/accuracy": greedy / tokens}
    return metrics


def run_sft(
    config: Config,
    demonstrations: Sequence[Sequence[Turn]] | ray.ObjectRef,
    policy_in: Path,
    policy_out: Path,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Train the policy directory `policy_in` on demonstrations and write `policy_out`.

    Args:
        config: sections `sft` and `model`, and the seed.
        demonstrations: the turns of each demonstrated episode, or a Ray object that holds them.
        policy_in: policy directory; all workers must be able to read it.
        policy_out: policy directory to write; must not exist yet.
        on_step: called in this process with the metrics of each step, as they arrive.

    Returns:
        Metrics of the last step, see `sft_steps`.

    Raises:
        TimeoutError: the job took longer than `sft.deadline_s`.
        ray.train.TrainingFailedError: a worker failed.
    """
    settings = config.sft
    episodes = demonstrations if isinstance(demonstrations, ray.ObjectRef) else ray.put(demonstrations)
    steps = Queue(actor_options={"num_cpus": 0})
    gpu = settings.gpus_per_worker > 0
    with tempfile.TemporaryDirectory(prefix="affect-rl-sft-") as storage:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "config": config, "episodes": [episodes], "policy_in": policy_in.resolve(),
                "policy_out": policy_out.resolve(), "steps": steps,
            },
            torch_config=TorchConfig("nccl" if gpu else "gloo", timeout_s=int(settings.deadline_s)),
            scaling_config=train.ScalingConfig(
                num_workers=settings.workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": 1} | ({"GPU": settings.gpus_per_worker} if gpu else {}),
            ),
            run_config=train.RunConfig(name="sft", storage_path=storage),
        )  # fmt: skip
        try:
            return _follow(trainer, steps, on_step or (lambda _: None), settings.deadline_s)
        finally:
            steps.shutdown(force=True)


def _follow(trainer: TorchTrainer, steps: Queue, on_step: OnStep, deadline_s: float) -> dict[str, float]:
    """Run the job on a thread of its own and hand its steps to `on_step` as they come."""
    job: Future[Any] = Future()

    def fit() -> None:
        try:
            job.set_result(trainer.fit())
        except BaseException as error:  # reported by the thread that waits
            job.set_exception(error)

    threading.Thread(target=fit, name="sft", daemon=True).start()
    ends, metrics = time.monotonic() + deadline_s, {}
    while True:
        finished = job.done()  # asked before the queue is emptied, so that no step is missed
        with contextlib.suppress(Empty):
            while True:
                metrics = steps.get(timeout=POLL_S)
                on_step(metrics)
        if finished:
            job.result()
            return metrics
        if time.monotonic() > ends:
            raise TimeoutError(f"sft: the job did not end within sft.deadline_s={deadline_s:g}; last step: {metrics}")


def _worker(given: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    config: Config = given["config"]
    settings = config.sft
    device = choose_device(settings.gpus_per_worker > 0, settings.threads, settings.workers)
    torch.manual_seed(config.seed)
    policy = AffectPolicy.load(given["policy_in"], dtype=getattr(torch, config.model.dtype))
    if (lora := config.model.lora).rank:
        policy.add_adapters(Lora(lora.rank, lora.alpha, lora.targets))
    engine = Engine(
        policy, device, zero_stage=settings.zero_stage, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm, autocast=settings.autocast,
    )  # fmt: skip
    sequences = turns_to_sequences(ray.get(given["episodes"][0], timeout=settings.deadline_s))
    first = dist.get_rank() == 0
    for metrics in sft_steps(
        engine, sequences, settings, balance_weight=config.model.fusion.load_balance, seed=config.seed
    ):
        if first:
            given["steps"].put(metrics)
    with engine.gathered():
        if first:
            policy.save(given["policy_out"], merge=TEAM)
