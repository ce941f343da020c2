"""A run's directory: resolved config, policies, checkpoints that are whole or not there, results.

::

    runs/<name>/config.yaml            the resolved configuration
                sft                    the policy after the warm start, and the KL reference
                sft-checkpoint         where a warm start that was cut off goes on
                policies/step-00010    the best policy so far, by the score that selects, and that of each checkpoint
                policy                 what the run ended with
                checkpoints/step-00010 learner state and `progress.json`
                trajectories/          one Parquet file a step
                metrics.jsonl, sft-metrics.jsonl, tensorboard/
                timeline.json          who played, learned, loaded and waited, as a Chrome trace
                evaluation/            tables and predictions
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from affect_rl.config.actors import Stage
from affect_rl.config.learning import TrainConfig
from affect_rl.config.load import Config, dump_config, load_config
from affect_rl.errors import AffectError
from affect_rl.files import whole_directory, whole_file
from affect_rl.model_card.scores import is_of
from affect_rl.section import EVALUATION as EVALUATED
from affect_rl.section import POLICY, SCORES, SFT, TRAINING, flat_settings
from affect_rl.trajectory import Trajectory
from learners.sft_job import checkpoint_of

EVALUATION = "evaluation.json"
"""What an evaluation writes last."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: finished training steps; also the version of the weights.
        episodes: episodes that were learned from, each once.
        replayed: episodes that were played again after an actor was lost.
        lost: episodes that were given up after two engines had been lost with them.
        stale: episodes that were dropped for their age and played again.
        dropped: samples that are left out because they cannot be played, by their ids.
        generated_tokens: tokens that these episodes took to play, counterfactual branches included.
        learners_lost: how often the learner was lost and another one went on.
        best_step: step of the best score on what policies are selected on; -1: none yet.
        best_score: that score, by the main metric.
    """

    step: int = 0
    episodes: int = 0
    replayed: int = 0
    lost: int = 0
    stale: int = 0
    dropped: tuple[str, ...] = ()
    generated_tokens: int = 0
    learners_lost: int = 0
    best_step: int = -1
    best_score: float = -1.0

    def advanced(self, episodes: Sequence[Trajectory], replayed: int, lost: int, stale: int) -> Progress:
        """One step further: `replayed` in the whole run, the others in this step."""
        return replace(
            self,
            step=self.step + 1,
            episodes=self.episodes + len(episodes),
            replayed=replayed,
            lost=self.lost + lost,
            stale=self.stale + stale,
            generated_tokens=self.generated_tokens + sum(t.generated_tokens for t in episodes),
        )

    def finished(self, settings: TrainConfig) -> bool:
        """Whether training has had its steps or its tokens."""
        spent = 0 < settings.max_generated_tokens <= self.generated_tokens
        return spent or self.step >= settings.steps

    def counts(self) -> dict[str, float]:
        """The counters as metrics."""
        names = ("episodes", "replayed", "lost", "stale", "generated_tokens", "learners_lost")
        counts = {name: getattr(self, name) for name in names} | {"dropped": len(self.dropped)}
        return {f"counts/{name}": float(count) for name, count in counts.items()}


class RunDirectory:
    """Paths of a run, and reading and writing its checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def sft(self) -> Path:
        return self.path / "sft"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def cascade(self) -> Path:
        return self.path / "cascade"

    def compared(self, config: Config) -> dict[str, Path]:
        """The policies before and after training, by the names that tables call them."""
        return {"SFT": self.sft, config.algorithm.title: self.policy}

    def unfinished(self, config: Config) -> list[Stage]:
        """Stages of a whole run that have not left the result that these settings ask for.

        Training may be asked for more steps than it had, and an evaluation may be of a policy from before, or have been
        played in another way.
        """
        trained = self.policy.exists() and all(_progress(c).finished(config.train) for c in self.checkpoints()[-1:])
        done: dict[Stage, bool] = {
            "sft": self.sft.exists(),
            "train": trained,
            "eval": trained and self._evaluated(config),
        }
        return [stage for stage, finished in done.items() if not finished]

    def _evaluated(self, config: Config) -> bool:
        try:
            report = json.loads((self.evaluation / EVALUATION).read_text())
            return is_of(report, self.compared(config)) and report["settings"] == settings_of_evaluation(config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged: it is made anew
            return False

    def open(self, config: Config) -> None:
        """Begin a run, or come back to one for its next stage or to resume it.

        A setting may change until the first stage begins whose numbers depend on it.

        Raises:
            AffectError: a stage has begun under another configuration.
        """
        path = self.path / "config.yaml"
        if path.exists():
            for key, then, now in changed(path, config, set(self._begun())):
                raise AffectError(
                    f"{path}: the run was started with {key}={then!r}, now it is {now!r}; "
                    "go on with the configuration it was started with, or choose another `name`"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(dump_config(config))

    def _begun(self) -> Iterator[str]:
        """Stages that have left something behind."""
        if self.sft.with_name(f"{self.sft.name}-base").exists():
            yield POLICY
        if self.sft.exists() or checkpoint_of(self.sft).exists():
            yield from (POLICY, SFT)
        if (self.path / "metrics.jsonl").exists():
            yield TRAINING

    def begin_training(self) -> None:
        """Make room for training.

        Raises:
            AffectError: the run has been trained already.
        """
        if (self.path / "metrics.jsonl").exists():
            raise AffectError(
                f"{self.path}: has been trained already; pass --resume to go on, or choose another `name`"
            )
        for name in ("policies", "trajectories", "checkpoints"):
            (self.path / name).mkdir(exist_ok=True)

    @property
    def training_began(self) -> bool:
        return (self.path / "checkpoints").is_dir()

    def latest(self) -> tuple[Progress, Path | None]:
        """Progress and checkpoint to go on from (None: the run has not written one yet).

        Raises:
            AffectError: there is no run, or its last checkpoint is damaged.
        """
        if not self.training_began:
            raise AffectError(f"{self.path}: no run to resume; start it without --resume")
        checkpoints = self.checkpoints()
        if not checkpoints:
            return Progress(), None
        return _progress(checkpoints[-1]), checkpoints[-1]

    def candidate(self, step: int) -> Path:
        """Directory of a policy that was the best when it was scored, after `step` steps."""
        return self.path / "policies" / f"step-{step:05d}"

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copy a directory over `target`."""
        with whole_directory(target, replace=True) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        whole = [p for p in (self.path / "checkpoints").glob("step-*") if (p / "progress.json").is_file()]
        return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))

    def checkpoint(self, progress: Progress) -> Path:
        """Directory of the checkpoint at `progress`; the caller fills it and then calls `seal`."""
        path = self.path / "checkpoints" / f"step-{progress.step:05d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def seal(self, checkpoint: Path, progress: Progress, keep: int) -> None:
        """Declare a checkpoint whole, then delete all but the newest `keep`, and candidates that none of them names."""
        with whole_file(checkpoint / "progress.json") as partial:
            partial.write_text(json.dumps(asdict(progress), indent=1) + "\n")
        for old in self.checkpoints()[:-keep]:
            (old / "progress.json").unlink()  # first, for who sees it takes the checkpoint to be whole
            shutil.rmtree(old)
        wanted = {self.candidate(_progress(kept).best_step) for kept in self.checkpoints()}
        for policy in set((self.path / "policies").glob("step-*")) - wanted:
            shutil.rmtree(policy)


def settings_of_evaluation(config: Config) -> dict[str, Any]:
    """The settings that an evaluation depends on, by their dotted keys, as JSON gives them back."""
    drawn = ("evaluate.resamples", "evaluate.confidence")
    found = {
        key: value
        for key, value, affects in flat_settings(config)
        if {EVALUATED, SCORES} & affects.stages or key in drawn
    }
    return json.loads(json.dumps(found))


def changed(path: Path, config: Config, begun: Set[str]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ from those in a file though a stage among `begun` depends on them: key, then and now."""
    # Read as a configuration, for settings that are younger than the file had their defaults.
    then = {key: value for key, value, _ in flat_settings(load_config(path))}
    for key, now, affects in flat_settings(config):
        if affects.stages & begun and not affects.on_resume and now != then.get(key):
            yield key, then.get(key), now


def _progress(checkpoint: Path) -> Progress:
    path = checkpoint / "progress.json"
    try:
        found = json.loads(path.read_text())
        return Progress(**{**found, "dropped": tuple(found["dropped"])})
    except (ValueError, TypeError, KeyError) as error:
        raise AffectError(
            f"{path}: damaged ({error}); delete {checkpoint} to go on from the checkpoint before"
        ) from error


def fresh_name(runs_dir: Path, name: str) -> str:
    """`name`, or `name` with the first number behind it that no run has."""
    taken = (runs_dir / name).exists()
    numbered = (f"{name}-{n}" for n in range(2, 10_000))
    return next(candidate for candidate in numbered if not (runs_dir / candidate).exists()) if taken else name
