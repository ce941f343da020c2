"""The one table of names: each metric of docs/metrics.md, and what Prometheus calls it.

Prometheus knows no slash; Ray drops such a name without a word, and puts ``ray_`` before the others. What a metric is
*of*, an agent, an engine, a shard, becomes a tag, so that one panel shows them all. ``<agent>`` and ``<part>`` in a
metric's name stand for any such name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

EXPORTED = "ray_"
"""What Ray puts before every name."""

STEP: Mapping[str, str] = {
    "episode/score": "affect_score",
    "episode/score_without_<agent>": "affect_score_without",
    "episode/reordered": "affect_reordered_share",
    "episode/labels": "affect_labels_per_answer",
    "episode/degraded": "affect_degraded_episode_share",
    "episode/generated_tokens": "affect_generated_tokens_per_episode",
    "episode/prompt_tokens": "affect_prompt_tokens_per_episode",
    "episode/staleness": "affect_staleness_versions",
    "episode/token_age": "affect_token_age_versions",
    "<agent>/reward": "affect_agent_reward",
    "<agent>/invalid": "affect_agent_invalid_share",
    "<agent>/tokens": "affect_agent_answer_tokens",
    "<agent>/kl": "affect_agent_update_kl",
    "<agent>/ratio": "affect_agent_ratio",
    "<agent>/ratio_max": "affect_agent_ratio_max",
    "<agent>/clip_fraction": "affect_agent_clip_share",
    "<agent>/entropy": "affect_agent_entropy",
    "<agent>/correction": "affect_agent_correction",
    "<agent>/explained_variance": "affect_agent_explained_variance",
    "dev/<part>": "affect_dev_score",
    "test/<part>": "affect_test_score",
    "kl/mean": "affect_kl_to_start",
    "kl/<agent>": "affect_agent_kl_to_start",
    "loss/<part>": "affect_loss",
    "learner/grad_norm": "affect_grad_norm",
    "learner/critic_grad_norm": "affect_critic_grad_norm",
    "learner/lr": "affect_learning_rate",
    "learner/tokens": "affect_learner_tokens",
    "learner/prepare_s": "affect_learner_prepare_seconds",
    "learner/optimise_s": "affect_learner_optimise_seconds",
    "learner/tokens_per_s": "affect_learner_tokens_per_second",
    "logprob_gap/max": "affect_logprob_gap_max",
    "logprob_gap/mean": "affect_logprob_gap_mean",
    "ratio/first": "affect_first_ratio",
    "sync/bytes": "affect_sync_bytes",
    "sync/pack_s": "affect_sync_pack_seconds",
    "sync/load_s": "affect_sync_load_seconds",
    "time/<part>_s": "affect_step_seconds",
    "engine/steps": "affect_rollout_engine_steps",
    "engine/cached_share": "affect_rollout_cached_share",
    "engine/kv_cache_use": "affect_rollout_kv_cache_use",
    "retrieval/latency_s": "affect_rollout_search_seconds",
    "retrieval/degraded": "affect_rollout_degraded_share",
    "counts/<part>": "affect_counted_total",
}
"""Of each training step. Trackers other than Prometheus know them by the names on the left."""

WARM_START: Mapping[str, str] = {
    "loss": "affect_sft_loss",
    "balance": "affect_sft_balance",
    "lr": "affect_sft_learning_rate",
    "grad_norm": "affect_sft_grad_norm",
    "<agent>/loss": "affect_sft_agent_loss",
    "<agent>/accuracy": "affect_sft_agent_accuracy",
}
"""Of each step of the warm start."""

LIVE: Mapping[str, tuple[str, ...]] = {
    "affect_step": (),
    "affect_pool_waiting_episodes": (),
    "affect_pool_replayed_total": (),
    "affect_pool_retired_total": (),
    "affect_weight_version": (),
    "affect_engine_playing_episodes": ("actor",),
    "affect_engine_healthy": ("actor",),
    "affect_engine_faults_total": ("actor",),
    "affect_engine_weight_version": ("actor",),
    "affect_engine_running_requests": ("actor",),
    "affect_engine_waiting_requests": ("actor",),
    "affect_engine_kv_cache_use": ("actor",),
    "affect_engine_steps_total": ("actor",),
    "affect_engine_generated_tokens_total": ("actor",),
    "affect_engine_prompt_tokens_total": ("actor",),
    "affect_engine_cached_tokens_total": ("actor",),
    "affect_engine_busy_seconds_total": ("actor",),
    "affect_engine_elsewhere_seconds_total": ("actor",),
    "affect_retrieval_searches_total": (),
    "affect_retrieval_seconds_total": (),
    "affect_retrieval_degraded_total": (),
    "affect_retrieval_latency_p95_seconds": (),
    "affect_retrieval_queries_total": (),
    "affect_retrieval_batches_total": (),
    "affect_retrieval_waiting_queries": (),
    "affect_shard_searches_total": ("shard",),
    "affect_shard_seconds_total": ("shard",),
    "affect_shard_failures_total": ("shard",),
    "affect_shard_restarts_total": ("shard",),
}
"""What engines, evidence service and pool are asked all the time, with the tags beside ``run``."""


@cache
def _patterns(warm_start: bool) -> list[tuple[re.Pattern[str], str]]:
    """Those without a placeholder first: ``kl/mean`` is of no agent."""
    table = WARM_START if warm_start else STEP
    return [
        (re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", row)), row)
        for row in sorted(table, key=lambda metric: "<" in metric)
    ]


def table_row(metric: str, *, warm_start: bool = False) -> tuple[str, dict[str, str]]:
    """The row of the table that a metric belongs to and what its placeholders stand for; one that the table lacks, of
    somebody's own algorithm, is a row of its own.

    >>> table_row("planner/reward")
    ('<agent>/reward', {'agent': 'planner'})
    """
    for pattern, row in _patterns(warm_start):
        if match := pattern.fullmatch(metric):
            return row, match.groupdict()
    return metric, {}


def prometheus_name(metric: str, *, warm_start: bool = False) -> tuple[str, dict[str, str]]:
    """The name of a metric and its tags beside ``run``; one that the table lacks, of somebody's own algorithm, keeps
    its name with ``_`` for what Prometheus does not know.

    >>> prometheus_name("planner/reward")
    ('affect_agent_reward', {'agent': 'planner'})
    """
    row, tags = table_row(metric, warm_start=warm_start)
    table = WARM_START if warm_start else STEP
    return table.get(row) or "affect_" + re.sub(r"\W", "_", metric), tags
