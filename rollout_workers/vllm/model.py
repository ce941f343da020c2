"""The policy as vLLM serves it: any text model that vLLM knows, with our fusion modules in front.

Features travel as multimodal data of the modality ``percept`` and become soft tokens inside the
engine, so that one weight sync covers language model, projectors and fusion. A policy directory is
served as it stands; its value head is skipped. Adapters stand on the language model only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.inputs import MultiModalInput, mm_input
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptUpdate,
    TimingContext,
)
from vllm.sequence import IntermediateTensors

from affect_rl.errors import AffectError
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.fusion import collate_percepts, shape_from_dict
from affect_rl.policy.publication import VALUE_HEAD
from affect_rl.policy.slot_fusion import make_fusion
from affect_rl.policy.special_tokens import PERCEPT_TOKEN
from affect_rl.trajectory import Percept, Prompt

MODALITY = "percept"
SEQUENCES = ("audio", "video", "audio_support", "video_support")


# -- from prompts to engine inputs ---------------------------------------------------------------


def engine_input(prompt: Prompt, config: AffectConfig) -> MultiModalInput:
    """A prompt as vLLM's engine takes it, without a detour through text or a processor.

    Percepts of equal content get equal hashes, so that the calls of an episode share cached prefixes.

    Raises:
        AffectError: placeholders and percepts do not match, or features have the wrong width.
    """
    shape = shape_from_dict(config.fusion)
    length = shape.tokens
    dims = {name: shape.audio_dim if name.startswith("audio") else shape.video_dim for name in SEQUENCES}
    return mm_input(
        list(prompt.token_ids),
        MultiModalKwargsItems({MODALITY: [_kwargs_item(p, dims) for p in prompt.percepts]}),
        {MODALITY: [_content_hash(p) for p in prompt.percepts]},
        {MODALITY: _placeholders(prompt, config.percept_token_id, length)},
    )


def _placeholders(prompt: Prompt, token_id: int, length: int) -> list[PlaceholderRange]:
    places = [i for i, token in enumerate(prompt.token_ids) if token == token_id]
    starts = places[::length]
    if len(starts) != len(prompt.percepts) or places != [start + i for start in starts for i in range(length)]:
        raise AffectError(
            f"prompt has {len(places)} placeholder tokens for {len(prompt.percepts)} percepts; "
            f"write one run of {length} {PERCEPT_TOKEN} for each percept"
        )
    return [PlaceholderRange(offset=start, length=length) for start in starts]


def _kwargs_item(percept: Percept, dims: Mapping[str, int]) -> MultiModalKwargsItem:
    """A percept as tensors; what is absent becomes a sequence of no frames, which means the same."""
    field = MultiModalBatchedField(keep_on_cpu=True)
    # vLLM drops the data of items that the prefix cache covers, and dies of an "encoder cache miss" if
    # such a request is preempted and has to start over. Items with an address are exempt.
    item = {
        "fused": MultiModalFieldElem(torch.tensor(percept.fused), field),
        "address": MultiModalFieldElem(torch.empty(0), field),
    }
    for name, dim in dims.items():
        array: np.ndarray | None = getattr(percept, name)
        if array is not None and (array.ndim != 2 or array.shape[1] != dim):
            raise AffectError(f"percept's {name} has shape {array.shape}; the policy takes [frames, {dim}]")
        frames = torch.zeros(0, dim) if array is None else torch.tensor(array, dtype=torch.float32)
        item[name] = MultiModalFieldElem(frames, field)
    return MultiModalKwargsItem(item)


def _content_hash(percept: Percept) -> str:
    return MultiModalHasher.hash_kwargs(
        "blake3", fused=percept.fused, **{name: getattr(percept, name) for name in SEQUENCES}
    )


class PerceptInfo(BaseProcessingInfo):
    """What vLLM asks about the modality."""

    def get_hf_config(self) -> AffectConfig:
        return self.ctx.get_hf_config(AffectConfig)

    @property
    def placeholder_length(self) -> int:
        return shape_from_dict(self.get_hf_config().fusion).tokens

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {MODALITY: self.placeholder_length}

    def get_data_parser(self) -> MultiModalDataParser:
        return PerceptParser()


class PerceptParser(MultiModalDataParser):
    """Takes ``{"percept": [Percept, ...]}`` as it comes."""

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: lambda percepts: ProcessorBatchItems(percepts, MODALITY)}


class PerceptDummies(BaseDummyInputsBuilder[PerceptInfo]):
    """The prompts vLLM sizes its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return PERCEPT_TOKEN * self.info.placeholder_length * mm_counts.get(MODALITY, 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        return {MODALITY: [Percept(None, None, fused=True)] * mm_counts.get(MODALITY, 0)}


class PerceptProcessor(BaseMultiModalProcessor[PerceptInfo]):
    """Turns raw prompts into engine inputs; there is nothing to expand, prompts carry their placeholders."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        percepts = inputs.mm_data_items[MODALITY].get_all() if MODALITY in inputs.mm_data_items else []
        return engine_input(Prompt(tuple(inputs.prompt), tuple(percepts)), self.info.get_hf_config())

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched(MODALITY, keep_on_cpu=True) for name in (*SEQUENCES, "fused")}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        return []


# -- the model -----------------------------------------------------------------------------------


@MULTIMODAL_REGISTRY.register_processor(PerceptProcessor, info=PerceptInfo, dummy_inputs=PerceptDummies)
class AffectForCausalLM(nn.Module, SupportsMultiModal, SupportsLoRA):
    """Fusion modules in front of a language model, under the names of `AffectPolicy.export`."""

    # An adapter's names begin at the language model that it was made for.
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.": "language_model.model."})

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: AffectConfig = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, MODALITY):  # type: ignore[operator]
            self.fusion = make_fusion(shape_from_dict(self.config.fusion))
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model: Any = init_vllm_registered_model(
                vllm_config, hf_config=self.config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **fields: Any) -> MultiModalEmbeddings:
        """Soft tokens ``[shape.tokens, lm_dim]`` of each percept in the batch."""
        columns = [[frames.numpy() for frames in fields[name]] for name in SEQUENCES]
        percepts = [Percept(*row) for row in zip(*columns, fields["fused"].tolist(), strict=True)]
        shape = self.fusion.shape
        batch = collate_percepts(percepts, shape.audio_dim, shape.video_dim)
        return list(self.fusion(batch.to(next(self.fusion.parameters()).device)).tokens)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load tensors under the names of a policy directory; the feature statistics are among them."""
        return AutoWeightsLoader(self, ignore_unexpected_prefixes=[VALUE_HEAD]).load_weights(weights)
