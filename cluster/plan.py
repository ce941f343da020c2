"""What a job needs before it runs: memory of each process and disk, by arithmetic on the sizes of its policy.

Every term is one small function whose docstring has its formula. In these, P is the number of all parameters, T of
those that train, W the number of ranks, b the bytes of an element of the weights; all results are bytes.

What is not counted: gaps in an allocator's blocks, the features of the samples, indexes and text encoders.
`benchmarks/plan.py` compares the learner's terms with what processes take on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from affect_rl.config.learning import LearnerConfig, SftConfig
from affect_rl.config.load import Config
from affect_rl.config.services import RolloutConfig
from affect_rl.policy.model import AffectPolicy
from cluster.sizes import PolicySizes

GIB = 2**30
BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed reduces gradients, its default."""
LIVE = 1_000_000_000
"""Parameters that ZeRO stage 3 keeps gathered at a time, DeepSpeed's default."""
CONTEXT = 3 * GIB // 2
"""What CUDA, cuBLAS and NCCL take of a card for a process; an estimate."""
LIBRARIES = 6 * GIB // 10
"""What Python, torch and the other libraries take of main memory for a process."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process, in bytes.

    Attributes:
        kept: what is held all the time, by name.
        phases: what comes on top, by the name of the phase; phases follow one another.
    """

    kept: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What is held at the peak, by name."""
        return {name: size for name, size in {**self.kept, **self.phases[self.phase]}.items() if size}

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Training:
    """How one model is trained.

    Attributes:
        total: P.
        trained: T.
        element: b.
        stage: ZeRO stage as `learners.engine.Engine` takes it.
        workers: W.
        gpu: whether it is on a GPU.
    """

    total: int
    trained: int
    element: int
    stage: int
    workers: int
    gpu: bool


# -- a rank that trains ----------------------------------------------------------------------------


def weights(of: Training) -> int:
    """b P, at ZeRO stage 3 b P / W."""
    return of.element * of.total // (of.workers if of.stage == 3 else 1)


def optimiser(of: Training) -> int:
    """Float32 masters and both moments: 12 T / W. Stage 0 shards nothing and has no masters: 8 T."""
    return 12 * of.trained // of.workers if of.stage else 8 * of.trained


def gradients(of: Training) -> int:
    """What adds up over the passes.

    - stage 0: 4 T;
    - stage 1: bfloat16 weights have gradients of their own, 2 T, and sums in float32 on every rank, 4 T; float32
      weights add up where they are, 4 T;
    - stages 2 and 3: each rank keeps its part in float32, 4 T / W.
    """
    if of.stage >= 2:
        return 4 * of.trained // of.workers
    return (4 + (of.element if of.stage == 1 and of.element < 4 else 0)) * of.trained


def buckets(of: Training) -> int:
    """Buffers of gradients on their way to the other ranks: b times 500 million.

    Stages 2 and 3 hold them during the pass, stage 2 twice, for it fills one while it sends the other. A GPU takes them
    whole; main memory is taken as it is written to, so for T elements at the most.
    """
    if of.stage < 2:
        return 0
    room = BUCKET * (2 if of.stage == 2 else 1)
    return of.element * (room if of.gpu else min(room, of.trained))


def update(of: Training) -> int:
    """What the optimiser step adds, beside the passes.

    Stage 0 flattens its gradients bucket by bucket, 4 min(T, bucket). Stages 1 (in float32), 2 and 3 copy theirs into
    the shape of the masters, 4 T / W.
    """
    if of.stage == 0:
        return 4 * min(of.trained, BUCKET)
    if of.stage == 1 and of.element < 4:
        return 0
    reduced = 4 * min(of.trained, BUCKET) if of.stage == 1 else 0
    return reduced + 4 * of.trained // of.workers


def gathered(of: Training) -> int:
    """Stage 3: weights that are whole during a pass, b min(P, 1e9)."""
    return of.element * min(of.total, LIVE) if of.stage == 3 else 0


def whole(of: Training) -> int:
    """Stage 3: what a rank lacks of the whole model, b (P - P / W).

    It is there while the model is loaded, and again whenever weights are published or saved.
    """
    return of.element * of.total - weights(of)


def block(model: PolicySizes, element: int, *, base_trains: bool) -> int:
    """What one block keeps of a token for the way back.

    Each of two norms keeps its input in float32 (4 hidden) and its output (b hidden), and with a weight that trains
    also what that multiplies (b hidden). Attention keeps queries, keys, values, its output and the same again
    transposed: b (3 queries + 2 keys). The MLP keeps four tensors: 4 b inner.
    """
    norms = 2 * model.hidden * (4 + element * (2 if base_trains else 1))
    return norms + element * (3 * model.queries + 2 * model.keys + 4 * model.inner)


def activations(model: PolicySizes, tokens: int, element: int, *, base_trains: bool, recompute: bool) -> int:
    """What a pass over so many padded tokens keeps for the way back.

    Every block, or with recomputation its input (b hidden) and one block whole. On top come the gradients inside one
    block (2 b inner + 2 b hidden), the embeddings, the last norm and the states of answers (4 hidden + 5 b hidden).
    """
    one = block(model, element, base_trains=base_trains)
    kept = model.layers * element * model.hidden + one if recompute else model.layers * one
    way_back = 2 * element * (model.inner + model.hidden)
    ends = model.hidden * (4 + 5 * element)
    return tokens * (kept + way_back + ends)


def logits(model: PolicySizes, tokens: int, element: int, *, trains: bool, entropies: bool = False) -> int:
    """One chunk of answer tokens in the head: its logits n V with n V <= 2**25, as `AffectPolicy.chunk_logits` says.

    They are there four times in float32 (logits, log-probs and the gradients of both), six times with entropies that
    have a weight in the loss, and once more in bfloat16 where weights are: (16 + 8 + 2) n V. A head that trains gets
    its gradient chunk by chunk: b V hidden more.
    """
    rows = min(tokens, max(1, AffectPolicy.chunk_logits // model.vocabulary))
    each = 16 + (8 if entropies else 0) + (element if element < 4 else 0)
    return rows * model.vocabulary * each + (element * model.head if trains else 0)


def rank_memory(config: Config, model: PolicySizes, settings: LearnerConfig | SftConfig) -> Memory:
    """Memory of a learner rank or a worker of the warm start.

    A learner also holds the reference: a copy of the fusion modules where adapters can be switched off, else of the
    whole policy; and with ``critic.kind: separate`` a second model that trains all but its untied head.
    """
    b, lora = element_of(config), model.adapter > 0
    policy = training_of(config, model, settings)
    engines = [policy]
    kept, entropies = {}, False
    if isinstance(settings, LearnerConfig):
        entropies = any(config.team[name].entropy for name in config.team.trained)
        kept["reference"] = b * (model.fusion if lora else model.total)
        if config.algorithm.separate_critic:
            engines.append(critic_of(config, model, settings))
    kept = {
        "weights": sum(map(weights, engines)),
        "optimiser": sum(map(optimiser, engines)),
        "gradients": sum(map(gradients, engines)) + sum(map(buckets, engines)),
        **kept,
    }
    recompute = config.model.unless_tiny(settings.checkpoint_activations)
    # A separate critic trains its language model even where the policy has adapters.
    base_trains = not lora or len(engines) > 1
    tokens = settings.tokens_per_microbatch
    in_pass = {
        "gathered weights": max(map(gathered, engines)),
        "activations": activations(model, tokens, b, base_trains=base_trains, recompute=recompute),
        "head": logits(model, tokens, b, trains=not lora, entropies=entropies),
    }
    phases = {
        "pass": in_pass,
        "update": {"update": max(map(update, engines))},
        "load and save": {"gathered weights": whole(policy)},
    }
    kept["libraries"] = CONTEXT if policy.gpu else LIBRARIES
    if not policy.gpu:
        # While a model is loaded its tensors are there twice, and in the place of what training needs.
        phases["load"] = {"file": max(0, b * model.total - kept["optimiser"] - kept["gradients"])}
    return Memory(kept, phases)


def training_of(config: Config, model: PolicySizes, settings: LearnerConfig | SftConfig) -> Training:
    """The policy as `settings` train it: all of it, or with LoRA adapters, fusion modules and value head."""
    adapters = model.adapter * adapters_of(config, settings)
    trained = adapters + model.fusion + model.value_head if model.adapter else model.total
    return _training(config, settings, model.total + adapters, trained)


def critic_of(config: Config, model: PolicySizes, settings: LearnerConfig) -> Training:
    """A separate critic; a head of its own would learn nothing and is frozen."""
    return _training(config, settings, model.total, model.total - (0 if model.tied else model.head))


def _training(config: Config, settings: LearnerConfig | SftConfig, total: int, trained: int) -> Training:
    element = element_of(config)
    # As `Engine` has it: without shards there would be no float32 weights behind bfloat16 ones.
    stage = max(settings.zero_stage, 1) if element == 2 else settings.zero_stage
    return Training(total, trained, element, stage, settings.workers, settings.gpus_per_worker > 0)


def adapters_of(config: Config, settings: LearnerConfig | SftConfig | RolloutConfig) -> int:
    """Adapters on the policy: the warm start makes one for all agents."""
    return 1 if isinstance(settings, SftConfig) else len(set(config.team.adapters.values()))


def element_of(config: Config) -> int:
    """b, bytes of an element of the weights."""
    return 2 if config.model.dtype == "bfloat16" else 4


# -- an engine -------------------------------------------------------------------------------------


def token_cache(model: PolicySizes, element: int, ranks: int = 1) -> int:
    """Keys and values of a token in all blocks, on one of an engine's ranks: 2 b layers keys / ranks.

    A rank has one head of keys at least.
    """
    heads = -(-model.key_heads // ranks)
    return 2 * element * model.layers * heads * (model.keys // model.key_heads)


def engine_step(config: Config, model: PolicySizes) -> int:
    """Largest step of an engine, on one of its ranks.

    ``max_batched_tokens`` tokens at b ((3 inner + queries + 2 keys) / ranks + 4 hidden), and three times the logits of
    ``max_num_seqs`` sequences in float32: 12 V each.
    """
    rollout, b = config.rollout, element_of(config)
    tokens = max(rollout.max_batched_tokens, config.model.context)
    divided = (3 * model.inner + model.queries + 2 * model.keys) // rollout.tensor_parallel
    return tokens * b * (divided + 4 * model.hidden) + 12 * rollout.max_num_seqs * model.vocabulary


def engine_memory(config: Config, model: PolicySizes, card: int) -> Memory:
    """Memory of one rank of a rollout actor: ranks divide the language model, fusion modules and adapters are whole.

    On a GPU vLLM takes ``rollout.gpu_memory`` of the card (`card` bytes), and what weights, adapters and the largest
    step leave of it becomes the KV cache: none, if there is too little. On the CPU the cache is ``kv_cache_gib``.
    Agents with a policy of their own play on a second engine, which takes as much again.
    """
    rollout, b, gpu = config.rollout, element_of(config), config.rollout.gpus_per_worker > 0
    divided = model.language // rollout.tensor_parallel
    held = {
        "weights": b * (divided + model.fusion + model.adapter * adapters_of(config, rollout)),
        "activations": engine_step(config, model),
    }
    room = int(rollout.gpu_memory * card) - sum(held.values()) - CONTEXT if gpu else int(rollout.kv_cache_gib * GIB)
    held["KV cache"] = max(0, room)
    engines = _engines(config)
    kept = {name: engines * size for name, size in held.items()}
    kept["libraries"] = engines * CONTEXT if gpu else LIBRARIES
    return Memory(kept, {"step": {}})


def cached_tokens(config: Config, model: PolicySizes, card: int) -> int:
    """Tokens whose keys and values fit in the cache of an engine."""
    cache = engine_memory(config, model, card).kept["KV cache"] // _engines(config)
    return cache // token_cache(model, element_of(config), config.rollout.tensor_parallel)


def _engines(config: Config) -> int:
    """Engines of a rollout actor."""
    return 2 if config.team.frozen else 1


# -- files -----------------------------------------------------------------------------------------

Place = Literal["runs_dir", "weights"]


def exported(config: Config, model: PolicySizes) -> int:
    """What is published or saved of a policy: b P, with LoRA adapters, fusion modules and value head alone."""
    learner = training_of(config, model, config.learner)
    return learner.element * (learner.trained if model.adapter else model.total)


def checkpoint(of: Training) -> int:
    """Weights that train, b T, and masters and moments, 12 T; at stage 0 every rank writes all of the latter."""
    return of.element * of.trained + 12 * of.trained * (1 if of.stage else of.workers)


def trajectory_bytes(config: Config) -> int:
    """Tokens of an episode's turns before compression, at most: 4 bytes each, of an answer 20."""
    turns = [config.team[name].tokens for name in config.team.playing] * config.team.rounds
    return sum(4 * config.model.context + 20 * answer for answer in turns)


def disk(config: Config, model: PolicySizes) -> dict[Place, dict[str, int]]:
    """Files that exist at a time, by where they lie: the run directory, and where weights are published.

    The warm start keeps its start and its result, two plain policies, and two checkpoints while it replaces one.
    Training keeps ``keep_checkpoints`` and writes one more before it deletes the oldest; each names a best policy, and
    one more becomes the result. Published are the last two versions.
    """
    b, keep, train = element_of(config), config.train.keep_checkpoints, config.train
    own = training_of(config, model, config.learner)
    separate = checkpoint(critic_of(config, model, config.learner)) if config.algorithm.separate_critic else 0
    warm = checkpoint(training_of(config, model, config.sft)) if config.sft.checkpoint_every else 0
    episodes = train.steps * train.samples_per_step if train.save_trajectories else 0
    return {
        "runs_dir": {
            "warm start: policies": 2 * b * model.total,
            "warm start: checkpoints": 2 * warm,
            "checkpoints": (keep + 1) * (checkpoint(own) + separate),
            "best policies": (keep + 2) * exported(config, model),
            "trajectories": episodes * trajectory_bytes(config),
        },
        "weights": {"published weights": 2 * exported(config, model)},
    }
