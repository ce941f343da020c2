"""What each metric means, in the words of docs/metrics.md, for pages that show metrics."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.watching.names import table_row

MEANINGS: Mapping[str, str] = {
    "episode/score": "mean score of the answers, S_full: 1 is right, 0 is wrong or invalid",
    "episode/score_without_planner": (
        "mean score with a simple label in place of the planner's queries (S_label); likewise for any agent that "
        "has a bypass, trains and has a weight"
    ),
    "episode/score_without_filter": "mean score with retrieval order in place of the filter (S_rank)",
    "episode/reordered": "share of episodes in which the evidence that was kept departs from retrieval order",
    "episode/labels": "labels per answer; if their number grows on open labels, the reward may be hacked",
    "episode/degraded": "share of episodes in which a retrieval shard did not answer in time",
    "episode/generated_tokens": "tokens generated per episode, counterfactual branches included",
    "episode/prompt_tokens": "prompt tokens per episode, likewise",
    "episode/staleness": "by how many weight versions an episode's oldest token lags behind, mean over episodes",
    "episode/token_age": "the same, mean over the tokens that are learned from",
    "<agent>/reward": (
        "mean reward of the agent's turns in an episode: score, what it is worth, format and length penalties"
    ),
    "<agent>/invalid": "share of its answers that broke the format",
    "<agent>/tokens": "mean length of its answers",
    "dev/weighted_f1": (
        "weighted F1 of greedy answers on dev (only on steps that evaluate); open labels have `dev/f_s` instead "
        "(F_s on the project's wheel, or on that of `evaluate.wheels`), sentiments `dev/waf` (WAF). With "
        "`train.select: test_oracle` it is `test/…`. That of the start, step 0, is in the log alone"
    ),
    "kl/<agent>": "mean of log pi_theta - log pi_sft over the agent's tokens, before the update; of agents that play",
    "kl/mean": "its mean over the agents that play",
    "<agent>/kl": (
        "how far the update moved from the policy that the ratio is against: the learner's at the start of the "
        "step, or with `algorithm.correction.name: none` the engine's (k3 estimator)"
    ),
    "<agent>/ratio": "mean importance ratio during the update",
    "<agent>/ratio_max": "largest importance ratio during the update",
    "<agent>/clip_fraction": "share of tokens whose ratio left the bounds of `algorithm.loss`",
    "<agent>/entropy": "mean entropy of the distributions that the tokens were drawn from, before the update",
    "<agent>/correction": (
        "mean importance weight pi_old / pi_engine, truncated or masked as `algorithm.correction` says; 1 where "
        "engine and learner agree"
    ),
    "<agent>/explained_variance": (
        "share of the returns' variance that the critic foresees, from earlier steps alone; 1 is perfect, 0 is no "
        "better than a constant. Only with a critic (`mappo`, `ippo`)"
    ),
    "loss/policy": "surrogate of `algorithm.loss`, summed over the agents",
    "loss/value": "clipped value loss of the critic's head, in deviations of its targets; only with a critic",
    "loss/balance": "load-balance loss of MB-MoE; 1 when the experts share the work evenly",
    "learner/grad_norm": "gradient norm before clipping, mean over the optimiser steps",
    "learner/critic_grad_norm": "the same for a separate critic, else 0",
    "learner/lr": "learning rate of the last optimiser step",
    "learner/tokens": "tokens of the step's sequences, prompts included",
    "learner/prepare_s": "seconds for log-probs, the reference's log-probs, and values if there is a critic",
    "learner/optimise_s": "seconds for the optimiser steps",
    "learner/tokens_per_s": "tokens through the optimiser steps per second",
    "logprob_gap/max": (
        "largest difference between the learner's and the engine's log-prob of a token, before the update"
    ),
    "logprob_gap/mean": "its mean",
    "ratio/first": "the importance ratio farthest from 1 before the update: 1 in synchronous training, up to rounding",
    "sync/bytes": "size of the published weights",
    "sync/pack_s": "seconds in which the learner prepares them; in asynchronous training the engines play on",
    "sync/load_s": (
        "seconds until all engines have loaded them (with `train.verify_sync` also compared); here they stand still"
    ),
    "time/rollout_s": "seconds the loop waited for the step's episodes",
    "time/retrieval_s": (
        "seconds of the rollout in which at least one episode of an engine waited for retrieval, or for the engine "
        "of frozen agents; mean over engines"
    ),
    "time/engines_busy_s": "seconds of the rollout that an engine spent in steps, mean over engines",
    "time/engines_waited_s": (
        "seconds since the rollout before in which an engine had no step to run, mean over engines: what it waits "
        "for learner, weights and retrieval. The learner waits for `time/rollout_s`"
    ),
    "time/learning_s": "seconds of the update",
    "time/sync_s": "seconds to publish the weights and load them into all engines",
    "time/evaluation_s": "seconds of the evaluation on dev (only on steps that evaluate)",
    "engine/steps": "steps of all engines during the rollout",
    "engine/kv_cache_use": "share of the KV cache that requests held, mean over the engines' steps",
    "engine/cached_share": "share of the prompts' tokens that the prefix cache served",
    "retrieval/latency_s": (
        "seconds from an episode's question to its answer, mean over the rollout's searches, both paths"
    ),
    "retrieval/degraded": "share of these searches that lack a shard",
    "counts/episodes": "episodes learned from since the start; one that was replayed counts once",
    "counts/replayed": "episodes played again because their actor was lost",
    "counts/lost": (
        "episodes given up, and missing in their step, because two engines were lost while they played; each is "
        "named in the log"
    ),
    "counts/stale": "episodes dropped for their age and played again",
    "counts/generated_tokens": (
        "tokens that these episodes took to play, counterfactual branches included, see `train.max_generated_tokens`"
    ),
    "counts/learners_lost": "how often the learner was lost and another one went on from the last checkpoint",
    "counts/dropped": "samples left out because they cannot be played, see `data.max_dropped`",
}
"""Of each training step, as the tables of docs/metrics.md have them."""

WARM_START_MEANINGS: Mapping[str, str] = {
    "loss": "cross entropy of an answer token",
    "balance": "load balance of MB-MoE; 1 when the experts share the work evenly",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "<agent>/loss": "cross entropy of a token of the agent's answers",
    "<agent>/accuracy": "share of the agent's answer tokens that the policy would have chosen",
}
"""Of each step of the warm start."""


def meaning(metric: str, *, warm_start: bool = False) -> str:
    """What a metric means; empty for one of somebody's own algorithm."""
    table = WARM_START_MEANINGS if warm_start else MEANINGS
    row, _ = table_row(metric, warm_start=warm_start)
    return table.get(metric) or table.get(row, "")
