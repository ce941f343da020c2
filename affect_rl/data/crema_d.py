"""Import of CREMA-D: spoken sentences, rated by voice alone, by face alone and by both.

Layout: ``SentenceFilenames.csv`` lists the clips; ``tabulatedVotes.csv`` has one row a clip and channel,
the channel being the first digit of the row's id. Source: Cao et al. (2014), "CREMA-D: Crowd-sourced
emotional multimodal actors dataset".

What becomes what:

- *label*: the plurality of the audio-visual votes; a tie is a set.
- *audio*, *video*: the voice-only and the face-only votes as one frame of 18 features (see `features`).
  They are human judgements of one channel, not raw signals; say so wherever a result is shown.
- *description*: the same two channels in words. The audio-visual votes enter nothing but the label.
- *split*: by actor, so nobody is heard in two splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect_rl.data.importing import Importer, ImportReport, Row, RowError, split_groups
from affect_rl.data.validation import near
from affect_rl.sample import AffectSample, Split

CANDIDATES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
_ADJECTIVES = ("angry", "disgusted", "fearful", "happy", "neutral", "sad")
_CLIPS = "SentenceFilenames.csv"
_VOTES_TABLE = "tabulatedVotes.csv"
_VOTES = ("A", "D", "F", "H", "N", "S")
_INTENSITIES = tuple(f"mean{name}Resp" for name in ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad"))
_CHANNELS = {"1": "voice", "2": "face", "3": "both"}
_SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_NOTE = (
    "CREMA-D, github.com/CheyneyComputerScience/CREMA-D, Open Database License 1.0 (contents: DbCL 1.0). Audio and "
    "video features are human votes on voice alone and on face alone, not raw signals; the label is the plurality of "
    "the audio-visual votes."
)


@dataclass(frozen=True, slots=True)
class Clip:
    """A row of the list of clips."""

    row: Row
    name: str
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Votes:
    """One channel's ratings of a clip, in the order of `CANDIDATES`.

    Attributes:
        counts: raters per emotion ``[6]``.
        intensities: mean rated intensity in [0, 100] ``[6]``; nan where nobody chose the emotion.
    """

    counts: np.ndarray
    intensities: np.ndarray

    def plurality(self) -> tuple[int, ...]:
        """Indices of the emotions with most votes."""
        return tuple(np.flatnonzero(self.counts == self.counts.max()).tolist())


def features(votes: Votes) -> np.ndarray:
    """One frame ``[1, 18]`` float32: log vote shares, intensities, and which intensities there are.

    Shares have half a vote added to each emotion and are relative to a uniform vote, ``log(6 p)``, so that 0
    says nothing; intensities are scaled to [0, 1] and 0 where missing, which the last six features tell apart.
    """
    smoothed = votes.counts + 0.5
    rated = np.isfinite(votes.intensities)
    scaled = np.where(rated, votes.intensities, 0.0) / 100
    return np.concatenate([np.log(6 * smoothed / smoothed.sum()), scaled, rated])[None].astype(np.float32)


def describe(voice: Votes | None, face: Votes | None) -> str:
    """The two channels in words, for example ``voice mostly neutral, some sad, weak; face clearly happy, strong``."""
    parts = ((name, votes) for name, votes in (("voice", voice), ("face", face)) if votes is not None)
    return "; ".join(f"{name} {_in_words(votes)}" for name, votes in parts)


def _in_words(votes: Votes) -> str:
    """Emotions with at least a seventh of the votes, most first, and the intensity of the first."""
    shares = votes.counts / votes.counts.sum()
    order = np.argsort(-shares, kind="stable")
    words = []
    for index in order[shares[order] >= 1 / 7]:
        share = shares[index]
        degree = "clearly" if share >= 0.85 else "mostly" if share > 0.5 else "partly" if share > 0.3 else "some"
        words.append(f"{degree} {_ADJECTIVES[index]}")
    intensity = votes.intensities[order[0]]
    if np.isfinite(intensity):
        words.append("weak" if intensity < 55 else "moderate" if intensity < 70 else "strong")
    return ", ".join(words)


def import_crema_d(
    root: Path | str,
    out: Path | str,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    dev_share: float = 0.1,
    test_share: float = 0.2,
    overwrite: bool = False,
) -> ImportReport:
    """Import CREMA-D's votes.

    A clip without votes on a channel lacks that modality; a clip without audio-visual votes has no label
    and is a bad row. A bad row of votes leaves out its clip.

    Args:
        root: directory of the tables.
        out: dataset directory to write.
        skip_bad: write the sound clips even if there are bad rows.
        seed: decides which actors are dev and test.
        dev_share: share of actors in dev.
        test_share: share of actors in test.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: a table or column is missing, rows are bad, or `out` is taken; nothing is written.
    """
    importer = Importer(root, out, skip_bad=skip_bad, overwrite=overwrite)
    clips = _read_clips(importer)
    votes, spoilt = _read_votes(importer, {clip.name for clip in clips})
    splits = split_groups([clip.actor for clip in clips], "actors", seed, dev_share, test_share)
    for clip in clips:
        if clip.name not in spoilt:
            with importer.judging(clip.row):
                importer.add(_sample(clip, votes.get(clip.name, {}), splits[clip.actor]), clip.row)
    return importer.finish(name="crema-d", note=_NOTE, tables=[_CLIPS])


def _read_clips(importer: Importer) -> list[Clip]:
    clips = []
    for row in importer.rows(_CLIPS, ["Filename"]):
        with importer.judging(row):
            name = row.text("Filename")
            parts = name.split("_")
            if len(parts) != 4 or not all(parts):
                raise RowError(f"clip {name!r} is not ACTOR_SENTENCE_EMOTION_LEVEL, as in 1001_IEO_ANG_HI")
            actor, sentence = parts[:2]
            if sentence not in _SENTENCES:
                raise RowError(f"sentence {sentence!r} of clip {name!r} is unknown; {near(sentence, _SENTENCES)}")
            clips.append(Clip(row, name, actor, _SENTENCES[sentence]))
    return clips


def _read_votes(importer: Importer, names: set[str]) -> tuple[dict[str, dict[str, Votes]], set[str]]:
    """Votes by clip and channel, and the clips that have a bad row."""
    votes: dict[str, dict[str, Votes]] = {}
    spoilt: set[str] = set()
    for row in importer.rows(_VOTES_TABLE, ["", *_VOTES, "fileName", "numResponses", *_INTENSITIES]):
        name = row["fileName"]
        try:
            channel = _CHANNELS.get(row[""][:1])
            if channel is None:
                raise RowError(f"row id {row['']!r} names no channel; it starts with 1 (voice), 2 (face) or 3 (both)")
            if name not in names:
                raise RowError(f"clip {name!r} is not among the sound clips of {_CLIPS}; correct one of them")
            if channel in votes.setdefault(name, {}):
                raise RowError(f"second row of clip {name!r} for {channel}; keep one of them")
            votes[name][channel] = _parse_votes(row)
        except RowError as error:
            importer.reject(row, str(error))
            spoilt.add(name)
    return votes, spoilt


def _parse_votes(row: Row) -> Votes:
    counts = np.array([row.integer(column) for column in _VOTES])
    if counts.sum() != row.integer("numResponses"):
        raise RowError(
            f"{counts.sum()} votes in {', '.join(_VOTES)} but numResponses is {row['numResponses']}; correct one"
        )
    intensities = np.array([row.number(column) for column in _INTENSITIES])
    for column, intensity in zip(_INTENSITIES, intensities, strict=True):
        if intensity != -1 and not 0 <= intensity <= 100:
            raise RowError(f"{column} is {intensity:g}; expected 0 to 100, or -1 where nobody voted")
    return Votes(counts, np.where(intensities == -1, np.nan, intensities))


def _sample(clip: Clip, votes: dict[str, Votes], split: Split) -> AffectSample:
    cast = {channel: ratings for channel, ratings in votes.items() if ratings.counts.any()}
    if "both" not in cast:
        raise RowError(f"clip {clip.name!r} has no audio-visual votes in {_VOTES_TABLE} (row id 3...), hence no label")
    voice, face = cast.get("voice"), cast.get("face")
    return AffectSample(
        id=clip.name,
        dataset="crema-d",
        split=split,
        clip=clip.name,
        speaker=clip.actor,
        text=clip.text,
        labels=tuple(CANDIDATES[index] for index in cast["both"].plurality()),
        label_kind="closed",
        candidates=CANDIDATES,
        audio=None if voice is None else features(voice),
        video=None if face is None else features(face),
        description=describe(voice, face),
    )
