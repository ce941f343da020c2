"""From a sample's files to its features: decode, encode, and say of each file that cannot be used what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from affect_rl.data.attempts import Attempts
from affect_rl.data.encoders import ImageEncoder, SpeechEncoder, speech_encoder
from affect_rl.data.extraction import Extraction
from affect_rl.data.feature_parts import Features, MediaFiles
from affect_rl.data.media import MediaError, read_audio, read_frames
from affect_rl.data.prosody import ProsodyEncoder

_Input = TypeVar("_Input")


class MediaEncoder:
    """The encoders of an extraction. It loads one when it first needs it, so that a failure is a plain error.

    Args:
        extraction: encoders and settings.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, extraction: Extraction, device: str = "cpu") -> None:
        self._extraction, self._device = extraction, device

    def encode(self, files: Sequence[MediaFiles], attempts: Attempts | None = None) -> list[Features]:
        """The features of some samples' files; a file that cannot be used is a problem of its sample.

        Args:
            files: of each sample.
            attempts: where it is written down what is being done, in case that this process dies of it.

        Raises:
            AffectError: an encoder cannot be loaded, or processes died in it before.
        """
        problems: list[list[str]] = [[] for _ in files]
        sounds, clips = [item.audio for item in files], [item.video for item in files]
        audio = _features(sounds, self._read_sound, lambda sounds: self._speech.encode(sounds), problems, attempts)
        video = _features(clips, self._read_pictures, lambda clips: self._images.encode(clips), problems, attempts)
        return list(map(Features, [item.sample_id for item in files], audio, video, map(tuple, problems)))

    @cached_property
    def _speech(self) -> SpeechEncoder | ProsodyEncoder:
        assert self._extraction.speech
        return speech_encoder(self._extraction.speech, self._extraction.segments, self._device)

    @cached_property
    def _images(self) -> ImageEncoder:
        assert self._extraction.image
        return ImageEncoder(self._extraction.image, self._device)

    def _read_sound(self, path: Path) -> np.ndarray:
        encoder = self._speech
        with _blaming(path, "audio"):
            sound = read_audio(path, encoder.sampling_rate)
        if len(sound) < encoder.shortest:
            raise MediaError(f"{path}: audio: {len(sound)} samples are too few to encode; leave the path empty")
        return sound

    def _read_pictures(self, path: Path) -> Any:
        encoder = self._images
        with _blaming(path, "video"):  # scaled down at once: the whole pictures of a part could fill the memory
            return encoder.prepare(read_frames(path, self._extraction.frames))


@contextmanager
def _blaming(path: Path, stream: str) -> Iterator[None]:
    """Whatever goes wrong within is put down to the file: one that is odd in a new way must not end the job."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: {stream}: cannot be used ({error!r}); copy or export the file again") from error


def _features(
    paths: Sequence[Path | None],
    read: Callable[[Path], _Input],
    encode: Callable[[list[_Input]], list[np.ndarray]],
    problems: list[list[str]],
    attempts: Attempts | None,
) -> list[np.ndarray | None]:
    """Each file's features, None where there are none; why a file gave none is added to `problems`."""
    inputs: dict[int, _Input] = {}
    for place, path in enumerate(paths):
        try:
            if path:
                with attempts.reading(path) if attempts else nullcontext():
                    inputs[place] = read(path)
        except MediaError as error:
            problems[place].append(str(error))
    if not inputs:
        return [None] * len(paths)
    with attempts.encoding() if attempts else nullcontext():
        features = dict(zip(inputs, encode(list(inputs.values())), strict=True))
    return [features.get(place) for place in range(len(paths))]
