"""Gathers requests that arrive about the same time into one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Calls `process` with the items of many coroutines at once.

    While a batch is in process the next one gathers, so batches grow with the load by themselves; the
    window only helps the first of a burst to wait for the rest.

    Args:
        process: results in the order of its items; an exception reaches every coroutine of the batch.
        max_batch: most items in one call.
        window_s: how long a batch that is not full waits before it goes.
        concurrency: calls in process at once.
    """

    def __init__(
        self,
        process: Callable[[list[Item]], Awaitable[list[Result]]],
        *,
        max_batch: int,
        window_s: float,
        concurrency: int,
    ) -> None:
        self._process = process
        self._max_batch, self._window_s, self._concurrency = max_batch, window_s, concurrency
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        # The loop only refers to tasks weakly, so they are kept here. Whether one is at work is counted
        # apart: a task leaves the set a moment after it has found nothing waiting, and who came in that
        # moment would wait for ever.
        self._workers: set[asyncio.Task[None]] = set()
        self._active = 0

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._active < self._concurrency:
            self._active += 1
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await future

    @property
    def waiting(self) -> int:
        """Items that no call has yet."""
        return len(self._waiting)

    async def _work(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < self._max_batch:
                    await asyncio.sleep(self._window_s)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
                if batch:
                    await self._answer(batch)
        finally:
            self._active -= 1

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._process([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # its coroutine may have been cancelled
                    future.set_result(result)
