"""From prompts to engine inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_cases import AUDIO_DIM, SOFT_TOKENS, make_prompts

from affect_rl.errors import AffectError
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.model import AffectPolicy
from affect_rl.trajectory import Percept, Prompt
from rollout_workers.vllm.model import MODALITY, engine_input

LENGTH = 2 * SOFT_TOKENS
PLACEHOLDER = 2
SHAPE = {"audio_dim": AUDIO_DIM, "video_dim": 5, "lm_dim": 8, "soft_tokens": SOFT_TOKENS}
CONFIG = AffectConfig(fusion=SHAPE, percept_token_id=PLACEHOLDER)
NOTHING_SEEN = Percept(None, None)


@given(st.lists(st.lists(st.integers(3, 99), max_size=5), min_size=1, max_size=6))
def test_each_percept_gets_its_own_placeholders(texts: list[list[int]]) -> None:
    """Also where percepts follow each other without a token between them."""
    token_ids, starts = list(texts[0]), []
    for text in texts[1:]:
        starts.append(len(token_ids))
        token_ids += [PLACEHOLDER] * LENGTH + text
    found = engine_input(Prompt(tuple(token_ids), (NOTHING_SEEN,) * len(starts)), CONFIG)
    ranges = found["mm_placeholders"][MODALITY]
    assert [(r.offset, r.length) for r in ranges] == [(start, LENGTH) for start in starts]
    assert found["prompt_token_ids"] == token_ids


@pytest.mark.parametrize(
    "token_ids, percepts",
    [
        ([5, 2, 2, 2, 2], 0),
        ([5], 1),
        ([2, 2, 2, 2], 2),
        ([2, 2, 2], 1),
        ([2, 2, 2, 2, 2], 1),
        ([2, 2, 5, 2, 2], 1),
        ([2, 2, 2, 5, 2, 2, 2, 2, 2], 2),
    ],
)
def test_placeholders_without_percepts_are_refused(token_ids: list[int], percepts: int) -> None:
    with pytest.raises(AffectError, match=r"placeholder tokens for .* percepts; write one run of 4"):
        engine_input(Prompt(tuple(token_ids), (NOTHING_SEEN,) * percepts), CONFIG)


@pytest.mark.parametrize("shape", [(3, AUDIO_DIM + 1), (AUDIO_DIM,), (1, 3, AUDIO_DIM)])
def test_features_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    percept = Percept(None, None, audio_support=np.zeros(shape, np.float32))
    with pytest.raises(AffectError, match=r"audio_support has shape .*; the policy takes \[frames, 7\]"):
        engine_input(Prompt((2,) * LENGTH, (percept,)), CONFIG)


def test_hashes_tell_percepts_apart_by_content_alone(policy: AffectPolicy) -> None:
    percepts = [percept for prompt in make_prompts(policy, 30) for percept in prompt.percepts]
    percept = next(p for p in percepts if p.audio is not None and p.audio_support is not None and len(p.audio) > 1)

    def content_hash(percept: Percept) -> str:
        return engine_input(Prompt((2,) * LENGTH, (percept,)), CONFIG)["mm_hashes"][MODALITY][0]

    read_only = percept.audio.copy()
    read_only.setflags(write=False)
    assert content_hash(replace(percept, audio=read_only)) == content_hash(percept)
    others = [
        replace(percept, fused=not percept.fused),
        replace(percept, audio=None),
        replace(percept, audio=percept.audio[:-1]),
        replace(percept, audio=np.nextafter(percept.audio, np.float32(9))),
        replace(percept, audio=percept.audio_support, audio_support=percept.audio),
    ]
    assert len({content_hash(p) for p in (percept, *others)}) == 1 + len(others)
