"""From a sample's files to its features: decode, encode, and say of each file that cannot be used what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affect_rl.data.attempts import Attempts
from affect_rl.data.encoders import ImageEncoder, SpeechEncoder, speech_encoder
from affect_rl.data.extraction import Extraction
from affect_rl.data.feature_parts import Features, MediaFiles
from affect_rl.data.media import MediaError, read_audio, read_frames
from affect_rl.data.prosody import ProsodyEncoder
from affect_rl.errors import AffectError

Stream = Literal["audio", "video"]

_LOOK = "see why in Ray's logs"


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
        attempts = attempts or Attempts()
        audio = self._features("audio", [item.audio for item in files], problems, attempts)
        video = self._features("video", [item.video for item in files], problems, attempts)
        return list(map(Features, [item.sample_id for item in files], audio, video, map(tuple, problems)))

    def _features(
        self, stream: Stream, paths: Sequence[Path | None], problems: list[list[str]], attempts: Attempts
    ) -> list[np.ndarray | None]:
        """Each file's features, None where there are none; why a file gave none is added to `problems`."""
        if not any(paths):
            return [None] * len(paths)
        with attempts.at(f"loading the {stream} encoder", AffectError, _LOOK):
            encoder: Any = self._speech if stream == "audio" else self._images
        read = self._read_sound if stream == "audio" else self._read_pictures
        inputs: dict[int, Any] = {}
        for place, path in enumerate(paths):
            try:
                if path:
                    with attempts.at(f"{path}: {stream}", MediaError, "shorten or export it again"):
                        inputs[place] = read(path)
            except MediaError as error:
                problems[place].append(str(error))
        if not inputs:
            return [None] * len(paths)
        ends = f"{paths[min(inputs)]} to {paths[max(inputs)]}"
        with attempts.at(f"encoding {stream} of {ends}", AffectError, _LOOK):
            found = dict(zip(inputs, encoder.encode(list(inputs.values())), strict=True))
        return [found.get(place) for place in range(len(paths))]

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
