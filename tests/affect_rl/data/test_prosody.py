"""What is measured of a voice, on sounds whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.data.prosody import NAMES, SAMPLING_RATE, ProsodyEncoder, measures
from affect_rl.data.windows import window_statistics

SECONDS = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE


def tone(hertz: np.ndarray | float, amplitude: np.ndarray | float = 0.3) -> np.ndarray:
    """A buzz as a voice has it: harmonics of a fundamental that falls off with their number."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, SECONDS.shape)) / SAMPLING_RATE
    return (amplitude * sum(np.sin(n * phase) / n for n in range(1, 8)) / 2).astype(np.float32)


def mean(sound: np.ndarray, name: str) -> float:
    return float(measures(sound)[5:-5, NAMES.index(name)].mean())


@pytest.mark.parametrize("hertz", [80.0, 120.0, 200.0, 330.0, 500.0])
def test_pitch_is_in_semitones_above_100_hertz(hertz: float) -> None:
    sound = tone(hertz)
    assert mean(sound, "pitch") == pytest.approx(12 * np.log2(hertz / 100), abs=0.3)
    assert mean(sound, "voiced") > 0.9


def test_level_is_in_decibels_of_full_scale() -> None:
    sine = np.sin(2 * np.pi * 300 * SECONDS).astype(np.float32)
    # A Hann window takes 1.76 dB more than its length says; a full sine's RMS is -3.01 dB.
    assert mean(sine, "level") - mean(sine / 10, "level") == pytest.approx(20, abs=0.01)
    assert mean(sine, "level") == pytest.approx(-3.01, abs=4.5)


def test_a_rising_voice_rises_from_window_to_window() -> None:
    rows = ProsodyEncoder(8).encode([tone(np.linspace(120, 240, len(SECONDS)))])[0]
    assert rows.shape == (8, len(NAMES)) and rows.dtype == np.float32
    pitch = rows[:, NAMES.index("pitch")]
    assert (np.diff(pitch) > 0.5).all() and pitch[-1] - pitch[0] == pytest.approx(12 * 7 / 8, abs=1)


def test_syllables_and_pauses() -> None:
    beats = 4
    loud = np.clip(np.sin(2 * np.pi * beats * SECONDS), 0, 1)
    sound = tone(150, 0.4 * loud)
    assert mean(sound, "nuclei") * 50 == pytest.approx(beats, rel=0.15), "peaks a second"
    assert 0.3 < mean(sound, "pause") < 0.6 and mean(tone(150), "pause") == 0


def test_noise_is_no_voice() -> None:
    hiss = np.random.default_rng(0).normal(scale=0.1, size=len(SECONDS)).astype(np.float32)
    assert mean(hiss, "voiced") < 0.2 < mean(tone(150), "voiced")
    assert mean(hiss, "noise") > mean(tone(150), "noise") + 10
    assert mean(hiss, "brightness") > mean(tone(150), "brightness")


@pytest.mark.parametrize(
    "sound",
    [np.zeros(SAMPLING_RATE), np.zeros(ProsodyEncoder.shortest), np.ones(3000), np.full(2000, -1.0)],
    ids=["silence", "the shortest", "a constant", "a constant below 0"],
)
def test_odd_sounds_give_finite_features(sound: np.ndarray) -> None:
    assert np.isfinite(ProsodyEncoder(8).encode([sound.astype(np.float32)])[0]).all()


@settings(deadline=None)
@given(length=st.integers(1, 40), count=st.integers(1, 12))
def test_windows_cover_all_frames_in_order(length: int, count: int) -> None:
    frames = np.arange(length, dtype=np.float32)[:, None]
    rows = window_statistics(frames, count)
    assert rows.shape == (count, 2)
    assert (np.diff(rows[:, 0]) >= 0).all()
    assert rows[0, 0] <= frames.mean() <= rows[-1, 0]
    if length % count == 0:
        parts = frames.reshape(count, -1)
        np.testing.assert_allclose(rows, np.stack([parts.mean(1), parts.std(1)], axis=1), rtol=1e-6)


@pytest.mark.slow
def test_processes_that_start_at_once_do_not_spoil_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lock three of them leave a cache that kills whoever loads it, in five of six tries."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    measure = "import numpy; from affect_rl.data.prosody import measures; measures(numpy.ones(8000, numpy.float32))"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", measure])

    assert [process.wait(timeout=300) for process in [start() for _ in range(3)]] == [0, 0, 0]
    assert start().wait(timeout=300) == 0
