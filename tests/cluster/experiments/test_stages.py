"""Stages of experiments: two that want the same one do not make it twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cluster.experiments.stages import _once


def test_who_comes_second_waits_and_finds_the_stage(tmp_path: Path) -> None:
    stage, made = tmp_path / "sft-1", tmp_path / "sft-1" / "sft"
    events: list[str] = []
    second = threading.Thread(target=_once, args=(stage, made, lambda: events.append("second")))

    def make() -> None:
        second.start()
        time.sleep(0.3)
        assert second.is_alive()
        events.append("first")
        made.mkdir(parents=True)

    _once(stage, made, make)
    second.join(timeout=60)
    assert events == ["first"] and not second.is_alive()


def test_a_stage_that_failed_is_free(tmp_path: Path) -> None:
    stage, made = tmp_path / "sft-1", []
    with pytest.raises(ZeroDivisionError):
        _once(stage, stage, lambda: 1 // 0)
    _once(stage, stage, lambda: made.append(True))
    assert made
