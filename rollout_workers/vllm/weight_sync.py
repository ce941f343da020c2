"""The one place that speaks vLLM's weight-transfer API, which moves between its minor versions.

A backend of ours, registered with vLLM's factory, receives weights in each rank of an engine by either `Transfer`. It
replaces the language model by vLLM's layerwise reload, for kernels may hold packed copies that plain loading would
leave behind. With adapters only these and the fusion modules travel; the language model stays unless the adapters
stand on another one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.worker.worker_base import WorkerBase

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import ADAPTERS, Adapter, read_adapters
from affect_rl.policy.directory import MANIFEST, Base, tokenizer_files
from affect_rl.policy.publication import Announcement, Named, TensorSpec, adapter_of, split_adapters
from affect_rl.policy.transfer import CollectiveTransfer, FileTransfer, Meeting, Transfer, TransferError
from affect_rl.policy.weights import WeightsHandle
from rollout_workers.vllm.checksum import joined, part_sums
from rollout_workers.vllm.model import AffectForCausalLM

BACKEND = "affect_rl"
_FUSION, _LANGUAGE_MODEL = "fusion.", "language_model."


@dataclass
class PolicyInit(WeightTransferInitInfo):
    """Where to meet the learner, and the address of this node; None: files alone."""

    meeting: Meeting | None = None
    address: str = ""


@dataclass
class PolicyUpdate(WeightTransferUpdateInfo):
    """What comes, and from which directory; None: from the learner. Then rank 0 writes adapters to `adapters`."""

    announcement: Announcement
    directory: str | None = None
    adapters: str = ""


class PolicyTransfer(WeightTransferEngine[PolicyInit, PolicyUpdate]):
    """Receives a policy in one rank, tensor by tensor; no more than two buckets are held beside the model.

    Without a language model among them it leaves that as it is.
    """

    init_info_cls = PolicyInit
    update_info_cls = PolicyUpdate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: CollectiveTransfer | None = None

    def init_transfer_engine(self, init_info: PolicyInit) -> None:
        self.shutdown()
        if init_info.meeting:
            self._group = CollectiveTransfer(init_info.meeting, init_info.address)

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator here; what loads the tensors does so where it has to.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: PolicyUpdate) -> None:
        announcement, directory = update_info.announcement, update_info.directory
        transfer: Transfer | None = FileTransfer(Path(directory)) if directory else self._group
        if transfer is None:
            raise TransferError("weights: this engine is in no group with the learner")
        adapters: list[Adapter] = []
        named = split_adapters(announcement, transfer.receive(announcement), adapters)
        try:
            if any(spec.name.startswith(_LANGUAGE_MODEL) for spec in announcement.layout):
                self._reload(named)
            else:
                _copy_fusion(self.model, named)
        except TransferError:
            self.shutdown()
            raise
        if self.parallel_config.rank == 0:
            for adapter in adapters:
                adapter.write(Path(update_info.adapters))

    def _reload(self, named: Iterable[Named]) -> None:
        """Replace the whole model. Where that breaks off, its layers are put together again, some old and some new."""
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(named)
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
        # A head tied to the embeddings is given no tensors of its own; without this its kernel would
        # keep a packed copy of the old ones.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        if self._group:
            self._group.close()
        self._group = None


def _join(worker: WorkerBase, meeting: Meeting, address: str) -> str:
    """Runs on each rank; says why the group did not come about, if it did not."""
    try:
        worker.init_weight_transfer_engine({"meeting": meeting, "address": address})
    except TransferError as error:
        return str(error)
    return ""


def _receive(worker: WorkerBase, update: dict[str, Any]) -> str:
    """Runs on each rank; says why the weights did not come, if they did not."""
    worker.start_weight_update()
    try:
        worker.update_weights(update)
    except TransferError as error:
        return str(error)
    worker.finish_weight_update()
    return ""


class WeightSync:
    """Swaps the weights of a live engine.

    Requests in flight go on under the new weights: they are preempted, their KV cache and soft tokens
    are computed again from the tokens they have, and vLLM records where the new version begins.

    Args:
        engine: has loaded the weights of `policy_dir`, or of its base.
        policy_dir: what the engine starts with, as version 0.
        slots: how many adapters the engine can hold.

    Attributes:
        adapters: those that the engine serves, by name.
        torn: loading broke off, and a part may be new and another old: nothing may step the engine until it has
            received a whole version.
    """

    def __init__(self, engine: LLMEngine, policy_dir: Path, slots: int = 0) -> None:
        self._engine, self._slots = engine, slots
        self._tokenizer = tokenizer_files(policy_dir)
        base = Base.read(policy_dir)
        loaded = base or Base.of(policy_dir)
        self._loaded = loaded.manifest  # which language model is there; empty: one of no policy directory
        self._layout = FileTransfer(Path(loaded.path)).announcement(0).layout
        self._ids: dict[str, int] = {}
        self.adapters: dict[str, LoRARequest] = {}
        self.torn = False
        engine.set_weight_version("0")
        engine.collective_rpc("init_weight_transfer_engine", args=({},))
        if base:
            self._load(FileTransfer(policy_dir).announcement(0), policy_dir)
            self.torn = False

    @property
    def version(self) -> int:
        """The version as the engine reports it; 0 is the policy directory it started from."""
        return int(self._engine.get_weight_version())

    def update(self, handle: WeightsHandle) -> int:
        """Load a published set of weights and forget what was computed with the last one.

        Nothing may step the engine meanwhile.

        Raises:
            AffectError: the published tensors are not those of this policy, it has another tokenizer, or the engine has
                no room for its adapters; the engine is unharmed. Whatever else is raised, see `torn`.
        """
        directory = Path(handle.path)
        announcement = FileTransfer(directory).announcement(handle.version)
        self._check(announcement, str(directory))
        self._check_tokenizer(directory)
        self._load(announcement, directory)
        return self._loaded_version(handle.version)

    def join(self, meeting: Meeting, address: str) -> bool:
        """Meet the learner with all ranks; False: the others did not come in time."""
        return not any(self._engine.collective_rpc(_join, args=(meeting, address)))

    def receive(self, announcement: Announcement) -> int | None:
        """Load what the learner broadcasts, as `update` does; None: it broke off, see `torn`.

        Raises:
            AffectError: the announced tensors are not those of this policy; the engine is unharmed.
        """
        self._check(announcement, "the learner")
        with tempfile.TemporaryDirectory(prefix="affect-rl-adapters-") as folder:
            if not self._load(announcement, None, Path(folder)):
                return None
        return self._loaded_version(announcement.version)

    def _loaded_version(self, version: int) -> int:
        self.torn = False
        self._engine.set_weight_version(str(version))
        self.forget()
        return self.version

    def _load(self, announcement: Announcement, directory: Path | None, folder: Path | None = None) -> bool:
        """Load what was announced, and its base if that is not the language model that is there; False: it broke off.

        Args:
            announcement: what comes.
            directory: what it is read from; None: it comes from the learner.
            folder: where to write adapters that come from the learner.
        """
        base = announcement.base
        names = self._check_adapters(announcement, directory)
        whole = None
        if base and base.manifest != self._loaded:
            whole = FileTransfer(Path(base.path)).announcement(announcement.version)
            self._check(whole, base.path)
        self.torn = True  # until all of it is there
        if base and whole:
            self._transfer(whole, Path(base.path))
        if not self._transfer(announcement, directory, folder):  # which drops all adapters
            self._loaded = base.manifest if base else ""
            return False
        if not base and directory:
            base = Base.of(directory) if (directory / MANIFEST).is_file() else None
        self._loaded = base.manifest if base else ""
        adapters = {}
        for name in names:
            number = self._ids.setdefault(name, len(self._ids) + 1)
            path = directory / ADAPTERS / name if directory else (folder or Path()) / name
            self._engine.add_lora(LoRARequest(name, number, str(path.resolve())))
            # Requests carry no path: an adapter that is there is not read again, and the path is a part of the prefix
            # cache's keys, by which requests in flight would be strangers to new ones.
            adapters[name] = LoRARequest(name, number, name)
        self.adapters = adapters
        return True

    def _transfer(self, announcement: Announcement, directory: Path | None, folder: Path | None = None) -> bool:
        update = {
            "announcement": announcement,
            "directory": str(directory) if directory else None,
            "adapters": str(folder or ""),
        }
        return not any(self._engine.collective_rpc(_receive, args=(update,)))

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

    def _check(self, announcement: Announcement, place: str) -> None:
        """Bad tensors have to be found before layers are taken apart for reloading."""
        shapes = _by_name(spec for spec in announcement.layout if not adapter_of(spec.name)[0])
        own = _by_name(s for s in self._layout if announcement.base is None or s.name.startswith(_FUSION))
        for name in sorted(shapes.keys() | own.keys()):
            if shapes.get(name) != own.get(name):
                raise AffectError(
                    f"{place}: tensor {name} is {_describe(shapes.get(name))}, the engine's is "
                    f"{_describe(own.get(name))}; publish the policy that the engine was started from"
                )

    def _check_tokenizer(self, directory: Path) -> None:
        """Another one of the same size would fit, and the prompts, which are made with the first, be nonsense."""
        theirs = tokenizer_files(directory)
        if theirs and self._tokenizer and theirs != self._tokenizer:
            other = sorted(name for name, _ in theirs.items() ^ self._tokenizer.items())
            raise AffectError(
                f"{directory}: has another {other[0]} than the policy that the engine was started with, and an engine "
                "keeps its tokenizer; start another engine for it (a service: restart it; an evaluation: one command "
                "for each policy)"
            )

    def _check_adapters(self, announcement: Announcement, directory: Path | None) -> list[str]:
        """Names of the adapters, which have to be found bad before the last ones are dropped."""
        place = directory or "the learner"
        adapters = read_adapters(directory) if directory else _announced(announcement)
        names = [adapter.name for adapter in adapters]
        fix = "start it with the model.lora and the adapters that the policy was trained with, or merge them"
        if len(names) > self._slots:
            raise AffectError(f"{place}: has {len(names)} adapters, the engine was started for {self._slots}; {fix}")
        for adapter in adapters:
            if fault := self._misfit(adapter):
                raise AffectError(f"{place}: the engine cannot serve adapter {adapter.name}: {fault} {fix}")
        if (gone := sorted(self.adapters.keys() - names)) and self._engine.has_unfinished_requests():
            raise AffectError(f"{place}: has no adapter {gone[0]}, with which requests are running")
        return names

    def _misfit(self, adapter: Adapter) -> str:
        """Why an adapter fits no slot, as a sentence; empty: it fits."""
        slots = self._engine.vllm_config.lora_config
        assert slots  # or there were no adapters
        try:
            PEFTHelper.from_dict(dict(adapter.config)).validate_legal(slots)
        except ValueError as error:
            return str(error)
        # vLLM itself would leave these out without a word.
        modules = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapter.tensors}
        other = sorted(modules - set(slots.target_modules or modules))
        return f"It changes {', '.join(other)}, for which the engine has no slots." if other else ""


@torch.no_grad()
def _copy_fusion(model: AffectForCausalLM, named: Iterable[Named]) -> None:
    own = model.fusion.state_dict(keep_vars=True)
    for name, tensor in named:
        if name.startswith(_FUSION):
            own[name.removeprefix(_FUSION)].copy_(tensor)


def _announced(announcement: Announcement) -> list[Adapter]:
    """The adapters that are to come, with tensors that take no room."""
    tensors: dict[str, dict[str, torch.Tensor]] = {name: {} for name in announcement.adapters}
    for spec in announcement.layout:
        adapter, name = adapter_of(spec.name)
        if adapter:
            tensors[adapter][name] = torch.empty(spec.shape, device="meta")
    return [Adapter(name, config, tensors[name]) for name, config in announcement.adapters.items()]


def _by_name(layout: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in layout}


def _describe(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"
