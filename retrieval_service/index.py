"""An index directory: the library's rows, their vectors, trained FAISS indexes and a manifest.

``library.parquet`` holds the rows; ``<name>.npy`` the unit vectors of the index ``text``, ``audio``,
``video`` or ``both``; ``<name>.rows.npy`` the library row of each vector; ``<name>.faiss`` the trained, empty
index. A shard adds its share of the vectors when it starts, so one directory serves any number of
shards. ``manifest.json`` says what all this was made from and the checksum of each file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import faiss
import numpy as np

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from affect_rl.evidence import render_evidence
from affect_rl.files import replace_directory, sha256
from affect_rl.sample import AffectSample
from retrieval_service.library import Library, write_library
from retrieval_service.perceptual import MODALITIES, PerceptualModality, Standardisation, join, time_average
from retrieval_service.search import VectorIndex

IndexName = Literal["text", "audio", "video", "both"]
INDEX_NAMES: tuple[IndexName, ...] = ("text", "audio", "video", "both")

_FORMAT = 1
_MANIFEST = "manifest.json"
_LIBRARY = "library.parquet"
_BUILT_FROM = ("encoder", "passage_prefix", "factory", "perceptual_factory")


@dataclass(frozen=True, slots=True)
class IndexDirectory:
    """A sound index directory; make one with `open`.

    Attributes:
        path: where it is.
        rows: rows of the library.
        names: the indexes it has; a library without features has only ``text``.
        standardisation: of each modality that the library has.
    """

    path: Path
    rows: int
    names: tuple[IndexName, ...]
    standardisation: dict[PerceptualModality, Standardisation]

    @classmethod
    def open(cls, path: Path | str, config: RetrievalConfig) -> Self:
        """Check a directory against its manifest and `config`.

        Raises:
            AffectError: it is missing, damaged, or was built with other settings.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for field in _BUILT_FROM:
            if manifest[field] != getattr(config, field):
                raise AffectError(
                    f"{path}: built with retrieval.{field}={manifest[field]!r}, but the configuration says "
                    f"{getattr(config, field)!r}; build the index again or change retrieval.{field}"
                )
        for name, digest in manifest["sha256"].items():
            if not (path / name).is_file() or sha256(path / name) != digest:
                raise AffectError(
                    f"{path / name}: missing or not what {_MANIFEST} says; delete {path} and build the index again"
                )
        return cls._from_manifest(path, manifest)

    @classmethod
    def reopen(cls, path: Path | str) -> Self:
        """The same without reading every file: for actors, once the driver has checked the directory."""
        return cls._from_manifest(Path(path), _read_manifest(Path(path)))

    @classmethod
    def _from_manifest(cls, path: Path, manifest: dict[str, Any]) -> Self:
        standardisation = {m: Standardisation.from_json(x) for m, x in manifest["standardisation"].items()}
        return cls(path, manifest["rows"], tuple(manifest["indexes"]), standardisation)

    def library(self) -> Library:
        return Library(self.path / _LIBRARY, {m: s.dim for m, s in self.standardisation.items()})

    def vector_index(
        self,
        name: IndexName,
        config: RetrievalConfig,
        shard: int = 0,
        shards: int = 1,
        place: Callable[[faiss.Index], faiss.Index] | None = None,
    ) -> VectorIndex:
        """One shard of an index; shards hold successive blocks of library rows. `place`: see `VectorIndex`."""
        rows = np.load(self.path / f"{name}.rows.npy", allow_pickle=False)
        vectors = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        first, end = np.searchsorted(rows, [self.rows * shard // shards, self.rows * (shard + 1) // shards])
        trained = faiss.read_index(str(self.path / f"{name}.faiss"))
        try:
            return VectorIndex(trained, vectors[first:end], rows[first:end], config.search_parameters, place)
        except RuntimeError as error:
            raise AffectError(
                f"retrieval.search_parameters={config.search_parameters!r}: not parameters of the index {name} with "
                f"factory {_factory(name, config)!r}; leave it empty or give those of this kind, as nprobe=16 for IVF"
            ) from error


def build_index(samples: Iterable[AffectSample], index_dir: Path | str, config: RetrievalConfig) -> Path:
    """Encode and index a library; `index_dir` appears whole or not at all.

    Args:
        samples: the library; training samples are left out unless `config.library_splits` names them.
        index_dir: where to write; an index of other content or settings there is replaced, as is a damaged one.
        config: encoder and FAISS factories.

    Raises:
        AffectError: the library has dev or test samples, is empty, repeats an id, has features of two
            widths, or does not fit the factory; or `index_dir` holds something that is not an index.
    """
    from retrieval_service.encoder import TextEncoder  # torch is wanted only where something is encoded

    target = Path(index_dir)
    if target.exists() and not (target / _MANIFEST).is_file() and any(target.iterdir()):
        raise AffectError(
            f"{target}: not an index directory, so it is not overwritten; set retrieval.index_dir to another"
        )
    library = library_of(samples, config)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"  # jobs that share a dataset may all build it
    temporary.mkdir()
    try:
        write_library(library, temporary / _LIBRARY)
        vectors = TextEncoder(config).encode_passages([render_evidence(sample) for sample in library])
        _write_index(temporary, "text", vectors, np.arange(len(library)), config)
        standardisation = _write_perceptual(temporary, library, config)
        _write_manifest(temporary, library, standardisation, config)
        if not _holds(target, _read_manifest(temporary)["content"], config):  # else another job was faster
            replace_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def ensure_index(samples: Iterable[AffectSample], indexes: Path | str, config: RetrievalConfig) -> Path:
    """The index of this library and these settings in the directory `indexes`, built there if it is not yet.

    Its name is a hash of all that it is built from. So no job replaces what another one reads, whose shards come back
    to it when they are restarted.

    Raises:
        AffectError: see `build_index`.
    """
    library = library_of(samples, config)
    content = content_hash(library)
    built_from = [_FORMAT, content, *(getattr(config, field) for field in _BUILT_FROM)]
    target = Path(indexes) / hashlib.sha256(json.dumps(built_from).encode()).hexdigest()[:16]
    return target if _holds(target, content, config) else build_index(library, target, config)


def _holds(index_dir: Path, content: str, config: RetrievalConfig) -> bool:
    """Whether a sound index of this content and these settings is there."""
    try:
        IndexDirectory.open(index_dir, config)
    except AffectError:
        return False
    return bool(_read_manifest(index_dir)["content"] == content)


def library_of(samples: Iterable[AffectSample], config: RetrievalConfig) -> list[AffectSample]:
    """The samples that may be retrieved, checked.

    Raises:
        AffectError: see `build_index`.
    """
    library, seen = [], set()
    widths: dict[str, int] = {}
    for sample in samples:
        if sample.split in ("dev", "test"):
            raise AffectError(
                f"sample {sample.id!r} is in split {sample.split!r} and must not be in the evidence library; pass only "
                "samples of the library and train splits"
            )
        if sample.split not in config.library_splits:
            continue
        if sample.id in seen:
            raise AffectError(f"sample id {sample.id!r} is twice in the library; ids must be unique in a dataset")
        seen.add(sample.id)
        for modality in MODALITIES:
            frames = getattr(sample, modality)
            if frames is None:
                continue
            if frames.ndim != 2 or widths.setdefault(modality, frames.shape[1]) != frames.shape[1]:
                raise AffectError(
                    f"sample {sample.id!r}: {modality} features have shape {frames.shape}, others [T, "
                    f"{widths.get(modality, 'd')}]; all samples of a dataset need the same width"
                )
        library.append(sample)
    if not library:
        raise AffectError(
            f"the library is empty: no sample is in a split of retrieval.library_splits={config.library_splits}; add "
            "splits, or set team.retrieval=false"
        )
    return library


def content_hash(library: Iterable[AffectSample]) -> str:
    """SHA-256 of everything that an index takes from its samples, in their order."""
    digest = hashlib.sha256()
    for s in library:
        fields = [s.id, s.clip, s.dialogue, s.speaker, s.text, s.description, s.labels]
        digest.update(json.dumps(fields, ensure_ascii=False).encode())
        for modality in MODALITIES:
            frames = getattr(s, modality)
            digest.update(b"none" if frames is None else repr(frames.shape).encode() + frames.astype("<f4").tobytes())
    return digest.hexdigest()


def _write_perceptual(
    directory: Path, library: Sequence[AffectSample], config: RetrievalConfig
) -> dict[PerceptualModality, Standardisation]:
    standardisation: dict[PerceptualModality, Standardisation] = {}
    vectors: dict[PerceptualModality, np.ndarray] = {}
    rows: dict[PerceptualModality, np.ndarray] = {}
    for modality in MODALITIES:
        frames = {row: x for row, s in enumerate(library) if (x := getattr(s, modality)) is not None and len(x)}
        if frames:
            averages = np.stack([time_average(x) for x in frames.values()])
            standardisation[modality] = Standardisation.fit(averages)
            vectors[modality] = standardisation[modality].unit_vectors(averages)
            rows[modality] = np.array(list(frames))
            _write_index(directory, modality, vectors[modality], rows[modality], config)
    if len(rows) == len(MODALITIES):
        shared = np.intersect1d(rows["audio"], rows["video"])
        if len(shared):
            halves = [vectors[m][np.searchsorted(rows[m], shared)] for m in MODALITIES]
            _write_index(directory, "both", join(halves), shared, config)
    return standardisation


def _write_index(
    directory: Path, name: IndexName, vectors: np.ndarray, rows: np.ndarray, config: RetrievalConfig
) -> None:
    factory = _factory(name, config)
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
    except RuntimeError as error:
        field = "factory" if name == "text" else "perceptual_factory"
        raise AffectError(
            f"retrieval.{field}={factory!r} does not fit the index {name!r} of {len(vectors)} vectors, "
            f"{vectors.shape[1]} wide ({_reason(error)}); use 'Flat', or lists and codes that suit this size"
        ) from error
    faiss.write_index(index, str(directory / f"{name}.faiss"))
    np.save(directory / f"{name}.npy", vectors, allow_pickle=False)
    np.save(directory / f"{name}.rows.npy", rows.astype(np.int64), allow_pickle=False)


def _factory(name: IndexName, config: RetrievalConfig) -> str:
    return config.factory if name == "text" else config.perceptual_factory


def _reason(error: RuntimeError) -> str:
    """FAISS's own words, without its source path and line."""
    return str(error).rsplit("Error: ", 1)[-1].rsplit(".cpp:", 1)[-1].strip()


def _write_manifest(
    directory: Path,
    library: Sequence[AffectSample],
    standardisation: dict[PerceptualModality, Standardisation],
    config: RetrievalConfig,
) -> None:
    files = sorted(path for path in directory.iterdir())
    manifest = {
        "format": _FORMAT,
        "rows": len(library),
        "content": content_hash(library),
        **{field: getattr(config, field) for field in _BUILT_FROM},
        "indexes": [name for name in INDEX_NAMES if (directory / f"{name}.npy").is_file()],
        "standardisation": {m: s.to_json() for m, s in standardisation.items()},
        "sha256": {path.name: sha256(path) for path in files},
    }
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / _MANIFEST).is_file():
        raise AffectError(
            f"{path}: no {_MANIFEST}, so this is not an index directory; leave retrieval.index_dir empty to "
            "have one built"
        )
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        version = manifest["format"]
        missing = {"rows", "content", "indexes", "standardisation", "sha256", *_BUILT_FROM} - set(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise AffectError(f"{path / _MANIFEST}: cannot be read; delete {path} and build the index again") from error
    if version != _FORMAT:
        raise AffectError(f"{path}: index format {version}, this version reads {_FORMAT}; build the index again")
    if missing:
        raise AffectError(f"{path / _MANIFEST}: {sorted(missing)} missing; delete {path} and build the index again")
    return manifest
