"""The emotion generator: from the sample, its neighbours' features and the kept evidence to the team's answer."""

from __future__ import annotations

from typing import Literal

import numpy as np

from affect_rl.sample import Modality
from affect_rl.section import Positive
from affect_rl.team.agent import Agent, AgentSettings, Reading
from affect_rl.team.board import Board
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Percept, Prompt
from affect_rl.wording import short


class GeneratorSettings(AgentSettings):
    """The generator's settings."""

    tokens: Positive = 40
    """Longest answer, in tokens."""
    support: Literal["raaf", "direct", "none"] = "raaf"
    """What it gets of the perceptual neighbours' features: fused with the sample's own by RAAF, put behind the sample's
    own as they are, or nothing."""
    stand_in: Literal["", "raaf", "direct", "none"] = ""
    """The same for a modality that the sample lacks, where the neighbours' features stand in; empty: as `support`."""


class Generator(Agent):
    """Sees the sample, the kept evidence, other agents' notes and the features fused with their support.

    It answers as the task asks.
    """

    reads = ("support", "kept", "notes")
    writes = ("output",)
    needs_retrieval = False
    Settings = GeneratorSettings

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        return prompts.build(
            board.sample,
            self.settings.tokens,
            self.task.instruct(board.sample),
            evidence=board.kept,
            percept=self.view(board),
            note="".join(f"{line}\n" for line in board.notes),
        )

    def read(self, text: str, board: Board) -> Reading:
        """As the task reads it; a broken answer has no labels."""
        output = self.task.read(text, board.sample)
        return Reading({"output": output}, output.problem)

    def pattern(self, board: Board) -> str:
        return self.task.pattern(board.sample, self.settings.tokens)

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """As the task's annotator would answer."""
        return self.task.demonstrate(board.sample, board.kept)

    def texts(self) -> list[str]:
        return [short(self.task.instruction), *self.task.texts()]

    def view(self, board: Board) -> Percept:
        """The sample's features and their support, as RAAF is to fuse them."""
        sample, support = board.sample, board.support
        audio, audio_support = self._with_support("audio", sample.audio, support.audio)
        video, video_support = self._with_support("video", sample.video, support.video)
        return Percept(audio, video, audio_support, video_support, fused=True)

    def _with_support(
        self, modality: Modality, own: np.ndarray | None, neighbours: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Frames of one modality and what RAAF is to fuse them with."""
        settings = self.settings
        assert isinstance(settings, GeneratorSettings)
        lacking = own is None or modality in self.episode.absent  # zeros are no features
        use = (settings.stand_in if lacking else "") or settings.support
        if use == "direct":
            return _joined(own, neighbours), None
        return own, neighbours if use == "raaf" else None


def _joined(own: np.ndarray | None, neighbours: np.ndarray | None) -> np.ndarray | None:
    """The neighbours' frames behind the sample's own ``[T + S, d]``; None if there are none at all."""
    frames = [x for x in (own, neighbours) if x is not None]
    return np.concatenate(frames) if frames else None
