"""The board: what an episode has seen, searched, found and written so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from affect_rl.evidence import GROUPS, Evidence, Group, Support
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Output

Queries = Mapping[Group, str]
Found = Mapping[Group, tuple[Evidence, ...]]

NOTHING: Found = dict.fromkeys(GROUPS, ())
_EMPTY: Mapping[str, Any] = {
    "support": Support(),
    "queries": {},
    "candidates": NOTHING,
    "kept": NOTHING,
    "notes": (),
}
"""What the common slots hold until somebody writes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """What an agent reads. It never changes: an episode hands each agent a board of its own.

    A slot is a name and what was last written under it. Beside the common ones (`support`, `queries`, `candidates`,
    `kept`, `notes`, `output`) an agent may write slots of its own, which later agents read as ``board["name"]``.

    Attributes:
        sample: what is to be understood.
        slots: by name, the slots that the agent said it reads, as far as they have been written.
    """

    sample: AffectSample
    slots: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, slot: str) -> Any:
        if slot in self.slots:
            return self.slots[slot]
        if slot in _EMPTY:
            return _EMPTY[slot]
        raise KeyError(f"the board has no {slot!r}: name it in the agent's `reads`, and let an agent before write it")

    @property
    def support(self) -> Support:
        """The sample's perceptual neighbours."""
        return self["support"]

    @property
    def queries(self) -> Queries:
        """What is searched for, by group."""
        return self["queries"]

    @property
    def candidates(self) -> Found:
        """What was found, by group, best first."""
        return self["candidates"]

    @property
    def kept(self) -> Found:
        """The evidence that the answer is given on."""
        return self["kept"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What agents tell those after them, a line each."""
        return self["notes"]

    @property
    def output(self) -> Output:
        """The team's answer."""
        return self["output"]


def first(found: Found, keep: int) -> Found:
    """What retrieval order alone would keep of what was found, `keep` of each group."""
    return {group: items[:keep] for group, items in found.items()}
