"""Media to features on a real Ray: the right ones, each made once whatever ends a run, and bad files told."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
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
from affect_rl.data.encoders import Checkpoint, ImageEncoder, SpeechEncoder
from affect_rl.data.feature_parts import Extraction
from affect_rl.data.media import read_audio, read_frames
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from cluster.data_commands import data_app
from cluster.extract import ExtractReport, Workers, extract

RATE = 16_000
NAMES = [f"u{i}" for i in range(8)]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny HuBERT."""
    directory, torch_seed = tmp_path_factory.mktemp("speech"), 0
    torch.manual_seed(torch_seed)
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


def make_dataset(base: Path, count: int, clips: int) -> Path:
    """`count` samples that share `clips` files; u1 has no sound, u2 no picture, face tracks are NumPy files."""
    root = base / "media"
    root.mkdir(parents=True)
    for number in range(clips):
        write_clip(root / f"{number}.mp4", number)
        np.save(root / f"{number}.npy", np.full((5, 20, 20, 3), 20 * number, np.uint8))
    splits = ("train", "dev", "test", "library")
    samples = [
        AffectSample(
            id=f"u{i}", dataset="made-up", split=splits[i % 4], clip=f"c{i}", speaker="", text="well", labels=("joy",),
            label_kind="closed", candidates=("anger", "joy"), audio=np.ones((1, 5), np.float32),
        )
        for i in range(count)
    ]  # fmt: skip
    data = write_dataset(base / "data", samples, name="made-up", note="Made up.")
    rows = [
        {
            "sample_id": s.id,
            "audio": f"{i % clips}.mp4" if i != 1 else "",
            "video": f"{i % clips}.mp4" if i != 2 else "",
            "face": f"{i % clips}.npy",
        }
        for i, s in enumerate(samples)
    ]
    write_media(data, root, rows)
    return data


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("pristine"), len(NAMES), len(NAMES)).parent


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A dataset whose files a test may change."""
    shutil.copytree(pristine, tmp_path / "base")
    data = tmp_path / "base" / "data"
    write_media(data, tmp_path / "base" / "media", pq.read_table(data / MEDIA).to_pylist())
    return data


def features_of(directory: Path) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    dataset = Dataset.load(directory)
    return {s.id: (s.audio, s.video) for split in dataset.counts for s in dataset.samples(split)}


def assert_equal(one: Path, other: Path) -> None:
    first, second = features_of(one), features_of(other)
    assert first.keys() == second.keys()
    for name, pair in first.items():
        for a, b in zip(pair, second[name], strict=True):
            np.testing.assert_array_equal(a, b) if a is not None and b is not None else None
            assert (a is None) == (b is None)


# The right features


@pytest.mark.usefixtures("cluster")
def test_features_are_those_of_the_encoders(data: Path, tmp_path: Path, extraction: Extraction) -> None:
    report = extract(data, tmp_path / "out", extraction, Workers(count=2, batch_size=3))
    assert report == ExtractReport(tmp_path / "out", 8, 7, 7, parts=3, found=0, problems=())
    speech, images = SpeechEncoder(extraction.speech, 2), ImageEncoder(extraction.image)  # type: ignore[arg-type]
    media = data.parent / "media"
    for name, (audio, video) in features_of(tmp_path / "out").items():
        clip = media / f"{name[1:]}.mp4"
        if name == "u1":
            assert audio is None
        else:
            np.testing.assert_allclose(audio, speech.encode([read_audio(clip, RATE)])[0], atol=1e-5)
        if name == "u2":
            assert video is None
        else:
            np.testing.assert_allclose(video, images.encode([images.prepare(read_frames(clip, 3))])[0], atol=1e-5)
    before, after = Dataset.load(data), Dataset.load(tmp_path / "out")
    assert after.name == "made-up" and after.counts == before.counts
    assert after.manifest.note == f"Made up.\n{extraction}"
    assert str(extraction.speech) in after.manifest.note and "3 pictures of video" in after.manifest.note
    plain = [replace(s, audio=None, video=None) for s in after.samples("train")]
    assert list(map(repr, plain)) == [repr(replace(s, audio=None)) for s in before.samples("train")]


@pytest.mark.usefixtures("cluster")
def test_the_command_extracts_faces_and_leaves_sound_alone(data: Path, tmp_path: Path, image: Checkpoint) -> None:
    moved = data.parent / "elsewhere"
    (data.parent / "media").rename(moved)
    (moved / "3.npy").unlink()
    command = [
        "extract", "--data", data, "--out", tmp_path / "out", "--image-encoder", image.name, "--source", "face",
        "--frames", "2", "--media-root", moved, "--skip-bad", "--batch-size", "8",
    ]  # fmt: skip
    result = CliRunner().invoke(data_app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    assert "8 samples, 8 with audio, 7 with video (0 of 1 parts found)" in result.output
    assert "left out 1 files that cannot be used" in result.output
    assert f"{moved / '3.npy'}: is missing; mend the path or --media-root" in result.output
    features = features_of(tmp_path / "out")
    assert features["u3"][1] is None
    assert all(np.array_equal(audio, np.ones((1, 5))) for audio, _ in features.values())
    assert {video.shape for _, video in features.values() if video is not None} == {(2, 16)}
    assert "1 file(s) could not be used; their modality is absent." in Dataset.load(tmp_path / "out").manifest.note


# Each part is made once


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.usefixtures("cluster")
def test_bad_files_stop_it_and_only_their_parts_are_made_again(
    data: Path, tmp_path: Path, extraction: Extraction
) -> None:
    media, out, parts = data.parent / "media", tmp_path / "out", tmp_path / "out.parts"
    whole = (media / "5.mp4").read_bytes()
    (media / "5.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AffectError) as caught:
        extract(data, out, extraction, Workers(batch_size=2))
    assert f"{data / MEDIA}: 2 file(s) cannot be used, so no dataset was written" in str(caught.value)
    assert f"{media / '5.mp4'}: audio: cannot be decoded" in str(caught.value)
    assert f"{media / '5.mp4'}: video: cannot be decoded" in str(caught.value)
    assert not out.exists()
    before = times(parts)
    assert len(before) == 4

    report = extract(data, out, extraction, Workers(batch_size=2), skip_bad=True)
    assert (report.found, report.audio, report.video, len(report.problems)) == (4, 6, 6, 2)
    assert times(parts) == before

    (media / "5.mp4").write_bytes(whole)
    report = extract(data, out, extraction, Workers(batch_size=2), overwrite=True)
    assert (report.parts, report.found, report.audio, report.problems) == (4, 3, 7, ())
    assert before.items() < times(parts).items()

    shutil.rmtree(out)
    assert extract(data, out, extraction, Workers(batch_size=2)).found == 4
    assert extract(data, out, replace(extraction, segments=3), Workers(batch_size=2), overwrite=True).found == 0


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_run_and_a_killed_worker_cost_no_sample(tmp_path: Path, extraction: Extraction) -> None:
    data = make_dataset(tmp_path / "base", count=60, clips=4)
    out, parts = tmp_path / "out", tmp_path / "out.parts"

    def once_parts_exceed(count: int, act: Callable[[], Any]) -> threading.Thread:
        def watch() -> None:
            while not (parts.is_dir() and sum(path.suffix == ".parquet" for path in parts.iterdir()) > count):
                time.sleep(0.002)
            act()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    thread = once_parts_exceed(0, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        _ = extract(data, out, extraction, Workers(batch_size=1)), thread.join()
    assert not out.exists()
    before = times(parts)
    left = [name for name in before if name.endswith(".parquet")]
    assert 0 < len(left) < 60

    killed = []

    def kill() -> None:
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    thread = once_parts_exceed(len(left) + 1, kill)
    report = extract(data, out, extraction, Workers(batch_size=1))
    thread.join(timeout=1)
    assert killed
    assert report.parts == 60 and len(left) <= report.found < 60
    assert all(times(parts)[name] == before[name] for name in left)
    again = extract(data, tmp_path / "again", extraction, Workers(count=2, batch_size=1))
    assert again.found == 0
    assert_equal(out, tmp_path / "again")


# Bad input


def edit(data: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    write_media(data, data.parent / "media", change(pq.read_table(data / MEDIA).to_pylist()))


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


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_finds_wrong_reaches_the_user(data: Path, tmp_path: Path, image: Checkpoint) -> None:
    """A picture encoder named for speech is loaded by a worker first."""
    with pytest.raises(AffectError, match="is no encoder that can be loaded here"):
        extract(data, tmp_path / "out", Extraction(image, None), Workers())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cluster")
def test_a_damaged_part_is_named(data: Path, tmp_path: Path, extraction: Extraction) -> None:
    extract(data, tmp_path / "out", extraction, Workers())
    part = next((tmp_path / "out.parts").iterdir())
    part.write_bytes(b"PAR1")
    with pytest.raises(AffectError, match=f"{part.name}: is damaged .*; delete it and run the extraction again"):
        extract(data, tmp_path / "out", extraction, Workers(), overwrite=True)
    assert len(features_of(tmp_path / "out")) == 8
