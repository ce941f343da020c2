"""The evidence library of a run: samples that may be retrieved."""

from __future__ import annotations

from affect_rl.config.services import RetrievalConfig
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample


def evidence_library(dataset: Dataset, settings: RetrievalConfig) -> list[AffectSample]:
    """Samples of ``retrieval.library_splits``, of the dataset itself or of ``retrieval.library``.

    Raises:
        AffectError: the library's features are not as wide as the dataset's.
    """
    source = Dataset.load(settings.library, per_speaker=dataset.per_speaker) if settings.library else dataset
    for modality in ("audio", "video"):
        width, wanted = (getattr(d, f"{modality}_dim") for d in (source, dataset))
        if width and wanted and width != wanted:
            raise AffectError(
                f"retrieval.library={settings.library}: {modality} features are {width} wide, those of "
                f"data.dir={dataset.directory} {wanted}; extract both with one encoder"
            )
    return [sample for split in settings.library_splits if split in source.counts for sample in source.samples(split)]
