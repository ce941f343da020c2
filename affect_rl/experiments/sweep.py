"""What a sweep is: settings to search, and how; its trials are runs that differ in these settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.section import (
    POLICY,
    SFT,
    TRAINING,
    Fraction,
    Natural,
    Positive,
    Section,
    explain,
    flat_settings,
)

_OWN_WAY = {
    "name": "a trial's run has the trial's name",
    "runs_dir": "runs lie in the sweep's directory",
    "train.checkpoint_every": "a trial writes a checkpoint whenever it is scored, train.eval_every",
    "train.select": "trials are compared by their best score on dev",
}


class Range(Section):
    """Values of a setting; exactly one of the four is given."""

    choice: list[Any] = Field(default_factory=list)
    """One of these."""
    uniform: tuple[float, float] | None = None
    """A number from low to high."""
    loguniform: tuple[float, float] | None = None
    """A number from low to high, its logarithm uniform."""
    integers: tuple[int, int] | None = None
    """A whole number from low to high, both included."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform, integers")
        low, high = self.ends[0], self.ends[-1]
        if not self.choice and not low < high:
            raise ValueError(f"the range from {low} to {high} is empty; give [low, high] with low below high")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform from {low}: a logarithm needs numbers above 0")
        return self

    @property
    def ends(self) -> list[Any]:
        """Values that stand for all: every choice, or both ends."""
        return list(self.choice or self.uniform or self.loguniform or self.integers or [None])

    def clipped(self, value: Any) -> Any:
        """The value of the range that is nearest to a perturbed one."""
        if self.choice:
            return value
        inside = min(max(value, self.ends[0]), self.ends[-1])
        return round(inside) if self.integers else inside


class Asha(Section):
    """Asynchronous successive halving (arXiv 1810.05934): trials that lag behind others at the same step end early."""

    name: Literal["asha"] = "asha"
    grace_steps: Positive = 1
    """No trial ends before so many steps."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """At each level the best 1 / reduction go on."""


class Pbt(Section):
    """Population-based training (arXiv 1711.09846): the worst trials go on from the best ones' checkpoints."""

    name: Literal["pbt"] = "pbt"
    perturb_every: Positive
    """Steps between exchanges; a multiple of ``train.eval_every``."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the worst, and of the best."""
    resample: Fraction = 0.25
    """How often a setting is drawn anew; else it is perturbed."""


class Whole(Section):
    """All trials run to their end."""

    name: Literal["none"] = "none"


class SweepSpec(Section):
    """A sweep, as its YAML file says it."""

    name: str
    """Short name; part of the directory's."""
    title: str = ""
    """What it asks, in a sentence."""
    config: str
    """Configuration of all trials."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """What all trials change in it, by dotted keys."""
    space: dict[str, Range]
    """Settings to search, by dotted keys; ``seed`` may be one."""
    scheduler: Annotated[Asha | Pbt | Whole, Field(discriminator="name")] = Asha()
    """Which trials go on."""
    search: Literal["random", "optuna"] = "random"
    """Who proposes settings: chance, or Optuna's tree-structured Parzen estimator."""
    trials: Positive = 8
    """How many; with PBT the population."""
    concurrent: Positive = 1
    """Trials at the same time."""
    seed: Natural = 0
    """Of what is proposed. With pbt, timing has a say: trials are compared with those that got as far."""

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if not self.space:
            raise ValueError("space is empty; name a setting such as learner.lr")
        if isinstance(self.scheduler, Pbt):
            if self.search != "random":
                raise ValueError(f"search={self.search}: pbt proposes settings itself; take search out")
            if self.trials < 2:
                raise ValueError(f"trials={self.trials}: pbt needs a population of 2 or more")
        return self

    @property
    def sweeps_warm_start(self) -> bool:
        """Whether trials may differ before their training, so that each may need a warm start of its own."""
        return bool(self._of_warm_start())

    @property
    def warm_starts(self) -> int:
        """How many different ones trials may make at the same time."""
        different = math.prod(len(values.choice) or math.inf for values in self._of_warm_start())
        return int(min(self.concurrent, different))

    def trial_config(self, settings: Mapping[str, Any], more: tuple[str, ...] = ()) -> Config:
        """The configuration of a trial with these settings; `more` are overrides of the command line.

        Raises:
            AffectError: they do not fit.
        """
        changes = self.overrides | dict(settings)
        for key in (*changes, *(override.partition("=")[0] for override in more)):
            if key in _OWN_WAY:
                raise AffectError(f"{key}: cannot be set for a sweep; {_OWN_WAY[key]}")
        for key in (override.partition("=")[0] for override in more):
            if key in self.space:
                raise AffectError(f"{key}: sweep {self.name} searches it; change its range in the file")
        config = load_config(self.config, [*(f"{key}={json.dumps(v)}" for key, v in changes.items()), *more])
        if not config.train.eval_every:
            raise AffectError("train.eval_every=0: trials are compared by their score on dev; set it to 1 or more")
        keep = config.train.keep_checkpoints
        if isinstance(pbt := self.scheduler, Pbt):  # others may want the one of an exchange or two ago
            keep = max(keep, 3 * pbt.perturb_every // config.train.eval_every)
        own = {"checkpoint_every": config.train.eval_every, "keep_checkpoints": keep, "select": "best_dev"}
        return config.model_copy(update={"train": config.train.model_copy(update=own)})

    def check(self, more: tuple[str, ...] = ()) -> list[Config]:
        """See that values from the whole space fit, before any trial.

        Returns:
            Trials' configurations, in which every setting that is searched has each of its `Range.ends` once.

        Raises:
            AffectError: a setting is unknown or does not fit, or PBT would change one that a training cannot change.
        """
        first, configs = {key: values.ends[0] for key, values in self.space.items()}, []
        for key, values in self.space.items():
            for value in values.ends:
                try:
                    configs.append(self.trial_config(first | {key: value}, more))
                except AffectError as error:
                    raise AffectError(f"sweep {self.name}, {key}={value}: {error}") from None
        if isinstance(pbt := self.scheduler, Pbt):
            if pbt.perturb_every % (every := configs[0].train.eval_every):
                raise AffectError(
                    f"scheduler.perturb_every={pbt.perturb_every} is not a multiple of train.eval_every="
                    f"{every}; trials exchange when they have been scored"
                )
            for key, affects in self._affects(more).items():
                if key in self.space and affects.stages != {TRAINING}:
                    raise AffectError(
                        f"space.{key}: pbt changes settings while a trial trains, and it is not one of these"
                    )
        return configs

    def _of_warm_start(self) -> list[Range]:
        affects = self._affects().items()
        return [self.space[key] for key, of in affects if key in self.space and {POLICY, SFT} & of.stages]

    def _affects(self, more: tuple[str, ...] = ()) -> dict[str, Any]:
        first = {key: values.ends[0] for key, values in self.space.items()}
        return {key: affects for key, _, affects in flat_settings(self.trial_config(first, more))}


def load_sweep(path: Path) -> SweepSpec:
    """Read a sweep's YAML file.

    Raises:
        AffectError: it cannot be read, or does not describe a sweep.
    """
    try:
        return SweepSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf8")))
    except OSError as error:
        raise AffectError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AffectError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise AffectError("\n".join(f"{path}: {line}" for line in _explained(error))) from None


def _explained(error: ValidationError) -> Iterator[str]:
    yield from (explain(e, SweepSpec) for e in error.errors())
