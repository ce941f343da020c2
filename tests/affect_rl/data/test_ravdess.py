"""Import of RAVDESS, from made-up copies of its layouts and from the recordings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affect_rl.data.dataset import MEDIA, Dataset
from affect_rl.data.ravdess import CANDIDATES, FACE_EMOTIONS, FACE_NAMES, import_ravdess, split_of
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One take of each of the 24 actors, as sound and as film; one of them sings as well."""
    names = [f"03-01-{1 + actor % 8:02}-01-01-01-{actor:02}" for actor in range(1, 25)]
    voices = [f"Audio/Actor_{name[-2:]}/{name}.wav" for name in names]
    films = [f"Video/Actor_{name[-2:]}/01{name[2:]}.mp4" for name in names[:-1]]
    return touch(tmp_path / "ravdess", *voices, *films, "Song/03-02-01-01-01-01-01.wav")


def faces(root: Path, clip: str, frames: int = 20) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(7), size=frames).astype(np.float32)
    columns = {"clip": [clip] * frames, "frame": list(range(frames))[::-1]}
    columns |= {name: shares[::-1, place] for place, name in enumerate(FACE_EMOTIONS)}
    pq.write_table(pa.table(columns), root / "faces.parquet")


def read(directory: Path) -> dict[str, AffectSample]:
    dataset = Dataset.load(directory)
    return {sample.id: sample for split in dataset.counts for sample in dataset.samples(split)}


def test_takes_are_found_by_name_wherever_they_are(root: Path, tmp_path: Path) -> None:
    report = import_ravdess(root, tmp_path / "out")
    assert report.counts == {"train": 16, "dev": 4, "test": 4} and report.skipped == 0
    sample = read(tmp_path / "out")["03-01-05-01-01-01-12"]
    assert (sample.labels, sample.speaker, sample.text) == (("angry",), "actor-12", "Kids are talking by the door.")
    assert sample.candidates == CANDIDATES and sample.description == "" and sample.video is None
    media = {row["sample_id"]: row for row in pq.read_table(tmp_path / "out" / MEDIA).to_pylist()}
    assert media["03-01-05-01-01-01-12"]["audio"] == "Audio/Actor_12/03-01-05-01-01-01-12.wav"
    assert media["03-01-05-01-01-01-12"]["video"] == "Video/Actor_12/01-01-05-01-01-01-12.mp4"
    assert "1 of 24 takes have no video" in report.notes


def test_a_film_alone_has_both(tmp_path: Path) -> None:
    names = [f"01-01-02-01-02-01-{actor:02}.mp4" for actor in range(1, 7)]
    import_ravdess(touch(tmp_path / "in", *names), tmp_path / "out")
    media = pq.read_table(tmp_path / "out" / MEDIA).to_pylist()
    assert {row["audio"] for row in media} == {row["video"] for row in media} == set(names)


def test_folds_divide_the_actors_evenly() -> None:
    tested = Counter(actor for fold in range(6) for actor in range(1, 25) if split_of(actor, fold) == "test")
    assert tested == dict.fromkeys(range(1, 25), 1)
    for fold in range(6):
        splits = Counter((split_of(actor, fold), actor % 2) for actor in range(1, 25))
        assert splits == {(s, sex): n for s, n in (("train", 8), ("dev", 2), ("test", 2)) for sex in (0, 1)}


def test_faces_become_features_in_the_order_of_the_pictures(root: Path, tmp_path: Path) -> None:
    clip = "03-01-02-01-01-01-01"
    faces(root, clip, frames=8)
    import_ravdess(root, tmp_path / "out")
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.manifest.video_names == FACE_NAMES and dataset.video_dim == 14
    shares = np.random.default_rng(0).dirichlet(np.ones(7), size=8).astype(np.float32)
    video = read(tmp_path / "out")[clip].video
    assert video is not None
    np.testing.assert_allclose(video, np.concatenate([shares, np.zeros_like(shares)], axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.wav", "notes.wav is not named like 03-01-05-02-01-01-12.wav; rename or remove it"),
        ("03-01-09-01-01-01-01.wav", "emotion 09 of 03-01-09-01-01-01-01 is unknown; there are 01 to 08"),
        ("03-01-01-01-01-01-25.wav", "actor 25 of 03-01-01-01-01-01-25 is unknown; there are 01 to 24"),
        ("04-01-01-01-01-01-01.wav", "modality 04 is unknown"),
        ("01-01-01-01-01-01-01.wav", "modality 01 has pictures, which a .wav cannot hold"),
    ],
)
def test_odd_files_are_bad_rows(root: Path, name: str, message: str, tmp_path: Path) -> None:
    touch(root, f"more/{name}")
    with pytest.raises(AffectError) as caught:
        import_ravdess(root, tmp_path / "out")
    assert message in str(caught.value) and not (tmp_path / "out").exists()
    report = import_ravdess(root, tmp_path / "out", skip_bad=True)
    assert sum(report.counts.values()) == 24 and len(report.bad_rows) == 1


def test_nothing_to_import_and_a_broken_table_of_faces(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AffectError, match="holds no recording such as"):
        import_ravdess(tmp_path / "empty", tmp_path / "out")
    (root / "faces.parquet").write_text("no table")
    with pytest.raises(AffectError, match=r"faces.parquet: is damaged"):
        import_ravdess(root, tmp_path / "out")
    pq.write_table(pa.table({"clip": ["a"], "frame": [0]}), root / "faces.parquet")
    with pytest.raises(AffectError, match="column 'angry' is missing"):
        import_ravdess(root, tmp_path / "out")
    with pytest.raises(AffectError, match="fold=6: choose 0 to 5"):
        import_ravdess(root, tmp_path / "out", fold=6)


def test_the_recordings(shared_data: Path, tmp_path: Path) -> None:
    report = import_ravdess(shared_data / "ravdess", tmp_path / "out", fold=3)
    assert report.counts == {"train": 960, "dev": 240, "test": 240}
    samples = read(tmp_path / "out").values()
    counts = Counter(sample.labels[0] for sample in samples)
    assert counts == {"neutral": 96, **dict.fromkeys(CANDIDATES[1:], 192)}
    assert all(s.video is not None and np.allclose(s.video[:, :7].sum(axis=1), 1, atol=0.01) for s in samples)
