"""What the page of a run asks for, as JSON."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query

from affect_rl.errors import AffectError
from cluster.web.site import make_site
from cluster.web.watch.curves import MetricsLog
from cluster.web.watch.episodes import Show, list_episodes, show_episode
from cluster.web.watch.problems import ProblemCounts
from cluster.web.watch.state import describe, read_settings
from cluster.web.watch.text import TokenText

Number = Annotated[int, Query(ge=0)]
Limit = Annotated[int, Query(ge=1, le=200)]


def make_server(run_dir: Path, host: str = "127.0.0.1") -> FastAPI:
    """The page of a run and what it asks for, to listen on `host`.

    Raises:
        AffectError: there is no run.
    """
    if not (run_dir / "config.yaml").exists():
        raise AffectError(f"{run_dir}: no run (it has no config.yaml); name a directory under runs/")
    site = make_site(Path(__file__).parent / "page", host)
    logs = {"train": MetricsLog(run_dir / "metrics.jsonl"), "sft": MetricsLog(run_dir / "sft-metrics.jsonl")}
    trajectories = run_dir / "trajectories"
    problems = ProblemCounts(trajectories)
    tokens = TokenText(run_dir, read_settings(run_dir).get("policy", ""))
    lock = threading.Lock()  # questions are answered in threads

    @site.get("/api/state")
    def state() -> dict[str, Any]:
        with lock:
            for log in logs.values():
                log.refresh()
            return describe(run_dir, logs["train"], logs["sft"])

    @site.get("/api/curves")
    def curves(
        name: Annotated[list[str], Query()], stage: Literal["train", "sft"] = "train", points: Limit = 200
    ) -> dict[str, Any]:
        with lock:
            logs[stage].refresh()
            return {key: curve._asdict() for key, curve in logs[stage].curves(name, points).items()}

    @site.get("/api/episodes")
    def episodes(
        step: Number | None = None, show: Show = "all", offset: Number = 0, limit: Limit = 50
    ) -> dict[str, Any]:
        return list_episodes(trajectories, step, show, offset, limit)

    @site.get("/api/episodes/{step}/{row}")
    def episode(step: int, row: int) -> dict[str, Any]:
        with lock:
            return show_episode(trajectories, step, row, tokens)

    @site.get("/api/problems")
    def counted() -> dict[str, Any]:
        with lock:
            left = problems.refresh()
            return {**problems.report(), "left": left}

    return site
