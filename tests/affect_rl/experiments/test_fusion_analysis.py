"""What is said of fusion: relations of support, states of input, routing weights, load entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.experiments.fusion_analysis import load_entropy, modality_states, routing_weights, support_relation
from affect_rl.policy.fusion import Fusion, FusionShape
from affect_rl.trajectory import Percept


@pytest.mark.parametrize(
    ("support", "relation"),
    [
        ([("joy",), ("joy",), ("fear",)], "helpful"),
        ([("joy", "fear"), ("anger",), ("sadness",)], "ordinary"),
        ([("joy",), ("fear",)], "ordinary"),
        ([("fear",), ("anger",)], "conflicting"),
        ([], None),
    ],
)
def test_relations_of_support(support: list[tuple[str, ...]], relation: str | None) -> None:
    assert support_relation(("joy",), support) == relation


def test_states_say_which_modality_shows_the_emotion(tmp_path: Path) -> None:
    world = synthesise(SynthSettings(train=600, dev=1, test=200, expressions=50, figurative=0, absent=0.1, noise=0.05))
    dataset = Dataset.load(write_dataset(tmp_path / "synth", world, name="synth"))
    test = dataset.samples("test")
    states = modality_states(dataset, test)
    assert all(
        state == ("video-led" if s.audio is None else "audio-led")
        for s, state in zip(test, states, strict=True)
        if (s.audio is None) != (s.video is None)
    )
    assert all((state is None) == (s.audio is s.video is None) for s, state in zip(test, states, strict=True))
    # Without figures of speech one modality or both are strong, so each of these states is common.
    shares = {state: states.count(state) / len(states) for state in set(states)}
    assert min(shares[state] for state in ("balanced", "audio-led", "video-led")) > 0.1


def test_routing_weights_are_those_of_the_mixture() -> None:
    fusion = Fusion(FusionShape(audio_dim=3, video_dim=4, lm_dim=8, dim=8, heads=2, experts=4, top_k=2))
    rng = np.random.default_rng(0)
    percepts = [
        Percept(rng.normal(size=(2, 3)), rng.normal(size=(1, 4)) if i else None, rng.normal(size=(3, 3)), fused=True)
        for i in range(5)
    ]
    weights = routing_weights(fusion, percepts)
    assert weights.shape == (5, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert ((weights > 0).sum(axis=1) == 2).all()


def test_load_entropy_against_scipy() -> None:
    weights = np.random.default_rng(1).dirichlet(np.ones(4), size=20)
    assert load_entropy(weights) == pytest.approx(entropy(weights.mean(axis=0), base=4))
    assert load_entropy(np.eye(4)) == pytest.approx(1)
    assert load_entropy(np.eye(4)[[0, 0]]) == 0
