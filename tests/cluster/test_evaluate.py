"""Samples that cannot be played: counted against a budget, and named."""

from __future__ import annotations

import logging

import pytest

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn
from cluster.evaluate import check_dropped, scoring_for

PLAYED = Trajectory(
    "fine", (), (Turn("generator", Prompt((1,), ()), Generation((1,), (0.0,), (0,), "", True), None),), Output("")
)


def _dropped(name: str) -> Trajectory:
    return Trajectory(name, (), (), Output("", problem=f"sample {name}: its prompt takes 999 tokens"))


def test_each_is_named_and_the_budget_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(None, ["data.max_dropped=2"])
    caplog.set_level(logging.WARNING)
    assert check_dropped(config, [PLAYED, _dropped("a"), PLAYED, _dropped("a")]) == ("a",)
    assert check_dropped(config, [_dropped("a"), PLAYED, _dropped("b")], ("a",)) == ("a", "b")
    assert [record.message for record in caplog.records] == [
        f"dropped: sample {name}: its prompt takes 999 tokens" for name in "ab"
    ]
    for _ in range(9):  # epoch after epoch
        assert check_dropped(config, [PLAYED, _dropped("a"), _dropped("b")], ("a", "b")) == ("a", "b")
    with pytest.raises(AffectError, match=r"3 samples could not .* data\.max_dropped=2; the last: sample c: its pro"):
        check_dropped(config, [_dropped("c")], ("a", "b"))


def test_a_budget_of_nothing_ends_with_the_first() -> None:
    config = load_config(None, ["data.max_dropped=0"])
    assert check_dropped(config, [PLAYED]) == ()
    with pytest.raises(AffectError, match="1 samples could not be played"):
        check_dropped(config, [_dropped("a")])


def test_metrics_are_those_of_the_task() -> None:
    sample = AffectSample("u", "d", "test", "c", "s", "text", ("joy",), "closed", ("anger", "joy"))
    assert scoring_for(load_config(None), [sample]).main == "weighted_f1"
    thinking = load_config(None, ["task.name=affect_rl.tasks.thinking:Thinking"])
    assert scoring_for(thinking, [sample]).main == "weighted_f1"
