"""Stages of experiments: two that want the same one do not make it twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cluster.experiment import _lacking


def test_who_comes_second_waits_and_finds_the_stage(tmp_path: Path) -> None:
    stage, made, found = tmp_path / "sft-1", tmp_path / "sft-1" / "sft", []

    def second() -> None:
        with _lacking(stage, made) as lacking:
            found.append(lacking)

    with _lacking(stage, made) as lacking:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
        assert lacking and not found
        made.mkdir(parents=True)
    other.join(timeout=60)
    assert found == [False]


def test_a_stage_that_failed_is_free(tmp_path: Path) -> None:
    stage = tmp_path / "sft-1"
    try:
        with _lacking(stage, stage):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with _lacking(stage, stage) as lacking:
        assert lacking
