"""What goes through a policy, and what it says of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from affect_rl.policy.fusion import PerceptBatch


class Packing(NamedTuple):
    """Several sequences in a row, which begin alike and do not see each other.

    Attributes:
        positions: ``[B, L]`` place of each token in its sequence.
        reader: ``[B, L]`` number of the sequence that a token belongs to; 0: to all of its row.
    """

    positions: Tensor
    reader: Tensor

    @property
    def mask(self) -> Tensor:
        """``[B, 1, L, L]`` (bool): which tokens (last axis) each token sees."""
        sees = (self.reader[:, :, None] == self.reader[:, None]) | (self.reader[:, None] == 0)
        return sees.tril()[:, None]

    def to(self, device: torch.device | str) -> Packing:
        return Packing(self.positions.to(device), self.reader.to(device))


class TokenBatch(NamedTuple):
    """Prompts with answers, right-padded.

    Attributes:
        input_ids: ``[B, L]``, prompt then answer then padding.
        response_mask: ``[B, L]`` (bool), True on the answer's tokens.
        percepts: the percepts of all rows, row after row.
        packing: how sequences share rows; None: each has its own.
    """

    input_ids: Tensor
    response_mask: Tensor
    percepts: PerceptBatch
    packing: Packing | None = None

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device),
            self.response_mask.to(device),
            self.percepts.to(device),
            self.packing and self.packing.to(device),
        )


class TokenScores(NamedTuple):
    """The part of `PolicyOutput` that needs the language model's head."""

    logprobs: Tensor | None = None
    entropies: Tensor | None = None
    greedy: Tensor | None = None


class PolicyOutput(NamedTuple):
    """What the policy says of the R answer tokens of a batch, row after row.

    A field that was not asked for is None, although it is typed as a tensor: who reads it has asked for it.

    Attributes:
        router: ``[M, experts]`` of the fused percepts, see `FusionOutput`.
        weights: ``[M, experts]`` likewise.
        logprobs: ``[R]`` log-prob of each token at the given temperature.
        entropies: ``[R]`` entropy of the distribution the token was drawn from.
        greedy: ``[R]`` (bool) whether the token is the most likely one.
        values: ``[R]`` critic's value of the state that *predicts* the token.
    """

    router: Tensor
    weights: Tensor
    logprobs: Tensor = None  # type: ignore[assignment]
    entropies: Tensor = None  # type: ignore[assignment]
    greedy: Tensor = None  # type: ignore[assignment]
    values: Tensor = None  # type: ignore[assignment]
