"""The state machine of the engines' health, on a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.runtime.health import HOUR_S, PROBE_S, Budget, Fleet, State

DEADLINE_S = 300.0
MAX_FAULTS = 2
ENGINES = st.integers(0, 3)


class Life(RuleBasedStateMachine):
    """Whatever happens, in whatever order, to four engines.

    Beside the fleet it keeps what each engine has shown since it last died: an answer, the current weights, a check.
    """

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.fleet = Fleet(DEADLINE_S, MAX_FAULTS, lambda: self.now)
        self.shown: dict[int, list[str]] = {}
        self.faults: dict[int, list[float]] = {number: [] for number in range(4)}
        self.in_a_row = dict.fromkeys(range(4), 0)
        for number in range(4):
            self.fleet.add(number, started=number < 2)
            self.shown[number] = ["answer", "weights", "check"] if number < 2 else []
        self.retired: set[int] = set()

    @rule(seconds=st.floats(0, 2 * HOUR_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=ENGINES)
    def fault(self, number: int) -> None:
        if number not in self.retired:
            self.faults[number].append(self.now)
            self.in_a_row[number] += 1
        recent = [when for when in self.faults[number] if when > self.now - HOUR_S]
        state = self.fleet.fault(number)
        if number not in self.retired:
            assert (state is State.RETIRED) == (max(len(recent), self.in_a_row[number]) > MAX_FAULTS)
        self.shown[number] = []
        if state is State.RETIRED:
            self.retired.add(number)

    @rule(number=ENGINES)
    def retire(self, number: int) -> None:
        self.fleet.retire(number)
        self.retired.add(number)

    @rule(number=ENGINES)
    def answer(self, number: int) -> None:
        self.fleet.answered(number)
        if not self.shown[number]:
            self.shown[number] = ["answer"]

    @rule(number=ENGINES, age=st.integers(0, 1))
    def load(self, number: int, age: int) -> None:
        current = self.fleet.loaded(number, self.fleet.version - age)
        if age == 0 and self.shown[number] == ["answer"]:
            self.shown[number].append("weights")
        assert current == (self.shown[number] == ["answer", "weights"] and number not in self.retired)

    @rule(number=ENGINES)
    def verify(self, number: int) -> None:
        self.fleet.verified(number)
        if self.shown[number] == ["answer", "weights"]:
            self.shown[number].append("check")
            if number not in self.retired:
                self.in_a_row[number] = 0

    @rule(number=ENGINES)
    def postpone(self, number: int) -> None:
        self.fleet.postpone(number)
        if self.shown[number] == ["answer"] and number not in self.retired:
            self.shown[number] = []
            assert self.fleet.state(number) is State.DEAD

    @rule()
    def publish(self) -> None:
        self.fleet.published(self.fleet.version + 1)
        for shown in self.shown.values():
            if shown == ["answer", "weights"]:
                shown.remove("weights")

    @rule()
    def probe(self) -> None:
        probed = self.fleet.to_probe()
        assert all(self.fleet.state(number) is State.DEAD for number in probed)
        assert not self.fleet.to_probe(), "an engine is asked once at a time"
        for number in probed:
            self.fleet.unavailable(number)

    @precondition(lambda self: self.fleet.late())
    @rule()
    def nobody_is_away_for_ever(self) -> None:
        for number in self.fleet.late():
            self.fault(number)
        assert not self.fleet.late()

    @invariant()
    def who_plays_has_shown_everything(self) -> None:
        healthy = set(self.fleet.healthy())
        assert healthy == {n for n, shown in self.shown.items() if len(shown) == 3} - self.retired

    @invariant()
    def who_is_retired_stays_away(self) -> None:
        assert {n for n in range(4) if self.fleet.state(n) is State.RETIRED} == self.retired
        assert set(self.fleet.active()) == set(range(4)) - self.retired


TestLife = Life.TestCase


def test_a_dead_engine_is_asked_after_a_moment_and_must_be_back_by_the_deadline() -> None:
    now = [0.0]
    fleet = Fleet(DEADLINE_S, MAX_FAULTS, lambda: now[0])
    fleet.add(7)
    assert fleet.to_probe() == []
    now[0] = PROBE_S
    assert fleet.to_probe() == [7] and fleet.to_probe() == []
    fleet.unavailable(7)
    now[0] += PROBE_S
    assert fleet.to_probe() == [7]
    assert fleet.late() == []
    now[0] = DEADLINE_S + 1
    assert fleet.late() == [7]


@pytest.mark.parametrize("deadline_s", [DEADLINE_S, HOUR_S / 2, 2 * HOUR_S])
def test_an_engine_that_never_comes_back_is_retired_however_long_its_deadline(deadline_s: float) -> None:
    now = [0.0]
    fleet = Fleet(deadline_s, MAX_FAULTS, lambda: now[0])
    fleet.add(7, started=True)
    states = [fleet.fault(7)]
    while len(states) <= MAX_FAULTS:
        now[0] += deadline_s + 1
        assert fleet.late() == [7]
        states.append(fleet.fault(7))
    assert states == [State.DEAD] * MAX_FAULTS + [State.RETIRED]


def test_an_engine_that_plays_between_its_faults_stays() -> None:
    now = [0.0]
    fleet = Fleet(DEADLINE_S, MAX_FAULTS, lambda: now[0])
    fleet.add(7, started=True)
    for _ in range(5 * MAX_FAULTS):
        now[0] += HOUR_S
        assert fleet.fault(7) is State.DEAD
        fleet.answered(7)
        assert fleet.loaded(7, fleet.version) and fleet.verified(7)


@pytest.mark.parametrize(("seconds", "left"), [(HOUR_S - 1, False), (HOUR_S, True)])
def test_events_age_out(seconds: float, left: bool) -> None:
    now = [0.0]
    budget = Budget(1, lambda: now[0])
    assert budget.spend()
    now[0] = seconds
    assert budget.spend() == left
