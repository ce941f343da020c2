"""What vLLM has to be told in each of its processes.

Engines of ours call `register` themselves. Processes that vLLM starts by itself find it as the entry point
``vllm.general_plugins``.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

from vllm import ModelRegistry
from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from rollout_workers.vllm.model import AffectForCausalLM
from rollout_workers.vllm.weight_sync import BACKEND, PolicyTransfer


def register() -> None:
    """Make vLLM know our model and our way of bringing weights, and its processes end with the one that started them;
    repeating it does no harm."""
    name = AffectForCausalLM.__name__
    if name in ModelRegistry.get_supported_archs():
        return
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    ModelRegistry.register_model(name, AffectForCausalLM)
    WeightTransferEngineFactory.register_engine(BACKEND, PolicyTransfer)


def _end_with_parent() -> None:
    """An engine's process would outlive a job that was killed, and keep the card's memory from the next one."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
