"""The queue of episodes, on a clock of the test's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from affect_rl.config.load import load_config
from affect_rl.config.services import RolloutConfig
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Output, Trajectory
from cluster.runtime.episode_queue import EPISODES_PER_CALL, FATAL_LOSSES, Call, EpisodeQueue
from rollout_workers.worker import EpisodeSpec

CONFIG = load_config(None, [f"policy={Path('anywhere')}"])
DEADLINE_S = 60.0
ENGINES = st.integers(0, 2)


def settings(**changes: object) -> RolloutConfig:
    return RolloutConfig(**{"workers": 3, "concurrency": 4, "deadline_s": DEADLINE_S, **changes})  # type: ignore[arg-type]


def specs(keys: Sequence[int]) -> list[EpisodeSpec]:
    return [
        EpisodeSpec.to_train(
            CONFIG, key, AffectSample(f"s-{key}", "handmade", "train", "clip", "", "hello", ("joy",), "open"), seed=key
        )
        for key in keys
    ]


def played(call: Call) -> list[Trajectory]:
    return [Trajectory(spec.sample.id, spec.sample.labels, (), Output("joy")) for spec in call.specs]


class Life(RuleBasedStateMachine):
    """Whatever happens to episodes and engines, in whatever order: none is lost, none comes twice."""

    @initialize(deterministic=st.booleans())
    def begin(self, deterministic: bool) -> None:
        self.now, self.next_key = 0.0, 0
        self.queue = EpisodeQueue(settings(), deterministic, lambda: self.now)
        self.calls: dict[str, Call] = {}
        self.open: list[object] = []

    @rule(count=st.integers(0, 40))
    def submit(self, count: int) -> None:
        keys = list(range(self.next_key, self.next_key + count))
        assert self.queue.submit(specs(keys), engines=3) == keys
        self.open += keys
        self.next_key += count

    @rule(healthy=st.lists(ENGINES, unique=True))
    def assign(self, healthy: list[int]) -> None:
        for tag, call in self.queue.assign(healthy):
            assert call.engine in healthy and tag not in self.calls
            self.calls[tag] = call
        assert not healthy or self.queue.playing().total() or not self.queue.waiting

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.calls:
            tag = data.draw(st.sampled_from(sorted(self.calls)))
            call = self.calls.pop(tag)
            self.queue.finish(tag, played(call))
            self.queue.finish(tag, played(call))  # a second answer changes nothing

    @rule(engine=ENGINES, blame=st.booleans())
    def lose(self, engine: int, blame: bool) -> None:
        waiting = self.queue.waiting
        self.queue.take_back(engine, blame=blame)
        self.calls = {tag: call for tag, call in self.calls.items() if call.engine != engine}
        assert self.queue.playing()[engine] == 0 and self.queue.waiting >= waiting

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A call fails through no fault of its engine."""
        again = {tag: call for tag, call in self.calls.items() if call.losses < FATAL_LOSSES - 1}
        if again:
            tag = data.draw(st.sampled_from(sorted(again)))
            call = self.calls.pop(tag)
            assert self.queue.play_again(tag, ValueError()) == (len(call.specs) if call.wanted else 0)

    @rule(seconds=st.floats(0, 10 * DEADLINE_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        assert set(self.queue.late()) <= {call.engine for call in self.calls.values()}

    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        done = [key for key in self.open if not self.queue.missing({key})]
        keys = data.draw(st.lists(st.sampled_from(done), unique=True)) if done else []
        assert [t.sample_id for t in self.queue.fetch(keys)] == [f"s-{key}" for key in keys]
        self.open = [key for key in self.open if key not in keys]

    @rule()
    def forget(self) -> None:
        self.queue.forget()
        self.open = []

    @invariant()
    def every_episode_is_in_one_place(self) -> None:
        if hasattr(self, "queue"):
            wanted = sum(len(call.specs) for call in self.queue.calls if call.wanted)
            assert self.queue.missing(set(self.open)) == self.queue.waiting + wanted


TestLife = Life.TestCase


def test_who_is_free_is_given_episodes_in_small_calls_up_to_its_concurrency() -> None:
    queue = EpisodeQueue(settings(concurrency=20), False, lambda: 0.0)
    queue.submit(specs(range(200)), engines=2)
    assigned = [(call.engine, len(call.specs)) for _, call in queue.assign([0, 1])]
    assert assigned == [(0, EPISODES_PER_CALL), (1, EPISODES_PER_CALL)] * 2, "more than 20 in play: it has enough"
    assert queue.waiting == 200 - 4 * EPISODES_PER_CALL


def test_a_deterministic_call_holds_one_engine_s_share_of_a_whole_pool() -> None:
    queue = EpisodeQueue(settings(), True, lambda: 0.0)
    queue.submit(specs(range(31)), engines=2)  # one of three is out of service
    assert [(call.engine, len(call.specs)) for _, call in queue.assign([0, 2])] == [(0, 11), (2, 11), (0, 9)]


def test_a_call_is_late_after_as_many_deadlines_as_it_takes_turns() -> None:
    now = 0.0
    queue = EpisodeQueue(settings(concurrency=4), True, lambda: now)
    queue.submit(specs(range(27)), engines=3)
    calls = dict(queue.assign([1]))
    assert [len(call.specs) for call in calls.values()] == [9, 9, 9]
    for turns, tag in zip((3, 5, 7), calls, strict=True):  # 9, 18 and 27 episodes, four at a time
        now = turns * DEADLINE_S - 1
        assert queue.late() == []
        now = turns * DEADLINE_S + 1
        assert queue.late() == [1]
        queue.finish(tag, played(calls[tag]))


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_what_may_have_been_in_play_is_blamed_and_given_up(deterministic: bool) -> None:
    queue = EpisodeQueue(settings(concurrency=16), deterministic, lambda: 0.0)
    keys = queue.submit(specs(range(96)), engines=3)
    for _ in range(FATAL_LOSSES):
        list(queue.assign([0]))
        queue.take_back(0, blame=True)
    lost = [t.sample_id for t in queue.fetch([key for key in keys if not queue.missing({key})]) if t.lost]
    size = 32 if deterministic else EPISODES_PER_CALL
    assert lost == [f"s-{key}" for key in range(size)], "the first call of the engine, twice"
    assert queue.waiting == 96 - size


def test_a_call_without_evidence_is_played_again_once() -> None:
    queue = EpisodeQueue(settings(), True, lambda: 0.0)
    queue.submit(specs(range(9)), engines=3)
    first, *_ = (tag for tag, _ in queue.assign([0]))
    assert queue.play_again(first, ValueError("made up")) == 3 == queue.replayed
    assert queue.play_again(first, ValueError("made up")) == 0, "nobody waits for it"
    ((again, call),) = queue.assign([0])
    assert [spec.key for spec in call.specs] == [0, 1, 2]
    with pytest.raises(ValueError, match="made up"):
        queue.play_again(again, ValueError("made up"))
