"""The dataset directory: what goes in comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from affect_rl.data import dataset as dataset_module
from affect_rl.data.dataset import MEDIA, Dataset, check_free, write_dataset
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample


def equal(a: AffectSample, b: AffectSample) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(AffectSample))
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def test_round_trip(tmp_path: Path, samples: list[AffectSample]) -> None:
    loaded = Dataset.load(write_dataset(tmp_path / "d", samples, name="made-up", note="made up"))
    assert loaded.counts == {"train": 2, "dev": 1, "test": 1}
    assert (loaded.name, loaded.label_kind, loaded.candidates) == ("made-up", "closed", ("anger", "joy"))
    assert (loaded.audio_dim, loaded.video_dim, loaded.manifest.note) == (3, 4, "made up")
    back = [sample for split in loaded.counts for sample in loaded.samples(split)]
    assert all(equal(a, b) for a, b in zip(samples, back, strict=True))
    assert back[0].audio is not None and back[0].audio.dtype == np.float32 and back[0].audio.flags.writeable


features = st.one_of(
    st.none(),
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(features, st.text('ab ’é\n"', min_size=1).filter(str.strip)), min_size=1, max_size=6))
def test_any_mixture_of_features_and_text_survives(tmp_path: Path, sample, rows) -> None:
    samples = [sample(id=f"u{i}", audio=audio, text=text) for i, (audio, text) in enumerate(rows)]
    back = Dataset.load(write_dataset(tmp_path / "d", samples, name="x", overwrite=True)).samples("train")
    assert all(equal(a, b) for a, b in zip(samples, back, strict=True))


def test_limit_and_cache(tmp_path: Path, samples: list[AffectSample]) -> None:
    loaded = Dataset.load(write_dataset(tmp_path / "d", samples, name="made-up"))
    train = loaded.samples("train")
    assert loaded.samples("train", limit=2) is train is loaded.samples("train", limit=9)
    assert any(loaded.samples("train", limit=1)[0] is sample for sample in train)
    assert loaded.samples("library") == []


def test_a_limited_split_is_a_fair_sample_in_file_order(tmp_path: Path, sample: Callable[..., AffectSample]) -> None:
    path = write_dataset(tmp_path / "d", [sample(id=f"{i:03}") for i in range(200)], name="x")
    some = [int(s.id) for s in Dataset.load(path).samples("train", limit=100)]
    assert some == [int(s.id) for s in Dataset.load(path).samples("train", limit=100)]
    assert len(set(some)) == 100 and some == sorted(some)
    assert 75 < np.mean(some) < 125  # the mean of a fair draw has a standard deviation of 4


def test_any_parquet_reader_shows_the_features(tmp_path: Path, samples: list[AffectSample]) -> None:
    path = write_dataset(tmp_path / "d", samples, name="made-up") / "train.parquet"
    assert pq.read_table(path)["audio"].to_pylist() == [[[0, 1, 2], [3, 4, 5]], None]


def test_overwriting_replaces_all_files(tmp_path: Path, samples: list[AffectSample]) -> None:
    write_dataset(tmp_path / "d", samples, name="made-up")
    write_dataset(tmp_path / "d", samples[:1], name="smaller", overwrite=True)
    assert Dataset.load(tmp_path / "d").counts == {"train": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_failed_write_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, samples: list[AffectSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "d", samples, name="made-up")
    monkeypatch.setattr(dataset_module, "MANIFEST", "no/such/directory.json")
    with pytest.raises(FileNotFoundError):
        write_dataset(tmp_path / "e", samples, name="other")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert Dataset.load(tmp_path / "d").name == "made-up"


def test_what_a_killed_run_left_is_no_hindrance_and_goes(tmp_path: Path, samples: list[AffectSample]) -> None:
    write_dataset(tmp_path / "d", samples, name="made-up")
    for left in ("d.partial", "d.partial.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "train.parquet").write_text("half a file")
    write_dataset(tmp_path / "d", samples, name="second", overwrite=True)
    assert Dataset.load(tmp_path / "d").name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_old_dataset_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, samples: list[AffectSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(path: Path, target: Path) -> Path:
        if path.name == "d.partial":
            raise OSError("the disk is gone")
        return real(path, target)

    write_dataset(tmp_path / "d", samples, name="made-up")
    real = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="the disk is gone"):
        write_dataset(tmp_path / "d", samples, name="second", overwrite=True)
    assert Dataset.load(tmp_path / "d").name == "made-up"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_mount_point_is_refused_before_any_work() -> None:
    with pytest.raises(AffectError, match="/proc: is a mount point, which nothing can replace; choose a directory in"):
        check_free(Path("/proc"), overwrite=True)


def test_media_are_written_with_the_dataset_or_not_at_all(
    tmp_path: Path, samples: list[AffectSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    media = pa.table({"sample_id": [sample.id for sample in samples]})
    assert pq.read_table(write_dataset(tmp_path / "d", samples, name="x", media=media) / MEDIA) == media
    monkeypatch.setattr(dataset_module, "MEDIA", "no/such/directory.parquet")
    with pytest.raises(FileNotFoundError):
        write_dataset(tmp_path / "e", samples, name="x", media=media)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_more_numbers_than_a_file_holds_are_refused(
    tmp_path: Path, samples: list[AffectSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "MOST_NUMBERS", 5)
    with pytest.raises(
        AffectError, match=r"d/train\.parquet: audio features are 6 numbers, a file holds 5; make fewer"
    ):
        write_dataset(tmp_path / "d", samples, name="x")
    assert not list(tmp_path.iterdir())


def test_the_library_may_share_clips(tmp_path: Path, samples: list[AffectSample]) -> None:
    library = replace(samples[3], id="u5", split="library")
    assert Dataset.load(write_dataset(tmp_path / "d", [*samples, library], name="x")).counts["library"] == 1


def test_open_labels(tmp_path: Path, sample) -> None:
    written = write_dataset(
        tmp_path / "d", [sample(label_kind="open", candidates=(), labels=("elated", "shy"))], name="x"
    )
    assert Dataset.load(written).samples("train")[0].labels == ("elated", "shy")
