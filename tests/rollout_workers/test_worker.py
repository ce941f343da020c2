"""What a worker makes of its settings: adapters, formats, threads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from joblib import cpu_count
from rollout_cases import CONTEXT, SETTINGS

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from affect_rl.sample import AffectSample
from rollout_workers.worker import EpisodeSpec, RolloutWorker, threads_of_rank


def test_formats_are_enforced_in_evaluation_alone() -> None:
    """Not where policies learn, nor where they are selected: a policy must not be chosen for what was forced on it."""
    sample = AffectSample("u", "d", "test", "c", "s", "so glad", ("joy",), "closed", ("anger", "joy"))
    for structured in (True, False):
        config = load_config(None, [f"evaluate.structured={structured}"])
        assert EpisodeSpec.to_measure(config, "evaluate", sample).structured is structured
        assert not EpisodeSpec.to_train(config, 0, sample, 0).structured
        assert not EpisodeSpec.to_select(config, sample).structured


def test_engines_share_the_cores_of_their_node() -> None:
    settings = SETTINGS.model_copy(update={"workers": 64, "threads": 0})  # 64 in the cluster
    assert threads_of_rank(settings, neighbours=1) == cpu_count()
    assert threads_of_rank(settings, neighbours=2 * cpu_count()) == 1
    assert threads_of_rank(settings.model_copy(update={"threads": 3}), neighbours=64) == 3


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
