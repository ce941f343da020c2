"""A tiny policy, and engines that serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import llvmlite.binding  # noqa: F401  numba loads it, and engines have to start beside it
import pytest
from rollout_cases import CONTEXT, SETTINGS, make_policy

from affect_rl.policy.model import AffectPolicy
from rollout_workers.vllm.engine import RolloutEngine


@pytest.fixture(scope="session")
def policy() -> AffectPolicy:
    return make_policy()


@pytest.fixture(scope="session")
def policy_dir(policy: AffectPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy.save(tmp_path_factory.mktemp("policies") / "tied")


@pytest.fixture
def start() -> Iterator[Callable[..., RolloutEngine]]:
    """Starts engines of a test's own and closes them."""
    engines: list[RolloutEngine] = []

    def start_engine(policy_dir: Path, **settings: object) -> RolloutEngine:
        config = SETTINGS.model_copy(update=settings)
        engines.append(RolloutEngine(policy_dir, config, context=CONTEXT, seed=0))
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def engine(policy_dir: Path) -> Iterator[RolloutEngine]:
    engine = RolloutEngine(policy_dir, SETTINGS, context=CONTEXT, seed=0)
    yield engine
    engine.close()
