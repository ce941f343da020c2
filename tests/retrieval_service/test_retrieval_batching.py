"""Requests of many coroutines become few calls."""

from __future__ import annotations

import asyncio

import pytest

from retrieval_service.batching import MicroBatcher


class Doubler:
    """Doubles numbers and remembers the batches they came in."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = self.most_running = 0

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        if -1 in items:
            raise ValueError("a bad batch")
        return [2 * item for item in items]


def run(items: list[int], *, max_batch: int = 64, concurrency: int = 1) -> tuple[Doubler, list[int | BaseException]]:
    async def ask() -> tuple[Doubler, list[int | BaseException]]:
        doubler = Doubler()
        batcher = MicroBatcher(doubler, max_batch=max_batch, window_s=0.001, concurrency=concurrency)
        return doubler, await asyncio.gather(*map(batcher, items), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(ask(), 10))


def test_what_comes_together_is_one_call() -> None:
    doubler, results = run(list(range(50)))
    assert results == [2 * i for i in range(50)] and len(doubler.batches) == 1


def test_no_batch_is_larger_than_allowed_and_order_is_kept() -> None:
    doubler, results = run(list(range(50)), max_batch=8)
    assert results == [2 * i for i in range(50)]
    assert [len(batch) for batch in doubler.batches] == [8] * 6 + [2] and doubler.most_running == 1


def test_no_more_calls_run_at_once_than_allowed() -> None:
    assert run(list(range(50)), max_batch=8, concurrency=3)[0].most_running == 3


def test_an_error_reaches_its_batch_only() -> None:
    _, results = run([*range(8), -1], max_batch=8)
    assert results[:8] == [2 * i for i in range(8)]
    assert isinstance(results[8], ValueError)


def test_a_cancelled_request_does_not_harm_the_others() -> None:
    async def ask() -> int:
        batcher = MicroBatcher(Doubler(), max_batch=8, window_s=0.001, concurrency=1)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await stays

    assert asyncio.run(asyncio.wait_for(ask(), 10)) == 4


def test_a_caller_that_comes_back_at_once_is_served() -> None:
    """It asks in the very moment in which the worker, finding nobody waiting, ends."""

    async def twice(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    async def caller() -> list[int]:
        batcher = MicroBatcher(twice, max_batch=4, window_s=0, concurrency=1)
        return [await batcher(i) for i in range(5)]

    assert asyncio.run(asyncio.wait_for(caller(), timeout=5)) == [0, 2, 4, 6, 8]
