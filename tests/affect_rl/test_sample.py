"""Samples without some of their modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.sample import AffectSample

SAMPLE = AffectSample(
    "a", "d", "train", "c", "s", "text", ("joy",), "closed", ("joy",), audio=np.ones((2, 3)), video=np.ones((1, 4))
)


@given(st.integers(0, 2**32))
def test_dropout_takes_one_modality_or_none(seed: int) -> None:
    assert SAMPLE.with_dropout(0, seed) is SAMPLE
    dropped = SAMPLE.with_dropout(1, seed)
    assert (dropped.audio is None) != (dropped.video is None) and dropped.text == "text"
    assert (SAMPLE.with_dropout(1, seed).audio is None) == (dropped.audio is None), "the seed decides"
    for sample in (replace(SAMPLE, audio=None), replace(SAMPLE, video=None)):
        assert sample.with_dropout(1, seed) is sample, "what is left of a sample stays"


def test_dropout_takes_as_often_as_it_is_told_and_either() -> None:
    dropped = [SAMPLE.with_dropout(0.4, seed) for seed in range(2000)]
    audio, video = (sum(getattr(s, name) is None for s in dropped) / 2000 for name in ("audio", "video"))
    assert abs(audio + video - 0.4) < 0.05 and abs(audio - video) < 0.05


def test_what_is_noted_about_a_modality_goes_with_it() -> None:
    noted = replace(SAMPLE, description='Ann says: "text"; voice loud, high; face mostly angry')
    assert noted.without(["audio"]).description == 'Ann says: "text"; face mostly angry'
    assert noted.without(["video", "text"]).description == "voice loud, high"
    assert noted.without(["text", "audio", "video"]).description == ""
    assert noted.without([]).description == noted.description


def test_a_quoted_text_goes_whole_whatever_stands_in_it() -> None:
    noted = replace(SAMPLE, text="Okay; voice me; fine.", description='Ann says: "Okay; voice me; fine."; voice loud')
    assert noted.without(["text"]).description == "voice loud"
    assert noted.without(["audio"]).description == 'Ann says: "Okay; voice me; fine."'
