"""The presets as they are shipped play whole episodes: every agent speaks, is read and is paid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from team_cases import Recorder, play

from affect_rl.config.load import Config, load_config
from affect_rl.sample import AffectSample
from affect_rl.tasks import make_task
from affect_rl.team.prompts import Prompts
from affect_rl.team.team import Team
from retrieval_service.retriever import LocalRetriever

PRESETS = Path(__file__).parents[3] / "configs" / "presets"
TURNS = {
    "adapters": ("planner", "filter", "generator"),
    "affectgpt_r1": ("generator",),
    "debate": ("planner", "filter", "debater", "generator"),
    "r1_omni": ("generator",),
    "second_look": ("planner", "planner", "filter", "generator"),
}


@pytest.fixture(params=TURNS)
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prepared(preset: str, world: list[AffectSample], prompts: Prompts) -> tuple[Config, Team, AffectSample, Prompts]:
    """The preset's team, a sample of the kind of labels that it is for, and prompts of its context."""
    config, sample = load_config(PRESETS / f"{preset}.yaml"), world[0]
    if config.data.dir.endswith("-open"):
        sample = replace(sample, label_kind="open", candidates=())
    team = Team(config.team, config.episode, make_task(config.task, sample.label_kind))
    roomy = Prompts(
        prompts.tokenizer, soft_tokens=4, context=config.model.context, evidence_tokens=config.episode.evidence_tokens
    )
    return config, team, sample, roomy


def test_none_is_left_out() -> None:
    assert set(TURNS) == {path.stem for path in PRESETS.glob("*.yaml")}


def test_it_is_played_by_rule_and_answers_right(
    preset: str, world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    config, team, sample, own = prepared(preset, world, prompts)
    recorder = Recorder.of(own)
    trajectory = play(sample, team, recorder, retriever if config.team.retrieval else None, own)
    assert tuple(turn.agent for turn in trajectory.turns) == TURNS[preset]
    assert [turn.problem for turn in trajectory.turns] == [None] * len(TURNS[preset])
    assert set(trajectory.output.labels) <= set(sample.labels) and trajectory.scores["full"] == 1
    paid = {name for name, agent in team.agents.items() if agent.can_be_bypassed}
    assert set(trajectory.scores) == paid | {"full"} and all(turn.trained for turn in trajectory.turns)
    assert bool(trajectory.candidates["supportive"]) == bool(trajectory.support_ids) == config.team.retrieval


def test_what_cannot_be_read_costs_and_scores_nothing(
    preset: str, world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    config, team, sample, own = prepared(preset, world, prompts)
    recorder = Recorder.of(own, dict.fromkeys(team.agents, "?"))
    trajectory = play(sample, team, recorder, retriever if config.team.retrieval else None, own)
    assert all(turn.problem for turn in trajectory.turns) and trajectory.scores["full"] == 0
    assert {turn.agent: turn.reward for turn in trajectory.turns} == {
        name: -config.team[name].format_penalty for name in team.agents
    }
