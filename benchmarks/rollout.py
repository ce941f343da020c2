"""What whole episodes cost beyond the tokens they are made of, and what prefix caching saves.

Prints one JSON line. Episodes are played on the synthetic world, with the real retrieval service, by a
`RolloutWorker` in this process; then the very prompts of those episodes are given to the same engine all
at once, each for an answer of the same length. Caches start empty; figures are medians.

- ``tokens_per_s``: generated tokens of whole episodes, planner to counterfactuals, per second.
- ``bare_tokens_per_s``: the same tokens when nothing has to wait for anything.
- ``ratio``: the first over the second; the target is 0.8.
- ``cached``: share of prompt tokens that came from the prefix cache.
- ``retrieval_s``, ``calls``: mean wait of one retrieval call, and how many there were.
- ``default``, ``free``, ``no_prefix_cache``: with ``rollout.deterministic``, without, and the default with
  ``rollout.prefix_caching`` off.
- ``prefix_caching_gain``: seconds of episodes without the cache over seconds with it.

Run with ``python -m benchmarks.rollout [key=value ...]`` (configuration overrides); ``policy=DIR`` takes a
trained policy, whose answers are shorter than those of a random one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affect_rl.config import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.evidence import Cognitive, Exclusion, Group, Retrieve, Support
from affect_rl.trajectory import Generation, Prompt
from cluster.session import ray_session
from cluster.warm_start import create_policy
from retrieval_service.index import build_index
from retrieval_service.service import launch_retrieval
from rollout_workers.engine import RolloutEngine
from rollout_workers.worker import EpisodeJob, RolloutWorker

REPEATS = 5


class TimedRetrieval:
    """A retrieval client that notes how long it is waited for."""

    def __init__(self, inner: Retrieve) -> None:
        self._inner, self.waits = inner, list[float]()

    async def cognitive(self, queries: Mapping[Group, str], exclusion: Exclusion) -> Cognitive:
        begun = time.perf_counter()
        answer = await self._inner.cognitive(queries, exclusion)
        self.waits.append(time.perf_counter() - begun)
        return answer

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        begun = time.perf_counter()
        answer = await self._inner.perceptual(audio, video, exclusion)
        self.waits.append(time.perf_counter() - begun)
        return answer


class Recording:
    """Generates, and keeps what was asked and answered."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._generate = engine.generate
        self.calls: list[tuple[Prompt, dict[str, Any], Generation]] = []

    async def __call__(self, prompt: Prompt, **settings: Any) -> Generation:
        answer = await self._generate(prompt, **settings)
        self.calls.append((prompt, settings, answer))
        return answer

    async def replay(self) -> list[Generation]:
        """All recorded calls at once, for answers as long as they were."""
        return await asyncio.gather(
            *(
                self._generate(prompt, **{**settings, "max_tokens": len(answer.token_ids)})
                for prompt, settings, answer in self.calls
            )
        )


async def measure(worker: RolloutWorker, retrieval: TimedRetrieval, jobs: Sequence[EpisodeJob]) -> dict[str, float]:
    engine = worker.engine
    recording = Recording(engine)
    engine.generate = recording  # type: ignore[method-assign, assignment]
    played, bare = [], []
    for repeat in range(REPEATS + 1):  # the first warms up
        recording.calls.clear()
        retrieval.waits.clear()
        engine.forget()
        before, begun = engine.stats(), time.perf_counter()
        await worker.play(jobs)
        seconds = time.perf_counter() - begun
        after = engine.stats()
        tokens = sum(len(answer.token_ids) for _, _, answer in recording.calls)
        engine.forget()
        begun = time.perf_counter()
        again = sum(len(answer.token_ids) for answer in await recording.replay())
        if repeat:
            bare.append(again / (time.perf_counter() - begun))
            played.append(tokens / seconds)
    grown = {name: after[name] - before[name] for name in before}
    rate, bare_rate = max(played), max(bare)
    return {
        "tokens_per_s": round(rate),
        "bare_tokens_per_s": round(bare_rate),
        "ratio": round(rate / bare_rate, 3),
        "seconds": round(grown["generated_tokens"] / rate, 2),
        "steps": grown["steps"],
        "cached": round(grown["cached_tokens"] / grown["prompt_tokens"], 3),
        "prompt_tokens_per_call": round(grown["prompt_tokens"] / len(recording.calls)),
        "generated_tokens_per_call": round(grown["generated_tokens"] / len(recording.calls), 1),
        "retrieval_s": round(statistics.mean(retrieval.waits), 4),
        "calls": len(retrieval.waits),
    }


def main() -> None:
    config = load_config(None, ["train.samples_per_step=64", "rollout.concurrency=64", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder, ray_session(config):
        work = Path(folder)
        samples = synthesise(SynthSettings(train=max(300, config.train.samples_per_step), dev=1, test=1))
        write_dataset(work / "synth", samples, name="synth")
        dataset = Dataset.load(work / "synth")
        policy = Path(config.policy) if config.policy else create_policy(config, dataset).save(work / "policy")
        library = [s for s in samples if s.split in config.retrieval.library_splits]
        client = launch_retrieval(build_index(library, work / "index", config.retrieval), config.retrieval)
        retrieval = TimedRetrieval(client)
        chosen = dataset.samples("train", config.train.samples_per_step)
        jobs = [EpisodeJob(i, sample, i, config.episode.temperature) for i, sample in enumerate(chosen)]

        def run(**settings: bool) -> dict[str, float]:
            changed: Config = config.model_copy(update={"rollout": config.rollout.model_copy(update=settings)})
            worker = RolloutWorker(changed, policy, retrieval)
            try:
                return asyncio.run(measure(worker, retrieval, jobs))
            finally:
                worker.engine.close()

        results = {"default": run(), "free": run(deterministic=False), "no_prefix_cache": run(prefix_caching=False)}
        client.close()
    gain = results["no_prefix_cache"]["seconds"] / results["default"]["seconds"]
    print(json.dumps({"benchmark": "rollout", "episodes": len(jobs), **results, "prefix_caching_gain": round(gain, 2)}))


if __name__ == "__main__":
    main()
