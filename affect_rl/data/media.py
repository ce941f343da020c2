"""Media files to arrays: sound at an encoder's sampling rate, pictures evenly spaced over a clip.

FFmpeg decodes, through PyAV. Pictures are chosen by their timestamps, so a variable frame rate does no
harm, and only those are kept; a file is read twice, first without decoding to learn its timestamps.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

import av
import numpy as np
from av.audio import AudioFrame, AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream

from affect_rl.errors import AffectError

MAX_SECONDS = 300.0
"""Longest clip that is read; an utterance is seconds long, and an encoder attends over all of it at once."""

MAX_PIXELS = 7680 * 4320
"""Largest picture that is decoded; a small file may announce one that fills the memory."""

MAX_PICTURES = 120 * int(MAX_SECONDS)
"""Most pictures of a video that is read."""

MAX_DECODED = 60 * int(MAX_SECONDS) * 1920 * 1080
"""Most pixels that are decoded of a video: to see a picture, all since its keyframe are. The longest clip of 1080p at
60 pictures a second has so many, and they take minutes."""

_CONTAINERS = (
    "3g2,3gp,aac,aiff,amr,asf,avi,caf,flac,flv,m4a,matroska,mj2,mov,mp3,mp4,mpeg,mpegts,mpegvideo,ogg,w64,wav,webm"
)
"""FFmpeg's names of the containers that are read. It goes by content, not by a file's name, and other kinds, such as
playlists, open further files."""
_LOST_SHARE, _LOST_SECONDS = 0.1, 0.25
"""A file is bad if more than both of its duration is missing or cannot be decoded; codecs add and drop a little."""
_HEADERLESS = ("mp3", "aac", "mpegts", "mpeg")
"""Formats that have neither a duration nor an index: FFmpeg guesses the one, and seeks past what it is asked for."""
_TIMED = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
"""Formats that tell each packet's time, so that recorders may leave silence out; elsewhere a gap is damage."""
_GAP_SECONDS = 0.1
"""Silence that is put back is longer; less may be careless timestamps."""
_STREAMED = 0xFFFFFFFF
"""What a RIFF file that was written to a pipe says of its length."""

_Kind = TypeVar("_Kind", AudioStream, VideoStream)
_NAMES: dict[type[AudioStream | VideoStream], Literal["audio", "video"]] = {AudioStream: "audio", VideoStream: "video"}


class MediaError(AffectError):
    """A file cannot be used: the message names the file, the stream and the reason."""


@dataclass(frozen=True, slots=True)
class _Timestamps:
    """When the packets of a stream are shown, ascending, in its time base.

    Attributes:
        shown: of every packet but those that an MP4 edit list hides: the lead-in of a clip cut without re-encoding.
        keyframes: of those at which decoding can begin, hidden or not, if they can be sought.
        end: when the last one ends.
        seconds: from the first one's beginning to that.
    """

    shown: list[int]
    keyframes: list[int]
    end: int
    seconds: float

    def evenly(self, count: int) -> list[int]:
        """What is on show at the beginnings of `count` equal windows of the clip."""
        start, length = self.shown[0], self.end - self.shown[0]
        return [self.shown[bisect_right(self.shown, start + i * length // count) - 1] for i in range(count)]


def read_audio(path: Path, sampling_rate: int) -> np.ndarray:
    """Decode a file's sound.

    Returns:
        ``[samples]`` float32 at `sampling_rate`, channels mixed to one; full scale is 1. What a recorder left out
        of a Matroska or MP4 file is silence.

    Raises:
        MediaError: there is no sound, it is longer than `MAX_SECONDS`, some of it is no numbers, or the file is
            missing, truncated or damaged.
    """
    seconds = _timestamps(path, AudioStream).seconds
    if seconds > MAX_SECONDS:
        raise MediaError(f"{path}: audio: lasts {seconds:.0f} s, more than {MAX_SECONDS:g}; cut it into utterances")
    with _open(path, AudioStream) as (container, stream):
        timed = container.format.name in _TIMED
        pieces = [np.empty(0, np.float32)]
        room = int(MAX_SECONDS * sampling_rate) + sampling_rate  # a header, or times of packets, may lie
        for piece in _pieces(container.decode(stream), sampling_rate, timed):
            pieces.append(piece)
            if (room := room - len(piece)) < 0:
                raise MediaError(f"{path}: audio: lasts more than {MAX_SECONDS:g} s; cut it into utterances")
        sound = np.concatenate(pieces)
    decoded = len(sound) / sampling_rate
    if _falls_short(decoded, seconds) or not len(sound):
        raise MediaError(f"{path}: audio: gives {decoded:.2f} of {seconds:.2f} s; it is damaged, copy it again")
    if not np.isfinite(sound).all():  # files of floating point may hold anything
        raise MediaError(f"{path}: audio: has samples that are no numbers; export it again")
    return sound


def _pieces(frames: Iterable[AudioFrame], rate: int, timed: bool) -> Iterator[np.ndarray]:
    """The frames as pieces of one sound, resampled and mixed; if they are `timed`, silence fills their gaps."""
    resampler = av.AudioResampler(format="fltp", rate=rate)
    make: tuple[str, str, int] | None = None
    start, reached = None, 0.0  # time of the first frame; seconds of sound so far
    for frame in frames:
        start = frame.time if start is None else start
        gap = frame.time - start - reached if timed and start is not None and frame.time is not None else 0.0
        latest, make = make, (frame.format.name, frame.layout.name, frame.sample_rate)
        if make != latest or gap > _GAP_SECONDS:  # a resampler takes one make, and would join the two ends of a gap
            yield from _mixed(resampler, None)
            resampler = av.AudioResampler(format="fltp", rate=rate)
        if gap > _GAP_SECONDS:
            yield np.zeros(round(gap * rate), np.float32)
            reached += gap
        reached += frame.samples / frame.sample_rate
        frame.pts = None  # of no more use, and a resampler may stumble over a jump
        yield from _mixed(resampler, frame)
    yield from _mixed(resampler, None)


def _mixed(resampler: av.AudioResampler, frame: AudioFrame | None) -> list[np.ndarray]:
    """What a resampler gives for a frame, its channels mixed; for None what it still holds back."""
    return [piece.to_ndarray().mean(axis=0) for piece in resampler.resample(frame)]


def read_frames(path: Path, count: int) -> np.ndarray:
    """Pictures from the beginnings of `count` equal windows of a clip; a short clip repeats some.

    Args:
        path: a video, or a NumPy file of pictures ``[T, H, W, 3]`` uint8 (as face trackers write them),
            which are taken to be equally far apart.
        count: pictures wanted.

    Returns:
        ``[count, H, W, 3]`` uint8, RGB, turned upright as the file asks for (NumPy files: as they are).

    Raises:
        MediaError: there are no pictures, they last longer than `MAX_SECONDS`, are more than `MAX_PICTURES` or take
            more than `MAX_DECODED` to see, or the file is missing, truncated or damaged.
    """
    if path.suffix == ".npy":
        return _read_pictures(path, count)
    times = _timestamps(path, VideoStream)
    if times.seconds > MAX_SECONDS or len(times.shown) > MAX_PICTURES:
        raise MediaError(
            f"{path}: video: lasts {times.seconds:.0f} s and has {len(times.shown):,} pictures, more than "
            f"{MAX_SECONDS:g} s or {MAX_PICTURES:,}; cut it into utterances"
        )
    wanted = times.evenly(count)
    pictures: dict[int, np.ndarray] = {}
    with _open(path, VideoStream) as (container, stream):
        if (pixels := stream.width * stream.height) > MAX_PIXELS:
            raise MediaError(f"{path}: video: {pixels:,} pixels a picture, more than {MAX_PIXELS:,}; scale it down")
        decode = _decoder(path, container, stream)
        decoded, reached = decode(), times.shown[0]
        for time in dict.fromkeys(wanted):
            keyframe = times.keyframes[bisect_right(times.keyframes, time) - 1] if times.keyframes else reached
            if reached < keyframe <= time:
                container.seek(keyframe, stream=stream)
                decoded = decode()
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= time), None)
            if frame is None:
                raise MediaError(f"{path}: video: ends in damaged pictures; copy or export the file again")
            pictures[time], reached = _upright(frame, stream), time
    return np.stack([pictures[time] for time in wanted])


def _decoder(path: Path, container: InputContainer, stream: VideoStream) -> Callable[[], Iterator[VideoFrame]]:
    """Decodes from where a file is at; all calls together no more than `MAX_DECODED`, hidden pictures included."""
    pixels = stream.width * stream.height
    room = MAX_DECODED // pixels

    def decode() -> Iterator[VideoFrame]:
        nonlocal room
        for packet in container.demux(stream):
            room -= 1
            if room < 0:
                raise MediaError(
                    f"{path}: video: more than {MAX_DECODED // pixels:,} pictures of {pixels:,} pixels have to be "
                    "decoded; scale it down, or cut it into utterances"
                )
            yield from packet.decode()

    return decode


def _upright(frame: VideoFrame, stream: VideoStream) -> np.ndarray:
    """A frame as it is to be shown; phones film sideways and note by how many degrees to turn it counter-clockwise."""
    picture = frame.to_ndarray(format="rgb24", width=stream.width, height=stream.height)
    return np.rot90(picture, round(frame.rotation / 90))


def _read_pictures(path: Path, count: int) -> np.ndarray:
    _require_file(path, "pictures")
    try:
        pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise MediaError(f"{path}: pictures: is not a NumPy array ({error}); write it with numpy.save") from None
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size or pictures.dtype != np.uint8:
        raise MediaError(
            f"{path}: pictures: is {pictures.dtype} {pictures.shape}; write uint8 [T, H, W, 3] with T at least 1"
        )
    return pictures[[i * len(pictures) // count for i in range(count)]]


def _timestamps(path: Path, kind: type[_Kind]) -> _Timestamps:
    """Read a file through without decoding; raise `MediaError` if it ends long before its header says."""
    shown: list[int] = []
    keyframes: list[int] = []
    name = _NAMES[kind]
    length, last = 0, 0.0  # of the latest packet that is shown; when any stream ends
    _require_file(path, name)
    with _open(path, kind) as (container, stream):
        _require_whole_riff(path, name)
        time_base = stream.time_base or Fraction(1)
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts  # AVI may have no pts
            if time is None or packet.time_base is None:
                continue
            last = max(last, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index:
                if packet.is_keyframe and container.format.name not in _HEADERLESS:
                    keyframes.append(time)
                if not packet.is_discard:
                    length = packet.duration or 0
                    shown.append(time)
        announced = (container.duration or 0) / av.time_base
        there = last - (container.start_time or 0) / av.time_base
        if container.format.name not in _HEADERLESS and _falls_short(there, announced):
            raise MediaError(
                f"{path}: {name}: ends after {there:.2f} of {announced:.2f} s; it is truncated, copy it again"
            )
    if not shown:
        raise MediaError(f"{path}: {name}: the stream is empty; copy or export the file again")
    shown.sort()
    end = shown[-1] + (length or (shown[-1] - shown[0]) // max(1, len(shown) - 1))
    return _Timestamps(shown, sorted(keyframes), end, float((end - shown[0]) * time_base))


def _falls_short(seconds: float, expected: float) -> bool:
    return expected - seconds > max(_LOST_SHARE * expected, _LOST_SECONDS)


@contextmanager
def _open(path: Path, kind: type[_Kind]) -> Iterator[tuple[InputContainer, _Kind]]:
    """The container and its best stream of a kind, as FFmpeg judges; what it raises becomes `MediaError`."""
    name = _NAMES[kind]
    try:
        allowed = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path), metadata_errors="replace", container_options=allowed) as container:
            stream = container.streams.best(name)
            if not isinstance(stream, kind) or Disposition.attached_pic in stream.disposition:  # a cover is no video
                there = ", ".join(sorted({stream.type for stream in container.streams} - {name})) or "nothing"
                raise MediaError(f"{path}: {name}: there is no such stream, only {there}; leave the path empty")
            yield container, stream
    except av.FFmpegError as error:
        raise MediaError(
            f"{path}: {name}: cannot be decoded ({error.strerror}); copy or export the file again"
        ) from None


def _require_file(path: Path, name: str) -> None:
    if not path.is_file():
        raise MediaError(f"{path}: {name}: is missing; mend the path or --media-root")


def _require_whole_riff(path: Path, name: str) -> None:
    """WAV and AVI say in their first bytes how long they are, and FFmpeg does not compare."""
    with path.open("rb") as file:
        magic, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    there = path.stat().st_size - 8
    if magic == b"RIFF" and there < (1 - _LOST_SHARE) * size and size != _STREAMED:
        raise MediaError(f"{path}: {name}: holds {there:,} of {size:,} bytes; it is truncated, copy it again")
