"""Index directories: built whole, recognised when stale, refused when damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from retrieval_service.index import IndexDirectory, build_index, ensure_index, library_of

CONFIG = RetrievalConfig()


@pytest.fixture
def damaged(evidence_index: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(evidence_index, tmp_path / "index"))


def test_a_directory_holds_every_index_of_the_library(
    evidence_index: Path, evidence_library: list[AffectSample]
) -> None:
    directory = IndexDirectory.open(evidence_index, CONFIG)
    assert directory.rows == len(evidence_library)
    assert directory.names == ("text", "audio", "video", "both")
    assert directory.standardisation["audio"].dim == 5 and directory.standardisation["video"].dim == 7


def test_a_library_without_features_has_a_text_index_only(evidence_library: list[AffectSample], tmp_path: Path) -> None:
    bare = [replace(sample, audio=None, video=None) for sample in evidence_library[:9]]
    path = build_index(bare, tmp_path / "index", CONFIG)
    assert IndexDirectory.open(path, CONFIG).names == ("text",)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_an_index_is_built_once_and_never_replaced(evidence_library: list[AffectSample], tmp_path: Path) -> None:
    samples = evidence_library[:12]
    variants = [
        (samples, CONFIG),
        ([replace(samples[0], description="another one"), *samples[1:]], CONFIG),
        ([*samples[:2], replace(samples[2], audio=np.zeros((1, 5), np.float32)), *samples[3:]], CONFIG),
        (samples, RetrievalConfig(library_splits=("library",))),
        (samples, RetrievalConfig(passage_prefix="passage: ")),
    ]
    paths = [ensure_index(library, tmp_path, config) for library, config in variants]
    assert len(set(paths)) == len(variants)
    built = [path.stat() for path in paths]
    again = [ensure_index(library, tmp_path, config) for library, config in variants]
    assert again == paths and [path.stat().st_ino for path in paths] == [stat.st_ino for stat in built]
    # settings that an index does not depend on
    assert ensure_index(samples, tmp_path, RetrievalConfig(shards=5, perceptual_k=1)) == paths[0]

    build_index(samples, paths[0], CONFIG)  # a job that began before the first was done
    assert paths[0].stat().st_ino == built[0].st_ino and sorted(tmp_path.iterdir()) == sorted(paths)
    (paths[0] / "text.npy").write_bytes(b"damaged")
    assert ensure_index(samples, tmp_path, CONFIG) == paths[0]
    assert IndexDirectory.open(paths[0], CONFIG).rows == 12


@pytest.mark.parametrize("split", ["dev", "test"])
def test_evaluation_samples_never_enter_a_library(
    split: str, evidence_library: list[AffectSample], tmp_path: Path
) -> None:
    leaked = [*evidence_library[:3], replace(evidence_library[3], split=split)]
    with pytest.raises(AffectError, match=rf"'utterance-3' is in split '{split}' and must not be in the evidence"):
        build_index(leaked, tmp_path / "index", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_training_samples_enter_only_if_their_split_is_named(evidence_library: list[AffectSample]) -> None:
    library = library_of(evidence_library, RetrievalConfig(library_splits=("library",)))
    assert {sample.split for sample in library} == {"library"} and len(library) == len(evidence_library) // 2


def wider_audio(samples: list[AffectSample]) -> list[AffectSample]:
    return [*samples, replace(samples[1], id="wide", audio=np.zeros((2, 9), np.float32))]


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda s: [*s, s[0]], CONFIG, r"'utterance-0' is twice in the library"),
        (wider_audio, CONFIG, r"sample 'wide': audio features have shape \(2, 9\), others \[T, 5\]"),
        (lambda s: [], CONFIG, r"library is empty.*retrieval\.library_splits"),
        (list, RetrievalConfig(factory="Flt"), r"retrieval\.factory='Flt' does not fit the index 'text'.*use 'Flat'"),
        (
            list,
            RetrievalConfig(factory="IVF999,Flat"),
            r"retrieval\.factory='IVF999,Flat' does not fit.*training points",
        ),
        (
            list,
            RetrievalConfig(perceptual_factory="IVF2,PQ3"),
            r"retrieval\.perceptual_factory='IVF2,PQ3' does not fit",
        ),
    ],
)
def test_what_cannot_be_indexed_is_refused_and_leaves_nothing(
    change: Callable[[list[AffectSample]], list[AffectSample]],
    config: RetrievalConfig,
    message: str,
    evidence_library: list[AffectSample],
    tmp_path: Path,
) -> None:
    with pytest.raises(AffectError, match=message):
        build_index(change(evidence_library[:20]), tmp_path / "index", config)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_not_overwritten(evidence_library: list[AffectSample], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AffectError, match="not an index directory, so it is not overwritten"):
        build_index(evidence_library[:3], tmp_path, CONFIG)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def edit(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"no manifest\.json, so this is not an index directory"),
        (lambda path: (path / "manifest.json").unlink(), r"no manifest\.json, so this is not an index directory"),
        (lambda path: (path / "manifest.json").write_text('{"format":'), r"manifest\.json: cannot be read; delete"),
        (lambda path: (path / "manifest.json").write_text('{"format": 1}'), r"manifest\.json: .*'content'.* missing"),
        (edit(format=99), r"index format 99, this version reads 1"),
        (edit(encoder="e5"), r"built with retrieval\.encoder='e5', but the configuration says 'minilm'"),
        (edit(factory="HNSW32"), r"built with retrieval\.factory='HNSW32', but the configuration says 'Flat'"),
        (lambda path: (path / "text.faiss").unlink(), r"text\.faiss: missing or not what manifest\.json says"),
        (lambda path: (path / "library.parquet").write_bytes(b""), r"library\.parquet: missing or not what"),
        (lambda path: (path / "both.npy").write_bytes(b"\x93NUMPY"), r"both\.npy: missing or not what"),
    ],
)
def test_damaged_directories_are_refused(damage: Callable[[Path], None], message: str, damaged: Path) -> None:
    damage(damaged)
    with pytest.raises(AffectError, match=message):
        IndexDirectory.open(damaged, CONFIG)


def test_unknown_search_parameters_are_named(evidence_index: Path) -> None:
    config = RetrievalConfig(search_parameters="nprobe=4")
    with pytest.raises(AffectError, match=r"retrieval\.search_parameters='nprobe=4': not parameters of the index text"):
        IndexDirectory.open(evidence_index, config).vector_index("text", config)


def test_shards_hold_each_row_once(evidence_index: Path) -> None:
    directory = IndexDirectory.open(evidence_index, CONFIG)
    for name in directory.names:
        every = np.load(evidence_index / f"{name}.npy")[:1]
        rows = [directory.vector_index(name, CONFIG, shard, 3).search(every, 1000).rows[0] for shard in range(3)]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.load(evidence_index / f"{name}.rows.npy"))
