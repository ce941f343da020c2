"""Parts: what is written is what is read, and a name stands for one content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.data import feature_parts
from affect_rl.data.extraction import Checkpoint, Extraction
from affect_rl.data.feature_parts import Features, MediaFiles, is_finished, part_name, read_part, write_part
from affect_rl.errors import AffectError

EXTRACTION = Extraction(Checkpoint("speech", "aa"), Checkpoint("image", "bb"), frames=3, segments=2)


@given(present=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_part_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, present: list[tuple[bool, bool]]
) -> None:
    random = np.random.default_rng(len(present))
    features = [
        Features(
            f"u{i}",
            random.normal(size=(2, 5)).astype(np.float32) if audio else None,
            random.normal(size=(3, 4)).astype(np.float32) if video else None,
            () if audio else ("a.wav: is missing; mend it",),
        )
        for i, (audio, video) in enumerate(present)
    ]
    path = tmp_path_factory.mktemp("parts") / "p.parquet"
    write_part(path, features)
    assert list(path.parent.iterdir()) == [path]
    found = list(read_part(path, EXTRACTION))
    assert [(f.sample_id, f.problems) for f in found] == [(f.sample_id, f.problems) for f in features]
    for mine, theirs in zip(found, features, strict=True):
        for a, b in ((mine.audio, theirs.audio), (mine.video, theirs.video)):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert a.dtype == np.float32 and a.flags.writeable


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(AffectError, match=r"p\.parquet: is damaged .*; delete it and run the extraction again"):
        list(read_part(path, EXTRACTION))
    with pytest.raises(AffectError, match=r"p\.parquet: is damaged .*; delete it and run the extraction again"):
        is_finished(path, skip_bad=False)


def test_a_part_with_problems_is_finished_only_for_those_who_skip_them(tmp_path: Path) -> None:
    sound = Features("u1", np.ones((2, 5), np.float32), None, ())
    assert not is_finished(tmp_path / "sound.parquet", skip_bad=True)
    write_part(tmp_path / "sound.parquet", [sound])
    write_part(tmp_path / "bad.parquet", [sound, Features("u2", None, None, ("a.wav: audio: is missing; mend it",))])
    assert is_finished(tmp_path / "sound.parquet", skip_bad=False)
    assert not is_finished(tmp_path / "bad.parquet", skip_bad=False)
    assert is_finished(tmp_path / "bad.parquet", skip_bad=True)


def test_a_name_depends_on_all_that_the_content_does(tmp_path: Path) -> None:
    sound, clip = tmp_path / "a.wav", tmp_path / "a.mp4"
    sound.write_bytes(b"one")
    clip.write_bytes(b"one")
    media = [MediaFiles("u1", sound, clip), MediaFiles("u2", None, clip)]
    name = part_name(EXTRACTION, media)
    assert name == part_name(EXTRACTION, [MediaFiles("u1", sound, clip), MediaFiles("u2", None, clip)])
    others = [
        part_name(replace(EXTRACTION, speech=Checkpoint("speech", "other")), media),
        part_name(replace(EXTRACTION, speech=None), media),
        part_name(replace(EXTRACTION, image=Checkpoint("other", "bb")), media),
        part_name(replace(EXTRACTION, source="face"), media),
        part_name(replace(EXTRACTION, frames=4), media),
        part_name(replace(EXTRACTION, segments=4), media),
        part_name(EXTRACTION, media[:1]),
        part_name(EXTRACTION, media[::-1]),
        part_name(EXTRACTION, [MediaFiles("u1", clip, sound), media[1]]),
        part_name(EXTRACTION, [media[0], MediaFiles("u3", None, clip)]),
    ]
    sound.write_bytes(b"longer")
    others.append(part_name(EXTRACTION, media))
    sound.unlink()
    others.append(part_name(EXTRACTION, media))
    assert len({name, *others}) == 1 + len(others)


@pytest.mark.parametrize("version", ["_FORMAT", "av.__version__", "transformers.__version__"])
def test_another_version_of_the_code_makes_parts_of_its_own(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = part_name(EXTRACTION, [])
    monkeypatch.setattr(f"{feature_parts.__name__}.{version}", "next")
    assert part_name(EXTRACTION, []) != name


def test_settings_in_words() -> None:
    assert str(EXTRACTION) == (
        "Features by affect-rl data extract; audio: 2 windows of speech (aa); video: 3 pictures of video, image (bb)."
    )
