"""Importers, on made-up copies of the layouts and on the real data."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from affect_rl.data.crema_d import CANDIDATES, Votes, describe, features, import_crema_d
from affect_rl.data.dataset import Dataset
from affect_rl.data.meld import import_meld
from affect_rl.data.mosi import import_mosi
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample


def all_samples(directory: Path) -> dict[str, AffectSample]:
    dataset = Dataset.load(directory)
    return {sample.id: sample for split in dataset.counts for sample in dataset.samples(split)}


def votes(counts: list[int], intensity: float = 60) -> Votes:
    return Votes(np.array(counts), np.array([intensity if count else np.nan for count in counts]))


def test_crema_d(crema_d: Path, tmp_path: Path) -> None:
    report = import_crema_d(crema_d, tmp_path / "out")
    assert report.counts == {"train": 7, "dev": 1, "test": 2} and report.skipped == 0
    samples = all_samples(report.directory)
    tie, plain = samples["1001_IEO_ANG_HI"], samples["1002_IEO_ANG_HI"]
    assert tie.labels == ("anger", "disgust") and plain.labels == ("anger",)
    assert plain.text == "It's eleven o'clock." and plain.speaker == "1002" and plain.candidates == CANDIDATES
    assert plain.description == "voice mostly neutral, some sad, moderate; face clearly happy, strong"
    assert plain.audio is not None and plain.audio.shape == (1, 18) and plain.video is not None


def test_crema_d_features_are_log_shares_intensities_and_presence() -> None:
    frame = features(votes([0, 0, 0, 0, 8, 2], intensity=50))[0]
    shares = np.exp(frame[:6]) / 6
    assert shares.sum() == pytest.approx(1, abs=1e-6) and shares[4] == pytest.approx(8.5 / 13)
    assert frame[6:].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 1, 1]
    assert features(votes([2, 2, 2, 2, 2, 2]))[0, :6] == pytest.approx(0, abs=1e-6)


def test_crema_d_description_names_channels_only() -> None:
    assert describe(None, votes([5, 5, 0, 0, 0, 0], 30)) == "face partly angry, partly disgusted, weak"
    assert describe(None, None) == ""


def test_crema_d_label_votes_enter_nothing_but_the_label(crema_d: Path, tmp_path: Path, edit) -> None:
    before = all_samples(import_crema_d(crema_d, tmp_path / "before").directory)["1002_IEO_ANG_HI"]
    edit(crema_d / "tabulatedVotes.csv", "300002,9,1,0,0,0,0", "300002,0,0,0,1,9,0")
    after = all_samples(import_crema_d(crema_d, tmp_path / "after").directory)["1002_IEO_ANG_HI"]
    assert (before.labels, after.labels) == (("anger",), ("neutral",))
    assert before.description == after.description and np.array_equal(before.audio, after.audio)
    assert np.array_equal(before.video, after.video)


def test_crema_d_a_missing_channel_is_an_absent_modality(crema_d: Path, tmp_path: Path) -> None:
    table = crema_d / "tabulatedVotes.csv"
    table.write_text("".join(line for line in table.open() if not line.startswith("100003")))
    sample = all_samples(import_crema_d(crema_d, tmp_path / "out").directory)["1003_IEO_ANG_HI"]
    assert sample.audio is None and sample.video is not None and sample.description == "face clearly happy, strong"


def test_crema_d_splits_depend_on_the_seed_alone(crema_d: Path, tmp_path: Path) -> None:
    def splits(name: str, seed: int) -> dict[str, str]:
        return {
            s.id: s.split for s in all_samples(import_crema_d(crema_d, tmp_path / name, seed=seed).directory).values()
        }

    assert splits("a", 0) == splits("b", 0) != splits("c", 1)


def test_meld(meld: Path, tmp_path: Path) -> None:
    report = import_meld(meld, tmp_path / "out")
    assert report.counts == {"train": 3, "dev": 3, "test": 3}
    samples = all_samples(report.directory)
    answer = samples["train_0_1"]
    assert (answer.speaker, answer.dialogue, answer.clip, answer.labels) == ("Ross", "train_0", "train_0", ("neutral",))
    assert answer.description == 'Ross says: "Oh, I don’t know.", after Rachel said: "Are you coming?"'
    assert samples["dev_0_0"].description == 'Rachel says: "Are you coming?"'


def test_mosi(mosi: Path, tmp_path: Path) -> None:
    report = import_mosi(mosi, tmp_path / "out", dev_videos=1)
    assert report.counts == {"train": 6, "dev": 3, "test": 3}
    dataset = Dataset.load(report.directory)
    assert (dataset.label_kind, dataset.audio_dim, dataset.video_dim) == ("sentiment", 73, 0)
    train = dataset.samples("train")
    frames = np.concatenate([s.audio for s in train if s.audio is not None])
    assert frames.mean(axis=0) == pytest.approx(0, abs=1e-5) and frames.std(axis=0) == pytest.approx(1, abs=1e-4)
    sample = all_samples(report.directory)["vid_3_1"]
    assert (sample.text, sample.clip, sample.labels, sample.speaker) == ("fine film 10", "vid_3", ("negative",), "")
    assert not {s.clip for s in train} & {s.clip for s in dataset.samples("dev")}


def test_mosi_leaking_features_need_insistence(mosi: Path, tmp_path: Path) -> None:
    refused = import_mosi(mosi, tmp_path / "refused", dev_videos=1)
    assert "networks trained on the train labels" in refused.notes[0] and "--allow-leaking-features" in refused.notes[0]
    allowed = Dataset.load(import_mosi(mosi, tmp_path / "in", dev_videos=1, allow_leaking_features=True).directory)
    assert allowed.video_dim == 100 and "LEAK" in allowed.manifest.note


def test_skipping_bad_rows_says_how_many(meld: Path, tmp_path: Path, edit) -> None:
    edit(meld / "train_sent_emo.csv", "Joey,joy", "Joey,joyy")
    edit(meld / "dev_sent_emo.csv", "Great!", "")
    edit(meld / "test_sent_emo.csv", "Great!", "Great, yes")
    report = import_meld(meld, tmp_path / "out", skip_bad=True)
    assert report.skipped == 3 and report.counts == {"train": 2, "dev": 2, "test": 2}
    assert [str(bad) for bad in report.bad_rows] == [
        "dev_sent_emo.csv:4: Utterance is empty; fill it in, or remove the row",
        "test_sent_emo.csv:4: has 8 cells where 7 are expected; check its quotes and commas",
        "train_sent_emo.csv:4: Emotion 'joyy' is unknown; did you mean 'joy'?",
    ]


def test_only_line_breaks_end_a_row_and_empty_lines_are_none(meld: Path, tmp_path: Path, edit) -> None:
    """Subtitles hold line separators (U+2028), which Python's text takes for line breaks as well."""
    table = meld / "train_sent_emo.csv"
    table.write_text(table.read_text("utf-8").replace("Great!", "Great,\u2028or so\x0b!") + "\n", "utf-8")
    edit(table, "Great,", '"Great,')
    edit(table, "!,Joey", '!",Joey')
    edit(table, "2,Are", "\n2,Are")
    report = import_meld(meld, tmp_path / "out")
    assert report.counts["train"] == 3 and report.skipped == 0
    assert all_samples(report.directory)["train_1_0"].text == "Great,\u2028or so\x0b!"


def test_skipping_bad_rows_keeps_mosi_aligned(mosi: Path, tmp_path: Path) -> None:
    whole = all_samples(import_mosi(mosi, tmp_path / "whole", dev_videos=0).directory)
    table = mosi / "audio/audio_test0.csv"
    lines = table.read_text().splitlines(keepends=True)
    lines[0] = "1,2,3\n"
    table.write_text("".join(lines))
    report = import_mosi(mosi, tmp_path / "out", dev_videos=0, skip_bad=True)
    assert report.skipped == 1 and report.counts["test"] == 2
    kept = all_samples(report.directory)
    assert "vid_3_0" not in kept and np.array_equal(kept["vid_3_2"].audio, whole["vid_3_2"].audio)


def test_a_bad_vote_row_leaves_out_its_clip(crema_d: Path, tmp_path: Path, edit) -> None:
    edit(crema_d / "tabulatedVotes.csv", "200004,0", "200004,x")
    report = import_crema_d(crema_d, tmp_path / "out", skip_bad=True)
    assert report.skipped == 1 and "1004_IEO_ANG_HI" not in all_samples(report.directory)


def test_nothing_is_written_for_a_bad_row(meld: Path, tmp_path: Path, edit) -> None:
    edit(meld / "test_sent_emo.csv", "Joey,joy", "Joey,joyy")
    with pytest.raises(AffectError, match=r"1 bad row\(s\), so nothing was written"):
        import_meld(meld, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["meld"]


# -- real data ---------------------------------------------------------------------------------------


def test_real_crema_d(shared_data: Path, tmp_path: Path) -> None:
    report = import_crema_d(shared_data / "crema_d", tmp_path / "out")
    assert sum(report.counts.values()) == 7442 and report.skipped == 0
    samples = all_samples(report.directory)
    names = dict(zip("ADFHNS", CANDIDATES, strict=True))
    with (shared_data / "crema_d/summaryTable.csv").open() as file:
        published = {r["FileName"]: {names[v] for v in r["MultiModalVote"].split(":")} for r in csv.DictReader(file)}
    assert {name: set(sample.labels) for name, sample in samples.items()} == published
    assert sum(len(sample.labels) > 1 for sample in samples.values()) == 420
    actors = Counter(split for _, split in {(s.speaker, s.split) for s in samples.values()})
    assert actors == {"train": 64, "dev": 9, "test": 18}
    assert len({sample.text for sample in samples.values()}) == 12


def test_real_meld(shared_data: Path, tmp_path: Path) -> None:
    report = import_meld(shared_data / "meld", tmp_path / "out")
    assert report.counts == {"train": 9989, "dev": 1109, "test": 2610}
    test = Counter(sample.labels[0] for sample in Dataset.load(report.directory).samples("test"))
    assert test["neutral"] == 1256 and test["joy"] == 402


def test_real_mosi(shared_data: Path, tmp_path: Path) -> None:
    report = import_mosi(shared_data / "mosi", tmp_path / "out")
    assert report.counts["train"] + report.counts["dev"] == 1447 and report.counts["test"] == 752
    dataset = Dataset.load(report.directory)
    videos = {split: {sample.clip for sample in dataset.samples(split)} for split in dataset.counts}
    assert {split: len(clips) for split, clips in videos.items()} == {"train": 52, "dev": 10, "test": 31}
