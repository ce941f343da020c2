"""Files and directories are whole or not there, whatever a write or a killed run does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from affect_rl.files import replace_directory, sha256, whole_directory, whole_file


def content(folder: Path) -> dict[str, str]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def fill(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


def write(directory: Path, text: str, *, replace: bool) -> None:
    with whole_directory(directory, replace=replace) as partial:
        (partial / "file").write_text(text)


def write_half(file: Path) -> None:
    file.write_text("half")
    raise OSError("the disk is full")


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"glass harbour")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"glass harbour").hexdigest()


def test_a_file_takes_its_place_when_it_is_written(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_file(tmp_path / "file") as partial:
            partial.write_text(text)
    assert content(tmp_path) == {"file": "new"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="the disk is full"), whole_file(tmp_path / "file") as partial:
        write_half(partial)
    assert content(tmp_path) == {"file": "old"}


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_takes_its_place_when_it_is_filled(tmp_path: Path, replace: bool) -> None:
    fill(tmp_path / "place.partial", "left by a run that was killed")
    write(tmp_path / "place", "new", replace=replace)
    assert content(tmp_path) == {"place/file": "new"}


def test_a_directory_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "place", "old")
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "place", "new", replace=False)
    assert content(tmp_path) == {"place/file": "old"}
    fill(tmp_path / "place.partial.old", "left by a run that was killed")
    write(tmp_path / "place", "new", replace=True)
    assert content(tmp_path) == {"place/file": "new"}


def test_a_directory_that_cannot_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "place", "old")
    with pytest.raises(OSError, match="the disk is full"), whole_directory(tmp_path / "place", replace=True) as partial:
        write_half(partial / "file")
    assert content(tmp_path) == {"place/file": "old"}


def test_the_old_directory_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    fill(tmp_path / "place", "old")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "absent", tmp_path / "place")
    assert content(tmp_path) == {"place/file": "old"}


def test_a_run_that_was_killed_between_old_and_new_loses_neither(tmp_path: Path) -> None:
    fill(tmp_path / "place.partial.old", "old")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "absent", tmp_path / "place")
    assert content(tmp_path) == {"place/file": "old"}
