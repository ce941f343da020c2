"""How features were made of media: the encoders and the settings, which a dataset keeps.

So clips that were not in it can be given the same features later, by whoever uses a policy that was trained on it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from safetensors import SafetensorError

from affect_rl.errors import AffectError
from affect_rl.files import sha256

Source = Literal["face", "video"]

PROSODY = "prosody"
"""What is measured without a checkpoint goes by this name."""
_MEASURED = 1
"""Version of what is measured; raise it whenever a change to it changes a feature."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encoder's checkpoint: its absolute path or hub name, and its content.

    Attributes:
        name: directory or hub name.
        content: SHA-256 over the files of a directory, or the commit of a hub name.
        revision: the commit, for a hub name; all workers load that one.
    """

    name: str
    content: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.content})"

    @classmethod
    def find(cls, name: str) -> Checkpoint:
        """Look up a checkpoint, or `PROSODY`; of a hub name only the configuration is fetched.

        Raises:
            AffectError: there is none, or its weights are not safetensors.
        """
        if name == PROSODY:
            return cls(PROSODY, f"version {_MEASURED}, librosa {version('librosa')}")
        directory = Path(name).expanduser().resolve()
        if directory.is_dir():
            files = sorted([*directory.glob("*.json"), *directory.glob("*.safetensors")])
            if not any(file.suffix == ".safetensors" for file in files):
                raise AffectError(f"{directory}: holds no *.safetensors; write it again with save_pretrained")
            return cls(str(directory), _content(files))
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
            raise AffectError(f"{name}: there is no such directory; give the path of a checkpoint, or its hub name")
        from huggingface_hub import hf_hub_download  # not above: who reads a dataset does not need it

        config = Path(load_checkpoint(hf_hub_download, name, filename="config.json"))
        commit = config.parent.name  # the cache holds it as snapshots/<commit>/config.json
        return cls(name, commit, commit)


@dataclass(frozen=True, slots=True)
class Extraction:
    """What features are made of.

    Attributes:
        speech: encoder of the sound; None: audio features stay as they are.
        image: encoder of the pictures; None: video features stay as they are.
        source: pictures come from the ``face`` or the ``video`` column.
        frames: pictures per sample, rows of its video features.
        segments: windows of time, rows of its audio features.
    """

    speech: Checkpoint | None
    image: Checkpoint | None
    source: Source = "video"
    frames: int = 8
    segments: int = 8

    @property
    def audio_names(self) -> tuple[str, ...]:
        """What the features of an audio frame are, where that is known."""
        if not (self.speech and self.speech.name == PROSODY):
            return ()
        from affect_rl.data.prosody import NAMES

        return NAMES

    def after(self, before: Extraction | None) -> Extraction:
        """This one, and what one before it made of the modality that this one leaves alone."""
        if before is None:
            return self
        sound, pictures = self if self.speech else before, self if self.image else before
        return Extraction(sound.speech, pictures.image, pictures.source, pictures.frames, sound.segments)

    def __str__(self) -> str:
        """The settings in words, for the dataset's manifest."""
        made = []
        if self.speech:
            made.append(f"audio: {self.segments} windows of {self.speech}")
        if self.image:
            made.append(f"video: {self.frames} pictures of {self.source}, {self.image}")
        return f"Features by affect-rl data extract; {'; '.join(made)}."


def load_checkpoint(load: Callable[..., Any], name: str, **options: Any) -> Any:
    """What a library loads, or one message that names the checkpoint."""
    try:
        return load(name, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        raise AffectError(
            f"{name}: is no encoder that can be loaded here ({reason}); "
            "give the path or hub name of a checkpoint with safetensors weights and its preprocessor"
        ) from error


def _content(files: Sequence[Path]) -> str:
    """One hash over names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + bytes.fromhex(sha256(file)))
    return digest.hexdigest()
