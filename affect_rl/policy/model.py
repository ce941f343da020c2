"""The policy: a causal language model, the fusion modules in front of it and a value head behind it.

One set of weights plays all agents; the role stands in the prompt. Agents may have adapters on it, one for all or one
for each (see `affect_rl.policy.adapters`). A policy lives in a directory (``config.json``, ``model.safetensors``,
tokenizer files, ``manifest.json``, and with adapters ``adapters/`` and ``base.json``) that a rollout engine serves as
it stands and `AffectPolicy.load` reads back bit for bit.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from affect_rl.errors import AffectError
from affect_rl.files import whole_directory
from affect_rl.policy.adapters import (
    ADAPTERS,
    TEAM,
    Adapter,
    Lora,
    add_adapter,
    lora_layers,
    merged_weight,
    put_back,
    read_adapters,
    take_out,
    using,
)
from affect_rl.policy.batches import PolicyOutput, TokenBatch, TokenScores
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import WEIGHTS, Base, check_manifest, write_manifest
from affect_rl.policy.fusion import Fusion, FusionShape, shape_from_dict
from affect_rl.policy.publication import Gather, Publication, buckets_of
from affect_rl.policy.slot_fusion import SlotFusion, make_fusion
from affect_rl.policy.slots import SlotConfig
from affect_rl.policy.special_tokens import PERCEPT_TOKEN
from affect_rl.policy.tensors import read_tensors
from affect_rl.policy.weights import WeightsHandle, write_publication


class ValueHead(nn.Linear):
    """``[..., lm_dim]`` states to ``[...]`` values, in float32 whatever the policy's type: bfloat16 has 3 digits."""

    def __init__(self, lm_dim: int) -> None:
        super().__init__(lm_dim, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())[..., 0]


class AffectPolicy(nn.Module):
    """Language model, fusion modules and value head with one forward pass for all agents.

    Attributes:
        base: the directory that the language model was loaded from; None: it was not.
        chunk_logits: most logits that exist at once; answer tokens go through the head in chunks of so many.
    """

    chunk_logits = 2**25  # 128 MiB in float32

    def __init__(self, config: AffectConfig, language_model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.language_model = language_model
        if getattr(config.text_config, "attn_logit_softcapping", None):  # of the kernels, only the plain one caps
            language_model.set_attn_implementation("eager")  # type: ignore[operator]
        self.base: Base | None = None
        self._base_checksum: int | None = None
        # The parts take the model's dtype one by one: a cast of the whole would also round its rotary frequencies,
        # buffers that engines hold in float32.
        dtype = next(language_model.parameters()).dtype
        self.fusion = make_fusion(shape_from_dict(config.fusion)).to(dtype)
        self.value_head = ValueHead(config.text_config.hidden_size)

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

    def save(self, directory: Path | str, *, replace: bool = False, merge: str | None = None) -> Path:
        """Write the policy, whole or not at all.

        With adapters, the directory holds them and names the one that the policy was loaded from as their base.

        Args:
            directory: where to.
            replace: in the place of one that is there.
            merge: name of an adapter to merge into the weights, for a plain policy, see `export`.

        Raises:
            AffectError: there are adapters, but their base is in no directory.
        """
        directory = Path(directory)
        if self.has_adapters and not merge and not self.base:
            raise AffectError(
                f"{directory}: adapters are saved beside a reference to their base, which is in no directory; save the "
                "policy and load it again before you add adapters, or merge them"
            )
        with whole_directory(directory, replace=replace) as partial:
            self.config.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.export(merge=merge)}
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            if self.base and self.has_adapters and not merge:
                self.base.write(partial)
                for adapter in self.adapters():
                    adapter.write(partial / ADAPTERS)
            write_manifest(partial)
        return directory

    @classmethod
    def load(cls, directory: Path | str, *, dtype: torch.dtype | None = None, verify: bool = True) -> AffectPolicy:
        """Read a policy directory; adapters stay adapters.

        Args:
            directory: which one.
            dtype: of the weights; None: as they were written. The value head's is float32.
            verify: hash the files to compare them with the manifest; not twice, where another process has done so.

        Raises:
            AffectError: the directory is not a policy, or a file does not match the manifest, or adapters' base is
                not there.
        """
        directory = Path(directory)
        check_manifest(directory, content=verify)
        base = Base.read(directory) or Base.of(directory)
        config = AffectConfig.from_pretrained(directory)
        config.dtype = dtype or config.dtype
        tokenizer = AutoTokenizer.from_pretrained(directory)
        # Of the base, the parts that the policy has of its own are overwritten.
        tensors = read_tensors(Path(base.path)) | read_tensors(directory)
        with init_empty_weights(include_buffers=False):  # names and shapes; random weights would take minutes
            language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=config.dtype)
        policy = cls(config, language_model, tokenizer)
        misfit = f"{directory / WEIGHTS}: weights do not fit config.json"
        types = {name: tensor.dtype for name, tensor in policy.state_dict().items()}
        # Copies, for tensors of a file are a window on it.
        tensors = {name: t.to(types.get(name, t.dtype), copy=True) for name, t in tensors.items()}
        try:
            missing, unexpected = policy.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise AffectError(f"{misfit}: {' '.join(str(error).split())}") from error
        tied = {f"language_model.{name}" for name in getattr(language_model, "_tied_weights_keys", None) or ()}
        if unexpected or set(missing) - tied:
            raise AffectError(f"{misfit}: missing {missing}, unexpected {unexpected}")
        language_model.tie_weights()
        policy.base = base
        for adapter in read_adapters(directory):
            policy.language_model = put_back(policy.language_model, adapter)
        return policy

    @staticmethod
    def load_fusion(directory: Path | str) -> Fusion | SlotFusion:
        """Read the fusion modules alone, without the language model, which may be a thousand times larger.

        The directory is one that `load` or an engine has read: the manifest is not checked again.
        """
        config = AffectConfig.from_pretrained(directory)
        fusion = make_fusion(shape_from_dict(config.fusion)).to(config.dtype)
        tensors = read_tensors(Path(directory), "fusion.")
        fusion.load_state_dict({name.removeprefix("fusion."): tensor for name, tensor in tensors.items()})
        return fusion

    # -- adapters --------------------------------------------------------------------------------

    @property
    def has_adapters(self) -> bool:
        return isinstance(self.language_model, PeftModel)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were added."""
        return tuple(self.language_model.peft_config) if isinstance(self.language_model, PeftModel) else ()

    def add_adapters(self, lora: Lora, names: Sequence[str] = (TEAM,)) -> None:
        """Freeze the language model and put trainable low-rank adapters on it: one for all agents, or one for each.

        Adapters that are there go on, others start at zero. The first one is in use, see `use_adapter`.

        Raises:
            AffectError: an adapter that is there has another shape, or is not among `names`; or the engines would not
                find the modules of this architecture by the names that adapters give them.
        """
        kind, prefix = self.config.text_config.model_type, getattr(self.language_model, "base_model_prefix", "model")
        if not self.has_adapters and prefix != "model":
            raise AffectError(
                f"model.lora: engines take adapters of modules below `model`, those of {kind} lie below `{prefix}`; "
                "train all weights (model.lora.rank=0), or choose another model"
            )
        for adapter in self.adapters():
            shape = (adapter.rank, adapter.config["lora_alpha"])
            if adapter.name not in names or shape != (lora.rank, lora.alpha):
                raise AffectError(
                    f"the policy has adapter {adapter.name!r} of rank {shape[0]} and alpha {shape[1]}, model.lora asks "
                    f"for {', '.join(names)} of rank {lora.rank} and alpha {lora.alpha}; go on with what it was "
                    "trained with, or merge it first"
                )
        for name in names:
            if name not in self.adapter_names:
                self.language_model = add_adapter(self.language_model, name, lora)

    def use_adapter(self, name: str | None) -> AbstractContextManager[None]:
        """Inside, the policy is the one that this adapter makes; None: the base.

        Nothing but the forward pass changes: all adapters keep ``requires_grad``, and those not in use get no
        gradients. A backward pass belongs inside as well, for activation checkpoints run parts of the forward pass
        again. Under ZeRO all ranks must use the same adapters in the same order.

        Raises:
            AffectError: there is no such adapter.
        """
        return using(self.language_model, name)

    def adapters(self) -> list[Adapter]:
        """The adapters in the order of their names; their tensors are the policy's own."""
        return [take_out(self.language_model, name) for name in sorted(self.adapter_names)]

    def merge(self, name: str = TEAM) -> None:
        """Make the policy a plain one that is what this adapter made of it, see `export`; others are dropped.

        Raises:
            AffectError: there is no such adapter.
        """
        with self.use_adapter(name), torch.no_grad():
            for layer in lora_layers(self.language_model).values():
                layer.get_base_layer().weight.copy_(merged_weight(layer, name))
        self.language_model = self.language_model.unload().requires_grad_(True)  # type: ignore[operator]
        self.base = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that train: those of each adapter by its name, and the others under the empty name.

        An optimiser gives each group a learning rate. An adapter whose agents have no tokens in a step needs 0:
        momentum and weight decay move it even without a gradient.
        """
        groups = {"": [p for n, p in self.named_parameters() if p.requires_grad and ".lora_" not in n]}
        for adapter in self.adapters():
            if trained := [p for p in adapter.tensors.values() if p.requires_grad]:
                groups[adapter.name] = trained  # type: ignore[assignment]
        return groups

    # -- what leaves the policy --------------------------------------------------------------------

    def export(self, *, merge: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of ``model.safetensors``; tied tensors come once.

        A policy with adapters leaves out the language model. With `merge` its weights come too, as ``W + s B A`` of
        this adapter, computed in float32 and rounded once.

        Raises:
            AffectError: there is no such adapter.
        """
        if not self.has_adapters:
            yield from self._language_model()
        elif merge:
            with self.use_adapter(merge):  # an error if there is none
                yield from self._language_model(merge)
        for part in ("fusion", "value_head"):
            for name, tensor in getattr(self, part).state_dict(keep_vars=True).items():
                yield f"{part}.{name}", tensor

    def publication(self, version: int, gather: Gather = iter) -> Publication:
        """What has changed, or may have, for engines to receive: everything; with adapters these, in the type of the
        model, and the fusion modules.

        `gather` makes parted parameters whole. Where they are, all ranks must make publications at the same time.

        Raises:
            AffectError: there are adapters, but their base is in no directory.
        """
        if not self.has_adapters:
            return Publication(version, self.export(), gather=gather)
        if not self.base:
            raise AffectError("adapters are published beside a reference to their base, which is in no directory")
        base = (self.base, self.base_checksum(gather))
        return Publication(version, self.export(), self.adapters(), base, dtype=self.config.dtype, gather=gather)

    def publish(self, version: int, directory: Path) -> WeightsHandle:
        """Write a `publication` for engines to read, see `write_publication`."""
        return write_publication(self.publication(version), directory)

    def base_checksum(self, gather: Gather = iter) -> int:
        """`multiset_checksum` of the language model under the adapters, which is frozen: it is computed once."""
        if self._base_checksum is None:
            buckets = gather(buckets_of(list(self._language_model())))
            self._base_checksum = multiset_checksum(tensor for bucket in buckets for _, tensor in bucket)
        return self._base_checksum

    def _language_model(self, merge: str = "") -> Iterator[tuple[str, Tensor]]:
        """The language model's tensors; an adapter is left out, or merged."""
        model = self.language_model
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        layers, seen = lora_layers(inner), set()
        for name, tensor in inner.state_dict(keep_vars=True).items():
            if ".lora_" in name or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            owner, _, leaf = name.rpartition(".base_layer.")
            if owner and leaf == "weight" and merge:
                tensor = merged_weight(layers[owner], merge)
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
        logits = self._logits(states).float()
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

    def _logits(self, states: Tensor) -> Tensor:
        """Logits ``[R, vocab]`` as the language model makes them of its last states.

        Where architectures differ, the fields of their configurations tell: Cohere multiplies, Granite divides, Gemma
        caps. transformers does so in the models' own forward passes, which know no chunks.
        """
        config = self.config.text_config
        logits = self.head.forward(states)  # without the hooks of ZeRO 3, see `learners.engine`
        if scale := getattr(config, "logit_scale", None):  # only where there is one: each step is a copy of all logits
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        return logits

    def _states(self, batch: TokenBatch, soft_tokens: Tensor) -> Tensor:
        """Final hidden states ``[R, lm_dim]`` before the answer tokens, soft tokens in the placeholders' place."""
        embeddings = self.language_model.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
        # An answer may contain the placeholder token by chance; there it is a token like any other.
        places = (batch.input_ids == self.config.percept_token_id) & ~batch.response_mask
        embeddings = embeddings.masked_scatter(places[..., None], soft_tokens.to(embeddings.dtype))
        # Padding stands on the right, where causal attention never looks. So rows of one sequence need no mask, and
        # attention without a mask takes the faster kernels.
        packing = batch.packing
        if packing and (kernel := self._trunk.config._attn_implementation) != "sdpa":
            raise AffectError(f"learner.share_prefix needs attention by sdpa, the model has {kernel}; set it to false")
        seen = {"attention_mask": packing.mask, "position_ids": packing.positions} if packing else {}
        hidden = self._trunk(inputs_embeds=embeddings, use_cache=False, **seen).last_hidden_state
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
        return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model  # type: ignore[union-attr, return-value]

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
