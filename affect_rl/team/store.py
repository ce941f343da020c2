"""Trajectories in Parquet: everything a person or a script wants to know of an episode, tokens included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def write_trajectories(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write one file, whole or not at all. Features are not repeated: they stand in the dataset."""
    with whole_file(path) as partial:
        pq.write_table(trajectory_table(trajectories), partial)


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
        table = pq.read_table(path, schema=SCHEMA, filters=filters)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise AffectError(f"{path}: not a file of trajectories: {error}") from error
    return table.to_pylist(maps_as_pydicts="strict")


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
