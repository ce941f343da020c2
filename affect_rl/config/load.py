"""The configuration: one typed tree, read from YAML and ``key=value`` overrides, checked as a whole.

No other module knows YAML. What the sections hold stands in `affect_rl.config.sections`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import yaml
from pydantic import ValidationError, model_validator

from affect_rl.config.sections import (
    ClusterConfig,
    DataConfig,
    EpisodeConfig,
    EvaluateConfig,
    LearnerConfig,
    ModelConfig,
    Natural,
    RetrievalConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    SftConfig,
    TrainConfig,
)
from affect_rl.errors import AffectError

OPERATIONAL = (
    "cluster",
    "retrieval.shard_timeout_s",
    "retrieval.deadline_s",
    "sft.deadline_s",
    "sft.checkpoint_every",
    "learner.deadline_s",
    "rollout.deadline_s",
    "rollout.max_restarts",
    "rollout.weights_dir",
)
"""Settings and sections that say where something runs and how long it may take, not what comes out."""


class Config(Section):
    """Everything a job needs, resolved; written beside each run as ``config.yaml``."""

    name: str = "run"
    """Name of the run; the run's directory is ``runs_dir/name``."""
    runs_dir: str = "runs"
    """Parent of run directories."""
    seed: Natural = 0
    """Seed of everything random."""
    policy: str = ""
    """Policy directory to start from; empty: a new policy is made from `model`."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Policy."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Evidence."""
    episode: EpisodeConfig = EpisodeConfig()
    """Episode."""
    rewards: RewardConfig = RewardConfig()
    """Rewards."""
    sft: SftConfig = SftConfig()
    """Warm start."""
    learner: LearnerConfig = LearnerConfig()
    """MAPPO update."""
    rollout: RolloutConfig = RolloutConfig()
    """Engines."""
    train: TrainConfig = TrainConfig()
    """Loop."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.episode.keep > self.episode.k:
            raise ValueError(
                f"episode.keep={self.episode.keep} exceeds episode.k={self.episode.k}; lower keep or raise k"
            )
        if self.learner.algorithm == "dpo" and self.train.copies < 2:
            raise ValueError(
                "learner.algorithm=dpo compares answers to the same prompt, but train.copies="
                f"{self.train.copies}; set train.copies to 2 or more"
            )
        if self.train.samples_per_step % self.train.copies:
            raise ValueError(
                f"train.samples_per_step={self.train.samples_per_step} is not a multiple of train.copies="
                f"{self.train.copies}; choose a multiple, for a step's samples are played that often each"
            )
        distinct = self.train.samples_per_step // self.train.copies
        if self.learner.minibatches > distinct:
            raise ValueError(
                f"learner.minibatches={self.learner.minibatches} exceeds the {distinct} samples of a step "
                f"(train.samples_per_step={self.train.samples_per_step}, train.copies={self.train.copies}), whose "
                "copies stay together; lower minibatches or raise samples_per_step"
            )
        if self.train.samples_per_step % self.learner.minibatches:
            raise ValueError(
                f"train.samples_per_step={self.train.samples_per_step} is not a multiple of learner.minibatches="
                f"{self.learner.minibatches}; choose a multiple, so that every optimiser step weighs the same"
            )
        if self.samples_per_minibatch < self.learner.workers:
            raise ValueError(
                f"a minibatch of {self.samples_per_minibatch} samples cannot feed "
                f"learner.workers={self.learner.workers}; raise train.samples_per_step or lower learner.minibatches"
            )
        if self.episode.frozen and self.rollout.gpus_per_worker and self.rollout.gpu_memory > 0.5:
            raise ValueError(
                f"episode.frozen={list(self.episode.frozen)} play on a second engine beside the first, and each takes "
                f"rollout.gpu_memory={self.rollout.gpu_memory:g} of the same GPU; set rollout.gpu_memory to 0.5 or less"
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
        """The policy that MAPPO starts from: `policy`, or what the run's warm start left."""
        return Path(self.policy) if self.policy else self.run_dir / "sft"

    def in_turn(self, place: int) -> Config:
        """The configuration of an episode by its sample's place (from 0), which differs with ``train.in_turn``."""
        if not self.train.in_turn:
            return self
        learning = self.episode.learning
        role = learning[place % len(learning)]
        return self.model_copy(update={"episode": self.episode.model_copy(update={"sampled": (role,)})})

    def batch_arithmetic(self) -> str:
        """One line that says what a step consists of."""
        t, lr = self.train, self.learner
        learning = 1 if t.in_turn else len(self.episode.learning)
        return (
            f"a step: {t.samples_per_step} episodes, {learning * t.samples_per_step} turns to learn from, "
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
        raise AffectError("\n".join(f"{source}: {explain(e)}" for e in error.errors())) from None


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


def explain(error: Any, root: type[Section] = Config) -> str:
    """One line for one of pydantic's validation errors: the key, what is wrong, and the nearest known key."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "configuration"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        given = error.get("input")
        return f"{key}: {message}" + (f" (given: {given!r})" if isinstance(given, str | int | float | bool) else "")
    section: Any = root
    for part in location[:-1]:
        if get_origin(section) is tuple:
            section = get_args(section)[0]
        else:
            section = get_args(section)[1] if get_origin(section) is dict else section.model_fields[part].annotation
    near = difflib.get_close_matches(location[-1], section.model_fields, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(section.model_fields)}"
    return f"unknown key `{key}`; {hint}"
