"""Where AffectGPT's users have the nine benchmarks of MER-UniBench and the training library MER-Caption+.

Facts of Lian et al. (2025), "AffectGPT: A new dataset, model, and benchmark for emotion understanding with
multimodal large language models": names of folders, files and columns as in ``AffectGPT/config.py`` and
``AffectGPT/my_affectgpt/datasets/datasets`` of github.com/zeroQiaoba/AffectGPT; corpus keys, the numbers that
stand for labels and the make of names as in ``MERBench/toolkit/preprocess`` of github.com/zeroQiaoba/MERTools;
test sizes as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from affect_rl.sample import LabelKind, Split

_MER = ("neutral", "angry", "happy", "sad", "worried", "surprise")
_SENTIMENTS = ("negative", "neutral", "positive")
_ENGLISH_CHINESE: Mapping[str, str] = {"en": "english", "zh": "chinese"}
_FACES = ("openface_face/{name}.npy", "openface_face/{name}/{name}.npy")
_TRAIN_VAL_TEST: Mapping[str, Split] = {"train_corpus": "train", "val_corpus": "dev", "test_corpus": "test"}
_TRAIN_TEST1: Mapping[str, Split] = {"train_corpus": "train", "test1_corpus": "test"}


@dataclass(frozen=True, slots=True)
class Layout:
    """One benchmark on disk.

    Attributes:
        name: name of the dataset.
        title: what it is called in prose.
        directory: its directory below the root; all other paths are relative to this.
        labels: the file with the labels: ``.npz`` with corpora, or ``.csv`` with ``name`` and ``openset``.
        corpora: which entry of the ``.npz`` holds which split; one key, the whole ``.csv``, is ``""``.
        label_kind: kind of its labels.
        candidates: the labels; a number stands for the label at that place.
        bound: sentiment values lie in [-bound, bound].
        transcripts: the table of transcripts.
        columns: its column for each language, an ISO 639-1 code.
        language: the one that AffectGPT reads.
        descriptions: the table of descriptions, with ``name`` and ``reason``; empty if there is none.
        audio, video, face: where a clip's media may be, in the order to look.
        pattern: what a name looks like; its groups are the parts that `clip`, `dialogue` and `speaker` are made of.
        example: a name, for messages.
        clip, dialogue, speaker: what a record has there, made of the name and its parts.
        sessions: the split of each session, where a single corpus holds all.
        test_size: clips of the published test split; 0 if there is none.
    """

    name: str
    title: str
    directory: str
    labels: str
    corpora: Mapping[str, Split]
    label_kind: LabelKind
    test_size: int
    candidates: tuple[str, ...] = ()
    bound: float = 0.0
    transcripts: str = "transcription-engchi-polish.csv"
    columns: Mapping[str, str] = field(default_factory=lambda: _ENGLISH_CHINESE)
    language: str = "en"
    descriptions: str = ""
    audio: tuple[str, ...] = ("audio/{name}.wav",)
    video: tuple[str, ...] = ("video/{name}.mp4",)
    face: tuple[str, ...] = _FACES
    pattern: str = r"[^/]+"
    example: str = "sample_00000047"
    clip: str = "{name}"
    dialogue: str = ""
    speaker: str = ""
    sessions: Mapping[str, Split] = field(default_factory=dict)

    @property
    def lacks_dev(self) -> bool:
        """Whether it has train clips and no dev split."""
        splits = {*self.corpora.values(), *self.sessions.values()}
        return "train" in splits and "dev" not in splits


_VIDEO = r"(?P<video>[^/]+)_\d+"
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="mer2023",
            title="MER2023",
            directory="mer2023-dataset-process",
            labels="label-6way.npz",
            corpora=_TRAIN_TEST1,
            label_kind="closed",
            candidates=_MER,
            test_size=411,
            video=("video/{name}.mp4", "video/{name}.avi"),
        ),
        Layout(
            name="mer2024",
            title="MER2024",
            directory="mer2024-dataset-process",
            labels="label-6way.npz",
            corpora=_TRAIN_TEST1,
            label_kind="closed",
            candidates=_MER,
            test_size=1169,
            transcripts="transcription_merge.csv",
            language="zh",
            video=("video/{name}.mp4", "video/{name}.avi"),
        ),
        Layout(
            name="meld",
            title="MELD",
            directory="meld-process",
            labels="label.npz",
            corpora=_TRAIN_VAL_TEST,
            label_kind="closed",
            candidates=("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
            test_size=2610,
            audio=("subaudio/{name}.wav",),
            video=("subvideo/{name}.mp4",),
            pattern=r"(?P<scene>(train|val|test)_dia\d+)_utt\d+",
            example="train_dia0_utt1",
            clip="{scene}",
            dialogue="{scene}",
        ),
        Layout(
            name="iemocap",
            title="IEMOCAP, four classes",
            directory="iemocap-process",
            labels="label_4way.npz",
            corpora={"whole_corpus": "train"},
            sessions={"Ses01": "train", "Ses02": "train", "Ses03": "train", "Ses04": "dev", "Ses05": "test"},
            label_kind="closed",
            candidates=("happy", "sad", "neutral", "anger"),
            test_size=1241,
            audio=("subaudio/{name}.wav",),
            video=("subvideo-tgt/{name}.avi",),
            pattern=r"(?P<scene>(?P<session>Ses0[1-5])[FM]_\w+)_(?P<sex>[FM])\w{3}",
            example="Ses05F_impro01_M003",
            clip="{scene}",
            dialogue="{scene}",
            speaker="{session}{sex}",
        ),
        Layout(
            name="cmumosi",
            title="CMU-MOSI",
            directory="cmumosi-process",
            labels="label.npz",
            corpora=_TRAIN_VAL_TEST,
            label_kind="sentiment",
            candidates=_SENTIMENTS,
            bound=3.0,
            test_size=686,
            audio=("subaudio/{name}.wav",),
            video=("subvideo/{name}.mp4",),
            pattern=_VIDEO,
            example="03bSnISJMiM_1",
            clip="{video}",
        ),
        Layout(
            name="cmumosei",
            title="CMU-MOSEI",
            directory="cmumosei-process",
            labels="label.npz",
            corpora=_TRAIN_VAL_TEST,
            label_kind="sentiment",
            candidates=_SENTIMENTS,
            bound=3.0,
            test_size=4659,
            audio=("subaudio/{name}.wav",),
            video=("subvideo_new/{name}.mp4", "subvideo/{name}.mp4"),
            pattern=_VIDEO,
            example="-3g5yACwYnA_4",
            clip="{video}",
        ),
        Layout(
            name="sims",
            title="CH-SIMS",
            directory="sims-process",
            labels="label.npz",
            corpora=_TRAIN_VAL_TEST,
            label_kind="sentiment",
            candidates=_SENTIMENTS,
            bound=1.0,
            test_size=457,
            pattern=_VIDEO,
            example="video_0001_0001",
            speaker="{video}",  # not the clip: the published splits of both editions are of segments
        ),
        Layout(
            name="simsv2",
            title="CH-SIMS v2",
            directory="simsv2-process",
            labels="label.npz",
            corpora=_TRAIN_VAL_TEST,
            label_kind="sentiment",
            candidates=_SENTIMENTS,
            bound=1.0,
            test_size=1034,
            video=("video_new/{name}.mp4", "video/{name}.mp4"),
            pattern=_VIDEO,
            example="aqgy3_0001_00000",
            speaker="{video}",
        ),
        Layout(
            name="ovmerdplus",
            title="OV-MERD+",
            directory="ovmerdplus-process",
            labels="ovlabel.csv",
            corpora={"": "test"},
            label_kind="open",
            test_size=532,
            transcripts="subtitle_eng.csv",
            columns={"en": "sentence"},
        ),
        Layout(
            name="mercaptionplus",
            title="MER-Caption+",
            directory="mer2025-dataset",
            labels="track2_train_mercaptionplus.csv",
            corpora={"": "library"},
            label_kind="open",
            test_size=0,
            transcripts="subtitle_chieng.csv",
            descriptions="track3_train_mercaptionplus.csv",
            face=_FACES[::-1],
        ),
    )
}
"""The layouts by name."""
