"""Adapters inside a vLLM engine: their slots, and the CPU kernel that computes with them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def slot_rank(rank: int) -> int:
    """The smallest rank of a slot that vLLM offers and an adapter of `rank` fits into; the rest of it is zeros."""
    return next((offered for offered in _RANKS if offered >= rank), rank)


class GroupedAdapters(PunicaWrapperCPU):
    """Multiplies the rows of each adapter at once.

    vLLM's own CPU kernel copies an adapter's matrices for every token, and gives tokens that are to have no adapter
    that of the last slot if others in their batch have one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[tuple[int, Any]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices
        used = [slot for slot in slots.unique().tolist() if slot >= 0]
        if used and len(slots) and bool((slots == used[0]).all()):
            self._groups = [(used[0], slice(0, len(slots)))]
        else:
            self._groups = [(slot, (slots == slot).nonzero()[:, 0]) for slot in used]

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add ``s B A x`` to the rows of `y` ``[tokens, out]``, a slice of it for each packed projection."""
        for slot, rows in self._groups:
            inputs, start = x[rows], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                y[rows, start : start + width] += scale * (inputs @ a[slot, 0].T) @ b[slot, 0].T
                start += width


def group_adapters(model: Any) -> None:
    """Let the layers of a model that vLLM has prepared for adapters compute with `GroupedAdapters`."""
    manager = model.lora_manager
    (name,) = manager.punica_wrapper_mapping
    kernel = GroupedAdapters(
        manager.max_num_batched_tokens, manager.max_num_seqs, manager.device, lora_config=manager.lora_config
    )
    manager.punica_wrapper_mapping[name] = kernel
    for layer in manager.modules.values():
        layer.set_mapping(kernel)
    manager._last_mapping = None
