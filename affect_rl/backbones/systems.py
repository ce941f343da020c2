"""Names of the published systems; the command line shows them without importing anything heavy."""

from __future__ import annotations

from enum import StrEnum


class System(StrEnum):
    """Published systems that a policy can have its connectors from, see `affect_rl.backbones.layouts`."""

    AFFECTGPT = "affectgpt"
    PANDAGPT = "pandagpt"
    EMOTION_LLAMA = "emotion_llama"
    VIDEO_LLAMA = "video_llama"
    VIDEO_LLAMA2 = "video_llama2"
    VIDEOCHAT = "videochat"
    CHATBRIDGE = "chatbridge"
