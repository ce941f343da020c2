"""The value head of a bfloat16 policy, which trains in float32 beside DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from affect_rl.policy.model import AffectPolicy, ValueHead


def trains_apart(policy: AffectPolicy) -> bool:
    """Whether the value head is none of DeepSpeed's business."""
    return next(policy.parameters()).dtype == torch.bfloat16


@contextmanager
def value_head_apart(policy: AffectPolicy) -> Iterator[None]:
    """Inside, a bfloat16 policy has no value head, so that DeepSpeed neither rounds it nor misses its shards there."""
    if not trains_apart(policy):
        yield
        return
    head = policy.value_head
    del policy.value_head
    try:
        yield
    finally:
        policy.value_head = head


class HeadTrainer:
    """AdamW on a float32 value head, whole on every rank.

    DeepSpeed's bfloat16 mode turns every parameter into bfloat16, whose 3 digits would be those of the values, and its
    stage 3 wants parameters of one type. A head has no more numbers than the model is wide: nothing to shard.
    """

    def __init__(self, head: ValueHead, optimizer: torch.optim.AdamW, max_grad_norm: float) -> None:
        """`optimizer`: of the head's parameters alone."""
        self._parameters, self._max_norm = list(head.parameters()), max_grad_norm
        self.optimizer = optimizer
        with torch.no_grad():
            for parameter in self._parameters:
                dist.broadcast(parameter, src=0)

    def step(self, others: float) -> float:
        """Sum the gradients over ranks, clip, update, clear.

        Args:
            others: norm of the gradient of all other parameters, which have been clipped by it alone.

        Returns:
            The norm of the whole gradient, by which the head's is clipped.
        """
        for parameter in self._parameters:
            if parameter.grad is None:  # this rank had no values to learn from, but the others wait for it
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()  # losses come multiplied by it, see `Engine.backward`
        own = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        norm = math.hypot(others, float(own))
        if math.isfinite(norm):  # DeepSpeed skips the others' step, too
            total = torch.tensor(norm, device=own.device)
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, total)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
