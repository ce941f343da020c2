"""Would it pay if the update computed what an episode's prompts share once?

    python -m benchmarks.prefix [--episodes 16] [--prefix 34] [--rest 47 118 87] [--layers 3] [--dim 128] [--heads 4]

Prints one JSON line. `prefix` and `rest` are tokens: what all agents' sequences of an episode begin with, and what each
has behind it; the defaults are the quickstart's means.

- ``tokens_ratio``: tokens of the rows that share over those of the rows as they are: what could be saved.
- ``shared_ratio``: seconds of forward and backward passes over those of the rows as they are, where agents go on from
  the keys and values of one pass over the prefix; below 1 it pays.
- ``packed_ratio``: likewise, where an episode is one row in which agents do not see each other.
- ``difference``: largest difference between the states.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, LlamaConfig

REPEATS = 5


def separate(model: nn.Module, prefix: Tensor, rests: Sequence[Tensor]) -> list[Tensor]:
    """States ``[B, Q, dim]`` of each agent's tokens behind the prefix, a pass for each agent as it is."""
    return [model(torch.cat([prefix, rest], dim=1)).last_hidden_state[:, prefix.shape[1] :] for rest in rests]


def shared(model: nn.Module, prefix: Tensor, rests: Sequence[Tensor]) -> list[Tensor]:
    """The same on the keys and values of one pass over the prefix."""
    layers = model(prefix, use_cache=True).past_key_values.layers
    states = []
    for rest in rests:
        cache = DynamicCache()
        for number, layer in enumerate(layers):
            cache.update(layer.keys, layer.values, number)
        states.append(model(rest, past_key_values=cache, use_cache=True).last_hidden_state)
    return states


def packed(model: nn.Module, prefix: Tensor, rests: Sequence[Tensor]) -> list[Tensor]:
    """The same in one row for an episode, whose agents see the prefix and themselves."""
    lengths = [prefix.shape[1], *(rest.shape[1] for rest in rests)]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(owner))
    sees = (place[:, None] >= place) & ((owner[:, None] == owner) | (owner == 0))
    positions = torch.cat([torch.arange(prefix.shape[1]), *(prefix.shape[1] + torch.arange(n) for n in lengths[1:])])
    rows = len(prefix)
    states = model(
        torch.cat([prefix, *rests], dim=1),
        attention_mask=torch.where(sees, 0.0, float("-inf")).expand(rows, 1, -1, -1),
        position_ids=positions.expand(rows, -1),
    ).last_hidden_state
    return list(states.split(lengths, dim=1)[1:])


def seconds(model: nn.Module, states: Callable[[], list[Tensor]]) -> float:
    """Of a forward and a backward pass."""
    begun = time.perf_counter()
    torch.stack([s.square().mean() for s in states()]).sum().backward()
    model.zero_grad()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", type=int, nargs="+", default=[47, 118, 87])
    for name, default in {"episodes": 16, "prefix": 34, "layers": 3, "dim": 128, "heads": 4, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = AutoModel.from_config(
        LlamaConfig(
            vocab_size=1000, hidden_size=args.dim, intermediate_size=3 * args.dim, num_hidden_layers=args.layers,
            num_attention_heads=args.heads, num_key_value_heads=args.heads,
        )
    )  # fmt: skip
    prefix, *rests = (torch.randint(1000, (args.episodes, length)) for length in (args.prefix, *args.rest))
    ways = {"separate": separate, "shared": shared, "packed": packed}
    with torch.no_grad():
        expected, *others = (way(model, prefix, rests) for way in ways.values())
        difference = max(float((a - b).abs().max()) for o in others for a, b in zip(expected, o, strict=True))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            times[name].append(seconds(model, partial(way, model, prefix, rests)))
    median = {name: statistics.median(found) for name, found in times.items()}
    tokens = sum(args.rest)
    print(json.dumps({
        "benchmark": "prefix", "tokens_ratio": round((args.prefix + tokens) / (len(rests) * args.prefix + tokens), 3),
        "shared_ratio": round(median["shared"] / median["separate"], 3),
        "packed_ratio": round(median["packed"] / median["separate"], 3),
        "difference": difference, "separate_s": round(median["separate"], 3), **vars(args),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
