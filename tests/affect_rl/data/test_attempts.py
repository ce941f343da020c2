"""What is written down of processes that die, and what comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from affect_rl.data.attempts import Attempts
from affect_rl.data.media import MediaError
from affect_rl.errors import AffectError

FILES = [Path("/media/one.wav"), Path("/media/two\nlines.mp4")]


def die_reading(record: Path) -> None:
    attempts = Attempts(record)
    with attempts.reading(FILES[0]):
        pass
    with attempts.reading(FILES[1]):
        os._exit(1)


def die_encoding(record: Path) -> None:
    with Attempts(record).encoding():
        os._exit(1)


def dies(work: Callable[[Path], None], record: Path) -> None:
    process = get_context("fork").Process(target=work, args=(record,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1


def test_a_file_of_which_two_processes_died_is_not_read_again(tmp_path: Path) -> None:
    record = tmp_path / "part.attempts"
    dies(die_reading, record)
    with Attempts(record).reading(FILES[1]):
        pass
    dies(die_reading, record)
    attempts = Attempts(record)
    with attempts.reading(FILES[0]):
        pass
    message = r"lines\.mp4: 2 processes died while they read it"
    with pytest.raises(MediaError, match=message), attempts.reading(FILES[1]):
        pytest.fail("was read")
    with attempts.encoding():
        pass
    attempts.forget()
    assert not record.exists()
    with Attempts(record).reading(FILES[1]):
        pass
    assert not record.exists(), "nothing is left to remember"


def test_an_encoder_of_which_two_processes_died_is_an_error_until_the_user_comes_again(tmp_path: Path) -> None:
    record = tmp_path / "part.attempts"
    for _ in range(2):
        dies(die_encoding, record)
    message = "2 processes died in the encoder, over the part part; see why"
    with pytest.raises(AffectError, match=message), Attempts(record).encoding():
        pytest.fail("was encoded")
    with Attempts(record).encoding():
        pass


def test_an_error_is_no_death_and_a_spoiled_record_no_error(tmp_path: Path) -> None:
    record = tmp_path / "part.attempts"
    record.write_text('["/media/one.w')
    attempts = Attempts(record)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), attempts.reading(FILES[0]):
            1 // 0  # noqa: B018
    with Attempts(record).reading(FILES[0]):
        pass
