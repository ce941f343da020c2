"""Features and words for inputs that nobody has labelled, made as those of the dataset that a team was trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset, read_manifest
from affect_rl.data.describe import Describer
from affect_rl.data.extraction import Checkpoint, Extraction
from affect_rl.data.feature_parts import Features, MediaFiles
from affect_rl.data.unlabelled import Unlabelled
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from cluster.extract import Workers, extract_features

logger = logging.getLogger(__name__)


def with_features(config: Config, inputs: Sequence[Unlabelled]) -> list[Unlabelled]:
    """The inputs with the features that their files give.

    A file that cannot be used is the problem of its input. Files of a modality that no encoder is known for are left
    aside; an input of which nothing is left then has a problem.

    Raises:
        AffectError: the dataset is not there, or one of its encoders is not what it was.
    """
    extraction = read_manifest(Path(config.data.dir)).extraction or Extraction(None, None)
    sound, pictures = bool(extraction.speech), bool(extraction.image)
    media = [
        MediaFiles(item.sample.id, item.audio if sound else None, item.video if pictures else None)
        for item in inputs
        if not item.problem
    ]
    for modality, known in (("audio", sound), ("video", pictures)):
        count = sum(getattr(item, modality) is not None for item in inputs)
        if count and not known:
            made = "how its features were made of media is not known"
            logger.warning("%s, %s: %s; %d file(s) are left aside", config.data.dir, modality, made, count)
    files = [item for item in media if item.audio or item.video]
    features: dict[str, Features] = {}
    if files:
        check_encoders(extraction)
        largest = {"audio": len(files), "video": len(files)}
        workers = Workers(max(config.serve.bounds))
        with TemporaryDirectory(prefix="affect-rl-") as folder:
            features, _, _ = extract_features(files, Path(folder), extraction, workers, largest)
    return [item if item.problem else _with(item, features.get(item.sample.id)) for item in inputs]


def _with(item: Unlabelled, found: Features | None) -> Unlabelled:
    sample, problem = with_clip(item.sample, found)
    return replace(item, sample=sample, problem=problem)


def with_clip(sample: AffectSample, found: Features | None) -> tuple[AffectSample, str]:
    """A sample with the features of its files, and why it cannot be understood (empty: it can)."""
    sample = replace(sample, audio=found.audio, video=found.video) if found else sample
    if found and found.problems:
        return sample, "; ".join(found.problems)
    if not sample.modalities:
        return sample, "nothing can be made of it: there are no words, and the team knows no encoder for its files"
    return sample, ""


def check_encoders(extraction: Extraction) -> None:
    """Raise `AffectError` unless the encoders are what they were when the dataset's features were made."""
    for encoder in (extraction.speech, extraction.image):
        if encoder and (now := Checkpoint.find(encoder.name)).content != encoder.content:
            raise AffectError(
                f"{encoder.name}: is not the encoder that the team knows: now {now.content}, then {encoder.content}; "
                "put that one back, or extract the dataset's features anew and train again"
            )


class Likener:
    """Makes what was measured of inputs like the dataset's own samples: words for it, and relative to the speaker."""

    def __init__(self, dataset: Dataset) -> None:
        described = dataset.manifest.described
        self._describer = Describer(dataset.manifest, dataset.measured("train")) if described else None
        self._scale = dataset.scale if dataset.per_speaker else None

    def liken(self, samples: Sequence[AffectSample]) -> list[AffectSample]:
        """The samples, of which those of one speaker are compared with each other if there are enough."""
        found = self._describer.describe(samples) if self._describer else list(samples)
        return self._scale.relate(found) if self._scale else found
