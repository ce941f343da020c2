"""Sharded over unsharded retrieval: seconds per batch, as one JSON line.

`search` is a batch of queries against shard actors (scatter, gather, merge) over the same batch against one
index in this process, which gets as many threads as all shards together. `service` is whole answers of
the perceptual path to as many concurrent episodes, over `LocalRetriever` answering them in turn. `ray` is what
Ray takes to ask all shards at once for nothing, and the frontend; a whole answer waits for both.

    python -m benchmarks.retrieval --rows 14000 --shards 2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import ray
from ray.actor import ActorHandle

from affect_rl.config.services import RetrievalConfig
from affect_rl.evidence import Exclusion
from affect_rl.sample import AffectSample
from retrieval_service.frontend import ShardPool
from retrieval_service.index import IndexDirectory, build_index
from retrieval_service.retriever import LocalRetriever
from retrieval_service.service import launch_retrieval

BATCHES = (1, 64, 512)
TOP = 12
STRANGER = Exclusion(id="", clip="", dialogue=None, speaker="")


def library(rows: int, dim: int) -> Iterator[AffectSample]:
    """Random features as audio. All texts are equal, so only one is encoded."""
    rng = np.random.default_rng(0)
    for i in range(rows):
        audio = rng.standard_normal((1, dim), dtype=np.float32)
        yield AffectSample(f"row-{i}", "random", "library", f"clip-{i}", "", "", ("joy",), "closed", audio=audio)


async def seconds(work: Callable[[], Awaitable[object]], repeats: int) -> float:
    """Median of `repeats` runs after one to warm up."""
    await work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


async def measure(index_dir: Path, config: RetrievalConfig, dim: int, repeats: int) -> dict[str, object]:
    faiss.omp_set_num_threads(config.shards * config.threads)
    whole = IndexDirectory.open(index_dir, config).vector_index("audio", config)
    local = LocalRetriever(index_dir, config)
    client = launch_retrieval(index_dir, config)
    pool = ShardPool(client.shards, config)
    features = np.random.default_rng(1).standard_normal((max(BATCHES), 1, dim), dtype=np.float32)
    queries = features[:, 0] / np.linalg.norm(features[:, 0], axis=1, keepdims=True)

    async def ready(actors: Sequence[ActorHandle]) -> object:
        return await asyncio.gather(*(asyncio.wrap_future(actor.ready.remote().future()) for actor in actors))

    asked = {"shards": client.shards, "frontend": [client.frontend]}
    results: dict[str, object] = {
        "ray": {
            f"{who}_ms": round(1000 * await seconds(partial(ready, whom), repeats), 2) for who, whom in asked.items()
        }
    }
    for batch in BATCHES:

        async def unsharded(batch: int = batch) -> tuple[np.ndarray, ...]:
            return whole.search(queries[:batch], TOP)

        async def sharded(batch: int = batch) -> tuple[np.ndarray, ...]:
            return (await pool.search("audio", queries[:batch], TOP))[0]

        async def alone(batch: int = batch) -> object:
            return [await local.perceptual(audio, None, STRANGER) for audio in features[:batch]]

        async def served(batch: int = batch) -> object:
            return await asyncio.gather(*(client.perceptual(audio, None, STRANGER) for audio in features[:batch]))

        for one, other in zip(await unsharded(), await sharded(), strict=True):
            np.testing.assert_array_equal(one, other)
        timings = {work.__name__: await seconds(work, repeats) for work in (unsharded, sharded, alone, served)}
        results[f"batch_{batch}"] = {
            **{f"{name}_ms": round(1000 * value, 2) for name, value in timings.items()},
            "search_ratio": round(timings["sharded"] / timings["unsharded"], 2),
            "service_ratio": round(timings["served"] / timings["alone"], 2),
        }
    client.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=14_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--factory", default="Flat")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    config = RetrievalConfig(shards=args.shards, perceptual_factory=args.factory)
    with tempfile.TemporaryDirectory() as folder:
        index_dir = build_index(library(args.rows, args.dim), Path(folder) / "index", config)
        ray.init(address="local", num_cpus=args.shards + 1, include_dashboard=False)
        results = asyncio.run(measure(index_dir, config, args.dim, args.repeats))
        ray.shutdown()
    print(json.dumps({"benchmark": "retrieval", **vars(args), **results}))


if __name__ == "__main__":
    main()
