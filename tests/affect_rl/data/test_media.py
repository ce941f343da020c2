"""Decoding: what was drawn and played is what comes back, and a bad file is named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from affect_rl.data import media
from affect_rl.data.media import MAX_PICTURES, MAX_SECONDS, MediaError, read_audio, read_frames

RATE = 16_000
SIZE = (48, 64)  # height, width


def grey(level: int) -> np.ndarray:
    return np.full((*SIZE, 3), level, np.uint8)


def write_video(
    path: Path, levels: Sequence[int], times: Sequence[int], *, gop: int = 12, codec: str = "mpeg4"
) -> Path:
    """Grey pictures shown from `times`, in milliseconds; a last one ends the clip 40 ms later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(gop), "bf": "0"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time in zip(levels, times, strict=True):
            frame = av.VideoFrame.from_ndarray(grey(level), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_packets(path: Path, times: Sequence[int]) -> Path:
    """One picture's packet again and again: what it costs to read a file does not matter here, its length does."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = SIZE
        frame = av.VideoFrame.from_ndarray(grey(100), format="rgb24")
        (packet, *_) = [*stream.encode(frame), *stream.encode(None)]
        data = bytes(packet)
        for time in times:
            again = av.Packet(data)
            again.stream, again.time_base = stream, Fraction(1, 1000)
            again.pts = again.dts = time
            again.is_keyframe = True
            container.mux(again)
    return path


def write_audio(path: Path, channels: Sequence[np.ndarray], *, rate: int = RATE, codec: str = "pcm_s16le") -> Path:
    """Sound of one or two channels with full scale 1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono" if len(channels) == 1 else "stereo")
        size = stream.codec_context.frame_size or 1024
        for start in range(0, len(channels[0]), size):
            piece = np.stack([channel[start : start + size] for channel in channels]).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=stream.layout.name)
            frame.rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, hertz: float = 440, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def copy_packets(source: Path, target: Path, *, start: float = 0.0, gap: tuple[float, float] = (0.0, 0.0)) -> Path:
    """Another container of the same packets, without decoding.

    With a `start` as ``ffmpeg -ss start -c copy`` does it: what is before cannot be cut off, as pictures need their
    keyframe, so its timestamps are negative. Packets within `gap` are left out. All in seconds.
    """
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = [new.add_stream_from_template(stream) for stream in old.streams]
        for packet in old.demux():
            if packet.dts is None or packet.pts is None or gap[0] <= packet.pts * packet.time_base < gap[1]:
                continue
            packet.pts, packet.dts = (time - round(start / packet.time_base) for time in (packet.pts, packet.dts))
            packet.stream = streams[packet.stream_index]
            new.mux(packet)
    return target


def levels_of(pictures: np.ndarray) -> list[int]:
    return pictures.reshape(len(pictures), -1).mean(axis=1).round().astype(int).tolist()


# Sound


def test_a_wave_file_comes_back_as_it_was(tmp_path: Path) -> None:
    sound = tone(0.7)
    read = read_audio(write_audio(tmp_path / "a.wav", [sound]), RATE)
    assert read.dtype == np.float32 and read.shape == sound.shape
    np.testing.assert_allclose(read, sound, atol=2 / 2**15)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, odd: float) -> None:
    sound = tone(0.5).astype(np.float32)
    sound[100] = odd
    wavfile.write(tmp_path / "a.wav", RATE, sound)
    with pytest.raises(MediaError, match=r"a\.wav: audio: has samples that are no numbers"):
        read_audio(tmp_path / "a.wav", RATE)


def test_channels_are_mixed(tmp_path: Path) -> None:
    left, right = tone(0.5, 440), tone(0.5, 660)
    read = read_audio(write_audio(tmp_path / "a.wav", [left, right]), RATE)
    np.testing.assert_allclose(read, (left + right) / 2, atol=4 / 2**15)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_sound_is_resampled(tmp_path: Path, rate: int) -> None:
    path = write_audio(tmp_path / "a.wav", [tone(1.0, rate=rate)], rate=rate)
    read = read_audio(path, RATE)
    assert abs(len(read) - RATE) <= 1
    np.testing.assert_allclose(read[500 : RATE - 500], tone(1.0)[500 : RATE - 500], atol=5e-3)


@pytest.mark.parametrize(
    "name, codec",
    [("a.m4a", "aac"), ("a.mka", "aac"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.avi", "pcm_s16le")],
)
def test_compressed_sound_keeps_its_pitch(tmp_path: Path, name: str, codec: str) -> None:
    read = read_audio(write_audio(tmp_path / name, [tone(1.0)], codec=codec), RATE)
    assert abs(len(read) - RATE) < 0.2 * RATE
    spectrum = np.abs(np.fft.rfft(read[2000:14000] * np.hanning(12000)))
    assert abs(spectrum.argmax() * RATE / 12000 - 440) < 2
    assert 0.4 < np.abs(read[4000:12000]).max() < 0.6


@pytest.mark.parametrize("name", ["a.mka", "a.mp4"])
def test_silence_that_a_recorder_left_out_is_put_back(tmp_path: Path, name: str) -> None:
    """With it the file would count as damaged, and what comes after would stand too early."""
    whole = write_audio(tmp_path / "whole.mka", [tone(4, rate=48_000)], rate=48_000, codec="libopus")
    sound = read_audio(copy_packets(whole, tmp_path / name, gap=(1.0, 2.2)), RATE)
    assert abs(len(sound) / RATE - 4) < 0.05
    loud = np.abs(sound[: 78 * 800]).reshape(78, 800).max(axis=1) > 0.1  # every 50 ms
    assert loud[:20].all() and not loud[22:43].any() and loud[45:].all()


def test_channels_may_change_within_a_file(tmp_path: Path) -> None:
    mono = write_audio(tmp_path / "mono.aac", [tone(1, rate=48_000)], rate=48_000, codec="aac")
    stereo = write_audio(tmp_path / "stereo.aac", [tone(1, rate=48_000)] * 2, rate=48_000, codec="aac")
    both = tmp_path / "both.aac"
    both.write_bytes(mono.read_bytes() + stereo.read_bytes())
    first, second, sound = (read_audio(path, RATE) for path in (mono, stereo, both))
    assert len(sound) == len(first) + len(second)
    np.testing.assert_allclose(sound[: RATE // 2], first[: RATE // 2], atol=1e-4)
    np.testing.assert_allclose(sound[-RATE // 2 :], second[-RATE // 2 :], atol=1e-4)


def test_a_sound_too_long_to_be_an_utterance_is_refused(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", [np.zeros(round((MAX_SECONDS + 1) * 8000))], rate=8000)
    with pytest.raises(MediaError, match=r"a\.wav: audio: lasts 301 s, more than 300; cut it into utterances"):
        read_audio(path, RATE)


def test_a_sound_that_lies_about_its_length_is_not_unpacked(tmp_path: Path) -> None:
    """Packets of a second of silence, said to be a millisecond apart: some kilobytes would fill the memory."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono", options={"frame_size": "8000"})
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.rate = 8000
        count = 0
        for _ in range(2 * round(MAX_SECONDS)):
            silence.pts = None
            for packet in stream.encode(silence):
                packet.pts = packet.dts = count
                packet.duration, packet.time_base = 1, Fraction(1, 1000)
                container.mux(packet)
                count += 1
    assert (tmp_path / "a.mkv").stat().st_size < 100_000
    with pytest.raises(MediaError, match="audio: lasts more than 300 s"):
        read_audio(tmp_path / "a.mkv", RATE)


@pytest.mark.parametrize("head", ["ffconcat version 1.0\nfile clip.mp4\n", "#EXTM3U\n#EXTINF:1,\nclip.mp4\n"])
def test_a_playlist_that_calls_itself_a_clip_is_not_followed(tmp_path: Path, head: str) -> None:
    """FFmpeg goes by content: a list that names itself would be opened in itself until the process dies."""
    path = tmp_path / "clip.mp4"
    path.write_text(head)
    for read in (lambda: read_audio(path, RATE), lambda: read_frames(path, 4)):
        with pytest.raises(MediaError, match="cannot be decoded"):
            read()


# Pictures


@pytest.mark.parametrize("name, codec", [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1")])
def test_pictures_come_from_the_beginnings_of_equal_windows(tmp_path: Path, name: str, codec: str) -> None:
    levels = [10 + 5 * i for i in range(40)]
    path = write_video(tmp_path / name, levels, [40 * i for i in range(40)], codec=codec)
    pictures = read_frames(path, 8)
    assert pictures.shape == (8, *SIZE, 3) and pictures.dtype == np.uint8
    assert np.abs(np.array(levels_of(pictures)) - levels[::5]).max() <= 2


def test_a_variable_frame_rate_is_sampled_by_time(tmp_path: Path) -> None:
    """Twenty pictures in the first second, one in the next three."""
    times = [50 * i for i in range(20)] + [1000, 2000, 3000, 3960]
    levels = [20] * 20 + [80, 140, 200, 250]
    path = write_video(tmp_path / "a.mkv", levels, times)
    assert np.abs(np.array(levels_of(read_frames(path, 4))) - [20, 80, 140, 200]).max() <= 2


def test_a_clip_shorter_than_the_count_repeats_pictures(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [60, 200], [0, 40])
    assert np.abs(np.array(levels_of(read_frames(path, 5))) - [60, 60, 60, 200, 200]).max() <= 2


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov", "a.flv"])
@pytest.mark.parametrize("gop", [10, 1000])
def test_far_apart_pictures_are_the_right_ones(tmp_path: Path, name: str, gop: int) -> None:
    """With many keyframes they are reached by seeking (not in MPEG-TS, which has no index)."""
    levels = [10 + 2 * (i % 100) for i in range(300)]
    path = write_video(tmp_path / name, levels, [40 * i for i in range(300)], gop=gop, codec="libx264")
    assert np.abs(np.array(levels_of(read_frames(path, 12))) - levels[::25]).max() <= 3


@pytest.mark.parametrize("last, count", [(1000 * round(MAX_SECONDS), 2), (4000, MAX_PICTURES + 1)])
def test_a_video_that_would_take_minutes_to_decode_is_refused(tmp_path: Path, last: int, count: int) -> None:
    times = np.linspace(0, last, count).round().astype(int).tolist()
    with pytest.raises(MediaError, match=r"a\.mkv: video: lasts .* s and has .* pictures, more than 300 s or 36,000"):
        read_frames(write_packets(tmp_path / "a.mkv", times), 4)


def test_a_video_whose_pictures_take_too_much_to_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are keyframes, few pictures have to be decoded to see the wanted ones."""
    monkeypatch.setattr(media, "MAX_DECODED", 150 * SIZE[0] * SIZE[1])
    levels, times = [100] * 300, [40 * i for i in range(300)]
    few, many = (write_video(tmp_path / f"{gop}.mp4", levels, times, gop=gop, codec="libx264") for gop in (1000, 10))
    with pytest.raises(
        MediaError, match=r"1000\.mp4: video: more than 150 pictures of .* pixels have to be decoded; sca"
    ):
        read_frames(few, 12)
    assert len(read_frames(many, 12)) == 12


@pytest.mark.parametrize("degrees, corner", [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_a_picture_is_turned_as_its_file_asks_for(tmp_path: Path, degrees: int, corner: tuple[int, int]) -> None:
    """The upper left is bright; turned by 90 degrees, counter-clockwise, it is the lower left."""
    picture = grey(20)
    picture[:16, :16] = 220
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = SIZE
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    (read,) = read_frames(tmp_path / "a.mp4", 1)
    assert read.shape == ((*SIZE, 3) if degrees in (0, 180) else (*SIZE[::-1], 3))
    corners = {place: read[place].mean() > 120 for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert corners == {place: place == corner for place in corners}


def test_only_the_wanted_pictures_are_held(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [100] * 300, [40 * i for i in range(300)], codec="libx264")
    read_frames(path, 2)  # imports and caches
    tracemalloc.start()
    pictures = read_frames(path, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * pictures.nbytes < 0.2 * 300 * grey(0).nbytes


def test_face_tracks_are_read_from_numpy_files(tmp_path: Path) -> None:
    track = np.stack([grey(level) for level in range(20)])
    np.save(tmp_path / "a.npy", track)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.npy", 4), track[[0, 5, 10, 15]])
    np.testing.assert_array_equal(read_frames(tmp_path / "a.npy", 40), track.repeat(2, axis=0))


@given(count=st.integers(1, 12), length=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_any_count_of_any_track(tmp_path_factory: pytest.TempPathFactory, count: int, length: int) -> None:
    path = tmp_path_factory.mktemp("track") / "a.npy"
    np.save(path, np.arange(length, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3))
    taken = read_frames(path, count)[:, 0, 0, 0].astype(int)
    assert len(taken) == count and taken[0] == 0
    assert (np.abs(taken - np.arange(count) * length / count) < 1).all()


# One file with both


def write_clip(path: Path, levels: Sequence[int], seconds: float, *, gop: int = 12) -> Path:
    """Grey pictures for 40 ms each, and a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25, options={"g": str(gop)})
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        video.height, video.width = SIZE
        for level in levels:
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey(level), format="rgb24")))
        sound = tone(seconds).astype(np.float32)
        for start in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, start
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("pictures, seconds", [(25, 1.0), (10, 2.0), (50, 0.4)])
def test_streams_of_one_file_need_not_be_of_one_length(
    tmp_path: Path, name: str, pictures: int, seconds: float
) -> None:
    path = write_clip(tmp_path / name, [120] * pictures, seconds)
    assert np.abs(np.array(levels_of(read_frames(path, 3))) - 120).max() <= 2
    assert abs(len(read_audio(path, RATE)) / RATE - seconds) < 0.15


def test_what_an_edit_list_hides_is_not_part_of_the_clip(tmp_path: Path) -> None:
    """A clip cut out without re-encoding begins in the middle between two keyframes."""
    levels = [10 + 2 * i for i in range(100)]
    whole = write_clip(tmp_path / "whole.mp4", levels, 4.0, gop=50)
    cut = copy_packets(whole, tmp_path / "cut.mp4", start=1.0)
    assert np.abs(np.array(levels_of(read_frames(cut, 3))) - levels[25::25]).max() <= 2
    assert abs(len(read_audio(cut, RATE)) / RATE - 3) < 0.1


# Bad files


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])
    return path


def noise(path: Path, codec: str = "mpeg4") -> Path:
    levels = np.random.default_rng(0).integers(0, 255, 100)
    return write_video(path, levels.tolist(), [40 * i for i in range(100)], codec=codec)


def garbage(path: Path) -> Path:
    path.write_bytes(b"nothing that any format begins with" * 40)
    return path


def pictures(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


BAD: list[tuple[str, Callable[[Path], Path], str]] = [
    ("audio", lambda d: d / "a.wav", "a.wav: audio: is missing; mend the path or --media-root"),
    ("video", lambda d: d / "a.mp4", "a.mp4: video: is missing; mend the path or --media-root"),
    ("video", lambda d: d / "a.npy", "a.npy: pictures: is missing; mend the path or --media-root"),
    ("video", lambda d: d, ": video: is missing; mend the path or --media-root"),
    ("audio", lambda d: garbage(d / "a.wav"), "a.wav: audio: cannot be decoded (Invalid data"),
    ("video", lambda d: garbage(d / "a.mp4"), "a.mp4: video: cannot be decoded (Invalid data"),
    ("video", lambda d: cut(noise(d / "a.mp4"), 0), "a.mp4: video: cannot be decoded ("),
    ("video", lambda d: cut(noise(d / "a.mp4"), 0.9), "a.mp4: video: cannot be decoded ("),
    ("video", lambda d: cut(noise(d / "a.mkv"), 0.5), "of 4.00 s; it is truncated, copy it again"),
    ("video", lambda d: cut(noise(d / "a.webm", "vp8"), 0.7), "of 4.00 s; it is truncated, copy it again"),
    ("video", lambda d: cut(noise(d / "a.avi"), 0.7), "bytes; it is truncated, copy it again"),
    (
        "audio",
        lambda d: cut(write_audio(d / "a.wav", [tone(2)]), 0.7),
        "a.wav: audio: holds 44,847 of 64,070 bytes; it is truncated, copy it again",
    ),
    (
        "audio",
        lambda d: cut(write_audio(d / "a.flac", [tone(2)], codec="flac"), 0.5),
        "a.flac: audio: ends after 0.50 of 2.00 s; it is truncated",
    ),
    ("audio", lambda d: noise(d / "a.mp4"), "a.mp4: audio: there is no such stream, only video; leave the path empty"),
    (
        "video",
        lambda d: write_audio(d / "a.wav", [tone(0.1)]),
        "a.wav: video: there is no such stream, only audio; leave the path empty",
    ),
    ("video", lambda d: garbage(d / "a.npy"), "a.npy: pictures: is not a NumPy array"),
    ("video", lambda d: pictures(d / "a.npy", np.zeros((4, 3))), "is float64 (4, 3); write uint8 [T, H, W, 3]"),
    ("video", lambda d: pictures(d / "a.npy", np.zeros((0, 2, 2, 3), np.uint8)), "is uint8 (0, 2, 2, 3); write uint8"),
    ("video", lambda d: pictures(d / "a.npy", np.array([{}])), "a.npy: pictures: is not a NumPy array (Array can't be"),
]


@pytest.mark.parametrize("kind, make, message", BAD)
def test_bad_files_are_named_with_their_stream(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(MediaError) as caught:
        read_audio(path, RATE) if kind == "audio" else read_frames(path, 4)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_damage_within_a_file_is_found(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.flac", [np.random.default_rng(0).normal(scale=0.1, size=RATE)], codec="flac")
    content = bytearray(path.read_bytes())
    middle, length = len(content) // 2, len(content) // 5
    content[middle : middle + length] = bytes(length)
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.flac: audio: gives 0\.\d\d of 1\.00 s; it is damaged"):
        read_audio(path, RATE)
