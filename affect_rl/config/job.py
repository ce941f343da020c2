"""What a job works on and where: data, evaluation, trackers, the cluster."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from affect_rl.sample import Split
from affect_rl.scoring.wheels import WheelMapping
from affect_rl.section import (
    EVALUATION,
    NOTHING,
    POLICY,
    SCORES,
    SFT,
    TRAINING,
    Affects,
    Natural,
    NonNegative,
    Positive,
    Seconds,
    Section,
)


class DataConfig(Section, affects=(POLICY, SFT, TRAINING, EVALUATION, SCORES)):
    """Which dataset, and how much of it."""

    dir: str = "data/synth"
    """Dataset directory written by ``affect-rl data``."""
    per_speaker: bool = False
    """Take features relative to what is usual for their speaker: deviations from the mean over that speaker's frames
    (`affect_rl.data.relative`). Needs no labels, but recordings of the speaker, at least eight; else the train split
    says what is usual."""
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


class EvaluateConfig(Section, affects=(EVALUATION,)):
    """Evaluation."""

    split: Annotated[Literal["dev", "test"], Affects(EVALUATION, SCORES)] = "test"
    """Split to evaluate on."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    structured: bool = False
    """Hold engines to the agents' formats (vLLM's structured outputs), so that a stock model's answers can be read. Not
    in training: the learner would need the same masks, or its log-probs would be another distribution's; nor where
    training selects a policy, which has to keep the formats by itself."""
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
