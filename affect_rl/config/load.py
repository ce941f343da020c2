"""The configuration: one typed tree, read from YAML and ``key=value`` overrides, checked as a whole.

No other module knows YAML. What the sections hold stands in the modules beside this one, and in the rooms of agents,
tasks and algorithms, whose classes bring settings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, SerializeAsAny, ValidationError, model_validator

from affect_rl.algorithms import make_algorithm, read_algorithm
from affect_rl.algorithms.algorithm import CommonSettings
from affect_rl.config.job import ClusterConfig, DataConfig, EvaluateConfig, TrackingConfig
from affect_rl.config.learning import LearnerConfig, SftConfig, TrainConfig
from affect_rl.config.model import ModelConfig
from affect_rl.config.services import RetrievalConfig, RolloutConfig, ServeConfig
from affect_rl.errors import AffectError
from affect_rl.policy.tensor_parallel import check_divides, read_text_config
from affect_rl.section import NOTHING, TRAINING, Affects, Natural, Section, explain, read_section
from affect_rl.tasks import TaskSettings, task_class
from affect_rl.team.agent import EpisodeSettings
from affect_rl.team.team import TeamConfig


def _read_task(tree: Any) -> TaskSettings:
    name = tree.get("name") if isinstance(tree, dict) else getattr(tree, "name", "")
    return read_section(task_class(str(name or "")).Settings, tree, "task")


class Config(Section):
    """Everything a run needs, resolved; written beside each run as ``config.yaml``."""

    name: Annotated[str, NOTHING] = "run"
    """Name of the run; the run's directory is ``runs_dir/name``."""
    runs_dir: Annotated[str, NOTHING] = "runs"
    """Parent of run directories."""
    seed: Natural = 0
    """Seed of everything random."""
    policy: Annotated[str, NOTHING] = ""
    """Policy directory to start from; empty: a new policy is made from `model`."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Policy."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Evidence."""
    team: TeamConfig = TeamConfig.model_validate({})
    """Agents."""
    episode: EpisodeSettings = EpisodeSettings()
    """What agents have in common."""
    task: Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_read_task)] = _read_task({})
    """What answers are worth."""
    sft: SftConfig = SftConfig()
    """Warm start."""
    algorithm: Annotated[SerializeAsAny[CommonSettings], BeforeValidator(read_algorithm), Affects(TRAINING)] = (
        read_algorithm({})
    )
    """How rewards become a loss."""
    learner: LearnerConfig = LearnerConfig()
    """How the update runs."""
    rollout: RolloutConfig = RolloutConfig()
    """Engines."""
    train: TrainConfig = TrainConfig()
    """Loop."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    serve: ServeConfig = ServeConfig()
    """Serving."""
    tracking: TrackingConfig = TrackingConfig()
    """Numbers."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray."""

    @model_validator(mode="after")
    def _has_whole_batches(self) -> Self:
        train, minibatches = self.train, self.learner.minibatches
        fewest = make_algorithm(self.algorithm).min_copies
        if train.copies < fewest:
            raise ValueError(
                f"algorithm.name={self.algorithm.name} compares episodes of the same sample, but train.copies="
                f"{train.copies}; set train.copies to {fewest} or more"
            )
        if train.samples_per_step % train.copies:
            raise ValueError(
                f"train.samples_per_step={train.samples_per_step} is not a multiple of train.copies="
                f"{train.copies}; choose a multiple, for a step's samples are played that often each"
            )
        distinct = train.samples_per_step // train.copies
        if minibatches > distinct:
            raise ValueError(
                f"learner.minibatches={minibatches} exceeds the {distinct} samples of a step "
                f"(train.samples_per_step={train.samples_per_step}, train.copies={train.copies}), whose "
                "copies stay together; lower minibatches or raise samples_per_step"
            )
        if train.samples_per_step % minibatches:
            raise ValueError(
                f"train.samples_per_step={train.samples_per_step} is not a multiple of learner.minibatches="
                f"{minibatches}; choose a multiple, so that every optimiser step weighs the same"
            )
        if self.samples_per_minibatch < self.learner.workers:
            raise ValueError(
                f"a minibatch of {self.samples_per_minibatch} samples cannot feed "
                f"learner.workers={self.learner.workers}; raise train.samples_per_step or lower learner.minibatches"
            )
        return self

    @model_validator(mode="after")
    def _has_memory(self) -> Self:
        half = min(1.0, self.rollout.gpus_per_worker) / 2
        if self.team.frozen and 0 < half < self.rollout.gpu_memory:
            raise ValueError(
                f"team: {', '.join(self.team.frozen)} with a policy of their own play on a second engine beside the "
                f"first, and each takes rollout.gpu_memory={self.rollout.gpu_memory:g} of the same GPU; set "
                f"rollout.gpu_memory to {half:g} or less"
            )
        for name, settings in (("learner", self.learner), ("sft", self.sft)):
            if settings.tokens_per_microbatch < self.model.context:
                raise ValueError(
                    f"{name}.tokens_per_microbatch={settings.tokens_per_microbatch} is below model.context="
                    f"{self.model.context}; raise it to hold at least one sequence"
                )
            if settings.zero_stage == 0 and self.model.dtype == "bfloat16":
                raise ValueError(
                    f"{name}.zero_stage=0 keeps no float32 master weights, which model.dtype=bfloat16 needs; "
                    f"set {name}.zero_stage to 1, 2 or 3"
                )
        return self

    @model_validator(mode="after")
    def _tells_late_evidence_from_late_engines(self) -> Self:
        evidence, engine = self.retrieval.answer_s, self.rollout.deadline_s
        if self.team.retrieval and evidence >= engine:
            raise ValueError(
                f"an engine that waits for evidence would be taken for lost, for rollout.deadline_s={engine:g} is not "
                f"above retrieval.deadline_s + 2 x retrieval.shard_timeout_s = {evidence:g}; raise the first or lower "
                "the others"
            )
        return self

    @model_validator(mode="after")
    def _divides_over_ranks(self) -> Self:
        if self.rollout.tensor_parallel == 1:
            return self
        base, tiny = self.model.base, self.model.tiny
        fields = {"num_attention_heads": tiny.heads} if base == "tiny" else read_text_config(base)
        check_divides(self.rollout.tensor_parallel, fields or {}, f"model.base={base}")  # others: where engines start
        return self

    @model_validator(mode="after")
    def _has_one_engine_for_the_frozen(self) -> Self:
        policies = {name: self.team[name].policy for name in self.team.frozen}
        if len(set(policies.values())) > 1:
            named = ", ".join(f"team.{name}.policy={policy}" for name, policy in policies.items())
            raise ValueError(f"{named}: agents that do not change share one engine; give them the same policy")
        return self

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not self.team.trained:
            playing = ", ".join(self.team.playing)
            raise ValueError(f"team: of the agents that play ({playing}) none trains; set trains: true for one")
        return self

    @model_validator(mode="after")
    def _has_adapters(self) -> Self:
        for name in () if self.model.lora.rank else self.team.trained:
            settings = self.team[name]
            for key in ("lr", "adapter"):
                if (value := getattr(settings, key)) != type(settings).model_fields[key].default:
                    raise ValueError(
                        f"team.{name}.{key}={value} is for an adapter, and model.lora.rank=0 makes none; raise "
                        f"model.lora.rank, or leave team.{name}.{key} out"
                    )
        return self

    @property
    def samples_per_minibatch(self) -> int:
        """Samples behind one optimiser step."""
        return self.train.samples_per_step // self.learner.minibatches

    @property
    def deterministic(self) -> bool:
        """Whether engines play so that a step's episodes depend on nothing but its weights and seeds."""
        return self.rollout.deterministic and self.train.max_staleness == 0

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return Path(self.runs_dir) / self.name

    @property
    def initial_policy(self) -> Path:
        """The policy that training starts from: `policy`, or what the run's warm start left."""
        return Path(self.policy) if self.policy else self.run_dir / "sft"

    def in_turn(self, place: int) -> TeamConfig:
        """The team of an episode by its sample's place (from 0), which differs with ``train.in_turn``."""
        if not self.train.in_turn:
            return self.team
        learner = self.team.trained[place % len(self.team.trained)]
        others = [name for name in self.team.trained if name != learner]
        team = self.team
        for name in others:
            team = team.with_agent(name, trains=False, temperature=0.0)
        return team

    def batch_arithmetic(self) -> str:
        """One line that says what a step consists of."""
        t, lr = self.train, self.learner
        learning = 1 if t.in_turn else len(self.team.trained)
        return (
            f"a step: {t.samples_per_step} episodes, turns of {learning} agent(s) of each to learn from, "
            f"{lr.epochs} epochs x {lr.minibatches} minibatches of {self.samples_per_minibatch} episodes = "
            f"{lr.epochs * lr.minibatches} optimiser steps on {lr.workers} rank(s)"
        )


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None: the defaults) and apply ``a.b=value`` overrides, values in YAML.

    A file may say ``extends: other.yaml`` (beside itself) and give only what differs from that one.

    Raises:
        AffectError: a file is unreadable or extends itself, a key is unknown or a value does not fit.
    """
    tree = _read_tree(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        source = str(path) if path else "configuration"
        raise AffectError("\n".join(f"{source}: {explain(e, Config)}" for e in error.errors())) from None


def _read_tree(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The sections of a YAML file, over those of the file that it extends."""
    if path.resolve() in extended_by:
        raise AffectError(f"{path}: extends itself; take out one `extends:`")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except OSError as error:
        raise AffectError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AffectError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise AffectError(f"{path}: holds a {type(tree).__name__}; expected sections such as `train:`")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise AffectError(f"{path}: extends names a {type(base).__name__}; expected a file such as quickstart.yaml")
    return _merged(_read_tree(path.parent / base, (*extended_by, path.resolve())), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise AffectError(f"override `{override}` is not key=value; write for example train.steps=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AffectError(f"override `{override}`: value is not YAML: {' '.join(str(error).split())}") from error
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise AffectError(f"override `{override}`: `{parent}` is a value, not a section")
        tree = child
    tree[leaf] = value
