"""How a policy learns: the warm start, the update and the loop."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from affect_rl.section import (
    NOTHING,
    SCORES,
    SFT,
    TRAINING,
    Affects,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Seconds,
    Section,
)


def _whole_card(gpus: float) -> int:
    """Raise `ValueError` unless a rank gets one GPU or none."""
    if gpus not in (0, 1):
        fault = "NCCL refuses two ranks on one card" if gpus < 1 else "a rank uses one card and would block the others"
        raise ValueError(f"{fault}; set it to 1, or to 0 for the CPU, and `workers` beside it to the number of cards")
    return int(gpus)


RankGpus = Annotated[NonNegative, AfterValidator(_whole_card)]
"""GPUs of a rank of a process group: 1, or 0 for the CPU."""


class AlignmentConfig(Section, affects=(SFT,)):
    """Fusion modules that learn before the language model does (`affect_rl.policy.alignment`), in the process that
    starts the job and on its CPU: fit for our own modules, slow for the large connectors of published systems."""

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
    tokens_per_microbatch: Annotated[Positive, Affects(TRAINING, on_resume=True)] = 8192
    """Padded tokens in one forward pass of one rank. Another number gives the same up to rounding."""
    checkpoint_activations: Annotated[bool | None, Affects(TRAINING, on_resume=True)] = None
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
    """How often in an hour, and how often without a new checkpoint however long that takes, all ranks are started anew,
    from the last checkpoint, because one was lost; then the run ends with a message. 0: it ends with the first loss."""
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
