"""What vLLM has to be told in each of its processes.

Engines of ours call `register` themselves. Processes that vLLM starts by itself find it as the entry point
``vllm.general_plugins``.
"""

from __future__ import annotations

from vllm import ModelRegistry
from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from rollout_workers.vllm.model import AffectForCausalLM
from rollout_workers.vllm.weight_sync import BACKEND, PolicyTransfer


def register() -> None:
    """Make vLLM know our model and our way of bringing weights; repeating it does no harm."""
    name = AffectForCausalLM.__name__
    if name in ModelRegistry.get_supported_archs():
        return
    ModelRegistry.register_model(name, AffectForCausalLM)
    WeightTransferEngineFactory.register_engine(BACKEND, PolicyTransfer)
