"""Import of MELD: dialogues of a television series, as text.

Layout: ``{train,dev,test}_sent_emo.csv``, one row an utterance. Source: Poria et al. (2019), "MELD: A
multimodal multi-party dataset for emotion recognition in conversations". The published splits are kept;
they share speakers but no dialogue.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from affect_rl.data.importing import Importer, ImportReport, Row
from affect_rl.sample import AffectSample, Split

CANDIDATES = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_NOTE = "MELD (text), github.com/declare-lab/MELD, GPL-3.0."


@dataclass(frozen=True, slots=True)
class Utterance:
    """One parsed row."""

    row: Row
    dialogue: str
    number: int
    speaker: str
    text: str
    emotion: str


def describe(utterance: Utterance, previous: Utterance | None) -> str:
    """Who says what after whom, without the emotion; the context comes last, so that a cut spares the utterance."""
    said = f'{utterance.speaker} says: "{utterance.text}"'
    return said if previous is None else f'{said}, after {previous.speaker} said: "{previous.text}"'


def import_meld(root: Path | str, out: Path | str, *, skip_bad: bool = False, overwrite: bool = False) -> ImportReport:
    """Import MELD's utterances; clip and dialogue are the dialogue, named with its split as in ``train_12``.

    Raises:
        AffectError: a table or column is missing, rows are bad, or `out` is taken; nothing is written.
    """
    importer = Importer(root, out, skip_bad=skip_bad, overwrite=overwrite)
    for split in _SPLITS:
        dialogues: dict[str, list[Utterance]] = defaultdict(list)
        for row in importer.rows(_table(split), _COLUMNS):
            with importer.judging(row):
                utterance = _parse(row, split)
                dialogues[utterance.dialogue].append(utterance)
        for dialogue in dialogues.values():
            dialogue.sort(key=lambda utterance: utterance.number)
            for previous, utterance in zip([None, *dialogue], dialogue, strict=False):
                with importer.judging(utterance.row):
                    importer.add(_sample(utterance, previous, split), utterance.row)
    return importer.finish(name="meld", note=_NOTE, tables=[_table(split) for split in _SPLITS])


def _table(split: Split) -> str:
    return f"{split}_sent_emo.csv"


def _parse(row: Row, split: Split) -> Utterance:
    return Utterance(
        row,
        dialogue=f"{split}_{row.integer('Dialogue_ID')}",
        number=row.integer("Utterance_ID"),
        speaker=row.text("Speaker"),
        text=row.text("Utterance"),
        emotion=row.choice("Emotion", CANDIDATES),
    )


def _sample(utterance: Utterance, previous: Utterance | None, split: Split) -> AffectSample:
    return AffectSample(
        id=f"{utterance.dialogue}_{utterance.number}",
        dataset="meld",
        split=split,
        clip=utterance.dialogue,
        dialogue=utterance.dialogue,
        speaker=utterance.speaker,
        text=utterance.text,
        labels=(utterance.emotion,),
        label_kind="closed",
        candidates=CANDIDATES,
        description=describe(utterance, previous),
    )
