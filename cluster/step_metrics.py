"""What a step's episodes and engines say, under the names of docs/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from affect_rl.trajectory import FULL, Trajectory

if TYPE_CHECKING:
    from cluster.runtime.weights import Published  # which brings the engines


def episode_metrics(episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
    """Means over a step's episodes; `version` is that of the weights that they are to update."""
    turns = [turn for t in episodes for turn in t.turns]
    metrics = {
        "episode/labels": fmean(len(t.output.labels) for t in episodes),
        "episode/degraded": fmean(t.degraded for t in episodes),
        "episode/generated_tokens": fmean(t.generated_tokens for t in episodes),
        "episode/prompt_tokens": fmean(t.prompt_tokens for t in episodes),
        "episode/staleness": fmean(version - t.oldest_version for t in episodes),
        "episode/token_age": fmean(version - v for t in turns if t.trained for v in t.generation.weight_versions),
    }
    for line in dict.fromkeys(line for t in episodes for line in t.scores):
        name = "episode/score" if line == FULL else f"episode/score_without_{line}"
        metrics[name] = fmean(t.scores[line] for t in episodes if line in t.scores)
    for agent in dict.fromkeys(turn.agent for turn in turns):
        chains = [chain for t in episodes if (chain := [turn for turn in t.turns if turn.agent == agent])]
        own = [turn for chain in chains for turn in chain]
        metrics[f"{agent}/reward"] = fmean(sum(turn.reward for turn in chain) for chain in chains)
        metrics[f"{agent}/invalid"] = fmean(turn.problem is not None for turn in own)
        metrics[f"{agent}/tokens"] = fmean(len(turn.generation.token_ids) for turn in own)
    kept = [(t.kept, t.candidates) for t in episodes if t.candidates]
    if kept:
        departs = [any(k != found.get(g, ())[: len(k)] for g, k in chosen.items()) for chosen, found in kept]
        metrics["episode/reordered"] = fmean(departs)
    return metrics


class EngineMeter:
    """Turns what the engines count from their start into the metrics of a step.

    Args:
        read: the counters, see `RolloutWorker.stats`, added up over the engines.
        engines: how many there are.
    """

    def __init__(self, read: Callable[[], Mapping[str, float]], engines: Callable[[], int]) -> None:
        self._read, self._engines = read, engines
        self._begun = self._ended = self._now()

    def begin(self) -> None:
        """A rollout begins."""
        self._begun = self._now()

    def end(self) -> dict[str, float]:
        """The rollout has ended: what the engines did meanwhile, and how long they waited since the one before."""
        ended = self._now()
        metrics = engine_metrics(self._begun, ended, self._engines())
        metrics["time/engines_waited_s"] = engines_waited(self._ended, ended, self._engines())
        self._ended = ended
        return metrics

    def _now(self) -> dict[str, float]:
        return {**self._read(), "time_s": time.perf_counter()}


def engine_metrics(before: Mapping[str, float], after: Mapping[str, float], engines: int) -> dict[str, float]:
    """What the engines counted during a rollout."""
    metrics = {
        "engine/steps": _gained(before, after, "steps"),
        "engine/cached_share": _share(before, after, "cached_tokens", "prompt_tokens"),
        "engine/kv_cache_use": _share(before, after, "kv_cache_steps", "steps"),
        "time/engines_busy_s": _gained(before, after, "busy_s") / engines,
        "time/retrieval_s": _gained(before, after, "retrieval_s") / engines,
    }
    if _gained(before, after, "searches"):
        metrics["retrieval/latency_s"] = _share(before, after, "search_s", "searches")
        metrics["retrieval/degraded"] = _share(before, after, "degraded_searches", "searches")
    return metrics


def engines_waited(before: Mapping[str, float], after: Mapping[str, float], engines: int) -> float:
    """Seconds between two counts in which an engine had no step to run, mean over engines."""
    return max(0.0, _gained(before, after, "time_s") - _gained(before, after, "busy_s") / engines)


def _gained(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """A restarted engine starts again at 0, hence the bound."""
    return max(0.0, after.get(name, 0.0) - before.get(name, 0.0))


def _share(before: Mapping[str, float], after: Mapping[str, float], part: str, whole: str) -> float:
    gained = _gained(before, after, whole)
    # Rounded: what is left of a sum depends in its last digits on what an engine had counted before.
    return round(_gained(before, after, part) / gained, 9) if gained else 0.0


def sync_metrics(published: Published) -> dict[str, float]:
    """What it took to give the engines new weights."""
    return {
        "sync/bytes": float(published.handle.bytes),
        "sync/pack_s": published.pack_s,
        "sync/load_s": published.load_s,
    }
