"""The job of ``affect-rl predict``: many inputs through a trained team."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.unlabelled import Unlabelled
from affect_rl.errors import AffectError
from affect_rl.experiments.baselines import Guess
from affect_rl.experiments.cascade import Cascade
from affect_rl.files import whole_file
from affect_rl.policy.directory import check_manifest
from affect_rl.sample import AffectSample
from cluster.experiments.baselines import feature_classifier
from cluster.runtime.pool import RolloutPool
from cluster.runtime.run import open_run
from cluster.runtime.tracking import progress
from cluster.serving.inputs import Likener, with_features
from cluster.serving.prediction import Prediction, episodes_for

_INPUTS_PER_CALL = 64
"""Inputs that are with one engine at a time."""
_ROWS = 1024
"""Predictions that are written to a Parquet file at a time."""
_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("labels", _TEXTS),
        ("sure", pa.float64()),
        ("votes", pa.list_(pa.struct([("label", pa.string()), ("share", pa.float64())]))),
        ("rationale", pa.string()),
        ("text", pa.string()),
        ("description", pa.string()),
        ("modalities", _TEXTS),
        ("queries", pa.list_(pa.struct([("group", pa.string()), ("text", pa.string())]))),
        (
            "evidence",
            pa.list_(
                pa.struct(
                    [
                        ("group", pa.string()),
                        ("id", pa.string()),
                        ("text", pa.string()),
                        ("labels", _TEXTS),
                        ("score", pa.float64()),
                    ]
                )
            ),
        ),
        ("answered_by", pa.string()),
        ("problem", pa.string()),
        ("degraded", pa.bool_()),
    ]
)
"""Columns of a table of predictions; they are the fields of `Prediction`."""


def predict(
    config: Config, policy: Path, inputs: Sequence[Unlabelled], samples: int, cascade: Cascade | None = None
) -> Iterator[Prediction]:
    """Understand inputs; one prediction for each, in their order, as they become known.

    Args:
        config: of the run that the team was trained in.
        policy: directory of the team's policy.
        inputs: what is to be understood.
        samples: sampled episodes of each input.
        cascade: from where on a classifier is sure enough to answer in the team's place; None: it never is.

    Raises:
        AffectError: `policy` holds no policy, the dataset or its encoders are not there any more, or there are too few
            CPUs or GPUs.
    """
    check_manifest(policy)
    inputs = with_features(config, inputs)
    with open_run(config, "eval") as run, progress("predict", len(inputs)) as show:
        alike = Likener(run.dataset).liken([item.sample for item in inputs])
        inputs = [replace(item, sample=sample) for item, sample in zip(inputs, alike, strict=True)]
        guesses = _guesses(config, run.dataset, inputs, cascade) if cascade else {}
        pool, done = run.pool(policy), 0
        share = _INPUTS_PER_CALL * max(1, pool.size)
        for start in range(0, len(inputs), share):
            chunk = inputs[start : start + share]
            yield from _played(config, pool, chunk, samples, guesses)
            show(done := done + len(chunk))


def _guesses(
    config: Config, dataset: Dataset, inputs: Sequence[Unlabelled], cascade: Cascade
) -> Mapping[AffectSample, Guess]:
    """What a classifier is sure enough of, by sample."""
    sound = [item.sample for item in inputs if not item.problem]
    guesses = feature_classifier(dataset, config.retrieval).guess(sound)
    pairs = zip(sound, guesses, strict=True)
    return {sample: guess for sample, guess in pairs if guess.sure and guess.sure >= cascade.threshold}


def _played(
    config: Config,
    pool: RolloutPool,
    inputs: Sequence[Unlabelled],
    samples: int,
    guesses: Mapping[AffectSample, Guess],
) -> Iterator[Prediction]:
    """Predictions for some inputs, of which those with a problem or a guess are not played."""
    asked = [item.sample for item in inputs if not item.problem and item.sample not in guesses]
    played = iter(pool.play([spec for sample in asked for spec in episodes_for(config, sample, samples)]))
    for item in inputs:
        if item.problem:
            yield Prediction(item.sample.id, text=item.sample.text, problem=item.problem)
        elif item.sample in guesses:
            yield Prediction.guessed(item.sample, guesses[item.sample])
        else:
            answer, *sampled = (next(played) for _ in range(1 + samples))
            yield Prediction.of(item.sample, answer, sampled)


def check_out(out: Path) -> None:
    """Raise `AffectError` unless predictions can be written to a file, before hours are spent on them."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise AffectError(f"{out}: predictions are written as .jsonl or .parquet; choose one of them")
    if out.exists():
        raise AffectError(f"{out}: exists; choose another file, or remove it")


def write_predictions(predictions: Iterable[Prediction], out: Path) -> Iterator[Prediction]:
    """Write a table of predictions as they come, whole or not at all; gives them on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_to = _parquet if out.suffix == ".parquet" else _lines
    with whole_file(out) as fresh, write_to(fresh) as write:
        for prediction in predictions:
            write(prediction)
            yield prediction


@contextmanager
def _lines(file: Path) -> Iterator[Callable[[Prediction], None]]:
    with file.open("w", encoding="utf8") as lines:
        yield lambda prediction: print(as_json(prediction), file=lines)


@contextmanager
def _parquet(file: Path) -> Iterator[Callable[[Prediction], None]]:
    rows: list[dict[str, Any]] = []

    def write(prediction: Prediction | None = None) -> None:
        if prediction:
            rows.append(prediction.row())
        if rows and (prediction is None or len(rows) == _ROWS):
            table.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            rows.clear()

    with pq.ParquetWriter(file, SCHEMA) as table:
        yield write
        write()


def as_json(prediction: Prediction) -> str:
    """One line of JSON."""
    return json.dumps(prediction.row(), ensure_ascii=False)
