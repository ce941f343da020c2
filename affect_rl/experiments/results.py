"""What an experiment leaves behind: one directory that a report, a person or a script can read.

``results.json``  what was run, every arm's metrics per seed, and the comparisons (`Results`)
``results.md``  the same as tables
``config.yaml``  the resolved configuration of the reference arm's first run
``report.html``  all of it as a page, plots included (`affect_rl.experiments.report`)
``predictions.parquet``  each sample's answer under each arm and seed (`PREDICTIONS`)
``episodes.parquet``  some episodes in full (`affect_rl.team.store.SCHEMA`, with arm and seed)
``curves.parquet``  the metrics of every training step (long form: arm, seed, step, metric, value)
``timeline.parquet``  the last training steps of the first seed (arm, seed, who, what, begun, seconds)
``details.parquet``  what an experiment measures beyond the metrics (arm, seed, sample, name, value)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from affect_rl.errors import AffectError
from affect_rl.files import whole_directory
from affect_rl.scoring.tables import HasInterval, header, in_unit, markdown_table

RESULTS, TABLES, PREDICTIONS_FILE = "results.json", "results.md", "predictions.parquet"
CONFIG, PAGE = "config.yaml", "report.html"
EPISODES_FILE, CURVES_FILE, DETAILS_FILE = "episodes.parquet", "curves.parquet", "details.parquet"
TIMELINE_FILE = "timeline.parquet"

_KEY = [("arm", pa.string()), ("seed", pa.int32())]
PREDICTIONS = pa.schema(
    [
        *_KEY,
        ("sample_id", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("predicted", pa.list_(pa.string())),
    ]
)
CURVES = pa.schema([*_KEY, ("step", pa.int32()), ("metric", pa.string()), ("value", pa.float64())])
TIMELINE = pa.schema(
    [*_KEY, ("who", pa.string()), ("what", pa.string()), ("begun", pa.float64()), ("seconds", pa.float64())]
)
DETAILS = pa.schema([*_KEY, ("sample_id", pa.string()), ("name", pa.string()), ("value", pa.float64())])


P = TypeVar("P", bound="Part")


class Part(BaseModel):
    """A part of ``results.json``, or of ``sweep.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_part(kind: type[P], path: Path, work: str) -> P:
    """Read a file of results.

    Args:
        kind: what it holds.
        path: the file.
        work: whose results they are, such as ``an experiment``.

    Raises:
        AffectError: it is absent or not one.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf8"))
    except OSError as error:
        raise AffectError(f"{path}: cannot be read ({error.strerror}); give the directory of {work}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise AffectError(f"{path}: is not {work}'s results: {' '.join(str(error).split())[:300]}") from None


class Interval(Part):
    """A value with its bootstrap interval; metrics in [0, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: HasInterval) -> Interval:
        """That of an estimate or a difference."""
        return cls(value=found.value, low=found.low, high=found.high)


class Comparison(Part):
    """The reference minus another arm on the same samples and seeds: mean over seeds, paired bootstrap over both.

    Attributes:
        reference: the arm that is compared.
        other: what it is compared with.
        metric: of the tables, for example ``weighted_f1``.
        difference: reference minus other.
        p: two-sided p-value of no difference.
    """

    reference: str
    other: str
    metric: str
    difference: Interval
    p: float


class Measure(Part):
    """A value beyond the metrics, by arm and name: mean over seeds of each seed's mean over samples or steps.

    Attributes:
        arm: its name.
        name: for example ``gain/conflicting``.
        samples: how many samples have it; 0: it is one of training, not of samples.
        mean: with a bootstrap interval over seeds and samples, or Student's over seeds.
    """

    arm: str
    name: str
    samples: int
    mean: Interval


class Arm(Part):
    """One setting of an experiment.

    Attributes:
        train: overrides that held for training and evaluation.
        evaluate: overrides that held for evaluation alone.
        policy: the policy that was evaluated.
        metrics: mean over seeds by metric.
        per_seed: the same for each seed.
        tokens_per_sample: generated tokens of an evaluated episode.
        seconds_per_sample: seconds of evaluation over samples, all engines together.
    """

    train: dict[str, object] = {}
    evaluate: dict[str, object] = {}
    policy: Literal["none", "sft", "trained"] = "trained"
    metrics: dict[str, Interval]
    per_seed: list[dict[str, float]]
    tokens_per_sample: float
    seconds_per_sample: float


class Results(Part):
    """The whole experiment.

    Attributes:
        experiment: its name.
        title: what it asks, in a sentence.
        dataset: what it was run on.
        split: what was evaluated.
        samples: how many samples.
        seeds: of the runs.
        selection: which of a run's policies was evaluated: ``dev`` chose it, or the last step, or (``test_oracle``)
            the test set itself, which is no honest result.
        command: what was run.
        labels: the classes, if the set is closed.
        main: the metric that policies are selected and compared by.
        arms: by name, in the order of the tables.
        comparisons: the reference against the other arms.
        baselines: metrics of systems that are none of ours on the same samples (``logistic regression``).
        measures: means of ``details.parquet`` and of ``curves.parquet``.
        notes: what a reader must know.
    """

    experiment: str
    title: str
    dataset: str
    split: str
    samples: int
    seeds: list[int]
    selection: Literal["dev", "last", "test_oracle"]
    command: str
    labels: list[str]
    main: str = "weighted_f1"
    arms: dict[str, Arm]
    comparisons: list[Comparison]
    baselines: dict[str, dict[str, Interval]] = {}
    measures: list[Measure] = []
    notes: list[str] = []

    @classmethod
    def read(cls, directory: Path) -> Results:
        """Read ``results.json``.

        Raises:
            AffectError: it is absent or not one.
        """
        return read_part(cls, directory / RESULTS, "an experiment")

    def markdown(self) -> str:
        """The arms as a table, in percent with intervals, and the comparisons below it."""
        metrics = [name for name in next(iter(self.arms.values())).metrics if name != "invalid_rate"]
        metrics.sort(key=lambda name: name != self.main)
        what = f"{self.dataset} {self.split}, n = {self.samples}"
        rows = [[what, *map(header, metrics), header("invalid_rate"), "generated tokens", "ms", "by seed"]]
        for name, arm in self.arms.items():
            cost = [f"{arm.tokens_per_sample:.0f}", f"{1000 * arm.seconds_per_sample:.0f}"]
            by_seed = " / ".join(f"{100 * run[self.main]:.1f}" for run in arm.per_seed)
            rows.append([name, *(_cell(arm.metrics, m) for m in (*metrics, "invalid_rate")), *cost, by_seed])
        for name, baseline in self.baselines.items():
            rows.append([f"*{name}*", *(_cell(baseline, m) for m in metrics), *[""] * 4])
        compared = [[header(self.main), "difference", "p"]]
        for c in self.comparisons:
            if c.metric == self.main:
                compared.append([f"{c.reference} - {c.other}", in_unit(c.metric, c.difference, "+"), f"{c.p:.3f}"])
        notes = "".join(f"- {note}\n" for note in self.notes)
        rule = {"test_oracle": "test_oracle (on the test set itself: no honest result)"}.get(
            self.selection, self.selection
        )
        about = f"Seeds {', '.join(map(str, self.seeds))}; policies selected by: {rule}. `{self.command}`\n"
        parts = [f"# {self.experiment}\n", f"{self.title}\n", markdown_table(rows), markdown_table(compared)]
        if self.measures:
            parts.append(markdown_table(self._measured()))
        return "\n".join([*parts, about + notes])

    def _measured(self) -> list[list[str]]:
        """A row a measure, a column an arm."""
        arms = [arm for arm in self.arms if any(m.arm == arm for m in self.measures)]
        rows: dict[str, dict[str, str]] = {}
        for m in self.measures:
            value, low, high = (f"{x:.3f}" for x in (m.mean.value, m.mean.low, m.mean.high))
            name = f"{m.name} (n = {m.samples})" if m.samples else m.name
            rows.setdefault(name, {})[m.arm] = f"{value} [{low}, {high}]"
        return [["measure", *arms], *([name, *(row.get(arm, "") for arm in arms)] for name, row in rows.items())]


def check_replaceable(directory: Path) -> None:
    """See that results may be written to a directory: there is none, it is empty, or it holds results.

    Raises:
        AffectError: it holds something else, which writing would delete.
    """
    if directory.exists() and not (directory / RESULTS).exists() and (directory.is_file() or any(directory.iterdir())):
        raise AffectError(f"{directory}: is there and holds no experiment's results; give another --out")


def write_results(directory: Path, results: Results, config: str, tables: Mapping[str, pa.Table]) -> None:
    """Write a result directory, whole or not at all; one that was there is replaced.

    Args:
        directory: where, see `check_replaceable`.
        results: what ``results.json`` and ``results.md`` say.
        config: what ``config.yaml`` says.
        tables: Parquet files by name.
    """
    with whole_directory(directory.resolve(), replace=True) as fresh:
        (fresh / RESULTS).write_text(results.model_dump_json(indent=1) + "\n", encoding="utf8")
        (fresh / TABLES).write_text(results.markdown(), encoding="utf8")
        (fresh / CONFIG).write_text(config, encoding="utf8")
        for name, table in tables.items():
            pq.write_table(table, fresh / name)


def _cell(metrics: Mapping[str, Interval], name: str) -> str:
    return in_unit(name, metrics[name]) if name in metrics else ""
