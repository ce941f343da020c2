"""Which parts of which parameters a rank's optimiser holds, and files of them that any number of ranks can read.

ZeRO flattens parameters and cuts them by the number of ranks. What is written is therefore named by the parameter and
the place in it, and without the padding: a rank reads from all files what it now holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from affect_rl.errors import AffectError

MASTER = "master"


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring elements of a parameter in a flat tensor.

    Attributes:
        name: of the parameter.
        start: the first element's place in the flattened parameter.
        length: how many there are.
        offset: the first element's place in the flat tensor.
    """

    name: str
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Master:
    """A tensor that is updated on this rank.

    Attributes:
        tensor: contiguous; what is not in a piece is padding.
        optimizer: its AdamW.
        pieces: what it consists of.
        everywhere: every rank holds the same; otherwise they hold different pieces.
    """

    tensor: Tensor
    optimizer: torch.optim.Optimizer
    pieces: tuple[Piece, ...]
    everywhere: bool = False


def whole(name: str, parameter: Tensor) -> tuple[Piece, ...]:
    """The only piece of a tensor that is a parameter itself."""
    return (Piece(name, 0, parameter.numel(), 0),)


def cut(placed: Iterable[tuple[str, int, int]], start: int, size: int) -> Iterator[Piece]:
    """The pieces in elements ``start`` to ``start + size`` of a flat tensor, which are a tensor of their own.

    Args:
        placed: name, place in the flat tensor and number of elements of each parameter.
        start: first element.
        size: elements; the last of them may be padding.
    """
    for name, place, length in placed:
        first, end = max(place, start), min(place + length, start + size)
        if first < end:
            yield Piece(name, first - place, end - first, first - start)


def save_pieces(masters: Sequence[Master], file: Path, *, first_rank: bool) -> None:
    """Write what this rank holds, the optimiser's state included; what all ranks hold is written by the first."""
    written: dict[str, Tensor] = {}
    for master in masters:
        if master.everywhere and not first_rank:
            continue
        state = {MASTER: master.tensor, **master.optimizer.state.get(master.tensor, {})}
        for piece in master.pieces:
            for quantity, tensor in state.items():
                part = tensor.detach()
                if tensor.dim():
                    part = part.view(-1)[piece.offset : piece.offset + piece.length]
                written[f"{quantity}/{piece.start}/{piece.name}"] = part.to("cpu", copy=True)
    save_file(written, file)


def load_pieces(masters: Sequence[Master], files: Sequence[Path]) -> None:
    """Fill tensors and optimisers from all files of a checkpoint.

    Raises:
        AffectError: they do not hold all that this rank needs.
    """
    with ExitStack() as opened, torch.no_grad():
        stored = _Stored([opened.enter_context(safe_open(file, "pt")) for file in files])
        for master in masters:
            tensor, state = master.tensor, dict[str, Tensor]()
            for piece in master.pieces:
                for quantity in stored.quantities(piece.name):
                    if quantity == MASTER:
                        target = tensor
                    elif (value := stored.scalar(quantity, piece.name)) is not None:
                        state[quantity] = value.to(tensor.device)
                        continue
                    else:
                        target = state.setdefault(quantity, torch.zeros_like(tensor))
                    stored.read(quantity, piece, target.view(-1)[piece.offset : piece.offset + piece.length])
            master.optimizer.state[tensor] = state


class _Stored:
    """What files of pieces hold, by quantity and parameter."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._found: dict[tuple[str, str], list[tuple[int, Any, str]]] = defaultdict(list)
        self._quantities: dict[str, set[str]] = defaultdict(lambda: {MASTER})
        for file in files:
            for key in file.keys():  # noqa: SIM118, it is no mapping
                quantity, start, name = key.split("/", 2)
                self._found[quantity, name].append((int(start), file, key))
                self._quantities[name].add(quantity)

    def quantities(self, name: str) -> list[str]:
        return sorted(self._quantities[name])

    def scalar(self, quantity: str, name: str) -> Tensor | None:
        """A number that goes for the whole parameter; None: there is one for each element."""
        _, file, key = self._found[quantity, name][0]
        return None if file.get_slice(key).get_shape() else file.get_tensor(key)  # type: ignore[no-any-return]

    def read(self, quantity: str, piece: Piece, target: Tensor) -> None:
        """Copy the piece's elements to `target`, which is as long."""
        end, missing = piece.start + piece.length, piece.length
        for start, file, key in self._found[quantity, piece.name]:
            part = file.get_slice(key)
            first, last = max(start, piece.start), min(start + part.get_shape()[0], end)
            if first < last:
                target[first - piece.start : last - piece.start] = part[first - start : last - start]
                missing -= last - first
        if missing:
            raise AffectError(
                f"the checkpoint lacks {missing} of {piece.length} numbers ({quantity}) of {piece.name}; resume with "
                "the run's config, or delete the checkpoint to go on from the one before"
            )
