"""Whose adapter an agent plays with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rollout_cases import CONTEXT, SETTINGS

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from affect_rl.sample import AffectSample
from rollout_workers.worker import EpisodeSpec, RolloutWorker


def test_formats_are_enforced_in_evaluation_alone() -> None:
    """Not where policies learn, nor where they are selected: a policy must not be chosen for what was forced on it."""
    sample = AffectSample("u", "d", "test", "c", "s", "so glad", ("joy",), "closed", ("anger", "joy"))
    for structured in (True, False):
        config = load_config(None, [f"evaluate.structured={structured}"])
        assert EpisodeSpec.to_measure(config, "evaluate", sample).structured is structured
        assert not EpisodeSpec.to_train(config, 0, sample, 0).structured
        assert not EpisodeSpec.to_select(config, sample).structured


def test_an_agent_that_was_trained_does_not_play_without_its_adapter(policy_dir: Path, tmp_path: Path) -> None:
    """One that was not has none, and plays with the base."""
    policy = AffectPolicy.load(policy_dir)
    policy.add_adapters(Lora(4, 8), ("own",))
    sample = AffectSample("u", "d", "test", "c", "s", "so glad", ("joy",), "closed", ("anger", "joy"))
    config = load_config(None, [f"model.context={CONTEXT}", "team.retrieval=false"])
    untrained = config.model_copy(update={"team": config.team.with_agent("generator", trains=False)})
    worker = RolloutWorker(config.model_copy(update={"rollout": SETTINGS}), policy.save(tmp_path / "policy"), None)
    try:
        (played,) = asyncio.run(worker.play([EpisodeSpec.to_measure(untrained, "test", sample)]))
        assert [turn.agent for turn in played.turns] == ["generator"]
        with pytest.raises(AffectError, match=r"team\.generator\.adapter=team: the policy has no .*\(it has: own\)"):
            asyncio.run(worker.play([EpisodeSpec.to_measure(config, "test", sample)]))
    finally:
        worker.engine.close()
