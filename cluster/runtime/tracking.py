"""What a person sees of a job that runs: log lines and a progress bar; and how long its parts take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from affect_rl.timeline import Spans

console = Console(stderr=True)


def set_up_logging() -> None:
    """Log to standard error, beside the progress bar."""
    handler = RichHandler(console=console, show_path=False, markup=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    for name in ("cluster", "learners", "rollout_workers", "retrieval_service", "affect_rl"):
        logging.getLogger(name).setLevel(logging.INFO)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Any]:
    """A progress bar; call the result with the steps done and a note such as ``F1 0.71``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda completed, note="": bar.update(task, completed=completed, note=note)


class Stopwatch:
    """Seconds spent per stage of a step, and the spans that they were spent in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.spans = Spans()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with self.spans(stage):
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
