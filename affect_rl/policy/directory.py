"""Policy directories: which files they hold, that they are whole, and where the base of adapters is.

A *plain* policy holds all its weights. A policy with adapters holds its adapters, fusion modules and value head, and
names the plain policy that they stand on, its *base*.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from affect_rl.errors import AffectError
from affect_rl.files import sha256

MANIFEST, WEIGHTS, BASE = "manifest.json", "model.safetensors", "base.json"
CARRIED = "base"
"""Folder of a policy directory that carries its base along."""
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")
"""What says which token ids words have, and what stands around a prompt. In ``tokenizer_config.json`` each version of
transformers notes other things."""


@dataclass(frozen=True, slots=True)
class Base:
    """The plain policy that adapters stand on.

    Attributes:
        path: its directory; where it is a part of a path, from the directory that names it or from one above that.
        manifest: SHA-256 of its manifest, and so of all that is in it.
    """

    path: str
    manifest: str

    @classmethod
    def of(cls, directory: Path) -> Self:
        """A plain policy directory as the base of others."""
        return cls(str(directory.resolve()), sha256(directory / MANIFEST))

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The base that a directory names; None: it holds a plain policy.

        A base that is no longer where it was is looked for where it would be if both had moved together: a run
        directory may be moved or copied whole. So is one of which only a part of the path is known, as in
        `affect_rl.policy.export`.

        Raises:
            AffectError: it is nowhere, or has changed.
        """
        if not (directory / BASE).is_file():
            return None
        named = cls(**json.loads((directory / BASE).read_text()))
        path, here = Path(named.path), directory.resolve()
        parts = path.relative_to(path.anchor).parts
        tails = [Path(*parts[first:]) for first in range(len(parts))]
        together = (parent / tail for parent in here.parents for tail in tails)
        for place in (here / path, *together):
            if (place / MANIFEST).is_file() and sha256(place / MANIFEST) == named.manifest:
                return cls(str(place), named.manifest)
        fault = "is another policy now" if (here / path / MANIFEST).is_file() else "is not there"
        raise AffectError(
            f"{directory}: its adapters stand on the policy {named.path}, which {fault}; bring that directory back, or "
            "copy both under one folder"
        )

    def write(self, directory: Path) -> None:
        (directory / BASE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def write_manifest(directory: Path) -> None:
    """Note the hash of each file of a policy directory; a base that it carries along has a manifest of its own."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    files = sorted(str(path) for path in found if path.parts[0] not in (MANIFEST, CARRIED))
    manifest = {"format": 1, "sha256": {name: sha256(directory / name) for name in files}}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def manifest_hash(directory: Path) -> str:
    """SHA-256 of a policy's manifest, and so of all that is in it; empty: there is no policy."""
    return sha256(directory / MANIFEST) if (directory / MANIFEST).is_file() else ""


def tokenizer_files(directory: Path) -> dict[str, str]:
    """The hashes of the tokenizer's files of a policy directory; empty: its manifest names none, or it has none."""
    if not (directory / MANIFEST).is_file():
        return {}
    hashes = json.loads((directory / MANIFEST).read_text())["sha256"]
    return {name: hashes[name] for name in _TOKENIZER if name in hashes}


def check_manifest(directory: Path, *, content: bool = True) -> None:
    """Raise `AffectError` unless `directory` holds a policy whose files match its manifest, and its base likewise.

    `content`: whether to hash the files, which takes as long as to read them; without, they only have to be there.
    """
    if not (directory / MANIFEST).is_file():
        raise AffectError(f"{directory}: no {MANIFEST}, so this is no policy directory; make one with `affect-rl sft`")
    manifest = json.loads((directory / MANIFEST).read_text())
    for name, digest in manifest["sha256"].items():
        if not (directory / name).is_file():
            raise AffectError(f"{directory}: {name} is missing; copy the policy directory again, whole")
        if content and sha256(directory / name) != digest:
            raise AffectError(f"{directory / name}: content does not match {MANIFEST}; copy the policy directory again")
    if base := Base.read(directory):
        check_manifest(Path(base.path), content=content)
