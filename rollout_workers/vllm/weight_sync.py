"""The one place that speaks vLLM's weight-transfer API, which moves between its minor versions.

Weights travel through files in shared memory, laid out as a policy directory is, by a backend of ours that is
registered with vLLM's factory. It replaces the language model by vLLM's layerwise reload, for kernels may hold packed
copies that plain loading would leave behind. With adapters only these and the fusion modules travel; the language
model stays unless the adapters stand on another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.engine.llm_engine import LLMEngine

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import ADAPTERS, read_adapters
from affect_rl.policy.directory import MANIFEST, WEIGHTS, Base
from affect_rl.policy.weights import VALUE_HEAD, WeightsHandle
from rollout_workers.vllm.checksum import joined, part_sums
from rollout_workers.vllm.model import AffectForCausalLM

SHARED_MEMORY = "shared_memory"
_FUSION = "fusion."
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing has to be agreed upon beforehand."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """Where the published safetensors file is."""

    path: str


class SharedMemoryTransfer(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Reads a published safetensors file tensor by tensor; one tensor at a time is held twice.

    A file without a language model leaves that as it is.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator here; reading a file has nothing to wait for.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        path = Path(update_info.path)
        if not any(name.startswith("language_model.") for name in _shapes(path)):
            _copy_fusion(self.model, path)
            return
        initialize_layerwise_reload(self.model)
        self.model.load_weights(_tensors(path))
        finalize_layerwise_reload(self.model, self.model_config)
        # A head tied to the embeddings is given no tensors of its own; without this its kernel would
        # keep a packed copy of the old ones.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


class WeightSync:
    """Swaps the weights of a live engine.

    Requests in flight go on under the new weights: they are preempted, their KV cache and soft tokens
    are computed again from the tokens they have, and vLLM records where the new version begins.

    Args:
        engine: has loaded the weights of `policy_dir`, or of its base.
        policy_dir: what the engine starts with, as version 0.
        slots: how many adapters the engine can hold.
    """

    def __init__(self, engine: LLMEngine, policy_dir: Path, slots: int = 0) -> None:
        self._engine, self._slots = engine, slots
        base = Base.read(policy_dir)
        loaded = base or Base.of(policy_dir)
        self._loaded = loaded.manifest  # which language model is there; empty: one of no policy directory
        self._shapes = _shapes(Path(loaded.path) / WEIGHTS)
        self._ids: dict[str, int] = {}
        self.adapters: dict[str, LoRARequest] = {}
        engine.set_weight_version("0")
        engine.collective_rpc("init_weight_transfer_engine", args=({},))
        if base:
            self._load(policy_dir, base)

    @property
    def version(self) -> int:
        """The version as the engine reports it; 0 is the policy directory it started from."""
        return int(self._engine.get_weight_version())

    def update(self, handle: WeightsHandle) -> int:
        """Load a published set of weights and forget what was computed with the last one.

        Nothing may step the engine meanwhile.

        Raises:
            AffectError: the published tensors are not those of this policy; the engine is unharmed.
        """
        path = Path(handle.path)
        self._load(path, Base.read(path))
        self._engine.set_weight_version(str(handle.version))
        self.forget()
        return self.version

    def _load(self, directory: Path, base: Base | None) -> None:
        """Load what a directory holds, and its base if that is not the language model that is there."""
        self._check(directory / WEIGHTS, whole=base is None)
        names = self._check_adapters(directory)
        if base and base.manifest != self._loaded:
            self._check(Path(base.path) / WEIGHTS, whole=True)
            self._transfer(Path(base.path) / WEIGHTS)
        self._transfer(directory / WEIGHTS)  # which drops all adapters
        if not base:
            base = Base.of(directory) if (directory / MANIFEST).is_file() else None
        self._loaded = base.manifest if base else ""
        self.adapters = {}
        for name in names:
            number = self._ids.setdefault(name, len(self._ids) + 1)
            self._engine.add_lora(LoRARequest(name, number, str((directory / ADAPTERS / name).resolve())))
            # Requests carry no path: an adapter that is there is not read again, and the path is a part of the prefix
            # cache's keys, by which requests in flight would be strangers to new ones.
            self.adapters[name] = LoRARequest(name, number, name)

    def _transfer(self, file: Path) -> None:
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=({"path": str(file)},))
        self._engine.collective_rpc("finish_weight_update")

    def forget(self) -> None:
        """Drop all that was computed: KV blocks, those of requests in flight included, and soft tokens."""
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.reset_encoder_cache()

    def checksum(self) -> int:
        """`multiset_checksum` of all that the engine computes with; equals that of the handle it came from.

        Raises:
            RanksDisagreeError: the ranks of the engine hold other copies of the same tensors.
        """
        return joined(self._engine.apply_model(part_sums))

    def _check(self, path: Path, *, whole: bool) -> None:
        """A bad file has to be found before layers are taken apart for reloading."""
        shapes = _shapes(path)
        own = {name: shape for name, shape in self._shapes.items() if whole or name.startswith(_FUSION)}
        for name in sorted(shapes.keys() | own.keys()):
            if shapes.get(name) != own.get(name):
                raise AffectError(
                    f"{path}: tensor {name} is {_describe(shapes.get(name))}, the engine's is "
                    f"{_describe(own.get(name))}; publish the policy that the engine was started from"
                )

    def _check_adapters(self, directory: Path) -> list[str]:
        """Names of a directory's adapters, which have to be found bad before the last ones are dropped."""
        adapters = read_adapters(directory)
        if len(adapters) > self._slots:
            raise AffectError(
                f"{directory}: has {len(adapters)} adapters, the engine was started for {self._slots}; start it with "
                "the model.lora and the adapters that the policy was trained with, or merge them"
            )
        names = [adapter.name for adapter in adapters]
        if (gone := sorted(self.adapters.keys() - names)) and self._engine.has_unfinished_requests():
            raise AffectError(f"{directory}: has no adapter {gone[0]}, with which requests are running")
        return names


@torch.no_grad()
def _copy_fusion(model: AffectForCausalLM, path: Path) -> None:
    own = model.fusion.state_dict(keep_vars=True)
    for name, tensor in _tensors(path):
        if name.startswith(_FUSION):
            own[name.removeprefix(_FUSION)].copy_(tensor)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, file.get_tensor(name)


def _shapes(path: Path) -> Shapes:
    """Type and shape of each tensor of a safetensors file, read from its header."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
                if not name.startswith(VALUE_HEAD)
            }
    except FileNotFoundError as error:
        raise AffectError(
            f"{path}: no such file on this node; if learners and engines are on several, set rollout.weights_dir to a "
            "directory that all of them see"
        ) from error
    except (OSError, SafetensorError) as error:
        raise AffectError(f"{path}: cannot be read as published weights: {error}; publish them again") from error


def _describe(shape: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if shape is None else f"{shape[0]} {list(shape[1])}"
