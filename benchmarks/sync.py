"""What it takes to give an engine new weights, by each transfer; learner and engine are two processes. One JSON line.

For the whole model of each size (width x layers), and for its adapters of rank 16 alone, medians over syncs:

- ``mb``: megabytes that travel; ``memcpy_s``: seconds of copying as many within memory.
- ``pack_s``: the learner prepares them: checksum and, for a file, writing it. The engine plays on;
  ``steps_meanwhile`` are its steps in that time.
- ``stall_s``: the engine stands still, with 16 requests in flight that go on under the new weights: it loads the file,
  or receives the broadcast and loads it as it comes.
- ``sync_s``: both, one after the other, as in synchronous training; ``ms_per_mb``; ``over_memcpy``: in units of memcpy.
- ``checksum_s``: what ``train.verify_sync`` adds on the engine's side.
- ``join_s``: making the group of a broadcast, once.
- ``logprob_gap``: the largest difference of a token's log-prob between engine and learner after the last sync.

Every sync is verified: version and checksum have to be those of the learner.

Run with ``python -m benchmarks.sync [WIDTHxLAYERS ...]``; default ``512x8``, 114 MB.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from affect_rl.config.services import RolloutConfig
from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.publication import Announcement
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.policy.transfer import CollectiveTransfer, Meeting
from affect_rl.policy.weights import WeightsHandle, new_weights_dir
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import RolloutEngine

REPEATS = 5
CONTEXT = 256
FEATURES = 16
LORA = Lora(rank=16)


def make_policy(width: int, layers: int) -> AffectPolicy:
    tokenizer = train_tokenizer(["some words to begin with"], 2048)
    tokenizer.add_tokens([f"word{number}" for number in range(2048 - len(tokenizer))])
    model = tiny_language_model(tokenizer, layers=layers, dim=width, heads=width // 32, context=CONTEXT, seed=0)
    return AffectPolicy.create(
        model, tokenizer, audio_dim=FEATURES, video_dim=FEATURES, dim=64, heads=4, soft_tokens=2, experts=4, top_k=2
    )


class Learner:
    """Lives in a process of its own and does what it is told through a pipe."""

    def __init__(self, policy_dir: Path, adapters: bool) -> None:
        self._policy = AffectPolicy.load(policy_dir).eval()
        if adapters:
            self._policy.add_adapters(LORA)
        self._store = open_store(60)
        self._directory = new_weights_dir("sync", str(policy_dir.parent))
        self.port = self._store.port

    @torch.no_grad()
    def move(self) -> None:
        for parameter in self._policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01).add_(1e-3 * torch.randn_like(parameter))

    def join(self, meeting: Meeting) -> None:
        self._group = CollectiveTransfer(meeting, LOOPBACK, self._store)

    def write(self, version: int) -> WeightsHandle:
        return self._policy.publish(version, self._directory)

    def announce(self, version: int) -> Announcement:
        publication = self._policy.publication(version)
        publication.count()
        return publication.announcement()

    def send(self, version: int) -> None:
        publication = self._policy.publication(version)
        self._group.send(publication.announcement(), publication.buckets())

    @torch.no_grad()
    def gap(self, prompts: Sequence[Prompt], answers: Sequence[Generation]) -> float:
        """The largest difference between the log-probs of answers of equal lengths and its own."""
        ids = torch.tensor([p.token_ids + a.token_ids for p, a in zip(prompts, answers, strict=True)])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, len(prompts[0].token_ids) :] = True
        with self._policy.use_adapter(TEAM if self._policy.adapter_names else None):
            own = self._policy(TokenBatch(ids, mask, collate_percepts([], FEATURES, FEATURES))).logprobs
        return float((own - torch.tensor([a.logprobs for a in answers]).flatten()).abs().max())


def serve(pipe: Connection, policy_dir: Path, adapters: bool) -> None:
    torch.set_num_threads(1)
    learner = Learner(policy_dir, adapters)
    pipe.send(learner.port)
    for method, args in iter(pipe.recv, None):
        pipe.send(getattr(learner, method)(*args))


class Sync:
    """An engine, and a learner at the other end of a pipe."""

    def __init__(self, engine: RolloutEngine, pipe: Connection, transfer: str) -> None:
        self._engine, self._pipe, self._transfer = engine, pipe, transfer
        self._prompts = [Prompt((5 + i, *range(6, 46)), ()) for i in range(16)]

    async def ask(self, method: str, *args: Any) -> Any:
        """The learner's answer; the engine plays on meanwhile."""
        self._pipe.send((method, args))
        return await asyncio.to_thread(self._pipe.recv)

    async def answers(self, tokens: int = 60) -> list[Generation]:
        calls = [
            self._engine.generate(prompt, max_tokens=tokens, temperature=1.0, seed=i)
            for i, prompt in enumerate(self._prompts)
        ]
        return list(await asyncio.gather(*calls))

    async def once(self, version: int) -> dict[str, float]:
        """One sync in the midst of work."""
        await self.ask("move")
        playing = asyncio.ensure_future(self._play())
        while not self._engine.stats()["running"]:
            await asyncio.sleep(0)
        begun, steps = time.perf_counter(), self._engine.stats()["steps"]
        if self._transfer == "file":
            told = await self.ask("write", version)
            packed, steps = time.perf_counter(), self._engine.stats()["steps"] - steps
            assert await self._engine.update_weights(told) == version
        else:
            told = await self.ask("announce", version)
            packed, steps = time.perf_counter(), self._engine.stats()["steps"] - steps
            self._pipe.send(("send", (version,)))
            assert await self._engine.receive_weights(told) == version
        loaded = time.perf_counter()
        if self._transfer == "collective":
            await asyncio.to_thread(self._pipe.recv)
        assert self._engine.checksum() == told.checksum
        checked = time.perf_counter()
        playing.cancel()
        copied = timed_copy(told.bytes)
        return {
            "mb": told.bytes / 1e6, "memcpy_s": copied, "pack_s": packed - begun, "steps_meanwhile": steps,
            "stall_s": loaded - packed, "sync_s": loaded - begun, "ms_per_mb": 1e9 * (loaded - begun) / told.bytes,
            "over_memcpy": (loaded - begun) / copied, "checksum_s": checked - loaded,
        }  # fmt: skip

    async def _play(self) -> None:
        while True:
            await self.answers()

    async def measure(self, port: int) -> dict[str, float]:
        joined = 0.0
        if self._transfer == "collective":
            begun = time.perf_counter()
            meeting = Meeting((LOOPBACK, port), members=2, backend="gloo", one_node=True, timeout_s=60)
            self._pipe.send(("join", (meeting,)))
            assert await self._engine.join_group(meeting, LOOPBACK)
            await asyncio.to_thread(self._pipe.recv)
            joined = time.perf_counter() - begun
        rounds = [await self.once(version) for version in range(1, REPEATS + 2)][1:]
        medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        answers = await self.answers(20)
        alike = [i for i, answer in enumerate(answers) if len(answer.token_ids) == 20]
        assert alike
        gap = await self.ask("gap", [self._prompts[i] for i in alike], [answers[i] for i in alike])
        assert gap < 1e-4
        return {
            name: float(f"{value:.3g}") for name, value in (medians | {"join_s": joined, "logprob_gap": gap}).items()
        }


def timed_copy(size: int) -> float:
    source, target = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    begun = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - begun


def run(policy_dir: Path, transfer: str, *, adapters: bool) -> dict[str, float]:
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    learner = context.Process(target=serve, args=(there, policy_dir, adapters), daemon=True)
    learner.start()
    lora = LORA if adapters else None
    engine = RolloutEngine(policy_dir, RolloutConfig(kv_cache_gib=0.2), context=CONTEXT, seed=0, lora=lora)
    try:
        return asyncio.run(Sync(engine, here, transfer).measure(here.recv()))
    finally:
        here.send(None)
        learner.join(60)
        engine.close()


def main() -> None:
    results: dict[str, dict[str, float]] = {}
    for size in sys.argv[1:] or ["512x8"]:
        width, layers = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            policy_dir = make_policy(width, layers).save(Path(folder) / "policy")
            for adapters in (False, True):
                for transfer in ("file", "collective"):
                    name = f"{size} {'adapters' if adapters else 'whole'} {transfer}"
                    results[name] = run(policy_dir, transfer, adapters=adapters)
    print(json.dumps({"benchmark": "sync", **results}))


if __name__ == "__main__":
    main()
