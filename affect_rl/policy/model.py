"""The policy: a causal language model, the fusion modules in front of it and a value head behind it.

One set of weights plays all three agents; the role stands in the prompt. A policy lives in a
directory (``config.json``, ``model.safetensors``, tokenizer files, ``manifest.json``) that a rollout
engine serves as it stands and `AffectPolicy.load` reads back bit for bit.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from affect_rl.errors import AffectError
from affect_rl.files import sha256, whole_directory
from affect_rl.policy.fusion import Fusion, FusionShape, PerceptBatch, shape_from_dict
from affect_rl.policy.slot_fusion import SlotFusion, make_fusion
from affect_rl.policy.slots import SlotConfig
from affect_rl.policy.tokens import PERCEPT_TOKEN

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"


class AffectConfig(PretrainedConfig):
    """``config.json`` of a policy: the language model's own config and the shape of the fusion modules.

    Attributes:
        text_config: config of the language model.
        fusion: fields of `FusionShape`.
        percept_token_id: the placeholder token that soft tokens replace.
        backbone: the published system that this was imported from, see `affect_rl.backbones.importing`; empty: none.
    """

    model_type = "affect"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    text_config: Any

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        percept_token_id: int = 0,
        backbone: str = "",
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.fusion = fusion or {}
        self.percept_token_id = percept_token_id
        self.backbone = backbone
        kwargs.setdefault("architectures", ["AffectForCausalLM"])
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PretrainedConfig:
        return self.text_config or self


AutoConfig.register("affect", AffectConfig)


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters on the language model (the fusion modules always train in full)."""

    rank: int = 16
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"


class TokenBatch(NamedTuple):
    """Prompts with answers, right-padded.

    Attributes:
        input_ids: ``[B, L]``, prompt then answer then padding.
        response_mask: ``[B, L]`` (bool), True on the answer's tokens.
        percepts: the percepts of all rows, row after row.
    """

    input_ids: Tensor
    response_mask: Tensor
    percepts: PerceptBatch

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.input_ids.to(device), self.response_mask.to(device), self.percepts.to(device))


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


class ValueHead(nn.Linear):
    """``[..., lm_dim]`` states to ``[...]`` values, in float32 whatever the weights are: bfloat16 has 3 digits."""

    def __init__(self, lm_dim: int) -> None:
        super().__init__(lm_dim, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return nn.functional.linear(states.float(), self.weight.float(), self.bias.float())[..., 0]


class AffectPolicy(nn.Module):
    """Language model, fusion modules and value head with one forward pass for all agents.

    Attributes:
        chunk_logits: most logits that exist at once; answer tokens go through the head in chunks of so many.
    """

    chunk_logits = 2**25  # 128 MiB in float32

    def __init__(self, config: AffectConfig, language_model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.language_model = language_model
        # The parts take the model's dtype one by one: a cast of the whole would also round its rotary frequencies,
        # buffers that engines hold in float32.
        dtype = next(language_model.parameters()).dtype
        self.fusion = make_fusion(shape_from_dict(config.fusion)).to(dtype)
        self.value_head = ValueHead(config.text_config.hidden_size).to(dtype)

    # -- making, saving and loading -------------------------------------------------------------

    @classmethod
    def create(
        cls,
        language_model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        audio_dim: int,
        video_dim: int,
        dim: int,
        heads: int,
        soft_tokens: int,
        experts: int,
        top_k: int,
        residual: bool = True,
        slots: Sequence[SlotConfig] = (),
        backbone: str = "",
    ) -> AffectPolicy:
        """Put untrained fusion modules and a zero value head around a language model.

        The tokenizer must know `PERCEPT_TOKEN` (see `affect_rl.policy.tokens`).
        """
        text_config: Any = language_model.config
        shape = FusionShape(
            max(audio_dim, 1),
            max(video_dim, 1),
            text_config.hidden_size,
            dim,
            heads,
            soft_tokens,
            experts,
            top_k,
            residual,
            tuple(slots),
        )
        token_id = tokenizer.convert_tokens_to_ids(PERCEPT_TOKEN)
        config = AffectConfig(
            copy.deepcopy(text_config),  # a parent config resets the attention of the configs it adopts
            shape.to_dict(),
            token_id,
            backbone,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=next(language_model.parameters()).dtype,
        )
        return cls(config, language_model, tokenizer)

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Write the policy, adapters merged, whole or not at all; `replace`: in the place of one that is there."""
        directory = Path(directory)
        with whole_directory(directory, replace=replace) as partial:
            self.config.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.export()}
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            files = sorted(p.name for p in partial.iterdir())
            manifest = {"format": 1, "sha256": {name: sha256(partial / name) for name in files}}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return directory

    @classmethod
    def load(cls, directory: Path | str, *, dtype: torch.dtype | None = None) -> AffectPolicy:
        """Read a policy directory, in the dtype that it was written in or in another.

        Raises:
            AffectError: the directory is not a policy, or a file does not match the manifest.
        """
        directory = Path(directory)
        check_manifest(directory)
        config = AffectConfig.from_pretrained(directory)
        config.dtype = dtype or config.dtype
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tensors = load_file(directory / WEIGHTS)
        language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=config.dtype)
        policy = cls(config, language_model, tokenizer)
        misfit = f"{directory / WEIGHTS}: weights do not fit config.json"
        try:
            missing, unexpected = policy.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise AffectError(f"{misfit}: {' '.join(str(error).split())}") from error
        tied = {f"language_model.{name}" for name in getattr(language_model, "_tied_weights_keys", None) or ()}
        if unexpected or set(missing) - tied:
            raise AffectError(f"{misfit}: missing {missing}, unexpected {unexpected}")
        language_model.tie_weights()
        return policy

    @staticmethod
    def load_fusion(directory: Path | str) -> Fusion | SlotFusion:
        """Read the fusion modules alone, without the language model, which may be a thousand times larger.

        The directory is one that `load` or an engine has read: the manifest is not checked again.
        """
        config = AffectConfig.from_pretrained(directory)
        fusion = make_fusion(shape_from_dict(config.fusion)).to(config.dtype)
        with safe_open(Path(directory) / WEIGHTS, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith("fusion.")]  # noqa: SIM118 (no mapping)
            fusion.load_state_dict({name.removeprefix("fusion."): tensors.get_tensor(name) for name in names})
        return fusion

    # -- adapters --------------------------------------------------------------------------------

    @property
    def has_adapters(self) -> bool:
        return isinstance(self.language_model, PeftModel)

    def add_adapters(self, lora: Lora) -> None:
        """Freeze the language model and put trainable low-rank adapters on it."""
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        settings = PeftLoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
        )
        self.language_model = get_peft_model(self.language_model, settings)  # type: ignore[arg-type]

    def export(self, *, fusion: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as the policy directory and the rollout engine know them, adapters merged.

        Tied tensors come once. Fusion modules and value head are left out with ``fusion=False``.
        """
        if isinstance(self.language_model, PeftModel):
            yield from self._merged()
        else:
            seen: set[int] = set()
            for name, tensor in self.language_model.state_dict(keep_vars=True).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"language_model.{name}", tensor
        if fusion:
            for part in ("fusion", "value_head"):
                for name, tensor in getattr(self, part).state_dict(keep_vars=True).items():
                    yield f"{part}.{name}", tensor

    @torch.no_grad()
    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        base = self.language_model.get_base_model()  # type: ignore[operator]
        layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
        seen: set[int] = set()
        for name, tensor in base.state_dict(keep_vars=True).items():
            if ".lora_" in name or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            owner, _, leaf = name.rpartition(".base_layer.")
            if owner and leaf == "weight":
                tensor = tensor + layers[owner].get_delta_weight("default").to(tensor.dtype)  # type: ignore[operator]
            yield f"language_model.{name.replace('.base_layer.', '.')}", tensor

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        batch: TokenBatch,
        temperature: float | Tensor = 1.0,
        *,
        logprobs: bool = True,
        entropies: bool = False,
        values: bool = False,
        greedy: bool = False,
    ) -> PolicyOutput:
        """What was asked for of the R answer tokens of a batch.

        Only states that predict an answer token go through the language model's head, for prompts are several
        times longer than answers; values alone do without the head.

        Args:
            batch: prompts with answers; a row may have several runs of answer tokens, but none at its start.
            temperature: of all answer tokens, or ``[R]`` of each.
            logprobs: give log-probs.
            entropies: give entropies, and gradients through them.
            values: give the critic's values.
            greedy: tell which tokens are the most likely ones.
        """
        fused = self.fusion(batch.percepts)
        states = self._states(batch, fused.tokens)
        scores = TokenScores()
        if logprobs or entropies or greedy:
            tokens = batch.input_ids[batch.response_mask]
            scores = self._scores(states, tokens, temperature, entropies=entropies, greedy=greedy)
        value = self.value_head(states) if values else None
        return PolicyOutput(fused.router, fused.weights, *scores, value)  # type: ignore[arg-type]

    def _scores(
        self, states: Tensor, tokens: Tensor, temperature: float | Tensor, *, entropies: bool, greedy: bool
    ) -> TokenScores:
        """Scores of tokens ``[R]`` from the states ``[R, lm_dim]`` before them, chunk by chunk.

        Several chunks keep nothing for the way back but their states, and compute their logits again.
        """
        rows = max(1, self.chunk_logits // self.config.text_config.vocab_size)
        temperatures = temperature.split(rows) if isinstance(temperature, Tensor) else itertools.repeat(temperature)
        chunks = [*zip(states.split(rows), tokens.split(rows), temperatures, strict=False)]
        score = partial(self._chunk_scores, entropies=entropies, greedy=greedy)
        if len(chunks) == 1:
            return score(*chunks[0])
        scores = [checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return TokenScores(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*scores, strict=True)))

    def _chunk_scores(
        self, states: Tensor, tokens: Tensor, temperature: float | Tensor, *, entropies: bool, greedy: bool
    ) -> TokenScores:
        """`_scores` with all logits ``[R, vocab]`` at once."""
        logits = self.head.forward(states).float()  # without the hooks of ZeRO 3, see `learners.engine`
        if isinstance(temperature, Tensor):
            logits = logits / temperature[:, None]
        elif temperature != 1:
            logits = logits / temperature
        logprobs = logits.log_softmax(dim=-1)
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        return TokenScores(
            chosen,
            -(logprobs.exp() * logprobs).sum(dim=-1) if entropies else None,
            chosen.detach() >= logprobs.detach().amax(dim=-1) if greedy else None,
        )

    def _states(self, batch: TokenBatch, soft_tokens: Tensor) -> Tensor:
        """Final hidden states ``[R, lm_dim]`` before the answer tokens, soft tokens in the placeholders' place."""
        embeddings = self.language_model.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
        # An answer may contain the placeholder token by chance; there it is a token like any other.
        places = (batch.input_ids == self.config.percept_token_id) & ~batch.response_mask
        embeddings = embeddings.masked_scatter(places[..., None], soft_tokens.to(embeddings.dtype))
        # No mask: padding stands on the right, where causal attention never looks, and attention
        # without a mask takes the faster kernels.
        hidden = self._trunk(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        predicts = batch.response_mask.roll(-1, dims=1)
        predicts[:, -1] = False
        return hidden[predicts]

    @property
    def head(self) -> nn.Module:
        """The language model's map from states to logits."""
        return self.language_model.get_output_embeddings()  # type: ignore[operator, no-any-return]

    @property
    def _trunk(self) -> PreTrainedModel:
        """The language model without its head."""
        model = self.language_model
        return (model.get_base_model() if isinstance(model, PeftModel) else model).model  # type: ignore[union-attr, return-value]

    def checkpoint_activations(self) -> None:
        """From now on keep only the states between blocks for the way back, and compute the rest again.

        The numbers stay the same. It costs a second forward pass of each block and saves most of the memory.
        """
        recompute = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is random, see below
        self._trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
        for module in self._trunk.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # transformers recomputes blocks in training only; what is in them stays in evaluation, without dropout.
                module.training = True


class Reference:
    """The frozen SFT policy that the KL penalty is measured against.

    With adapters the language model is shared and its adapters are switched off; the fusion modules
    are always a frozen copy, for an anchor that moves with the features is none.
    """

    def __init__(self, policy: AffectPolicy) -> None:
        self._shared = policy if policy.has_adapters else None
        # The copies keep requires_grad, although nothing trains them: torch chooses matmul kernels by it,
        # and a policy that has not moved yet would differ from its reference in the last bit.
        self._fusion = copy.deepcopy(policy.fusion).eval()
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
            with policy.language_model.disable_adapter():  # type: ignore[operator]
                return policy(batch, temperature).logprobs
        finally:
            policy.fusion = trained


def check_manifest(directory: Path) -> None:
    """Raise `AffectError` unless `directory` holds a policy whose files match its manifest."""
    if not (directory / MANIFEST).is_file():
        raise AffectError(f"{directory}: no {MANIFEST}, so this is no policy directory; make one with `affect-rl sft`")
    manifest = json.loads((directory / MANIFEST).read_text())
    for name, digest in manifest["sha256"].items():
        if not (directory / name).is_file():
            raise AffectError(f"{directory}: {name} is missing; copy the policy directory again, whole")
        if sha256(directory / name) != digest:
            raise AffectError(f"{directory / name}: content does not match {MANIFEST}; copy the policy directory again")
