"""The clock of absences, without an engine."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rollout_workers.vllm.absences import Absences


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_busy_engine_ends_each_absence_after_its_steps(lengths: list[int]) -> None:
    async def run() -> None:
        absences = Absences()
        begun = [absences.begin(steps) for steps in lengths]
        for step in range(max(lengths) + 1):
            absences.end(absences.expected(idle=False))
            assert [absence.over.done() for absence in begun] == [steps <= step for steps in lengths]
            absences.clock += 1
        assert not absences

    asyncio.run(run())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_an_idle_engine_goes_to_the_first_end_at_once(lengths: list[int]) -> None:
    async def run() -> None:
        absences = Absences()
        begun = [absences.begin(steps) for steps in lengths]
        for length in sorted(set(lengths)):
            absences.end(absences.expected(idle=True))
            assert absences.clock == length
            assert [absence.over.done() for absence in begun] == [steps <= length for steps in lengths]
        assert not absences

    asyncio.run(run())


def test_an_episode_that_was_cancelled_holds_nobody() -> None:
    async def run() -> None:
        absences = Absences()
        gone, other = absences.begin(1), absences.begin(2)
        gone.over.cancel()
        absences.end([gone])
        absences.forget(gone)
        assert absences.expected(idle=True) == [other]
        absences.end_all()
        assert other.over.done() and not absences

    asyncio.run(run())
