"""What a step's episodes and engines say, under the names of docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from affect_rl.trajectory import FULL, Trajectory


def episode_metrics(episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
    """Means over a step's episodes; `version` is that of the weights that they are to update."""
    metrics = {
        "episode/labels": fmean(len(t.output.labels) for t in episodes),
        "episode/degraded": fmean(t.degraded for t in episodes),
        "episode/generated_tokens": fmean(t.generated_tokens for t in episodes),
        "episode/prompt_tokens": fmean(t.prompt_tokens for t in episodes),
        "episode/staleness": fmean(version - t.oldest_version for t in episodes),
    }
    for line in dict.fromkeys(line for t in episodes for line in t.scores):
        name = "episode/score" if line == FULL else f"episode/score_without_{line}"
        metrics[name] = fmean(t.scores[line] for t in episodes if line in t.scores)
    for agent in dict.fromkeys(turn.agent for t in episodes for turn in t.turns):
        chains = [chain for t in episodes if (chain := [turn for turn in t.turns if turn.agent == agent])]
        turns = [turn for chain in chains for turn in chain]
        metrics[f"{agent}/reward"] = fmean(sum(turn.reward for turn in chain) for chain in chains)
        metrics[f"{agent}/invalid"] = fmean(turn.problem is not None for turn in turns)
        metrics[f"{agent}/tokens"] = fmean(len(turn.generation.token_ids) for turn in turns)
    kept = [(t.kept, t.candidates) for t in episodes if t.candidates]
    if kept:
        departs = [any(k != found.get(g, ())[: len(k)] for g, k in chosen.items()) for chosen, found in kept]
        metrics["episode/reordered"] = fmean(departs)
    return metrics


def engine_metrics(before: Mapping[str, float], after: Mapping[str, float], engines: int) -> dict[str, float]:
    """What the engines counted during the rollout. A restarted one starts again at 0, hence the bound."""
    gained = {name: max(0.0, value - before.get(name, 0)) for name, value in after.items()}
    return {
        "engine/steps": gained.get("steps", 0.0),
        "engine/cached_share": gained.get("cached_tokens", 0.0) / max(1.0, gained.get("prompt_tokens", 0.0)),
        "time/retrieval_s": gained.get("retrieval_s", 0.0) / engines,
    }
