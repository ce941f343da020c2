"""Reads an experiment's directory (`affect_rl.experiments.results`) and holds its files against ``results.json``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.data.validation import near
from affect_rl.errors import AffectError
from affect_rl.experiments.results import (
    CURVES,
    CURVES_FILE,
    EPISODES_FILE,
    PREDICTIONS,
    PREDICTIONS_FILE,
    RESULTS,
    TIMELINE,
    TIMELINE_FILE,
    Results,
)
from affect_rl.team.store import SCHEMA

EPISODES = pa.schema([CURVES.field("arm"), CURVES.field("seed"), *SCHEMA])
"""Rows of ``episodes.parquet``. A further column ``text``, what was said, is read where there is one."""

_TEXT = pa.field("text", pa.string())
_MAY_BE_EMPTY = {"value", "text"}


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a directory holds; a table is None if its file is absent."""

    results: Results
    predictions: pa.Table | None
    episodes: pa.Table | None
    curves: pa.Table | None
    timeline: pa.Table | None = None

    @classmethod
    def read(cls, directory: Path) -> Experiment:
        """Read ``results.json`` and the Parquet files beside it.

        Raises:
            AffectError: ``results.json`` is absent or damaged; a Parquet file is damaged, has other columns, or has an
                arm that is not in ``results.json``.
        """
        results = Results.read(directory)
        _check_results(directory / RESULTS, results)
        files = {
            PREDICTIONS_FILE: PREDICTIONS, EPISODES_FILE: EPISODES, CURVES_FILE: CURVES, TIMELINE_FILE: TIMELINE,
        }  # fmt: skip
        return cls(results, *(_read(directory / name, schema, results.arms) for name, schema in files.items()))


def _check_results(path: Path, results: Results) -> None:
    if not results.arms:
        raise AffectError(f"{path}: has no arms; run the experiment again")
    for name, arm in results.arms.items():
        if len(arm.per_seed) > len(results.seeds):
            raise AffectError(
                f"{path}: arm {name!r} has per_seed of {len(arm.per_seed)} for the {len(results.seeds)} seeds "
                f"{results.seeds}; run the experiment again"
            )
    for measure in results.measures:
        if measure.arm not in results.arms:
            raise AffectError(f"{path}: a measure is of arm {measure.arm!r}; {near(measure.arm, results.arms)}")
    known = sorted({metric for arm in results.arms.values() for metric in arm.metrics})
    for metric in (comparison.metric for comparison in results.comparisons):
        if metric not in known:
            raise AffectError(f"{path}: a comparison is by {metric!r}, which no arm has; {near(metric, known)}")


def _read(path: Path, schema: pa.Schema, arms: Collection[str]) -> pa.Table | None:
    """The columns of a file; None if it is absent."""
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path) as file:
            if schema is EPISODES and "text" in file.schema_arrow.names:
                schema = schema.append(_TEXT)
            if missing := [name for name in schema.names if name not in file.schema_arrow.names]:
                raise AffectError(
                    f"{path}: has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}; "
                    "run the experiment again"
                )
            table = file.read(columns=schema.names)
    except (pa.ArrowException, OSError) as error:
        raise AffectError(
            f"{path}: is not a Parquet file that can be read ({error}); run the experiment again"
        ) from None
    for field in schema:
        _check(path, table[field.name], field)
    for arm in table["arm"].unique().to_pylist():
        if arm not in arms:
            raise AffectError(f"{path}: arm {arm!r} is not in {RESULTS}; {near(arm, arms)}")
    return table


def _check(path: Path, column: pa.ChunkedArray, field: pa.Field) -> None:
    if column.type != field.type:
        raise AffectError(
            f"{path}: column {field.name!r} is {column.type}, expected {field.type}; run the experiment again"
        )
    if column.null_count and field.name not in _MAY_BE_EMPTY:
        raise AffectError(
            f"{path}: column {field.name!r} is empty in {column.null_count} rows; run the experiment again"
        )
