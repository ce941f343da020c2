"""How something is said, measured without a trained encoder: level, pitch, pace and colour of a voice.

librosa (ISC licence) does the signal processing. The descriptors are those that emotion research has settled on
(Eyben et al. 2016, "The Geneva minimalistic acoustic parameter set"), as far as librosa has them; openSMILE, the
reference, may not be used commercially.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import librosa
import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path
from scipy.signal import find_peaks

from affect_rl.data.windows import window_statistics

SAMPLING_RATE = 16_000
_WINDOW, _PITCH_WINDOW, _HOP = 512, 1024, 320
"""Samples of a spectrum (32 ms), of a pitch estimate (64 ms, two periods of the lowest) and between frames (20 ms)."""
_LOWEST, _HIGHEST = 60.0, 600.0
"""Range of the pitch in Hz: the voices of adults and children, shouts included."""
_FLOOR = 1e-4
"""Amplitude below which all is silence (-80 dB of full scale)."""
_LOUD_DB = 25.0
"""Frames this far below the clip's loudest ones are pauses."""
_PROMINENCE_DB = 2.0
"""How far a syllable's peak stands out from the level around it."""

_MEASURES = (
    "level", "pitch", "voiced", "pause", "nuclei", "brightness", "spread", "noise", "crossings",
    *(f"contrast {band}" for band in range(1, 7)), *(f"cepstrum {number}" for number in range(20)),
    *(f"cepstrum change {number}" for number in range(1, 13)),
)  # fmt: skip
NAMES = (*_MEASURES, *(f"{name}, deviation" for name in _MEASURES))
"""What the features are, in order. Levels are in dB of full scale, pitch in semitones above 100 Hz, brightness and
spread in octaves above 1 kHz; voiced and pause are shares of the time; nuclei are peaks of the level a frame, which
are about the syllables."""


class ProsodyEncoder:
    """Acoustic descriptors of a voice as features; stands where a speech encoder may stand.

    Args:
        segments: windows of time, rows of the result.
    """

    sampling_rate = SAMPLING_RATE
    shortest = _PITCH_WINDOW

    def __init__(self, segments: int) -> None:
        self._segments = segments

    def encode(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Describe sounds ``[samples]`` float32 at `sampling_rate`, each of at least `shortest` samples.

        Returns:
            For each sound ``[segments, d]`` float32, the columns being `NAMES`.
        """
        return [window_statistics(measures(sound), self._segments) for sound in sounds]


def measures(sound: np.ndarray) -> np.ndarray:
    """What is measured every 20 ms: ``[T, d]``; the columns are the first half of `NAMES`."""
    _compile()
    return _measured(sound)


@cache
def _compile() -> None:
    """Let Numba compile what librosa leaves to it, or load it from its cache, in one process at a time.

    Processes that compile at once may leave parts in the cache that do not fit each other. Whoever loads them dies of a
    segmentation fault, from then on always (github.com/numba/numba/issues/10128), until the cache is deleted.
    """
    with FileLock(_numba_cache() / "affect-rl.lock"):
        _measured(np.zeros(SAMPLING_RATE, np.float32))


def _numba_cache() -> Path:
    """A directory that all processes have which share Numba's cache: that itself, librosa's if it can be written to, or
    the user's."""
    if own := os.environ.get("NUMBA_CACHE_DIR"):
        directory = Path(own)
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    package = Path(librosa.__file__).parent
    return package if os.access(package, os.W_OK) else user_cache_path("affect-rl", ensure_exists=True)


def _measured(sound: np.ndarray) -> np.ndarray:
    spectrum = np.abs(librosa.stft(sound, n_fft=_WINDOW, hop_length=_HOP))
    power = spectrum**2
    amplitude = librosa.feature.rms(S=spectrum, frame_length=_WINDOW)[0]
    level = librosa.amplitude_to_db(amplitude, ref=1.0, amin=_FLOOR, top_db=None)
    mel = librosa.power_to_db(
        librosa.feature.melspectrogram(S=power, sr=SAMPLING_RATE, n_mels=64), amin=_FLOOR**2, top_db=80.0
    )
    cepstrum = librosa.feature.mfcc(S=mel, n_mfcc=20)
    columns = [
        level,
        *_pitch(sound, len(level)),
        level < np.percentile(level, 95) - _LOUD_DB,
        _nuclei(level),
        _octaves(librosa.feature.spectral_centroid(S=spectrum, sr=SAMPLING_RATE)[0]),
        _octaves(librosa.feature.spectral_bandwidth(S=spectrum, sr=SAMPLING_RATE)[0]),
        librosa.power_to_db(librosa.feature.spectral_flatness(S=spectrum, amin=_FLOOR**2)[0], amin=1e-10, top_db=None),
        librosa.feature.zero_crossing_rate(sound, frame_length=_WINDOW, hop_length=_HOP)[0],
        *librosa.feature.spectral_contrast(S=spectrum, sr=SAMPLING_RATE, fmin=125.0, n_bands=5),
        *cepstrum,
        *librosa.feature.delta(cepstrum, width=5, mode="nearest")[1:13],
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _pitch(sound: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch ``[length]`` in semitones above 100 Hz, and where there is one.

    Where the voice has none, the clip's median stands: it says nothing about the course of the pitch.
    """
    hertz, voiced, _ = librosa.pyin(
        sound, fmin=_LOWEST, fmax=_HIGHEST, sr=SAMPLING_RATE, frame_length=_PITCH_WINDOW, hop_length=_HOP
    )
    semitones = 12 * np.log2(np.where(voiced, hertz, np.nan) / 100.0)[:length]
    usual = np.nanmedian(semitones) if voiced[:length].any() else 0.0
    return np.where(np.isnan(semitones), usual, semitones), voiced[:length]


def _nuclei(level: np.ndarray) -> np.ndarray:
    """1 at the peaks of the level that stand out as syllables do (de Jong and Wempe 2009), else 0."""
    peaks, _ = find_peaks(level, height=np.percentile(level, 95) - _LOUD_DB, prominence=_PROMINENCE_DB)
    return np.isin(np.arange(len(level)), peaks)


def _octaves(hertz: np.ndarray) -> np.ndarray:
    """Frequencies in octaves above 1 kHz; silence, which has none, counts as 31 Hz."""
    return np.log2(np.maximum(hertz, 31.25) / 1000.0)
