"""From media to features: a Ray Data job that goes on where an earlier run was left.

A dataset's samples are cut into parts. One call to one of a pool of actors decodes, encodes and writes a
part, so only paths and counts travel through Ray's object store. Parts that are there already are not made
again; when all are, they become a dataset.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from joblib import cpu_count

from affect_rl.config.job import ClusterConfig
from affect_rl.config.load import Config
from affect_rl.data.attempts import Attempts
from affect_rl.data.dataset import MEDIA, Dataset, check_free, check_numbers, write_dataset
from affect_rl.data.extraction import Extraction
from affect_rl.data.feature_parts import Features, MediaFiles, is_finished, part_name, read_part, write_part
from affect_rl.data.media_encoder import MediaEncoder
from affect_rl.data.validation import near
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from cluster.runtime.session import ray_session
from cluster.runtime.tracking import progress

logger = logging.getLogger(__name__)

_Input = TypeVar("_Input")

_LISTED = 20
"""Bad files that a message lists before it only counts."""
_DEADLINE_S = 1800.0
"""Longest time without a finished part."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work.

    Attributes:
        count: actors, each with the encoders loaded.
        gpus: GPUs of each; a fraction shares one, 0 means CPU.
        batch_size: samples of a part, what an actor takes at a time.
    """

    count: int = 1
    gpus: float = 0.0
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction wrote.

    Attributes:
        directory: the dataset directory.
        samples: samples in it.
        audio: those with audio features.
        video: those with video features.
        parts: parts it was made of.
        found: those of them that earlier runs had left.
        problems: files that cannot be used, each as ``path: stream: reason; fix``.
    """

    directory: Path
    samples: int
    audio: int
    video: int
    parts: int
    found: int
    problems: tuple[str, ...]


def extract(
    data: Path,
    out: Path,
    extraction: Extraction,
    workers: Workers,
    *,
    media_root: Path | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> ExtractReport:
    """Write a copy of a dataset whose features come from its media; its `MEDIA` goes with it.

    Parts are kept in ``<out>.parts`` for later runs; once the dataset is as wanted they may be deleted.

    Args:
        data: dataset directory with a ``media.parquet``.
        out: dataset directory to write.
        extraction: encoders and settings.
        workers: actors, and how much each takes at a time.
        media_root: directory of the files; default: the one that ``media.parquet`` names.
        skip_bad: write the dataset even if files cannot be used; their modality is then absent.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: there is nothing to extract, `out` is taken, an encoder cannot be loaded, features are more
            than a file holds, or files cannot be used and are not to be skipped; no dataset is written.
        TimeoutError: no part was finished for half an hour.
    """
    if out.resolve() == data.resolve():
        raise AffectError(f"{out}: is where the dataset is read from; choose another directory to write")
    check_free(out, overwrite=overwrite)
    dataset = Dataset.load(data)
    samples = [sample for split in dataset.counts for sample in dataset.samples(split)]
    media, table = _read_media(data / MEDIA, samples, extraction, media_root)
    folder = out.resolve().with_name(f"{out.resolve().name}.parts")
    features, parts, found = extract_features(
        media, folder, extraction, workers, _largest(samples, media), skip_bad=skip_bad
    )
    problems = tuple(problem for found in features.values() for problem in found.problems)
    if problems and not skip_bad:
        raise AffectError(
            f"{data / MEDIA}: {len(problems)} file(s) cannot be used, so no dataset was written; mend them, or go on "
            f"without them (--skip-bad)\n{listing(problems)}"
        )
    done = [_with_features(sample, features[sample.id], extraction) for sample in samples]
    left_out = f"{len(problems)} file(s) could not be used; their modality is absent." if problems else ""
    note = "\n".join(filter(None, [dataset.manifest.note, str(extraction), left_out]))
    write_dataset(
        out,
        done,
        name=dataset.name,
        note=note,
        media=table,
        audio_names=extraction.audio_names if extraction.speech else dataset.manifest.audio_names,
        video_names=() if extraction.image else dataset.manifest.video_names,
        extraction=extraction.after(dataset.manifest.extraction),
        described=dataset.manifest.described,
        overwrite=overwrite,
    )
    audio, video = (sum(getattr(sample, name) is not None for sample in done) for name in ("audio", "video"))
    return ExtractReport(out, len(done), audio, video, parts, found, problems)


def extract_features(
    media: Sequence[MediaFiles],
    folder: Path,
    extraction: Extraction,
    workers: Workers,
    largest: Mapping[str, int],
    *,
    skip_bad: bool = False,
) -> tuple[dict[str, Features], int, int]:
    """The features of files, by sample; how many parts they were made in, and how many of these were there already.

    Args:
        media: the files of each sample.
        folder: where parts are kept.
        extraction: encoders and settings.
        workers: actors, and how much each takes at a time.
        largest: for audio and video, how many files one split may have.
        skip_bad: do not try files again that could not be used before.
    """
    chunks = [media[start : start + workers.batch_size] for start in range(0, len(media), workers.batch_size)]
    parts = {folder / part_name(extraction, chunk): chunk for chunk in chunks}
    missing = {path: chunk for path, chunk in parts.items() if not is_finished(path, skip_bad=skip_bad)}
    logger.info("extract: %d samples in %d parts, %d found", len(media), len(parts), len(parts) - len(missing))
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _make_parts(missing, extraction, workers, largest)
    features = {found.sample_id: found for path in parts for found in read_part(path, extraction)}
    return features, len(parts), len(parts) - len(missing)


def listing(problems: Sequence[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return "\n".join(lines)


def _with_features(sample: AffectSample, found: Features, extraction: Extraction) -> AffectSample:
    """The sample with new features of the modalities that were extracted."""
    audio = found.audio if extraction.speech else sample.audio
    video = found.video if extraction.image else sample.video
    return replace(sample, audio=audio, video=video)


def _read_media(
    path: Path, samples: Sequence[AffectSample], extraction: Extraction, media_root: Path | None
) -> tuple[list[MediaFiles], pa.Table]:
    """The files that are wanted of each sample, in the order of `samples`, and the table with its root as it is now."""
    columns = (["audio"] if extraction.speech else []) + ([extraction.source] if extraction.image else [])
    if not columns:
        raise AffectError("extract: no encoder is named; give --speech-encoder, --image-encoder or both")
    if not path.is_file():
        raise AffectError(f"{path}: is missing; import the dataset with an importer that knows its media")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise AffectError(f"{path}: is damaged ({error}); import the dataset again") from None
    for column in ("sample_id", *columns):
        if column not in table.column_names:
            raise AffectError(f"{path}: column {column!r} is missing; {near(column, table.column_names)}")
    root = media_root or Path((table.schema.metadata or {}).get(b"root", b"").decode())
    if not root.is_dir():
        raise AffectError(f"{root}: is not a directory; give the one that holds the media as --media-root")
    root = root.resolve()
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    if len(rows) < table.num_rows:
        raise AffectError(f"{path}: names a sample twice; import the dataset again")
    for sample in samples:
        if sample.id not in rows:
            raise AffectError(f"{path}: has no row for sample {sample.id!r}; import the dataset again")
    for column in columns:
        if not any(rows[sample.id][column] for sample in samples):
            raise AffectError(f"{path}: column {column!r} names no file; choose another --source, or omit its encoder")

    def locate(row: Mapping[str, str], column: str, wanted: object) -> Path | None:
        return root / row[column] if wanted and row[column] else None

    files = [
        MediaFiles(
            sample.id,
            locate(rows[sample.id], "audio", extraction.speech),
            locate(rows[sample.id], extraction.source, extraction.image),
        )
        for sample in samples
    ]
    return files, table.replace_schema_metadata({"root": str(root)})


def _largest(samples: Sequence[AffectSample], media: Sequence[MediaFiles]) -> dict[str, int]:
    """For audio and video, how many files the split with most of them has."""
    splits: dict[str, Counter[str]] = {"audio": Counter(), "video": Counter()}
    for sample, files in zip(samples, media, strict=True):
        for modality, counts in splits.items():
            counts[sample.split] += getattr(files, modality) is not None
    return {modality: max(counts.values()) for modality, counts in splits.items()}


def _make_parts(
    parts: Mapping[Path, Sequence[MediaFiles]], extraction: Extraction, workers: Workers, largest: Mapping[str, int]
) -> None:
    """Write the files of `parts`, in any order."""
    items = [
        {
            "path": str(path),
            "sample_id": [files.sample_id for files in chunk],
            "audio": [str(files.audio or "") for files in chunk],
            "video": [str(files.video or "") for files in chunk],
        }
        for path, chunk in parts.items()
    ]
    for path in parts:  # a run that was stopped is no death
        Attempts.over(path).forget()
    actors = min(workers.count, len(items))
    config = Config(cluster=ClusterConfig(num_cpus=max(actors + 1, cpu_count())))
    with ray_session(config), progress("extract", len(items)) as show:
        _warn_if_short(actors, workers.gpus)
        made = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _PartWriter,
            fn_constructor_args=(extraction, "cuda" if workers.gpus else "cpu", largest),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=workers.gpus or None,
        )
        made.context.enable_progress_bars = made.context.print_on_execution_start = False
        made.context.execution_no_progress_timeout_s = _DEADLINE_S
        done = bad = 0
        try:
            with closing(iter(made.iter_rows())) as rows:  # or the job goes on for as long as an error is held
                for done, row in enumerate(rows, 1):
                    if row["error"]:
                        raise AffectError(row["error"])
                    bad += row["problems"]
                    show(done, f"{bad} bad files" if bad else "")
        except ray.data.exceptions.ExecutionTimeoutError as error:
            raise TimeoutError(
                f"extract: stuck for {_DEADLINE_S:g} s after {done} of {len(items)} parts; run it again to go on"
            ) from error


def _warn_if_short(actors: int, gpus: float) -> None:
    """Ray waits without a word for nodes that may never come."""
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", actors), ("GPU", actors * gpus)):
        if wanted > there.get(kind, 0):
            logger.warning("extract: %g %ss wanted, %g there; waiting for more", wanted, kind, there.get(kind, 0))


class _PartWriter:
    """An actor that makes parts."""

    def __init__(self, extraction: Extraction, device: str, largest: Mapping[str, int]) -> None:
        self._encoder, self._largest = MediaEncoder(extraction, device), largest

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Make one part; returns how many files could not be used, or why nothing can be.

        A user's mistake is returned and not raised: Ray's wrappers do not carry an exception's causes to the driver.
        """
        try:
            return {"problems": self._write(item), "error": ""}
        except AffectError as error:
            return {"problems": 0, "error": str(error)}

    def _write(self, item: dict[str, Any]) -> int:
        files = [
            MediaFiles(name, Path(audio) if audio else None, Path(video) if video else None)
            for name, audio, video in zip(item["sample_id"], item["audio"], item["video"], strict=True)
        ]
        path = Path(item["path"])
        attempts = Attempts.over(path)
        features = self._encoder.encode(files, attempts)
        for modality in ("audio", "video"):  # known now, and not after hours of work
            size = max((x.size for found in features if (x := getattr(found, modality)) is not None), default=0)
            check_numbers(size * self._largest[modality], modality, "the largest split")
        write_part(path, features)
        attempts.forget()
        return sum(len(found.problems) for found in features)
