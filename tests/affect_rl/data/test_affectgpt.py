"""The importers of AffectGPT's layout, on small made-up copies of all ten directories."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from affect_rl.data.affectgpt import import_affectgpt
from affect_rl.data.dataset import Dataset
from affect_rl.data.layouts import LAYOUTS
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from cluster.cli.data import data_app

ENGCHI = ["name", "chinese", "english"]
POLISH = "transcription-engchi-polish.csv"


@dataclass(frozen=True)
class Copy:
    """What one directory holds: label corpora or tables, and where media are; texts are made from names."""

    directory: str
    media: tuple[str, str, str]
    corpora: Mapping[str, Mapping[str, Any]] | None = None
    label_file: str = "label.npz"
    tables: Mapping[str, Sequence[Sequence[Any]]] | None = None

    def write(self, root: Path) -> None:
        home = root / self.directory
        home.mkdir(parents=True)
        if self.corpora is not None:
            np.savez_compressed(home / self.label_file, **self.corpora)
        for file, rows in (self.tables or {}).items():
            with (home / file).open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)
        for place in self.media:
            for name in self.names():
                path = home / place.format(name=name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    def names(self) -> list[str]:
        if self.corpora is not None:
            return [str(name) for corpus in self.corpora.values() for name in corpus]
        return [row[0] for rows in (self.tables or {}).values() for row in rows[1:]]


def engchi(names: Sequence[str], header: Sequence[str] = ENGCHI) -> list[list[str]]:
    """A table of transcripts, one row more than needed."""
    text = {"chinese": "哎，{}", "english": "Well, {}.", "sentence": "Well, {}."}
    return [list(header)] + [
        [name] + [text[column].format(name) for column in header[1:]] for name in [*names, "spare"]
    ]


def mer(names: Mapping[str, str], boxed: bool = False) -> dict[str, dict[str, Any]]:
    """A corpus of emotions by name; boxed as in files made from NumPy arrays of text."""
    box = np.str_ if boxed else str
    return {box(name): {"emo": box(label), "val": -10} for name, label in names.items()}


def numbered(labels: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    return {name: {"emo": label, "val": -10} for name, label in labels.items()}


def valued(values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    return {name: {"emo": 0, "val": np.float64(value)} for name, value in values.items()}


MER_TRAIN = {f"sample_0000000{i}": label for i, label in enumerate(["angry", "happy", "sad", "worried", "surprise"])}
MELD = {
    "train_corpus": numbered({"train_dia0_utt0": 0, "train_dia0_utt1": 1, "train_dia1_utt0": 2}),
    "val_corpus": numbered({"val_dia0_utt0": 3, "val_dia0_utt1": 4}),
    "test_corpus": numbered({"test_dia0_utt0": 5, "test_dia12_utt7": 6}),
}
IEMOCAP = {
    "Ses01F_impro01_F000": 0, "Ses02M_impro05a_M012": 1, "Ses03F_script01_1_M003": 2, "Ses04M_script02_2_F010": 3,
    "Ses05F_impro01_M003": 0, "Ses05F_impro01_F004": 1,
}  # fmt: skip
MOSI = {
    "train_corpus": valued({"03bSnISJMiM_1": 2.4, "03bSnISJMiM_2": 0.0}),
    "val_corpus": valued({"0h-zjBukYpk_2": -1.25}),
    "test_corpus": valued({"a_b_c_11": -3.0, "a_b_c_12": 3.0}),
}
SIMS = {
    "train_corpus": valued({"video_0001_0001": 0.8, "video_0002_0004": -0.2}),
    "val_corpus": valued({"video_0001_0002": 0.0}),
    "test_corpus": valued({"video_0001_0003": -1.0, "video_0003_0001": 1.0}),
}
OPEN = {"sample_00000007": "['Happy', 'excited']", "sample_00000008": "[worried, calm,Worried]", "samplenew3_1": "[]"}


def names_of(corpora: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [str(name) for corpus in corpora.values() for name in corpus]


def copies() -> dict[str, Copy]:
    mer2023 = {
        "train_corpus": mer(MER_TRAIN),
        "test1_corpus": mer({"sample_00000010": "neutral", "sample_00000011": "surprise"}),
        "test2_corpus": mer({"sample_00000020": "sad"}),
        "test3_corpus": mer({"sample_00000030": "sad"}),
    }
    mer2024 = {
        "train_corpus": mer(MER_TRAIN),
        "test1_corpus": mer({"sample_00000010": "worried"}, boxed=True),
        "test2_corpus": mer({"sample_00000020": "sad"}, boxed=True),
    }
    open_labels = [["name", "openset"], *OPEN.items()]
    reasons = [["name", "reason"], *([name, f"The voice of {name} rises, then breaks."] for name in OPEN)]
    sub = ("subaudio/{name}.wav", "subvideo/{name}.mp4", "openface_face/{name}.npy")
    flat = ("audio/{name}.wav", "video/{name}.mp4", "openface_face/{name}.npy")
    return {
        "mer2023": Copy(
            "mer2023-dataset-process", flat, mer2023, "label-6way.npz", {POLISH: engchi(names_of(mer2023))}
        ),
        "mer2024": Copy(
            "mer2024-dataset-process",
            ("audio/{name}.wav", "video/{name}.avi", "openface_face/{name}.npy"),
            mer2024,
            "label-6way.npz",
            {"transcription_merge.csv": engchi(names_of(mer2024), ["name", "chinese"])},
        ),
        "meld": Copy("meld-process", sub, MELD, tables={POLISH: engchi(names_of(MELD))}),
        "iemocap": Copy(
            "iemocap-process",
            ("subaudio/{name}.wav", "subvideo-tgt/{name}.avi", "openface_face/{name}.npy"),
            {"whole_corpus": numbered(IEMOCAP)},
            "label_4way.npz",
            {POLISH: engchi(list(IEMOCAP))},
        ),
        "cmumosi": Copy("cmumosi-process", sub, MOSI, tables={POLISH: engchi(names_of(MOSI))}),
        "cmumosei": Copy(
            "cmumosei-process",
            ("subaudio/{name}.wav", "subvideo_new/{name}.mp4", "openface_face/{name}.npy"),
            MOSI,
            tables={POLISH: engchi(names_of(MOSI))},
        ),
        "sims": Copy("sims-process", flat, SIMS, tables={POLISH: engchi(names_of(SIMS))}),
        "simsv2": Copy(
            "simsv2-process",
            ("audio/{name}.wav", "video_new/{name}.mp4", "openface_face/{name}.npy"),
            SIMS,
            tables={POLISH: engchi(names_of(SIMS))},
        ),
        "ovmerdplus": Copy(
            "ovmerdplus-process",
            flat,
            tables={"ovlabel.csv": open_labels, "subtitle_eng.csv": engchi(list(OPEN), ["name", "sentence"])},
        ),
        "mercaptionplus": Copy(
            "mer2025-dataset",
            ("audio/{name}.wav", "video/{name}.mp4", "openface_face/{name}/{name}.npy"),
            tables={
                "track2_train_mercaptionplus.csv": open_labels,
                "track3_train_mercaptionplus.csv": reasons,
                "subtitle_chieng.csv": engchi(list(OPEN)),
            },
        ),
    }


BENCHMARKS = list(copies())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten directories side by side; tests only read them."""
    path = tmp_path_factory.mktemp("dataset")
    for copy in copies().values():
        copy.write(path)
    return path


@pytest.fixture
def own_root(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a root with one benchmark's directory, for a test to change."""

    def make(benchmark: str) -> Path:
        copies()[benchmark].write(tmp_path / "dataset")
        return tmp_path / "dataset"

    return make


def load(directory: Path) -> dict[str, AffectSample]:
    dataset = Dataset.load(directory)
    return {sample.id: sample for split in dataset.counts for sample in dataset.samples(split)}


# -- what is read ------------------------------------------------------------------------------------------


def test_the_table_has_the_ten() -> None:
    assert list(LAYOUTS) == BENCHMARKS and all(name == layout.name for name, layout in LAYOUTS.items())


@pytest.mark.parametrize(
    ("benchmark", "counts"),
    [
        ("mer2023", {"train": 4, "dev": 1, "test": 2}),
        ("mer2024", {"train": 4, "dev": 1, "test": 1}),
        ("meld", {"train": 3, "dev": 2, "test": 2}),
        ("iemocap", {"train": 3, "dev": 1, "test": 2}),
        ("cmumosi", {"train": 2, "dev": 1, "test": 2}),
        ("cmumosei", {"train": 2, "dev": 1, "test": 2}),
        ("sims", {"train": 2, "dev": 1, "test": 2}),
        ("simsv2", {"train": 2, "dev": 1, "test": 2}),
        ("ovmerdplus", {"test": 3}),
        ("mercaptionplus", {"library": 3}),
    ],
)
def test_splits_and_media(benchmark: str, counts: dict[str, int], root: Path, tmp_path: Path) -> None:
    report = import_affectgpt(root, tmp_path / "out", benchmark, dev_share=0.2)
    assert report.counts == counts and report.skipped == 0 and not report.bad_rows
    dataset = Dataset.load(report.directory)
    assert dataset.name == benchmark and (dataset.audio_dim, dataset.video_dim) == (0, 0)
    samples = load(report.directory)
    assert all(s.dataset == benchmark and s.audio is None and s.video is None for s in samples.values())
    media = pq.read_table(report.directory / "media.parquet")
    assert media.column_names == ["sample_id", "audio", "video", "face"]
    assert Path(media.schema.metadata[b"root"].decode()) == root.resolve()
    assert set(media["sample_id"].to_pylist()) == set(samples)
    directory, places = copies()[benchmark].directory, copies()[benchmark].media
    for row in media.to_pylist():
        paths = [f"{directory}/{place.format(name=row['sample_id'])}" for place in places]
        assert [row["audio"], row["video"], row["face"]] == paths and all((root / path).is_file() for path in paths)


def test_mer2023(root: Path, tmp_path: Path) -> None:
    samples = load(import_affectgpt(root, tmp_path / "out", "mer2023", dev_share=0).directory)
    emotions = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    assert {name: sample.labels[0] for name, sample in samples.items() if sample.split == "train"} == MER_TRAIN
    test = samples["sample_00000011"]
    assert (test.labels, test.label_kind, test.candidates) == (("surprise",), "closed", emotions)
    assert (test.clip, test.dialogue, test.speaker, test.value) == ("sample_00000011", None, "", None)
    assert (test.text, test.language) == ("Well, sample_00000011.", "en")
    assert "sample_00000020" not in samples and "sample_00000030" not in samples


def test_mer2024_is_chinese(root: Path, tmp_path: Path) -> None:
    test = load(import_affectgpt(root, tmp_path / "out", "mer2024").directory)["sample_00000010"]
    assert (test.text, test.language, test.labels) == ("哎，sample_00000010", "zh", ("worried",))


def test_meld(root: Path, tmp_path: Path) -> None:
    samples = load(import_affectgpt(root, tmp_path / "out", "meld").directory)
    order = ["anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"]
    assert [samples[name].labels[0] for name in names_of(MELD)] == order
    utterance = samples["test_dia12_utt7"]
    assert (utterance.split, utterance.clip, utterance.dialogue) == ("test", "test_dia12", "test_dia12")
    assert samples["val_dia0_utt0"].dialogue == "val_dia0" and samples["val_dia0_utt0"].split == "dev"


def test_iemocap(root: Path, tmp_path: Path) -> None:
    samples = load(import_affectgpt(root, tmp_path / "out", "iemocap").directory)
    assert {name: s.split for name, s in samples.items()} == {
        name: {"Ses04": "dev", "Ses05": "test"}.get(name[:5], "train") for name in IEMOCAP
    }
    assert [samples[name].labels[0] for name in IEMOCAP] == ["happy", "sad", "neutral", "anger", "happy", "sad"]
    answer = samples["Ses05F_impro01_M003"]
    assert (answer.clip, answer.dialogue, answer.speaker) == ("Ses05F_impro01", "Ses05F_impro01", "Ses05M")
    assert samples["Ses03F_script01_1_M003"].dialogue == "Ses03F_script01_1"


@pytest.mark.parametrize("benchmark", ["cmumosi", "cmumosei"])
def test_mosi_and_mosei(benchmark: str, root: Path, tmp_path: Path) -> None:
    report = import_affectgpt(root, tmp_path / "out", benchmark)
    assert Dataset.load(report.directory).candidates == ("negative", "neutral", "positive")
    samples = load(report.directory)
    assert {name: (s.value, s.labels[0]) for name, s in samples.items()} == {
        "03bSnISJMiM_1": (2.4, "positive"), "03bSnISJMiM_2": (0.0, "neutral"), "0h-zjBukYpk_2": (-1.25, "negative"),
        "a_b_c_11": (-3.0, "negative"), "a_b_c_12": (3.0, "positive"),
    }  # fmt: skip
    assert (samples["a_b_c_12"].clip, samples["a_b_c_12"].label_kind) == ("a_b_c", "sentiment")


@pytest.mark.parametrize("benchmark", ["sims", "simsv2"])
def test_sims_splits_share_videos_and_retrieval_excludes_them(benchmark: str, root: Path, tmp_path: Path) -> None:
    report = import_affectgpt(root, tmp_path / "out", benchmark)
    samples = load(report.directory)
    assert {(s.split, s.speaker) for s in samples.values() if s.id.startswith("video_0001")} == {
        (split, "video_0001") for split in ("train", "dev", "test")
    }
    assert samples["video_0003_0001"].clip == "video_0003_0001" and samples["video_0003_0001"].value == 1.0
    assert "1 of 3 videos have segments in several of the published splits" in report.notes


def test_ovmerdplus(root: Path, tmp_path: Path) -> None:
    samples = load(import_affectgpt(root, tmp_path / "out", "ovmerdplus").directory)
    assert {name: sample.labels for name, sample in samples.items()} == {
        "sample_00000007": ("happy", "excited"), "sample_00000008": ("worried", "calm"), "samplenew3_1": ("neutral",),
    }  # fmt: skip
    assert all(s.label_kind == "open" and s.candidates == () and s.text.startswith("Well") for s in samples.values())


def test_mercaptionplus(root: Path, tmp_path: Path) -> None:
    report = import_affectgpt(root, tmp_path / "out", "mercaptionplus", language="zh")
    sample = load(report.directory)["sample_00000008"]
    assert (sample.split, sample.labels, sample.language) == ("library", ("worried", "calm"), "zh")
    assert sample.description == "The voice of sample_00000008 rises, then breaks."
    assert sample.text == "哎，sample_00000008" and report.notes == ()


@pytest.mark.parametrize(("language", "start"), [("zh", "哎"), ("en", "Well")])
@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name not in ("mer2024", "ovmerdplus")])
def test_either_language(benchmark: str, language: str, start: str, root: Path, tmp_path: Path) -> None:
    samples = load(import_affectgpt(root, tmp_path / "out", benchmark, language=language).directory)
    assert all(s.language == language and s.text.startswith(start) for s in samples.values())


def test_dev_depends_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    def dev(name: str, seed: int) -> set[str]:
        samples = load(import_affectgpt(root, tmp_path / name, "mer2023", seed=seed, dev_share=0.4).directory)
        return {sample.id for sample in samples.values() if sample.split == "dev"}

    draws = {seed: dev(f"draw{seed}", seed) for seed in range(6)}
    assert dev("again", 3) == draws[3] and {len(draw) for draw in draws.values()} == {2}
    assert len({frozenset(draw) for draw in draws.values()}) > 1 and all(
        draw <= set(MER_TRAIN) for draw in draws.values()
    )


def test_other_places_of_faces_and_videos(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("cmumosei")
    home = root / "cmumosei-process"
    (home / "subvideo_new").rename(home / "subvideo")
    nested = home / "openface_face/a_b_c_11"
    nested.mkdir()
    (home / "openface_face/a_b_c_11.npy").rename(nested / "a_b_c_11.npy")
    (home / "subaudio/a_b_c_12.wav").unlink()
    report = import_affectgpt(root, tmp_path / "out", "cmumosei")
    media = {row["sample_id"]: row for row in pq.read_table(report.directory / "media.parquet").to_pylist()}
    assert media["a_b_c_11"]["face"] == "cmumosei-process/openface_face/a_b_c_11/a_b_c_11.npy"
    assert media["a_b_c_11"]["video"] == "cmumosei-process/subvideo/a_b_c_11.mp4"
    assert media["a_b_c_12"]["audio"] == ""
    assert any(note.startswith("1 of 5 clips have no audio file such as subaudio/") for note in report.notes)


def test_a_test_split_of_another_size_is_told(root: Path, tmp_path: Path) -> None:
    report = import_affectgpt(root, tmp_path / "out", "mer2023")
    assert report.notes == ("test has 2 clips where the published one has 411; results are not comparable",)


def test_overwriting_takes_the_old_media_along(root: Path, tmp_path: Path) -> None:
    import_affectgpt(root, tmp_path / "out", "meld")
    import_affectgpt(root, tmp_path / "out", "sims", overwrite=True)
    assert set(pq.read_table(tmp_path / "out/media.parquet")["sample_id"].to_pylist()) == set(names_of(SIMS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(("benchmark", "file"), [("meld", "meld"), ("cmumosi", "mosi"), ("sims", "sims")])
def test_published_names_and_labels(benchmark: str, file: str, shared_data: Path) -> None:
    layout = LAYOUTS[benchmark]
    published = [json.loads(line) for line in (shared_data / f"unibench/{file}.jsonl").open()]
    assert len(published) == layout.test_size
    assert all(re.fullmatch(layout.pattern, row["name"]) for row in published)
    labels = [row["label"] for row in published]
    if layout.bound:
        assert max(map(abs, labels)) == layout.bound
    else:
        assert set(labels) == set(layout.candidates)


# -- bad input ---------------------------------------------------------------------------------------------


def renamed(old: str, new: str) -> Callable[[Path], Any]:
    return lambda home: (home / old).resolve().rename((home / new).resolve())


def table(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Replaces a piece of text in a table; it must be there."""

    def spoil(home: Path) -> None:
        text = (home / file).read_text("utf-8")
        assert old in text
        (home / file).write_text(text.replace(old, new), "utf-8")

    return spoil


def corpora(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes the corpora of a label file."""

    def spoil(home: Path) -> None:
        with np.load(home / file, allow_pickle=True) as labels:
            content = {key: labels[key].item() for key in labels}
        change(content)
        np.savez(home / file, **content)

    return spoil


MER_NPZ = "label-6way.npz"
VIDEO_IN_TWO_SPLITS = corpora(
    "label.npz", lambda found: found["train_corpus"].update(a_b_c_12=found["test_corpus"].pop("a_b_c_12"))
)
BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("meld", renamed("label.npz", "labels.npz"), "meld-process/label.npz: is missing; did you mean 'labels.npz'?"),
    ("iemocap", renamed("label_4way.npz", "label"), "label_4way.npz: is missing; there is no .npz beside it"),
    ("sims", renamed(POLISH, "label.npz"), "sims-process/label.npz: is not an .npz file, or damaged"),
    ("ovmerdplus", renamed("ovlabel.csv", "ovlabels.csv"), "ovlabel.csv: is missing; did you mean 'ovlabels.csv'?"),
    (
        "meld",
        renamed(POLISH, "transcription.csv"),
        f"meld-process/{POLISH}: is missing; did you mean 'transcription.csv'?",
    ),
    ("mer2023", renamed(".", "../mer2023-process"), "has no directory 'mer2023-dataset-process'; did you mean '"),
    (
        "mer2023",
        corpora("label-6way.npz", lambda found: found.update(test_corpus=found.pop("test1_corpus"))),
        f"{MER_NPZ}: corpus 'test1_corpus' is missing; did you mean 'test_corpus'?",
    ),
    (
        "mer2023",
        corpora("label-6way.npz", lambda found: found.update(test1_corpus=[1])),
        f"{MER_NPZ}: test1_corpus is not a dictionary of clips but",
    ),
    (
        "mer2023",
        corpora("label-6way.npz", lambda found: found["test1_corpus"]["sample_00000011"].update(emo="suprise")),
        f"{MER_NPZ}[test1_corpus]:2: sample_00000011 has emo 'suprise', which is unknown; did you mean 'surprise'?",
    ),
    (
        "meld",
        corpora("label.npz", lambda found: found["val_corpus"]["val_dia0_utt0"].update(emo=7)),
        "label.npz[val_corpus]:1: val_dia0_utt0 has emo 7, which is unknown; known: 'anger', 'joy'",
    ),
    (
        "meld",
        corpora("label.npz", lambda found: found["val_corpus"]["val_dia0_utt0"].update(emo=-1)),
        "val_dia0_utt0 has emo -1, which is unknown",
    ),
    (
        "meld",
        corpora("label.npz", lambda found: found["val_corpus"]["val_dia0_utt0"].pop("emo")),
        "val_dia0_utt0 has no 'emo' but {'val': -10}; fetch the file again",
    ),
    (
        "meld",
        corpora("label.npz", lambda found: found["train_corpus"].update(dia3utt1={"emo": 1})),
        "label.npz[train_corpus]:4: dia3utt1 has no row in transcription-engchi-polish.csv; add it, or remove the clip",
    ),
    (
        "meld",
        corpora("label.npz", lambda found: found["train_corpus"].update(spare={"emo": 1})),
        "label.npz[train_corpus]:4: name 'spare' is not like 'train_dia0_utt1'",
    ),
    (
        "iemocap",
        corpora("label_4way.npz", lambda found: found["whole_corpus"].update(spare={"emo": 1})),
        "name 'spare' is not like 'Ses05F_impro01_M003'",
    ),
    (
        "sims",
        corpora("label.npz", lambda found: found["test_corpus"]["video_0003_0001"].update(val=1.2)),
        "label.npz[test_corpus]:2: video_0003_0001 has val 1.2; expected a number in [-1, 1]",
    ),
    (
        "cmumosi",
        corpora("label.npz", lambda found: found["test_corpus"]["a_b_c_12"].update(val=np.nan)),
        "a_b_c_12 has val nan; expected a number in [-3, 3]",
    ),
    (
        "cmumosi",
        corpora("label.npz", lambda found: found["test_corpus"]["a_b_c_12"].update(val="2")),
        "a_b_c_12 has val '2'; expected a number in [-3, 3]",
    ),
    (
        "mer2023",
        corpora("label-6way.npz", lambda found: found["test1_corpus"].update(found["train_corpus"])),
        f"{MER_NPZ}[test1_corpus]:3: sample_00000000 is also in {MER_NPZ}[train_corpus]:1; keep one of the rows",
    ),
    (
        "cmumosi",
        corpora("label.npz", lambda found: found["train_corpus"].update({"a_b_c_13": {"val": 1.0}})),
        "a_b_c_13 has no row in",
    ),
    (
        "cmumosi",
        VIDEO_IN_TWO_SPLITS,
        "label.npz[test_corpus]:1: clip 'a_b_c' is test here and train in label.npz[train_corpus]:3; keep all of a",
    ),
    ("meld", table(POLISH, "Well, test_dia0_utt0.", " "), f"has no english in {POLISH}:7; fill it in"),
    ("meld", table(POLISH, "english", "English"), f"{POLISH}: column 'english' is missing; did you mean 'English'?"),
    ("meld", table(POLISH, "val_dia0_utt1,", "val_dia0_utt0,"), f"{POLISH}:6: val_dia0_utt0 is also in line 5;"),
    ("meld", table(POLISH, "test_dia0_utt0,", "test_dia0_utt0,x,"), f"{POLISH}:7: has 5 cells where 3 are expected"),
    ("ovmerdplus", table("ovlabel.csv", "[]", ""), "ovlabel.csv:4: openset is empty; fill it in, or remove the row"),
    (
        "ovmerdplus",
        table("ovlabel.csv", "sample_00000008", "sample_00000007"),
        "ovlabel.csv:3: sample_00000007 is also in ovlabel.csv:2; keep one of the rows",
    ),
    (
        "mercaptionplus",
        table("track3_train_mercaptionplus.csv", "samplenew3_1,", "samplenew3_2,"),
        "samplenew3_1 has no row in track3_train_mercaptionplus.csv; add it, or remove the clip",
    ),
]


@pytest.mark.parametrize(("benchmark", "spoil", "message"), BAD, ids=[f"{name}: {message}" for name, _, message in BAD])
def test_bad_input(
    benchmark: str, spoil: Callable[[Path], Any], message: str, own_root: Callable[[str], Path], tmp_path: Path
) -> None:
    root = own_root(benchmark)
    spoil(root / copies()[benchmark].directory)
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        import_affectgpt(root, tmp_path / "out", benchmark)
    assert str(root) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


class Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_label_file_is_refused(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("meld")
    marker = tmp_path / "marker"
    np.savez(root / "meld-process/label.npz", **MELD | {"train_corpus": {"train_dia0_utt0": {"emo": Harm(marker)}}})
    with pytest.raises(AffectError, match=rf"label.npz: train_corpus: asks for {os.system.__module__}.system"):
        import_affectgpt(root, tmp_path / "out", "meld")
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("benchmark", "options", "message"),
    [
        ("mosi", {}, "benchmark 'mosi' is unknown; did you mean 'cmumosi'?"),
        ("ovmerdplus", {"language": "zh"}, "language 'zh' is not among OV-MERD+'s; known: 'en'"),
        ("mer2024", {"language": "en"}, "column 'english' is missing; known: 'name', 'chinese'"),
        ("mer2023", {"dev_share": 1.0}, "dev_share=1 leaves none of 5 train clips; choose 0 to below 1"),
    ],
)
def test_bad_options(benchmark: str, options: dict[str, Any], message: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=re.escape(message)):
        import_affectgpt(root, tmp_path / "out", benchmark, **options)
    assert not (tmp_path / "out").exists()


def test_skipping_bad_rows_says_how_many(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("meld")
    table(POLISH, "Well, test_dia0_utt0.", "")(root / "meld-process")
    corpora("label.npz", lambda found: found["train_corpus"]["train_dia0_utt0"].update(emo=9))(root / "meld-process")
    report = import_affectgpt(root, tmp_path / "out", "meld", skip_bad=True)
    assert report.skipped == 2 and report.counts == {"train": 2, "dev": 2, "test": 1}
    assert [bad.line for bad in report.bad_rows] == [1, 1]
    assert len(pq.read_table(tmp_path / "out/media.parquet")) == 5


def test_a_clip_in_two_splits_can_be_skipped(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("cmumosi")
    VIDEO_IN_TWO_SPLITS(root / "cmumosi-process")
    report = import_affectgpt(root, tmp_path / "out", "cmumosi", skip_bad=True)
    assert report.counts == {"train": 3, "dev": 1} and report.skipped == 1


def test_rows_that_no_clip_needs_may_be_malformed(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("mercaptionplus")
    table("subtitle_chieng.csv", "spare,", "spare,one,two,many,")(root / "mer2025-dataset")
    report = import_affectgpt(root, tmp_path / "out", "mercaptionplus")
    assert report.counts == {"library": 3} and not report.bad_rows


def test_silence_stands_for_an_empty_transcript(own_root: Callable[[str], Path], tmp_path: Path) -> None:
    root = own_root("meld")
    table(POLISH, "Well, test_dia0_utt0.", "")(root / "meld-process")
    report = import_affectgpt(root, tmp_path / "out", "meld", silence="(no words)")
    samples = load(report.directory)
    assert (
        samples["test_dia0_utt0"].text == "(no words)" and samples["test_dia12_utt7"].text == "Well, test_dia12_utt7."
    )


# -- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_command(benchmark: str, root: Path, tmp_path: Path) -> None:
    arguments = ["import", benchmark, "--root", str(root), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(data_app, arguments)
    assert result.exit_code == 0, result.output
    assert Dataset.load(tmp_path / "out").name == benchmark and (tmp_path / "out/media.parquet").is_file()


def test_meld_without_its_directory_is_the_published_tables(tmp_path: Path) -> None:
    arguments = ["import", "meld", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert "train_sent_emo.csv: is missing" in str(CliRunner().invoke(data_app, arguments).exception)
    result = CliRunner().invoke(data_app, [*arguments, "--language", "zh"])
    assert "has no meld-process, which --language and --silence are for" in str(result.exception)
