"""Where a run's numbers go: a progress bar, one log line a step, JSONL and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from affect_rl.files import whole_file

console = Console(stderr=True)


def set_up_logging() -> None:
    """Log to standard error, beside the progress bar."""
    handler = RichHandler(console=console, show_path=False, markup=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    for name in ("cluster", "learners", "rollout_workers", "retrieval_service", "affect_rl"):
        logging.getLogger(name).setLevel(logging.INFO)


class Tracker:
    """Writes metrics to ``metrics.jsonl`` and TensorBoard in a run's directory, those of `stage` apart.

    On resuming, lines after `first_step` are of steps that are done again; they are dropped.
    """

    def __init__(self, run_dir: Path, first_step: int = 0, *, stage: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second to import

        self._path = run_dir / f"{stage}-metrics.jsonl".removeprefix("-")
        kept = [line for line in self._lines() if line["step"] <= first_step] if first_step else []
        with whole_file(self._path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(run_dir / "tensorboard" / stage), purge_step=first_step + 1)
        self._started = time.time()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step's metrics; numbers that are not finite become null."""
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time() - self._started, 3), **clean}) + "\n")
        for name, value in clean.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        """What was written whole: a kill may have cut the last line off, of a step that is done again."""
        if self._path.exists():
            yield from (json.loads(line) for line in self._path.read_text().splitlines(True) if line.endswith("\n"))


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
    """Seconds spent per stage of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
