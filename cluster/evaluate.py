"""Evaluation: play a split under one or two policies, score it, compare pairwise, write tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.files import whole_file
from affect_rl.policy.directory import manifest_hash
from affect_rl.policy.weights import stored_weights
from affect_rl.sample import AffectSample
from affect_rl.scoring.bootstrap import Difference, Estimate, mean_interval
from affect_rl.scoring.scoring import Scoring, wheels_of
from affect_rl.scoring.tables import header, in_unit, markdown_table
from affect_rl.tasks import make_task
from affect_rl.trajectory import Trajectory
from cluster.runtime.observation import lacking_evidence
from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import EVALUATION, settings_of_evaluation
from cluster.runtime.tracking import progress
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One policy on one split.

    Attributes:
        name: what the tables call the policy.
        manifest: SHA-256 of its manifest, and so of all that is in it.
        scores: metrics of the answers, see `affect_rl.scoring.scoring`.
        invalid: rate of malformed answers per agent, with interval.
        tokens: tokens per sample, ``generated`` and ``prompt``, with interval.
        predicted: predicted labels per sample.
    """

    name: str
    manifest: str
    scores: Mapping[str, Estimate]
    invalid: Mapping[str, Estimate]
    tokens: Mapping[str, Estimate]
    predicted: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Policies on the same samples.

    Attributes:
        split: which.
        sample_ids: the samples of it.
        results: one for each policy.
        differences: the last policy minus the first.
        confidence: coverage of the intervals.
        settings: those that it depends on, by their dotted keys.
        notes: on the metrics, and on answers that lack evidence.
    """

    split: str
    sample_ids: tuple[str, ...]
    results: tuple[PolicyResult, ...]
    differences: Mapping[str, Difference] | None
    confidence: float
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The results as a Markdown table, in percent with intervals."""
        names = [result.name for result in self.results]
        columns = [
            f"{self.split}, n = {len(self.sample_ids)}",
            *names,
            *([f"{names[-1]} - {names[0]}"] if self.differences else []),
        ]
        rows = [columns]
        blank = [""] if self.differences else []
        for metric in self.results[0].scores:
            row = [header(metric), *(in_unit(metric, r.scores[metric]) for r in self.results), *blank]
            if self.differences and metric in self.differences:
                row[-1] = in_unit(metric, self.differences[metric], sign="+")
            rows.append(row)
        for agent in self.results[0].invalid:
            rows.append([f"invalid {agent}", *(in_unit(agent, r.invalid[agent]) for r in self.results), *blank])
        for kind in ("generated", "prompt"):
            cells = [f"{r.tokens[kind].value:.1f}" for r in self.results]
            rows.append([f"{kind} tokens per sample", *cells, *blank])
        return "\n".join([markdown_table(rows), *(f"{note}\n" for note in self.notes)])

    def write(self, directory: Path) -> None:
        """Write ``evaluation.json``, ``evaluation.md`` and ``predictions.parquet``, each whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {
            "split": self.split,
            "samples": len(self.sample_ids),
            "notes": self.notes,
            "confidence": self.confidence,
            "settings": self.settings,
            "policies": {},
        }
        for r in self.results:
            report["policies"][r.name] = {
                "manifest": r.manifest,
                "scores": {k: asdict(v) for k, v in r.scores.items()},
                "invalid": {k: asdict(v) for k, v in r.invalid.items()},
                "tokens": {k: asdict(v) for k, v in r.tokens.items()},
            }
        if self.differences:
            report["differences"] = {k: asdict(v) for k, v in self.differences.items()}
        columns = {"sample_id": list(self.sample_ids)} | {r.name: [list(p) for p in r.predicted] for r in self.results}
        with whole_file(directory / "predictions.parquet") as fresh:
            pq.write_table(pa.table(columns), fresh)
        with whole_file(directory / "evaluation.md") as fresh:
            fresh.write_text(self.markdown())
        with whole_file(directory / EVALUATION) as fresh:
            fresh.write_text(json.dumps(report, indent=1) + "\n")


def evaluate_policies(
    config: Config,
    samples: Sequence[AffectSample],
    scoring: Scoring,
    policies: Mapping[str, Path],
    pool: RolloutPool,
) -> Evaluation:
    """Play `samples` under each policy on the same engines; more than one policy: compare last with first.

    Args:
        config: section `evaluate`.
        samples: what to play.
        scoring: of these samples.
        policies: directories by the names that tables call them.
        pool: engines of the policies' shape; they end with the last policy's weights.
    """
    results, notes = [], list(scoring.notes)
    for name, directory in policies.items():
        manifest, played = manifest_hash(directory), play_samples(config, samples, pool, directory, name)
        results.append(_result(name, manifest, played, scoring, config))
        if lacking := lacking_evidence(played):
            notes.append(f"{name}: {lacking}")
    differences = None
    if len(results) > 1:
        first, last = results[0], results[-1]
        differences = scoring.compare([first.predicted], [last.predicted], **_bootstrap(config))
    split = samples[0].split
    if config.train.select == "test_oracle" and split == "test":
        notes.append("Trained policies were selected on the test set itself (test_oracle): no honest result.")
    ids, confidence = tuple(s.id for s in samples), config.evaluate.confidence
    return Evaluation(split, ids, tuple(results), differences, confidence, settings_of_evaluation(config), tuple(notes))


def play_samples(
    config: Config, samples: Sequence[AffectSample], pool: RolloutPool, policy: Path, name: str = ""
) -> list[Trajectory]:
    """Play samples once each under a policy, without counterfactuals; `name` is for the progress bar."""
    pool.sync(stored_weights(policy, pool.version + 1))
    temperature = config.evaluate.temperature
    specs = [EpisodeSpec.to_measure(config, "evaluate", s, temperature=temperature) for s in samples]
    with progress(f"evaluate {name}".strip(), len(specs)) as show:
        played = pool.play(specs, show)
    check_dropped(config, played)
    return played


def scoring_for(config: Config, samples: Sequence[AffectSample]) -> Scoring:
    """The metrics of the run's task for samples of one dataset.

    Raises:
        AffectError: the samples do not fit the task, or the wheels cannot be read.
    """
    wheels = wheels_of(config.evaluate.wheels, config.evaluate.mapping)
    return make_task(config.task, samples[0].label_kind).scoring(samples, wheels)


def check_dropped(config: Config, episodes: Sequence[Trajectory], before: Sequence[str] = ()) -> tuple[str, ...]:
    """Name samples that could not be played; returns their ids with those of `before`. A sample counts once, however
    often it comes up.

    Those that were lost with their engines are another matter, see `RolloutPool`.

    Raises:
        AffectError: they are more than ``data.max_dropped``.
    """
    dropped = [t for t in episodes if not t.turns and not t.lost]
    fresh = {t.sample_id: t.output.problem for t in dropped if t.sample_id not in before}
    for problem in fresh.values():
        logger.warning("dropped: %s", problem)
    known = (*before, *fresh)
    if fresh and len(known) > config.data.max_dropped:
        raise AffectError(
            f"{len(known)} samples could not be played, more than data.max_dropped={config.data.max_dropped}; the "
            f"last: {problem}"
        )
    return known


def _bootstrap(config: Config) -> dict[str, Any]:
    """How intervals are drawn."""
    return {"seed": config.seed, **config.evaluate.model_dump(include={"resamples", "confidence"})}


def _result(name: str, manifest: str, episodes: Sequence[Trajectory], scoring: Scoring, config: Config) -> PolicyResult:
    def interval(values: Sequence[float]) -> Estimate:
        return mean_interval(values, **_bootstrap(config))

    predicted = tuple(t.output.labels for t in episodes)
    invalid: dict[str, Estimate] = {}
    for agent in config.team.playing:
        flags = [float(turn.problem is not None) for t in episodes for turn in t.turns if turn.agent == agent]
        if flags:
            invalid[agent] = interval(flags)
    tokens = {
        "generated": interval([float(t.generated_tokens) for t in episodes]),
        "prompt": interval([float(t.prompt_tokens) for t in episodes]),
    }
    scores = scoring.evaluate([predicted], **_bootstrap(config))
    return PolicyResult(name, manifest, scores, invalid, tokens, predicted)
