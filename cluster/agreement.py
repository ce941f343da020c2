"""Do engine and learner know the same policy? Asked before a warm start, and before the first step of training.

vLLM and transformers write each architecture anew. Where one of them leaves out a multiplier or a cap, nothing fails:
training goes on with log-probs of another distribution. So both score the same few answers to real prompts, with soft
tokens, support and chat frame, under the weights that have just been published.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.config import AffectConfig
from affect_rl.sample import AffectSample
from cluster.runtime.pool import RolloutPool
from learners.group import LearnerGroup
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)

TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.2}
"""Mean distance of log-probs that rounding explains. bfloat16 rounds a logit between 16 and 32 by up to 0.06, which
shows where a model is unsure: on CPU SmolLM2 has 0.05 before its warm start and 0.009 after. In float32 tiny policies
have 1e-6."""
_EPISODES = 4


def check_agreement(
    config: Config, policy: Path, pool: RolloutPool, learner: LearnerGroup, samples: Sequence[AffectSample]
) -> None:
    """Let the engines answer a few samples and the learner score the answers; both have the same weights by now.

    Args:
        config: of the run.
        policy: directory of a policy of this architecture.
        pool: engines.
        learner: its ranks share the scoring.
        samples: of the dataset; a few are played.

    Raises:
        AffectError: their log-probs differ by more than rounding explains.
    """
    count = max(_EPISODES, config.learner.workers * config.learner.minibatches)
    specs = [
        replace(EpisodeSpec.to_train(config, ("agreement", place), sample, seed=place), bypasses=False)
        for place, sample in enumerate(samples[:count])
    ]
    episodes = [episode for episode in pool.play(specs) if episode.turns]
    if len(episodes) < count:  # too few to go round all ranks; the first step will tell what ails them
        logger.warning("engine and learner: not compared, %d of %d samples could be played", len(episodes), count)
        return
    mean, most = learner.gap(episodes)
    logger.info("engine and learner: log-probs differ by %.1e on average, %.1e at most", mean, most)
    if not mean <= (allowed := TOLERANCE[config.model.dtype]):
        text = AffectConfig.from_pretrained(policy).text_config
        raise AffectError(
            f"model.base={config.model.base}: engine (vLLM) and learner (transformers) disagree about this model "
            f"({text.model_type}): their log-probs of the same answers differ by {mean:.2g} on average and {most:.2g} "
            f"at most, where {config.model.dtype} explains {allowed:g}; nothing was trained. Choose an architecture of "
            "the table in docs/configuration.md, or float32 if this one is among them"
        )
