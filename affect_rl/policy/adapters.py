"""Low-rank adapters (LoRA, arXiv 2106.09685) beside a frozen language model, one for all agents or one for each.

An adapter adds ``s B A x`` to a linear layer's ``W x``, with ``s = alpha / rank``. It is kept and served beside the
weights and never rounded into them: in bfloat16 most of a small step would be lost there. On disk an adapter is a
directory of PEFT's own format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from affect_rl.errors import AffectError

TEAM = "team"
"""Name of the adapter that all agents share."""
ADAPTERS = "adapters"
"""Folder of a policy directory; each adapter has a folder of its own in it."""
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Lora:
    """Shape of the adapters on the language model (the fusion modules always train in full).

    Attributes:
        rank: rows of A.
        alpha: scale; an adapter's output is multiplied by alpha / rank.
        targets: module names that get adapters, or ``all-linear``.
    """

    rank: int = 16
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter, apart from the model that it stands on.

    Attributes:
        name: which one.
        config: fields of PEFT's ``adapter_config.json``.
        tensors: A ``[rank, in]`` and B ``[out, rank]`` of each layer, under PEFT's names.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scaling(self) -> float:
        """s of ``W + s B A``."""
        return float(self.config["lora_alpha"]) / self.rank

    def write(self, parent: Path) -> None:
        """Write the adapter as a new directory `name` under `parent`, in PEFT's format."""
        directory = parent / self.name
        directory.mkdir(parents=True)
        (directory / ADAPTER_CONFIG).write_text(json.dumps(self.config, indent=1, sort_keys=True) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read an adapter that `write` or PEFT has written.

        Raises:
            AffectError: a file is missing or damaged.
        """
        try:
            config = json.loads((directory / ADAPTER_CONFIG).read_text())
            return cls(directory.name, config, load_file(directory / ADAPTER_WEIGHTS))
        except (OSError, ValueError, SafetensorError) as error:
            raise AffectError(f"{directory}: cannot be read as an adapter ({error}); copy it again") from error

    def as_type(self, dtype: torch.dtype) -> Self:
        return type(self)(self.name, self.config, {name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    def served(self) -> Iterator[Tensor]:
        """The tensors as an engine computes with them, which folds the scale into B."""
        for name, tensor in self.tensors.items():
            yield tensor.detach() if ".lora_A." in name else tensor.detach() * self.scaling


def read_adapters(directory: Path) -> list[Adapter]:
    """The adapters of a policy directory, in the order of their names; none: a plain policy."""
    return [Adapter.read(path) for path in sorted((directory / ADAPTERS).glob("*")) if path.is_dir()]


# -- on a language model -------------------------------------------------------------------------


def add_adapter(model: nn.Module, name: str, lora: Lora) -> PeftModel:
    """Freeze a language model and put an adapter on it, A at random and B zero; returns it wrapped.

    A model that has adapters already gets one more. All of them train.

    Raises:
        AffectError: the name is none for a folder, or there is nothing to put an adapter on.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise AffectError(f"adapter {name!r}: name it with letters, digits, - and _ only")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = PeftLoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)  # type: ignore[arg-type]
    except ValueError as error:
        raise AffectError(f"model.lora.targets={lora.targets}: {error}") from error
    for layer in lora_layers(model).values():
        if not isinstance(layer.get_base_layer(), nn.Linear):
            raise AffectError(f"model.lora.targets={lora.targets}: only linear layers can have adapters")
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(True)  # PEFT freezes all but the active one
    assert isinstance(model, PeftModel)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have adapters, by their names in the language model."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of an adapter under PEFT's names; they are the model's own, not copies."""
    return {
        f"{_PEFT_PREFIX}{path}.{part}.weight": getattr(layer, part)[name].weight
        for path, layer in lora_layers(model).items()
        for part in ("lora_A", "lora_B")
        if name in getattr(layer, part)
    }


def take_out(model: PeftModel, name: str) -> Adapter:
    """An adapter of a model; its tensors are the model's own."""
    config = model.peft_config[name].to_dict()
    # As `PeftModel.save_pretrained` writes it. A set has no order that two processes agree on.
    config |= {"inference_mode": True, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return Adapter(name, config, adapter_parameters(model, name))


@torch.no_grad()
def put_back(model: nn.Module, adapter: Adapter) -> PeftModel:
    """Put an adapter on a language model, in the type that it has; returns the model wrapped.

    Raises:
        AffectError: it was made for another model.
    """
    targets = adapter.config["target_modules"]
    lora = Lora(adapter.rank, adapter.config["lora_alpha"], targets if isinstance(targets, str) else tuple(targets))
    wrapped = add_adapter(model, adapter.name, lora)
    own = adapter_parameters(wrapped, adapter.name)
    shapes = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (own, adapter.tensors))
    if (expected := next(shapes)) != (found := next(shapes)):
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise AffectError(f"adapter {adapter.name}: {odd[0]} does not fit this language model; it was made for another")
    for name, parameter in own.items():
        parameter.data = adapter.tensors[name].clone()
    return wrapped


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, the model computes with this adapter, or with none.

    PEFT's own ways of choosing change ``requires_grad`` of the others. An optimiser that was built on them must not
    see that, nor ZeRO, which has hooks on all of them.

    Raises:
        AffectError: the model has no such adapter.
    """
    layers = list(lora_layers(model).values())
    if name is not None and (not isinstance(model, PeftModel) or name not in model.peft_config):
        known = ", ".join(model.peft_config) if isinstance(model, PeftModel) else "none"
        raise AffectError(f"adapter {name!r}: the policy has no such adapter (it has: {known})")
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


@torch.no_grad()
def merged_weight(layer: Any, name: str) -> Tensor:
    """``W + s B A`` of a layer, computed in float32 and rounded once to the type of W."""
    weight = layer.get_base_layer().weight
    if name not in layer.lora_A:
        return weight
    delta = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float()
    return (weight.float() + layer.scaling[name] * delta).to(weight.dtype)


def linear_modules(text_config: Any) -> tuple[str, ...]:
    """Last names of the layers that ``all-linear`` means in a language model of this configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text_config)
    head = model.get_output_embeddings()
    linear = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return tuple(sorted({name.rpartition(".")[2] for name in linear}))
