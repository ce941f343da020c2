"""Media to features on a real Ray: the right ones, each made once whatever ends a run, and bad files told."""

from __future__ import annotations

import re
import shutil
import time
import wave
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)
from typer.testing import CliRunner

from affect_rl.data.dataset import MEDIA, Dataset, write_dataset
from affect_rl.data.describe import describe
from affect_rl.data.encoders import ImageEncoder, SpeechEncoder
from affect_rl.data.extraction import PROSODY, Checkpoint, Extraction
from affect_rl.data.feature_parts import read_part, write_part
from affect_rl.data.media import read_audio, read_frames
from affect_rl.data.prosody import NAMES
from affect_rl.data.validation import SPLITS
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from cluster.cli.data import data_app
from cluster.extract import ExtractReport, Workers, extract

RATE = 16_000
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny HuBERT."""
    directory = tmp_path_factory.mktemp("speech")
    torch.manual_seed(0)
    HubertModel(
        HubertConfig(
            **TINY, conv_dim=(8, 8), conv_kernel=(40, 20), conv_stride=(20, 16), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        )
    ).save_pretrained(directory)  # fmt: skip
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(directory)
    return Checkpoint.find(str(directory))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny CLIP vision tower."""
    directory = tmp_path_factory.mktemp("image")
    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**TINY, image_size=16, patch_size=8)).save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(directory)
    return Checkpoint.find(str(directory))


@pytest.fixture
def extraction(speech: Checkpoint, image: Checkpoint) -> Extraction:
    return Extraction(speech, image, "video", frames=3, segments=2)


def write_clip(path: Path, number: int) -> None:
    """A second of one colour and one tone."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=RATE, layout="mono")
        video.width, video.height = 64, 48
        colour = np.full((48, 64, 3), (25 * number % 256, 128, 255 - 25 * number % 256), np.uint8)
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")))
        sound = 0.5 * np.sin(2 * np.pi * (200 + 40 * number) * np.arange(RATE) / RATE)
        for start in range(0, RATE, 1024):
            piece = sound[None, start : start + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, start
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def write_media(data: Path, root: Path, rows: list[dict[str, str]]) -> None:
    schema = pa.schema([(name, pa.string()) for name in rows[0]], metadata={"root": str(root)})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), data / MEDIA)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples with a clip and a face track each; u1 has no sound, u2 no picture."""
    base = tmp_path_factory.mktemp("pristine")
    (base / "media").mkdir()
    samples, rows = [], []
    for number in range(8):
        write_clip(base / "media" / f"{number}.mp4", number)
        np.save(base / "media" / f"{number}.npy", np.full((5, 20, 20, 3), 20 * number, np.uint8))
        samples.append(
            AffectSample(
                id=f"u{number}", dataset="made-up", split=SPLITS[number % 4], clip=f"c{number}", speaker="",
                text="well", labels=("joy",), label_kind="closed", candidates=("anger", "joy"),
                audio=np.ones((1, 5), np.float32),
            )
        )  # fmt: skip
        clip = f"{number}.mp4"
        rows.append(
            {
                "sample_id": f"u{number}",
                "audio": clip if number != 1 else "",
                "video": clip if number != 2 else "",
                "face": f"{number}.npy",
            }
        )
    write_media(write_dataset(base / "data", samples, name="made-up", note="Made up."), base / "media", rows)
    return base


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A dataset whose files a test may change."""
    shutil.copytree(pristine, tmp_path / "base")
    data = tmp_path / "base" / "data"
    write_media(data, tmp_path / "base" / "media", pq.read_table(data / MEDIA).to_pylist())
    return data


def edit(data: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    write_media(data, data.parent / "media", change(pq.read_table(data / MEDIA).to_pylist()))


def features_of(directory: Path) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    dataset = Dataset.load(directory)
    return {s.id: (s.audio, s.video) for split in dataset.counts for s in dataset.samples(split)}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def run_command(*words: object) -> str:
    result = CliRunner().invoke(data_app, ["extract", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("cluster")
def test_after_an_error_a_run_goes_on_and_features_are_those_of_the_encoders(
    data: Path, tmp_path: Path, extraction: Extraction
) -> None:
    """The error: a worker cannot read the speech encoder's weights, which only the later parts need."""
    assert extraction.speech and extraction.image
    edit(data, lambda rows: [row | {"audio": ""} if row["sample_id"] < "u3" else row for row in rows])
    weights = Path(extraction.speech.name) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(AffectError, match=f"{extraction.speech.name}: is no encoder that can be loaded here"):
        extract(data, tmp_path / "out", extraction, Workers(batch_size=1))
    weights.write_bytes(whole)
    assert not (tmp_path / "out").exists()
    before = times(tmp_path / "out.parts")
    assert 0 < len(before) < 8

    output = run_command(
        "--data", data, "--out", tmp_path / "out", "--speech-encoder", extraction.speech.name, "--image-encoder",
        extraction.image.name, "--frames", 3, "--segments", 2, "--batch-size", 1,
    )  # fmt: skip
    found = re.search(r"8 samples, 5 with audio, 7 with video \((\d) of 8 parts found\)", output)
    assert found and len(before) <= int(found[1]) < 8, "a worker that is killed may still have finished its part"
    assert before.items() < times(tmp_path / "out.parts").items()

    speech, images = SpeechEncoder(extraction.speech, 2), ImageEncoder(extraction.image)
    for name, (audio, video) in features_of(tmp_path / "out").items():
        clip = data.parent / "media" / f"{name[1:]}.mp4"
        if name < "u3":
            assert audio is None
        else:
            np.testing.assert_allclose(audio, speech.encode([read_audio(clip, RATE)])[0], atol=1e-5)
        if name == "u2":
            assert video is None
        else:
            np.testing.assert_allclose(video, images.encode([images.prepare(read_frames(clip, 3))])[0], atol=1e-5)
    old, new = Dataset.load(data), Dataset.load(tmp_path / "out")
    assert (new.name, new.counts, new.manifest.note) == (old.name, old.counts, f"Made up.\n{extraction}")
    for mine, theirs in zip(new.samples("train"), old.samples("train"), strict=True):
        assert repr(replace(mine, audio=None, video=None)) == repr(replace(theirs, audio=None, video=None))


@pytest.mark.usefixtures("cluster")
def test_a_voice_is_measured_without_a_checkpoint_and_put_into_words(data: Path, tmp_path: Path) -> None:
    run_command("--data", data, "--out", tmp_path / "out", "--speech-encoder", "prosody", "--segments", 4)
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.manifest.audio_names == NAMES and "prosody (version 1, librosa" in dataset.manifest.note
    for name, (audio, _) in features_of(tmp_path / "out").items():
        if name == "u1":
            assert audio is None
        else:
            semitones = 12 * np.log2((200 + 40 * int(name[1:])) / 100)
            np.testing.assert_allclose(audio[:, NAMES.index("pitch")], semitones, atol=0.5)
    words = {sample.id: sample.description for sample in describe(dataset)}
    assert words["u1"] == "" and "high" in words["u7"] and "low" in words["u0"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_bad_files_stop_it_and_only_their_parts_are_made_again(
    data: Path, tmp_path: Path, image: Checkpoint, speech: Checkpoint
) -> None:
    """Faces only: sound stays as it is, until it is extracted in turn. The media have moved since the import."""
    moved, out, parts = data.parent / "elsewhere", tmp_path / "out", tmp_path / "out.parts"
    (data.parent / "media").rename(moved)
    whole = (moved / "5.npy").read_bytes()
    (moved / "3.npy").rename(moved / "kept.npy")
    (moved / "5.npy").write_bytes(whole[:1000])
    faces, workers = Extraction(None, image, "face", frames=2), Workers(batch_size=2)
    with pytest.raises(AffectError) as caught:
        extract(data, out, faces, workers, media_root=moved)
    assert f"{data / MEDIA}: 2 file(s) cannot be used, so no dataset was written" in str(caught.value)
    assert f"\n  {moved / '3.npy'}: pictures: is missing; mend the path or --media-root" in str(caught.value)
    assert f"\n  {moved / '5.npy'}: pictures: is not a NumPy array" in str(caught.value)
    assert not out.exists()
    before = times(parts)
    assert len(before) == 4

    output = run_command(
        "--data", data, "--out", out, "--image-encoder", image.name, "--source", "face", "--frames", 2,
        "--media-root", moved, "--batch-size", 2, "--skip-bad",
    )  # fmt: skip
    assert "8 samples, 8 with audio, 6 with video (4 of 4 parts found)" in output
    assert "left out 2 files that cannot be used:" in output
    assert f"  {moved / '3.npy'}: pictures: is missing" in output
    assert "2 file(s) could not be used; their modality is absent." in Dataset.load(out).manifest.note
    assert times(parts) == before

    (moved / "kept.npy").rename(moved / "3.npy")
    (moved / "5.npy").write_bytes(whole)
    report = extract(data, out, faces, replace(workers, count=2), media_root=moved, overwrite=True)
    assert report == ExtractReport(out, 8, audio=8, video=8, parts=4, found=2, problems=())
    assert before.items() < times(parts).items()
    images = ImageEncoder(image)
    for name, (audio, video) in features_of(out).items():
        np.testing.assert_array_equal(audio, np.ones((1, 5)))
        track = images.prepare(read_frames(moved / f"{name[1:]}.npy", 2))
        np.testing.assert_allclose(video, images.encode([track])[0], atol=1e-5)

    shutil.rmtree(out)
    assert extract(data, out, faces, workers, media_root=moved).found == 4

    stale = parts / min(times(parts).keys() - before.keys())  # in use: those of bad files lie there, too
    problem = ("3.npy: pictures: is missing; as it was for a worker without the mount",)
    write_part(stale, [replace(found, video=None, problems=problem) for found in read_part(stale, faces)])
    report = extract(data, out, faces, workers, media_root=moved, overwrite=True)
    assert report == ExtractReport(out, 8, audio=8, video=8, parts=4, found=3, problems=())

    both = extract(out, tmp_path / "both", Extraction(speech, None, segments=2), Workers()).directory
    for name, (audio, video) in features_of(both).items():
        assert (audio is None) == (name == "u1")
        np.testing.assert_array_equal(video, features_of(out)[name][1])
    media = pq.read_table(both / MEDIA)
    assert media.to_pylist() == pq.read_table(data / MEDIA).to_pylist()
    assert media.schema.metadata == {b"root": str(moved).encode()}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_file_that_kills_who_reads_it_is_a_bad_file(data: Path, tmp_path: Path) -> None:
    """Here the test does the killing; the file is long, so that it finds somebody reading."""
    with wave.open(str(data.parent / "media" / "long.wav"), "wb") as sound:
        sound.setparams((2, 2, 48_000, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 48_000 * 290))
    edit(data, lambda rows: [row | {"audio": "long.wav"} if row["sample_id"] == "u5" else row for row in rows])
    deaths = 0

    def is_read(again: int) -> bool:
        with suppress(OSError):  # a record comes and goes
            return any(r.read_text().count("long.wav") > again for r in (tmp_path / "out.parts").glob("*.attempts"))
        return False

    def kill_readers(job: Future[ExtractReport]) -> None:
        nonlocal deaths
        while not job.done():
            time.sleep(0.01)
            if not is_read(deaths):
                continue
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "_PartWriter" not in " ".join(process.cmdline()):
                        continue
                    process.suspend()
                    if is_read(deaths):  # it has not gone on meanwhile
                        process.kill()
                        deaths += 1
                    else:
                        process.resume()

    with ThreadPoolExecutor(1) as pool:
        prosody = Extraction(Checkpoint.find(PROSODY), None, segments=2)
        job = pool.submit(extract, data, tmp_path / "out", prosody, Workers(batch_size=8), skip_bad=True)
        kill_readers(job)
    report = job.result()
    assert (deaths, report.audio) == (2, 6)
    (problem,) = report.problems
    assert "long.wav: audio: 2 processes died at it; shorten or export it again" in problem
    assert not list((tmp_path / "out.parts").glob("*.attempts"))


# Bad input


BAD: list[tuple[Callable[[Path], Any], dict[str, Any], str]] = [
    (lambda d: (d / MEDIA).unlink(), {}, "media.parquet: is missing; import the dataset with an importer"),
    (lambda d: edit(d, lambda rows: rows[:3]), {}, "media.parquet: has no row for sample "),
    (lambda d: edit(d, lambda rows: [*rows, rows[0]]), {}, "media.parquet: names a sample twice"),
    (
        lambda d: edit(d, lambda rows: [{k.replace("video", "videos"): v for k, v in row.items()} for row in rows]),
        {},
        "media.parquet: column 'video' is missing; did you mean 'videos'?",
    ),
    (
        lambda d: edit(d, lambda rows: [row | {"face": ""} for row in rows]),
        {"source": "face"},
        "media.parquet: column 'face' names no file; choose another --source, or omit its encoder",
    ),
    (lambda d: (d.parent / "media").rename(d.parent / "gone"), {}, "media: is not a directory; give the one that"),
    (lambda d: None, {"speech": None, "image": None}, "no encoder is named; give --speech-encoder, --image-encoder"),
    (lambda d: (d.parent / "out").mkdir() or (d.parent / "out" / "x").touch(), {}, "out: exists; choose another"),
    (lambda d: (d / "dataset.json").unlink(), {}, "data: no dataset.json, so this is not a dataset"),
]


@pytest.mark.parametrize("spoil, settings, message", BAD)
def test_bad_input_is_refused_before_any_work(
    data: Path, extraction: Extraction, spoil: Callable[[Path], Any], settings: dict[str, Any], message: str
) -> None:
    spoil(data)
    with pytest.raises(AffectError) as caught:
        extract(data, data.parent / "out", replace(extraction, **settings), Workers())
    assert message in str(caught.value)
    assert not (data.parent / "out.parts").exists()


def test_a_dataset_is_not_written_over_its_source(data: Path, extraction: Extraction) -> None:
    with pytest.raises(AffectError, match="data: is where the dataset is read from; choose another directory"):
        extract(data, data, extraction, Workers(), overwrite=True)
