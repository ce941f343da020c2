"""What is written down of processes that die, and what comes of it."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from affect_rl.data.attempts import Attempts
from affect_rl.data.media import MediaError
from affect_rl.errors import AffectError

READING = "/media/two\nlines.mp4: video"


def take(attempts: Attempts, step: str) -> None:
    with attempts.at(step, MediaError, "shorten it"):
        pass


def die(part: Path, step: str) -> None:
    attempts = Attempts.over(part)
    take(attempts, "loading")
    with attempts.at(step, MediaError, "shorten it"):
        os._exit(1)


def dies(part: Path, step: str) -> None:
    process = get_context("fork").Process(target=die, args=(part, step))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1


def test_a_step_at_which_two_processes_died_is_not_taken_again(tmp_path: Path) -> None:
    part = tmp_path / "part.parquet"
    dies(part, READING)
    take(Attempts.over(part), READING)
    dies(part, READING)
    attempts = Attempts.over(part)
    message = r"lines\.mp4: video: 2 processes died at it; shorten it, or if memory was short use fewer --workers"
    with pytest.raises(MediaError, match=message), attempts.at(READING, MediaError, "shorten it"):
        pytest.fail("was taken")
    with pytest.raises(AffectError):
        take(Attempts.over(part), READING)
    for other in ("loading", "/media/two\nlines.mp4: audio"):
        take(attempts, other)
    attempts.forget()
    take(Attempts.over(part), READING)
    assert not list(tmp_path.iterdir()), "nothing is left to remember"


def test_an_error_is_no_death_and_a_spoiled_record_no_error(tmp_path: Path) -> None:
    part = tmp_path / "part.parquet"
    part.with_suffix(".attempts").write_text('["/media/one.w')
    attempts = Attempts.over(part)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), attempts.at(READING, MediaError, "shorten it"):
            1 // 0  # noqa: B018
    take(Attempts.over(part), READING)


def test_without_a_record_nothing_is_remembered() -> None:
    for _ in range(3):
        take(Attempts(), READING)
