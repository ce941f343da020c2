"""Files and directories that are whole or not there.

What is written goes to a name of its own beside its place and takes the place when it is done. A run that is killed
meanwhile leaves the place as it was; what it left beside it goes with the next write. Two writers of one place at
a time are not foreseen.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affect_rl.errors import FailureError

FULL_BELOW = 2**20
"""A disk with fewer free bytes counts as full."""


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Say so if what is written to `path`, whose directory is there, fails because its disk is full.

    Libraries report it each in its own way, so the disk itself is asked.

    Raises:
        FailureError: it is full.
    """
    try:
        yield
    except Exception as error:
        disk = shutil.disk_usage(path.parent)
        if disk.free < FULL_BELOW:
            size = disk.total / 2**30
            raise FailureError(f"{path}: its disk of {size:.1f} GiB is full; make room there ({error})") from error
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file; it takes the place of `path` at the block's end, and is deleted if the block fails."""
    partial = _beside(path)
    try:
        with room_on_disk(partial):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(directory: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory to fill; it takes the place of `directory` at the block's end, and is deleted if that fails.

    Args:
        directory: where it goes; its parents are made.
        replace: put it in the place of one that is there, see `replace_directory`.

    Raises:
        OSError: `directory` is there, is not empty and is not to be replaced.
    """
    partial = _beside(directory)
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed here
    try:
        partial.mkdir(parents=True)
        with room_on_disk(partial):
            yield partial
            if replace:
                replace_directory(partial, directory)
            else:
                partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_directory(fresh: Path, directory: Path) -> None:
    """Put `fresh` in the place of `directory`, which is never half there; if that fails, the old one comes back."""
    old = directory.with_name(f"{directory.name}.partial.old")
    try:
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed here
            directory.rename(old)
        fresh.rename(directory)
    except BaseException:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")
