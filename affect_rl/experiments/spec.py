"""What an experiment is: arms that differ in settings, the same seeds and samples for all.

An arm's runs consist of stages, SFT, training and evaluation. A stage is named by a hash of all settings
that can change its result, so arms (of other experiments, too) share what they have in common, and an
interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from affect_rl.config.job import EvaluateConfig
from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import MANIFEST as DATASET
from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.policy.directory import MANIFEST as POLICY_FILES
from affect_rl.sample import LabelKind
from affect_rl.section import (
    EVALUATION,
    POLICY,
    SCORES,
    SFT,
    TRAINING,
    Natural,
    Positive,
    Section,
    explain,
    flat_settings,
    settings_of,
)
from affect_rl.team.taught import MANIFEST as DEMONSTRATIONS

_OWN_WAY = {
    "policy": "arms make their own, and model.base says what they start from",
    "seed": "--seeds says how many are run",
    "evaluate.confidence": "its tables and pages have 95 % intervals",
}
"""Settings that an experiment has no use for, and what to do instead."""


def _refuse_sections(changes: Mapping[str, Any]) -> None:
    """A whole section would replace the base configuration's, and the command line could undo what is in it."""
    for key, value in changes.items():
        if isinstance(value, dict) and value:
            raise ValueError(f"{key} is a section; write its settings one by one, as in {key}.{next(iter(value))}")


class ArmSpec(Section):
    """One arm: what it changes in the configuration."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Overrides that hold for SFT, training and evaluation."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Overrides that hold for evaluation alone."""
    bridge_steps: Natural = 0
    """Steps of a second SFT, on greedy silver selections (BGM); 0: none."""
    policy: Literal["none", "sft", "trained"] = "trained"
    """What is evaluated: the policy before any training, after SFT, or after MAPPO."""

    @model_validator(mode="after")
    def _can_be_what_it_says(self) -> Self:
        if self.bridge_steps and self.policy != "trained":
            raise ValueError(f"bridge_steps={self.bridge_steps} needs policy: trained; take one of them out")
        _refuse_sections(self.train)
        _refuse_sections(self.evaluate)
        return self


class Average(Section):
    """A metric of training that arms are compared by, averaged over steps."""

    metric: str
    """Its name in docs/metrics.md."""
    first: Positive = 1
    """The first step that counts."""


class ExperimentSpec(Section):
    """An experiment, as its YAML file says it."""

    name: str
    """Short name; part of the result directory's."""
    title: str
    """What it asks, in a sentence."""
    config: str
    """Configuration of all runs."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """What all arms change in it."""
    seeds: Positive = 3
    """Runs of each arm, with the seeds 0, 1, ..."""
    reference: str
    """The arm that the others are compared with."""
    compare: list[tuple[str, str]] = Field(default_factory=list)
    """Further pairs of arms to compare, the first minus the second."""
    arms: dict[str, ArmSpec]
    """Arms by the names that tables call them, in their order."""
    baseline: bool = True
    """Show logistic regression on the features beside the arms, where answers are one of a set of candidates."""
    fusion_details: bool = False
    """Tell by sample what fusion did, see `affect_rl.experiments.fusion_analysis`."""
    averages: list[Average] = Field(default_factory=list)
    """Metrics of training to show as means over steps: areas under learning curves."""
    notes: list[str] = Field(default_factory=list)
    """What a reader of the tables must know."""

    @model_validator(mode="after")
    def _names_its_reference(self) -> Self:
        _refuse_sections(self.overrides)
        if self.reference not in self.arms:
            raise ValueError(f"reference={self.reference!r} is not an arm; choose one of {', '.join(self.arms)}")
        for arm in (name for pair in self.compare for name in pair if name not in self.arms):
            raise ValueError(f"compare names {arm!r}, which is not an arm; choose from {', '.join(self.arms)}")
        return self

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Arms that are compared: the reference with all others, then those that the file names."""
        return [(self.reference, arm) for arm in self.arms if arm != self.reference] + self.compare

    def check(self, more: tuple[str, ...] = ()) -> Config:
        """See that all arms can be played and compared, before any is; returns the reference's configuration.

        Raises:
            AffectError: an arm has a wrong setting, or one that it cannot be played or compared with.
        """
        base = self.run_config(self.reference, 0, more)
        for name in self.arms:
            try:
                self._check_arm(name, base, more)
            except AffectError as error:
                raise AffectError(f"experiment {self.name}, arm {name!r}: {error}") from None
        return base

    def _check_arm(self, name: str, base: Config, more: tuple[str, ...]) -> None:
        config, played = (self.run_config(name, 0, more, evaluate=evaluate) for evaluate in (False, True))
        if config.policy:
            raise AffectError(f"policy={config.policy!r}: {_OWN_WAY['policy']}; take it out of the files")
        common = {key: value for key, value, _ in flat_settings(base)}
        for key, value, affects in flat_settings(played):
            if SCORES in affects.stages and value != common.get(key):
                raise AffectError(
                    f"{key} is {value!r}, for {self.reference!r} it is {common.get(key)!r}; arms are compared on the "
                    "same samples and by the same rule, so give it in `overrides`"
                )
            if key in self.arms[name].evaluate and not {EVALUATION, SCORES} & affects.stages:
                raise AffectError(f"evaluate: {key} changes no evaluation; move it to `train`")
        team = config.team
        if self.arms[name].bridge_steps and not ("filter" in team.trained and "generator" in team.frozen):
            raise AffectError(
                "bridge_steps needs a filter that learns and a frozen reader; set team.generator.policy: start and "
                "team.generator.trains: false"
            )

    def run_config(self, arm: str, seed: int, more: tuple[str, ...] = (), *, evaluate: bool = False) -> Config:
        """The configuration of an arm's runs, or of their evaluation; `more` are overrides of the command line.

        Raises:
            AffectError: one of them would undo what tells arms apart, or an experiment has its own way to it.
        """
        spec = self.arms[arm]
        changes = self.overrides | spec.train | (spec.evaluate if evaluate else {})
        given = [override.partition("=")[0] for override in more]
        for key in given:
            if key in spec.train | spec.evaluate:
                raise AffectError(f"{key}: arm {arm!r} of experiment {self.name} sets it; change it in the file")
        for key in (*given, *self.overrides, *spec.train, *spec.evaluate):
            if key in _OWN_WAY:
                raise AffectError(f"{key}: cannot be set for an experiment; {_OWN_WAY[key]}")
        overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        return load_config(self.config, [*overrides, *more, f"seed={seed}"])


def load_experiment(path: Path) -> ExperimentSpec:
    """Read an experiment's YAML file.

    Raises:
        AffectError: it cannot be read, or does not describe an experiment.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf8"))
        return ExperimentSpec.model_validate(tree)
    except OSError as error:
        raise AffectError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AffectError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise AffectError("\n".join(f"{path}: {explain(e, ExperimentSpec)}" for e in error.errors())) from None


def base_key(config: Config) -> str:
    """Name of the policy before any training."""
    return f"base-{_digest(_settings(config, POLICY))}"


def warm_start_key(config: Config) -> str:
    """Name of the SFT stage that a run starts from."""
    return f"sft-{_digest(_settings(config, SFT))}"


def bridge_key(config: Config, start: Path, steps: int) -> str:
    """Name of the second SFT stage of a bridge, which begins with the policy `start`.

    Its selections are searched for by the score of the task.
    """
    scored = config.task.model_dump(mode="json")
    return f"bridge-{_digest([str(start), steps, scored, _settings(config, SFT), _settings(config, EVALUATION)])}"


def training_config(config: Config, label_kind: LabelKind) -> Config:
    """The configuration as far as training depends on it: of `evaluate` only what policies are selected by on dev.

    These are the wheels of open labels. Closed sets and sentiments are selected by metrics that need none.
    """
    wheels = {"wheels", "mapping"} if label_kind == "open" else set()
    return config.model_copy(update={"evaluate": EvaluateConfig(**config.evaluate.model_dump(include=wheels))})


def training_key(config: Config, start: Path) -> str:
    """Name of the training stage of a run of a `training_config` that begins with the policy `start`."""
    return f"train-{_digest([str(start), _settings(config, TRAINING)])}"


def evaluation_key(config: Config, policy: Path) -> str:
    """Name of the evaluation of a policy."""
    return f"eval-{_digest([str(policy), _settings(config, EVALUATION)])}"


def _settings(config: Config, stage: str) -> dict[str, Any]:
    """The full values of what can change a stage, so that a changed default changes its name.

    And the manifests of the directories that the settings name, which hold the hashes of their files. Published wheels
    have none, so their files are hashed. A `model.base` that is no policy directory goes by its name alone: put other
    weights under another name.
    """
    named = [Path(config.data.dir) / DATASET, Path(config.model.base) / POLICY_FILES]
    if config.retrieval.library:
        named.append(Path(config.retrieval.library) / DATASET)
    if config.sft.demonstrations:
        named.append(Path(config.sft.demonstrations) / DEMONSTRATIONS)
    frozen = [value for key, value, _ in flat_settings(config) if key.startswith("team.") and key.endswith(".policy")]
    named += [Path(policy) / POLICY_FILES for policy in frozen if policy]
    content = [file.read_text() for file in named if file.is_file()]
    if stage == TRAINING and config.evaluate.wheels:
        content += [sha256(file) for file in sorted(Path(config.evaluate.wheels).glob("*")) if file.is_file()]
    return {"content": content, **settings_of(config, stage)}


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
