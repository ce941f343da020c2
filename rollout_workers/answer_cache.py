"""Answers of a language model on disk, so that the same question to the same model is asked once.

The file is JSONL. Its first line holds the settings that all answers depend on; each further line holds one answer
under a hash of its text and these settings. Lines are appended a batch at a time and reach the disk before the next
batch starts. So a kill loses at most the running batch: a last line without its end is dropped when the file is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from affect_rl.errors import AffectError

Settings = Mapping[str, str | int | float]


class AnswerCache:
    """Answers by text, in a file that one process at a time may open; close it, or use it in ``with``.

    Args:
        path: the file; it is made if it is missing.
        settings: what the answers depend on, beside their text.

    Raises:
        AffectError: the file cannot be written, is no cache, is damaged, is in use, or was made with other settings.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, dict(settings)
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise AffectError(f"{path}: cannot be written ({error.strerror}); give another cache file") from None
        try:
            self._answers = self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, text: str) -> str | None:
        """The answer to a text, if there is one."""
        return self._answers.get(self._key(text))

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep answers by text, and write them."""
        fresh = {self._key(text): answer for text, answer in answers.items()}
        self._append(*({"key": key, "answer": answer} for key, answer in fresh.items()))
        self._answers |= fresh

    def close(self) -> None:
        """Let others open the file."""
        self._file.close()

    def _read(self) -> dict[str, str]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AffectError(f"{self.path}: is in use by another process; wait for it, or give another file") from None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and _line({"settings": self.settings}).startswith(content):  # new, or killed in its first line
            self._file.truncate(0)
            self._append({"settings": self.settings})
            return {}
        header, *lines = whole.splitlines() or [b""]
        self._check(_object(header).get("settings"))
        self._file.truncate(len(whole))
        return dict(self._entry(number, line) for number, line in enumerate(lines, 2))

    def _check(self, made_with: Any) -> None:
        if not isinstance(made_with, dict):
            raise AffectError(f"{self.path}: is not a cache of answers; give another file")
        names = [name for name in {**made_with, **self.settings} if made_with.get(name) != self.settings.get(name)]
        if names:
            old, new = (", ".join(f"{name}={s.get(name)!r}" for name in names) for s in (made_with, self.settings))
            raise AffectError(f"{self.path}: was made with {old}, not {new}; give another file, or those settings")

    def _entry(self, number: int, line: bytes) -> tuple[str, str]:
        match _object(line):
            case {"key": str(key), "answer": str(answer)}:
                return key, answer
        raise AffectError(f"{self.path}:{number}: is damaged; delete the line, and it is asked again")

    def _append(self, *lines: Mapping[str, Any]) -> None:
        self._file.write(b"".join(map(_line, lines)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _key(self, text: str) -> str:
        return hashlib.sha256(_line({"text": text, "settings": self.settings})).hexdigest()


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line; empty if there is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
