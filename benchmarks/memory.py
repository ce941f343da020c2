"""How much memory does a pass of the update need at a large vocabulary, with and without chunks and recomputation?

Prints one JSON line. Each way runs in a process of its own: forward with values and entropies, loss, backward, on a
tiny model. Its memory is what the process's peak grew by in that pass, in GB.

- ``whole``: all logits of the pass at once, all activations kept.
- ``chunked``: the head in chunks.
- ``checkpointed``: all logits at once, activations of the blocks recomputed.
- ``both``: as a pretrained model is trained.
- ``ratio``: ``both`` over ``whole``.

Run with ``python -m benchmarks.memory [vocabulary=150000] [sequences=24] [layers=8]``.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from affect_rl.algorithms.batching import collate, rows_of, turns_to_sequences
from affect_rl.memory import map_large_blocks
from benchmarks.workload import random_episodes, tiny_policy

WAYS = {
    "whole": {"chunks": False, "recompute": False},
    "chunked": {"chunks": True, "recompute": False},
    "checkpointed": {"chunks": False, "recompute": True},
    "both": {"chunks": True, "recompute": True},
}
DEFAULTS: dict[str, Any] = {"vocabulary": 150_000, "sequences": 24, "layers": 8}


def peak_gb() -> float:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def pass_gb(*, chunks: bool, recompute: bool, vocabulary: int, sequences: int, layers: int) -> float:
    """GB that one pass adds to the process."""
    torch.set_num_threads(1)
    map_large_blocks()
    policy = tiny_policy(layers=layers, dim=64)
    turns = turns_to_sequences(
        e.turns for e in random_episodes(policy, -(-sequences // 3), prompt=(200, 260), answer=(30, 50))
    )
    rows = range(sequences)
    batch = collate(rows_of(turns), rows, policy.fusion.shape, pad_id=0).tokens
    # Words that nobody says make the head as large, and need no tokenizer.
    policy.language_model.resize_token_embeddings(vocabulary, mean_resizing=False)  # type: ignore[operator]
    policy.config.text_config.vocab_size = vocabulary
    if recompute:
        policy.checkpoint_activations()
    before = peak_gb()
    if not chunks:
        policy.chunk_logits = batch.input_ids.numel() * vocabulary
    output = policy(batch, values=True, entropies=True)
    (output.values.square().sum() - output.logprobs.sum() - output.entropies.sum()).backward()
    return peak_gb() - before


def main() -> None:
    settings = DEFAULTS | {name: int(value) for name, value in (a.split("=") for a in sys.argv[1:])}
    peaks = {}
    for name, way in WAYS.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            peaks[name] = child.submit(pass_gb, **way, **settings).result()
    rounded = {name: round(gb, 3) for name, gb in peaks.items()}
    print(json.dumps(rounded | {"ratio": round(peaks["both"] / peaks["whole"], 3)} | settings))


if __name__ == "__main__":
    main()
