"""Trajectories in Parquet: everything a person or a script wants to know of an episode, tokens included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.errors import AffectError
from affect_rl.evidence import Evidence
from affect_rl.files import whole_file
from affect_rl.trajectory import Trajectory, Turn

_EVIDENCE = pa.list_(
    pa.struct(
        [
            ("group", pa.string()),
            ("id", pa.string()),
            ("text", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("score", pa.float32()),
        ]
    )
)
_TURN = pa.struct(
    [
        ("agent", pa.string()),
        ("number", pa.int32()),
        ("text", pa.string()),
        ("problem", pa.string()),
        ("reward", pa.float32()),
        ("trained", pa.bool_()),
        ("temperature", pa.float32()),
        ("knowledge", pa.list_(pa.float32())),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("weight_versions", pa.list_(pa.int32())),
    ]
)
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("predicted", pa.list_(pa.string())),
        ("rationale", pa.string()),
        ("answer", pa.string()),
        ("queries", pa.map_(pa.string(), pa.string())),
        ("candidates", _EVIDENCE),
        ("kept", _EVIDENCE),
        ("support_ids", pa.list_(pa.string())),
        ("bypassed", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("scores", pa.map_(pa.string(), pa.float32())),
        ("degraded", pa.bool_()),
        ("prompt_tokens", pa.int32()),
        ("generated_tokens", pa.int32()),
        ("turns", pa.list_(_TURN)),
    ]
)


ADVANTAGES = pa.field("advantages", pa.list_(pa.list_(pa.float32())))
"""A further column of a training step's file: for each turn what its tokens were learned with; null: nobody learned."""

ROW_GROUP = 64
"""Episodes that lie together in a file: who reads one of them reads no more than these."""

Advantages = Mapping[tuple[int, str, int], Sequence[float]]
"""Of the tokens of a turn ``[T]``, by the place of its episode, its agent and its number."""

OUTLINE = (
    *("sample_id", "labels", "predicted", "scores"),
    *(f"turns.list.element.{name}" for name in ("agent", "number", "problem", "reward")),
)
"""Columns that say how an episode went, a small part of a file."""


def write_trajectories(trajectories: Sequence[Trajectory], path: Path, advantages: Advantages | None = None) -> None:
    """Write one file, whole or not at all. Features are not repeated: they stand in the dataset.

    Args:
        trajectories: a step's episodes.
        path: of the file.
        advantages: what their tokens were learned with; turns that are not there have none.
    """
    known = advantages or {}
    learned = [[known.get((n, turn.agent, turn.number)) for turn in t.turns] for n, t in enumerate(trajectories)]
    table = trajectory_table(trajectories).append_column(ADVANTAGES, pa.array(learned, ADVANTAGES.type))
    with whole_file(path) as partial:
        pq.write_table(table, partial, row_group_size=ROW_GROUP)


def trajectory_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    """Trajectories as a table of `SCHEMA`."""
    return pa.Table.from_pylist([_row(t) for t in trajectories], schema=SCHEMA)


def read_trajectories(path: Path, sample_id: str | None = None) -> list[dict[str, Any]]:
    """Rows of a file as dictionaries, those of one sample if asked.

    Raises:
        AffectError: the file is not there or is not one of trajectories.
    """
    if not path.is_file():
        raise AffectError(f"{path}: no such file; trajectories are written with train.save_trajectories=true")
    try:
        filters = [("sample_id", "=", sample_id)] if sample_id else None
        table = pq.read_table(path, schema=SCHEMA.append(ADVANTAGES), filters=filters)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise AffectError(f"{path}: not a file of trajectories: {error}") from error
    return table.to_pylist(maps_as_pydicts="strict")


def trajectory_files(directory: Path) -> dict[int, Path]:
    """The files of a run's ``trajectories/`` by training step, oldest first; none if it is not there."""
    steps = {path.stem.removeprefix("step-"): path for path in directory.glob("step-*.parquet")}
    return dict(sorted((int(step), path) for step, path in steps.items() if step.isdecimal()))


def read_outlines(path: Path) -> list[dict[str, Any]]:
    """The columns `OUTLINE` of all rows of a file, as `read_trajectories` has them.

    Raises:
        AffectError: the file is not there or is not one of trajectories.
    """
    with _open(path) as file:
        return file.read(columns=list(OUTLINE)).to_pylist(maps_as_pydicts="strict")


def read_episode(path: Path, row: int) -> dict[str, Any]:
    """One row of a file, by its number from 0; no more than its row group is read.

    Raises:
        AffectError: the file is not there, is not one of trajectories, or has no such row.
    """
    with _open(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first <= row < first + rows:
                return file.read_row_group(group).slice(row - first, 1).to_pylist(maps_as_pydicts="strict")[0]
            first += rows
    raise AffectError(f"{path}: has no episode {row}; it has {first}, numbered from 0")


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """A file of trajectories that somebody may delete or write anew meanwhile."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise AffectError(f"{path}: no such file; the run may have deleted it meanwhile") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise AffectError(f"{path}: not a file of trajectories: {error}") from error


def _row(t: Trajectory) -> dict[str, Any]:
    return {
        "sample_id": t.sample_id,
        "labels": t.labels,
        "predicted": t.output.labels,
        "rationale": t.output.rationale,
        "answer": t.output.text,
        "queries": list(t.queries.items()),
        "candidates": _evidence(t.candidates),
        "kept": _evidence(t.kept),
        "support_ids": t.support_ids,
        "bypassed": [(agent, output.labels) for agent, output in t.bypassed.items()],
        "scores": list(t.scores.items()),
        "degraded": t.degraded,
        "prompt_tokens": t.prompt_tokens,
        "generated_tokens": t.generated_tokens,
        "turns": [_turn(turn) for turn in t.turns],
    }


def _evidence(groups: Mapping[Any, Sequence[Evidence]]) -> list[dict[str, Any]]:
    return [
        {"group": group, "id": e.id, "text": e.text, "labels": e.labels, "score": e.score}
        for group, items in groups.items()
        for e in items
    ]


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "agent": turn.agent,
        "number": turn.number,
        "text": turn.generation.text,
        "problem": turn.problem,
        "reward": turn.reward,
        "trained": turn.trained,
        "temperature": turn.temperature,
        "knowledge": turn.knowledge,
        "prompt_ids": turn.prompt.token_ids,
        "response_ids": turn.generation.token_ids,
        "logprobs": turn.generation.logprobs,
        "weight_versions": turn.generation.weight_versions,
    }
