"""The schedule of the supervised warm start; its training is tested in `test_engine.py`."""

from __future__ import annotations

import pytest

from affect_rl.config.learning import SftConfig
from learners.sft import learning_rate

SETTINGS = SftConfig(steps=40, lr=1e-2, warmup=4, decay=0.5)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(41)]
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == rates[3] == rates[20] == pytest.approx(1e-2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[30] == pytest.approx(5e-3)
    assert rates[40] == pytest.approx(0)
