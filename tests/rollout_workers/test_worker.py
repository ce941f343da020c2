"""What a worker asks of its engine."""

from __future__ import annotations

import pytest

from affect_rl.policy.adapters import TEAM
from affect_rl.team.agent import AgentSettings
from rollout_workers.worker import adapter_of

THREE = ("planner", "filter", "generator")


@pytest.mark.parametrize(
    ("trains", "adapter", "served", "asked"),
    [
        (True, TEAM, (TEAM,), TEAM),
        (True, TEAM, THREE, TEAM),
        (False, "planner", (TEAM,), "planner"),
        (False, "planner", THREE, "planner"),
        (False, TEAM, (TEAM,), TEAM),
        (False, TEAM, THREE, None),
    ],
    ids=["there", "of others", "its own is missing", "its own", "shared", "has none and needs none"],
)
def test_an_agent_does_not_play_the_base_in_the_place_of_its_adapter(
    trains: bool, adapter: str, served: tuple[str, ...], asked: str | None
) -> None:
    """The engine refuses an adapter that its policy lacks, and names those that it has."""
    assert adapter_of(AgentSettings(trains=trains, adapter=adapter), served) == asked
