"""What the KL penalty is measured against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.model import AffectPolicy


class Reference:
    """The frozen SFT policy that the KL penalty is measured against.

    With adapters it is their base: the language model is shared and its adapters are switched off. So it stays the same
    when a policy with adapters is trained further. The fusion modules are always a frozen copy, for an anchor that
    moves with the features is none; with adapters the base's, for those of the policy may have been trained.
    """

    def __init__(self, policy: AffectPolicy) -> None:
        self._shared = policy if policy.has_adapters else None
        # The copies keep requires_grad, although nothing trains them: torch chooses matmul kernels by it,
        # and a policy that has not moved yet would differ from its reference in the last bit.
        self._fusion = copy.deepcopy(policy.fusion).eval()
        if policy.has_adapters and policy.base:
            self._fusion.load_state_dict(AffectPolicy.load_fusion(policy.base.path).state_dict())
        self._policy = None if policy.has_adapters else copy.deepcopy(policy).eval()

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch, temperature: float | Tensor = 1.0) -> Tensor:
        """``[R]`` log-probs of the answer tokens under the reference."""
        if self._policy is not None:
            return self._policy(batch, temperature).logprobs
        policy = self._shared
        assert policy is not None
        trained, policy.fusion = policy.fusion, self._fusion
        try:
            with policy.use_adapter(None):
                return policy(batch, temperature).logprobs
        finally:
            policy.fusion = trained
