"""What a trained team is to understand: a clip, a folder of clips, or a table, none of it labelled.

Each input becomes a sample of the dataset that the team was trained on, without a label. One that cannot be used keeps
its place, with what is wrong with it, so that results stand in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from affect_rl.data.dataset import Manifest
from affect_rl.data.records import read_records
from affect_rl.data.validation import near
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

SOUNDS = (".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".weba", ".wma")
VIDEOS = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm")
TABLES = (".csv", ".jsonl", ".parquet", ".xlsx")
MAX_CHARACTERS = 20_000
"""Longest transcript that is read: some thousands of words. Tokenising megabytes would hold up everybody else."""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """One thing to be understood.

    Attributes:
        sample: what is known of it; features are not among that yet.
        audio: the file to hear; None: there is no sound.
        video: the file to see.
        problem: why it cannot be understood; empty: nothing is known to be wrong.
    """

    sample: AffectSample
    audio: Path | None = None
    video: Path | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class InputColumns:
    """Names of a table's columns; one that is not asked for is used if the table has it.

    Attributes:
        text: the transcript.
        audio: the sound's file, relative to the table.
        video: the pictures' file.
        id: unique name; else ``row-`` and the line.
        speaker: who speaks: eight or more of a speaker are described in comparison with each other.
        description: what an attentive listener would note.
        language: ISO 639-1 code; else English.
    """

    text: str = ""
    audio: str = ""
    video: str = ""
    id: str = ""
    speaker: str = ""
    description: str = ""
    language: str = ""


def new_sample(manifest: Manifest, name: str, text: str, **more: Any) -> AffectSample:
    """A sample without a label, of the same kind as those of a dataset."""
    return AffectSample(
        id=name,
        dataset=manifest.name,
        split="test",
        clip=name,
        speaker=more.pop("speaker", ""),
        text=" ".join(text.split()),
        labels=(),
        label_kind=manifest.label_kind,
        candidates=manifest.candidates,
        **more,
    )


def read_unlabelled(path: Path, manifest: Manifest, columns: InputColumns | None = None) -> list[Unlabelled]:
    """Read a clip, a folder or a table.

    Beside a clip may lie a text file of the same name, with what is said in it.

    Args:
        path: a sound or video file, a directory of such files, or a CSV, JSONL, Parquet or Excel table.
        manifest: of the dataset that the team was trained on.
        columns: of a table.

    Raises:
        AffectError: there is nothing at `path`, it is of no known kind, or a column is missing.
    """
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _suffix(file) in (*SOUNDS, *VIDEOS)]
        if not files:
            raise AffectError(f"{path}: holds no sound or video file; known: {', '.join((*SOUNDS, *VIDEOS))}")
        return [_clip(file, str(file.relative_to(path)), manifest) for file in files]
    if not path.is_file():
        raise AffectError(f"{path}: is missing; give a clip, a folder of clips, or a table")
    if _suffix(path) in (*SOUNDS, *VIDEOS):
        return [_clip(path, path.name, manifest)]
    if _suffix(path) in TABLES:
        return list(_unique(_rows(path, manifest, columns or InputColumns())))
    raise AffectError(f"{path}: kind {path.suffix!r} is unknown; {near(path.suffix, (*SOUNDS, *VIDEOS, *TABLES))}")


def text_problem(text: str) -> str:
    """What is wrong with a transcript; empty: nothing."""
    if len(text) > MAX_CHARACTERS:
        return f"the text has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read; cut it into utterances"
    return ""


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _clip(path: Path, name: str, manifest: Manifest) -> Unlabelled:
    words = path.with_suffix(".txt")
    text, problem = "", ""
    if words.is_file():
        with words.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CHARACTERS + 1)
        problem = text_problem(text)
    video = path if _suffix(path) in VIDEOS else None
    return Unlabelled(new_sample(manifest, name, "" if problem else text), path, video, problem)


def _rows(path: Path, manifest: Manifest, asked: InputColumns) -> Iterator[Unlabelled]:
    records = read_records(path)
    known = list(dict.fromkeys(name for record in records for name in record.values))
    columns = {}
    for field in fields(asked):
        column = getattr(asked, field.name)
        if column and column not in known:
            raise AffectError(f"{path}: column {column!r} is missing; {near(column, known)}")
        if column or field.name in known:
            columns[field.name] = column or field.name
    if not {"text", "audio", "video"} & set(columns):
        raise AffectError(f"{path}: has neither words nor files; name the column of either (--text, --audio, --video)")
    for record in records:
        cells = {what: _cell(record.values.get(column)) for what, column in columns.items()}
        yield _row(path.parent, cells, f"row-{record.line}", manifest)


def _row(root: Path, cells: Mapping[str, str], name: str, manifest: Manifest) -> Unlabelled:
    text = cells.get("text", "")
    more = {what: cells[what] for what in ("speaker", "description", "language") if cells.get(what)}
    problem = text_problem(text) or text_problem(more.get("description", ""))
    if problem:
        more.pop("description", None)
    sample = new_sample(manifest, cells.get("id") or name, "" if problem else text, **more)
    files = {what: root / cells[what] for what in ("audio", "video") if cells.get(what)}
    for what, file in files.items():
        if not problem and not file.is_file():
            problem = f"{what} {cells[what]!r} is no file below {root}; correct it, or leave it empty"
    if not (problem or sample.text or files):
        problem = "has neither words nor a file; fill one in, or remove the row"
    return Unlabelled(sample, files.get("audio"), files.get("video"), problem)


def _unique(inputs: Iterator[Unlabelled]) -> Iterator[Unlabelled]:
    """The inputs; of two with one name the second has a number behind it and is not understood."""
    seen: dict[str, int] = {}
    for item in inputs:
        name = item.sample.id
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            other = replace(item.sample, id=f"{name} ({seen[name]})")
            item = replace(item, sample=other, problem=f"the name {name!r} stands twice; name each once")
        yield item


def _cell(value: Any) -> str:
    """A cell as text; an empty one is an empty text."""
    return "" if value is None else str(value).strip()
