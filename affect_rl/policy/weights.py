"""What a weight sync is made of: a version, a place to read the tensors from, and a checksum."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from affect_rl.errors import AffectError
from affect_rl.files import whole_directory
from affect_rl.policy.adapters import ADAPTERS, Adapter
from affect_rl.policy.directory import Base
from affect_rl.policy.publication import Named, Publication
from affect_rl.policy.transfer import FileTransfer

_MEMORY_FILE_SYSTEM = Path("/dev/shm")
_OWNER = "owner"


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """A published set of weights.

    Attributes:
        version: grows by one with each publication; generated tokens carry it.
        path: directory that holds them as a policy directory does: ``model.safetensors`` and, with adapters, these and
            the name of their base. A policy directory will do. Empty: they were broadcast and are in no file.
        bytes: those of its tensors, of which a base is no part.
        checksum: `multiset_checksum` of all that an engine then computes with, so without the value head; 0: nobody
            computed one.
    """

    version: int
    path: str
    bytes: int
    checksum: int


def weights_parent(setting: str, run_dir: Path, nodes: int) -> str:
    """Where to make the directory to publish to: as ``rollout.weights_dir`` says, else where all `nodes` can read it.

    For one node that is memory (empty, see `new_weights_dir`), for several the run directory, which they share; it is
    made if need be.
    """
    if setting or nodes < 2:
        return str(Path(setting).resolve()) if setting else ""
    run_dir.mkdir(parents=True, exist_ok=True)
    return str(run_dir.resolve())  # actors have working directories of their own


def check_weights_dir(setting: str) -> None:
    """Raise `AffectError` unless ``rollout.weights_dir`` is empty or a directory."""
    if setting and not Path(setting).is_dir():
        raise AffectError(f"rollout.weights_dir={setting}: no such directory; make it, where all nodes see it")


def mark_of(run_dir: Path) -> str:
    """What tells a run's directories of weights from those of others: a hash of where it lies, and its name."""
    place = run_dir.resolve()
    return f"{hashlib.sha256(str(place).encode()).hexdigest()[:8]}-{place.name}"


def new_weights_dir(mark: str, parent: str = "", size: int = 0) -> Path:
    """A new directory to publish to. What killed processes of the same run left is deleted first.

    The caller owns it for as long as its process lives, and removes it.

    Args:
        mark: of the run, see `mark_of`.
        parent: where; empty: in memory, or in the system's temporary directory where there is none or too little.
        size: bytes of a version; there are two at the most, see `write_publication`.

    Raises:
        AffectError: `parent` is not a directory.
    """
    check_weights_dir(parent)
    prefix, places = f"affect-rl-weights-{mark}-", [Path(parent)] if parent else weights_places()
    for left in [path for place in places for path in place.glob(f"{glob.escape(prefix)}*") if _is_abandoned(path)]:
        shutil.rmtree(left, ignore_errors=True)
    roomy = [place for place in places if shutil.disk_usage(place).free >= 2 * size]
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=(roomy or places[-1:])[0])).resolve()
    _own(made)
    return made


def weights_places() -> list[Path]:
    """Where weights are published if nothing is said: memory where the system offers it, or, if there is too little,
    the system's temporary directory."""
    return [place for place in (_MEMORY_FILE_SYSTEM, Path(tempfile.gettempdir())) if place.is_dir()]


def _own(directory: Path) -> None:
    """Lock a directory until this process ends, in whatever way, so that others see that it is in use."""
    unlocked = directory / f"{_OWNER}.new"
    handle = os.open(unlocked, os.O_CREAT | os.O_RDWR)  # never closed
    with suppress(OSError):  # without locks nobody can lock it, so it is nobody's to delete
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unlocked.rename(directory / _OWNER)


def _is_abandoned(directory: Path) -> bool:
    """Whether the process that owned a directory is known to have ended."""
    try:
        with (directory / _OWNER).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def stored_weights(directory: Path, version: int) -> WeightsHandle:
    """The weights of a policy directory as version `version`."""
    return WeightsHandle(version, str(directory.resolve()), _size(directory), checksum=0)


def publish_weights(
    named: Iterable[Named],
    version: int,
    directory: Path,
    adapters: Sequence[Adapter] = (),
    base: tuple[Base, int] | None = None,
) -> WeightsHandle:
    """Write tensors as version `version` for engines to read, see `Publication` and `write_publication`."""
    return write_publication(Publication(version, named, adapters, base), directory)


def write_publication(publication: Publication, directory: Path) -> WeightsHandle:
    """Write a publication for engines to read, whole or not at all.

    The version before stays, for an engine may still be reading it; older ones are deleted first, so that there is
    room for two at the most.

    Args:
        publication: what to write.
        directory: where, see `new_weights_dir`; each version has a folder in it.
    """
    for other in directory.glob("[0-9]*"):
        if other.name.isdigit() and int(other.name) < publication.version - 1:
            shutil.rmtree(other)
    path = directory / str(publication.version)
    with whole_directory(path, replace=True) as partial:
        FileTransfer(partial).send(publication.announcement(), publication.tallied())
    return WeightsHandle(publication.version, str(path), publication.announcement().bytes, publication.checksum)


def _size(directory: Path) -> int:
    own = (*directory.glob("*.safetensors"), *directory.glob(f"{ADAPTERS}/*/*.safetensors"))
    return sum(path.stat().st_size for path in own)
