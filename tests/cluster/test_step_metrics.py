"""What a step's episodes say: scores with and without an agent, chains of turns, and how often the filter departs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from affect_rl.evidence import Evidence
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn
from cluster.step_metrics import EngineMeter, engine_metrics, episode_metrics

ONE, TWO = (Evidence(name, "text", ("joy",), 0.5) for name in ("one", "two"))


def _turn(agent: str, number: int = 0, reward: float = 0.0, problem: str | None = None, version: int = 3) -> Turn:
    answer = Generation((1, 2, 3), (0.0,) * 3, (version,) * 3, "", True)
    return Turn(agent, Prompt((1,), ()), answer, problem, number, reward)


def _episode(
    *turns: Turn, scores: dict[str, float], kept: tuple[Evidence, ...] = (), found: tuple[Evidence, ...] = ()
) -> Trajectory:
    groups = {"candidates": {"supportive": found}, "kept": {"supportive": kept}} if found else {}
    return Trajectory("s", ("joy",), turns, Output("", ("joy",)), scores=scores, **groups)  # type: ignore[arg-type]


def test_scores_have_the_names_of_the_lines_that_were_played() -> None:
    first = _episode(_turn("generator"), scores={"full": 1.0, "debater": 0.0})
    second = _episode(_turn("generator"), scores={"full": 0.0})
    metrics = episode_metrics([first, second], 4)
    assert metrics["episode/score"] == 0.5 and metrics["episode/score_without_debater"] == 0
    assert not any(name.startswith("episode/score_without_") for name in episode_metrics([second], 4))
    assert metrics["episode/staleness"] == 1


def test_an_agents_turns_are_rewarded_together_and_counted_one_by_one() -> None:
    episode = _episode(
        _turn("planner", 0, -0.5, "broken"), _turn("planner", 1, 1.0), _turn("generator", 0, 1.0), scores={"full": 1.0}
    )
    metrics = episode_metrics([episode], 3)
    assert (metrics["planner/reward"], metrics["planner/invalid"], metrics["planner/tokens"]) == (0.5, 0.5, 3)
    assert metrics["generator/reward"] == 1 and "filter/reward" not in metrics


@pytest.mark.parametrize(
    ("kept", "departs"), [((ONE,), 0), ((), 0), ((ONE, TWO), 0), ((TWO,), 1), ((TWO, ONE), 1)], ids=str
)
def test_who_keeps_retrieval_order_does_not_reorder(kept: tuple[Evidence, ...], departs: float) -> None:
    episode = _episode(_turn("generator"), scores={"full": 1.0}, kept=kept, found=(ONE, TWO))
    assert episode_metrics([episode], 3)["episode/reordered"] == departs
    alone = _episode(_turn("generator"), scores={"full": 1.0})
    assert "episode/reordered" not in episode_metrics([alone], 3)
    assert episode_metrics([episode, alone], 3)["episode/reordered"] == departs, "of those in which there was a choice"


def test_groups_out_of_play_are_not_reordered() -> None:
    """A filter that was asked about one group keeps nothing of the others."""
    groups = {"candidates": {"supportive": (ONE,)}, "kept": {"supportive": (ONE,), "confusing": (), "countering": ()}}
    episode = replace(_episode(_turn("generator"), scores={"full": 1.0}), **groups)  # type: ignore[arg-type]
    assert episode_metrics([episode], 3)["episode/reordered"] == 0


def test_the_age_of_tokens_is_a_mean_over_tokens() -> None:
    episode = _episode(_turn("planner", version=3), _turn("generator", version=1), scores={"full": 1.0})
    metrics = episode_metrics([episode], 3)
    assert (metrics["episode/staleness"], metrics["episode/token_age"]) == (2, 1)


def test_engines_are_counted_from_before_the_rollout_and_a_restarted_one_from_nought() -> None:
    before = {"steps": 10, "prompt_tokens": 100, "cached_tokens": 50, "time_s": 100.0}
    after = {"steps": 4, "prompt_tokens": 300, "cached_tokens": 100, "retrieval_s": 3.0, "busy_s": 2.0, "time_s": 104.0}
    metrics = engine_metrics(before, after, 2)
    assert metrics == {
        "engine/steps": 0, "engine/cached_share": 0.25, "time/retrieval_s": 1.5, "time/engines_busy_s": 1,
        "engine/kv_cache_use": 0,
    }  # fmt: skip


def test_searches_are_averaged_over_those_of_the_rollout() -> None:
    after = {"searches": 4, "search_s": 0.2, "degraded_searches": 1, "steps": 10, "kv_cache_steps": 5.0}
    metrics = engine_metrics({}, after, 1)
    assert (metrics["retrieval/latency_s"], metrics["retrieval/degraded"]) == (pytest.approx(0.05), 0.25)
    assert metrics["engine/kv_cache_use"] == 0.5


def test_engines_wait_from_rollout_to_rollout() -> None:
    counted = iter([{"busy_s": 5.0}, {"busy_s": 6.0}, {"busy_s": 7.0}])
    meter = EngineMeter(lambda: next(counted), lambda: 1)
    meter.begin()
    time.sleep(0.05)
    assert meter.end()["time/engines_waited_s"] == 0, "an engine that was busy all the time"
    counted = iter([{"busy_s": 7.0}, {"busy_s": 7.0}])
    meter.begin()
    time.sleep(0.05)
    assert meter.end()["time/engines_waited_s"] >= 0.05
