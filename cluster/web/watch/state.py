"""What a run is at: its stage, its progress, its metrics and its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.watching.meanings import meaning
from cluster.watching.names import STEP, WARM_START, table_row
from cluster.web.watch.curves import MetricsLog
from cluster.web.watch.episodes import stamp

STAGES = ("preparing", "warm start", "between warm start and training", "training", "trained", "evaluated")


def read_settings(run_dir: Path) -> Mapping[str, Any]:
    """The run's ``config.yaml``; empty if it is not there or is being written.

    It is read as plain YAML: a run may be older than a setting of today, and is shown all the same.
    """
    try:
        found = yaml.safe_load((run_dir / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def stage(run_dir: Path, training: MetricsLog, warm_start: MetricsLog) -> str:
    """Which of `STAGES` the files say that the run is in; it may stand still there."""
    if (run_dir / "policy").exists():
        return "evaluated" if (run_dir / "evaluation" / "evaluation.json").exists() else "trained"
    if training.columns or (run_dir / "trajectories").exists():
        return "training"
    if (run_dir / "sft").exists():
        return "between warm start and training"
    return "warm start" if warm_start.columns else "preparing"


def describe(run_dir: Path, training: MetricsLog, warm_start: MetricsLog) -> dict[str, Any]:
    """What the page's head shows, and what can be asked for.

    Both logs are as they were read last. ``written_s`` are the seconds since the last step's numbers came;
    ``revision`` is another whenever there is something new to see. It asks for no list of files, which is long.
    """
    settings = read_settings(run_dir)
    now = stage(run_dir, training, warm_start)
    log = warm_start if now in STAGES[:3] else training
    section = settings.get("sft" if log is warm_start else "train", {})
    written = max(stamp(run_dir / name)[0] for name in ("metrics.jsonl", "sft-metrics.jsonl"))
    return {
        "name": settings.get("name") or run_dir.resolve().name,
        "algorithm": settings.get("algorithm", {}).get("name"),
        "stage": now,
        "step": log.last.get("step", 0),
        "steps": section.get("steps"),
        "step_s": log.step_s(),
        "written_s": max(0.0, time.time() - written / 1e9) if written else None,
        "times": {
            name.removeprefix("time/").removesuffix("_s"): training.last[name]
            for name in ("time/rollout_s", "time/learning_s", "time/sync_s", "time/evaluation_s")
            if training.last.get(name) is not None
        },
        "episodes": training.last.get("counts/episodes"),
        "evaluation": _evaluation(run_dir),
        "revision": [training.reading, warm_start.reading, stamp(run_dir / "trajectories")],
        "metrics": {"train": families(training), "sft": families(warm_start, warm_start=True)},
    }


def families(log: MetricsLog, *, warm_start: bool = False) -> list[dict[str, Any]]:
    """The metrics of a log, those of one row of the table of names together and in its order: a plot for each row."""
    order = [*(WARM_START if warm_start else STEP)]
    rows: dict[str, dict[str, Any]] = {}
    for name in log.columns:
        if name == "time":
            continue
        row, tags = table_row(name, warm_start=warm_start)
        found = rows.setdefault(row, {"family": row, "series": []})
        found["series"].append(
            {"name": name, "of": " ".join(tags.values()), "meaning": meaning(name, warm_start=warm_start)}
        )
    return sorted(rows.values(), key=lambda found: (*order, found["family"]).index(found["family"]))


def _evaluation(run_dir: Path) -> str | None:
    """The table of the run's evaluation, in Markdown."""
    try:
        return (run_dir / "evaluation" / "evaluation.md").read_text()
    except OSError:
        return None
