"""What whole episodes cost beyond the tokens they are made of, and what prefix caching saves.

Prints one JSON line. Episodes are played on the synthetic world, with the real retrieval service, by a
`RolloutWorker` in this process; then the very prompts of those episodes are given to the same engine all
at once, each for an answer of the same length. Caches start empty. Rates are the best of a
few runs, which is the fairest figure on a machine that others use as well.

- ``tokens_per_s``: generated tokens of whole episodes, counterfactual branches included, per second.
- ``bare_tokens_per_s``: the same tokens when nothing has to wait for anything.
- ``ratio``: the first over the second; the target is 0.8.
- ``cached``: share of prompt tokens that came from the prefix cache.
- ``retrieval_s``: seconds in which at least one episode waited for retrieval.
- ``default``, ``free``, ``no_prefix_cache``: with ``rollout.deterministic``, without, and the default with
  ``rollout.prefix_caching`` off.
- ``prefix_caching_gain``: seconds of episodes without the cache over seconds with it.

Run with ``python -m benchmarks.rollout [key=value ...]`` (configuration overrides); ``policy=DIR`` takes a
trained policy, whose answers are shorter than those of a random one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.trajectory import Generation, Prompt
from cluster.runtime.session import ray_session
from cluster.warm_start import create_policy
from retrieval_service.index import build_index
from retrieval_service.service import launch_retrieval
from rollout_workers.vllm.engine import RolloutEngine
from rollout_workers.worker import EpisodeSpec, RolloutWorker

REPEATS = 3


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


async def measure(worker: RolloutWorker, specs: Sequence[EpisodeSpec]) -> dict[str, float]:
    engine = worker.engine
    recording = Recording(engine)
    engine.generate = recording  # type: ignore[method-assign, assignment]
    played, bare = [], []
    for repeat in range(REPEATS + 1):  # the first warms up
        recording.calls.clear()
        engine.forget()
        before, begun = engine.stats(), time.perf_counter()
        await worker.play(specs)
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
        "retrieval_s": round(grown["retrieval_s"], 2),
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
        chosen = dataset.samples("train", config.train.samples_per_step)
        specs = [EpisodeSpec.to_train(config, i, sample, i) for i, sample in enumerate(chosen)]

        def run(**settings: bool) -> dict[str, float]:
            changed: Config = config.model_copy(update={"rollout": config.rollout.model_copy(update=settings)})
            worker = RolloutWorker(changed, policy, client)
            try:
                return asyncio.run(measure(worker, specs))
            finally:
                worker.engine.close()

        results = {"default": run(), "free": run(deterministic=False), "no_prefix_cache": run(prefix_caching=False)}
        client.close()
    gain = results["no_prefix_cache"]["seconds"] / results["default"]["seconds"]
    print(
        json.dumps({"benchmark": "rollout", "episodes": len(specs), **results, "prefix_caching_gain": round(gain, 2)})
    )


if __name__ == "__main__":
    main()
