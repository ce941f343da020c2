"""Requests to a served team, at several numbers of clients: requests/s and waiting times, as one JSON line.

A client asks again as soon as it has its answer; texts are those of the dataset's test split, all different, so the
prefix cache does not answer for the model. `one` of the counts is the yardstick: how much more a server gets done when
many ask at once.

    python -m benchmarks.serve runs/quickstart
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from affect_rl.data.dataset import Dataset
from cluster.runtime.tracking import set_up_logging
from cluster.serving.application import serving
from cluster.serving.team import find_team


async def client(session: httpx.AsyncClient, texts: Iterator[str], samples: int, ends: float) -> list[float]:
    """Seconds of each request of one client until `ends`."""
    taken = []
    while time.perf_counter() < ends:
        begun = time.perf_counter()
        response = await session.post("/v1/predict", json={"text": next(texts), "samples": samples})
        response.raise_for_status()
        taken.append(time.perf_counter() - begun)
    return taken


async def load(address: str, texts: Iterator[str], clients: int, samples: int, seconds: float) -> dict[str, float]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as session:
        begun = time.perf_counter()
        jobs = [client(session, texts, samples, begun + seconds) for _ in range(clients)]
        taken = np.array(list(itertools.chain(*await asyncio.gather(*jobs))))
        wall = time.perf_counter() - begun
    p50, p95 = np.percentile(1000 * taken, [50, 95])
    return {"requests_per_s": round(len(taken) / wall, 2), "p50_ms": round(p50), "p95_ms": round(p95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("team", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    set_up_logging()
    config, policy = find_team(given.team, given.overrides)
    words = [sample.text for sample in Dataset.load(config.data.dir).samples("test")]
    texts = (f"{word} {round_}" if round_ else word for round_ in itertools.count() for word in words)
    with serving(config, policy, token="") as address:
        asyncio.run(load(address, texts, max(given.clients), given.samples, given.seconds / 4))  # to warm up
        results = {
            str(clients): asyncio.run(load(address, texts, clients, given.samples, given.seconds))
            for clients in given.clients
        }
    rates = [result["requests_per_s"] for result in results.values()]
    print(json.dumps({"benchmark": "serve", "samples": given.samples, "clients": results,
                      "most_over_one": round(max(rates) / rates[0], 2)}))  # fmt: skip


if __name__ == "__main__":
    main()
