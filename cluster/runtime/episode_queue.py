"""The queue of episodes: which wait, who has which, until when, and what becomes of those whose engine is lost.

It knows neither Ray nor a clock of its own. The episodes of a lost engine are played again elsewhere, ahead of the
others, but not for ever: an episode that engines are lost with may be the cause.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affect_rl.config.services import RolloutConfig
from affect_rl.trajectory import Output, Trajectory

if TYPE_CHECKING:
    from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)

EPISODES_PER_CALL = 16
"""Episodes in one call to an engine: what is lost, and played again, when the engine dies."""
FATAL_LOSSES = 2
"""Engines that may be lost with an episode: then it is given up."""


@dataclass(slots=True)
class Call:
    """Some episodes that one engine plays in one call.

    Attributes:
        specs: the episodes.
        losses: engines that were lost while they played them.
        engine: who has them now; -1: nobody yet.
        deadline: until when.
        wanted: whether anybody waits for them.
    """

    specs: list[EpisodeSpec]
    losses: int = 0
    engine: int = -1
    deadline: float = 0.0
    wanted: bool = True


class EpisodeQueue:
    """Episodes from their submission until they are fetched.

    Args:
        settings: section `rollout`.
        deterministic: who plays what must not depend on timing.
        clock: seconds.

    Attributes:
        replayed: episodes played again because their engine was lost.
    """

    def __init__(self, settings: RolloutConfig, deterministic: bool, clock: Callable[[], float]) -> None:
        self._settings, self._deterministic, self._clock = settings, deterministic, clock
        self._waiting: deque[Call] = deque()
        self._calls: dict[str, Call] = {}
        self._done: dict[object, Trajectory] = {}
        self._next_call = 0
        self.replayed = 0

    def submit(self, specs: Iterable[EpisodeSpec], engines: int) -> list[object]:
        """Queue episodes, cut into calls for a pool of so many engines; returns their keys."""
        queued = list(specs)
        # A deterministic engine forms its batches within a call. So a call then holds all that one engine of a whole
        # pool is to play, whoever is out of service.
        share = max(1, -(-len(queued) // (self._settings.bounds[0] if self._deterministic else engines)))
        size = share if self._deterministic else min(share, EPISODES_PER_CALL)
        self._waiting.extend(Call(queued[i : i + size]) for i in range(0, len(queued), size))
        return [spec.key for spec in queued]

    def assign(self, healthy: Sequence[int]) -> Iterator[tuple[str, Call]]:
        """Give waiting calls to healthy engines, as far as these have room: the calls with their tags."""
        while self._waiting and healthy:
            if self._deterministic:
                engine = healthy[self._next_call % len(healthy)]
            else:  # whoever is free
                playing = self.playing()
                engine = min(healthy, key=playing.__getitem__)
                if playing[engine] > self._settings.concurrency:
                    break
            call = self._waiting.popleft()
            call.engine, call.deadline = engine, self._deadline(engine, len(call.specs))
            tag = f"play-{self._next_call}"
            self._next_call += 1
            self._calls[tag] = call
            yield tag, call

    def finish(self, tag: str, played: Sequence[Trajectory]) -> None:
        """Take the episodes of a call, unless nobody waits for them."""
        if (call := self._calls.pop(tag, None)) and call.wanted:
            self._done.update(zip((spec.key for spec in call.specs), played, strict=True))

    def late(self) -> list[int]:
        """Engines with a call that should have been answered."""
        now = self._clock()
        return sorted({call.engine for call in self.calls if call.deadline < now})

    def play_again(self, tag: str, error: Exception) -> int:
        """Queue a call's episodes again, which failed through no fault of their engine.

        Returns:
            How many; 0 if nobody waits for them.

        Raises:
            Exception: `error`, if they had failed before.
        """
        call = self._calls.pop(tag, None)
        if call is None or not call.wanted:
            return 0
        call.losses += 1
        if call.losses >= FATAL_LOSSES:
            raise error
        self._waiting.appendleft(call)
        self.replayed += len(call.specs)
        return len(call.specs)

    def take_back(self, engine: int, *, blame: bool) -> None:
        """Queue an engine's episodes again, ahead of the others; `blame` those that may have been in play."""
        ahead, lost = 0, list[Call]()
        for tag in [tag for tag, call in self._calls.items() if call.engine == engine]:
            call = self._calls.pop(tag)
            in_play = ahead == 0 if self._deterministic else ahead < self._settings.concurrency
            ahead += len(call.specs)
            call.losses += blame and in_play
            if call.wanted and call.losses < FATAL_LOSSES:
                lost.append(call)
            elif call.wanted:
                self._give_up(call)
        self.replayed += sum(len(call.specs) for call in lost)
        self._waiting.extendleft(reversed(lost))

    def missing(self, keys: set[object]) -> int:
        """How many of the episodes with these keys have not been played yet."""
        return len(keys - self._done.keys())

    def fetch(self, keys: Sequence[object]) -> list[Trajectory]:
        """The episodes with these keys, in their order; each is handed out once."""
        return [self._done.pop(key) for key in keys]

    def forget(self) -> None:
        """Forget all episodes; those in play end for nobody."""
        self._waiting.clear()
        self._done.clear()
        for call in self._calls.values():
            call.wanted = False

    def playing(self) -> Counter[int]:
        """Episodes by the engine that has them; may be asked from any thread."""
        counts: Counter[int] = Counter()
        for call in self.calls:
            counts[call.engine] += len(call.specs)
        return counts

    @property
    def waiting(self) -> int:
        """Episodes that no engine has yet; may be asked from any thread."""
        return sum(len(call.specs) for call in list(self._waiting))

    @property
    def calls(self) -> Sequence[Call]:
        """What is being played."""
        return list(self._calls.values())

    def _deadline(self, engine: int, episodes: int) -> float:
        """When further episodes on an engine are late; `rollout.concurrency` run at once, in the order they came."""
        turns = -(-(self.playing()[engine] + episodes) // self._settings.concurrency)
        return self._clock() + turns * self._settings.deadline_s

    def _give_up(self, call: Call) -> None:
        why = f"{FATAL_LOSSES} engines were lost while it played"
        logger.warning("lost, as %s: samples %s", why, ", ".join(spec.sample.id for spec in call.specs))
        for spec in call.specs:
            output = Output("", problem=f"{spec.sample.id}: {why}")
            self._done[spec.key] = Trajectory(spec.sample.id, spec.sample.labels, (), output, lost=True)
