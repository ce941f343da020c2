"""Fusion modules learn the labels' words: on speakers held out, and near the words' embeddings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from affect_rl.config.learning import AlignmentConfig
from affect_rl.errors import AffectError
from affect_rl.policy.alignment import Labelled, align_fusion
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.trajectory import Percept

LABELS = ("anger", "joy", "sadness")
SETTINGS = AlignmentConfig(steps=120, lr=3e-3)


def make_policy() -> AffectPolicy:
    tokenizer = train_tokenizer([f" {label}\n" for label in LABELS] * 20, 300)
    model = tiny_language_model(tokenizer, layers=1, dim=32, heads=2, context=64, seed=0)
    torch.manual_seed(0)
    return AffectPolicy.create(
        model, tokenizer, audio_dim=6, video_dim=4, dim=16, heads=2, soft_tokens=2, experts=2, top_k=1
    )


def make_samples(count: int, *, told: bool = True) -> list[Labelled]:
    """Samples whose voice and face each tell a part of the label, or nothing."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        label = number % 3
        audio, video = rng.normal(size=(3, 6)), rng.normal(size=(2, 4))
        if told:
            audio[:, 0] += 3 * (label == 0)
            video[:, 1] += 3 * (label == 1)
        percept = Percept(audio.astype(np.float32), video.astype(np.float32))
        samples.append(Labelled(percept, (LABELS[label],), f"speaker {number % 10}"))
    return samples


def test_what_is_heard_and_seen_becomes_the_labels_words() -> None:
    policy, samples = make_policy(), make_samples(300)
    before = copy.deepcopy(policy.language_model.state_dict())
    found = align_fusion(policy, samples, SETTINGS, seed=0)
    assert found.labels == 3 and found.accuracy > 0.8 and 0 < found.steps <= 120
    embedding = policy.language_model.get_input_embeddings().weight.detach()
    words = torch.stack([embedding[policy.tokenizer.encode(f" {label}")].mean(dim=0) for label in LABELS])
    with torch.no_grad():
        tokens = policy.fusion(collate_percepts([s.percept for s in samples], 6, 4)).tokens
    centre = words.mean(dim=0)
    cosines = cosine_similarity((tokens - centre)[:, :, None], (words - centre)[None, None], dim=3).mean(dim=1)
    nearest = [LABELS[index] for index in cosines.argmax(dim=1)]
    assert np.mean([word == s.labels[0] for word, s in zip(nearest, samples, strict=True)]) > 0.8
    assert float(tokens.norm(dim=2).mean() / words.norm(dim=1).mean()) == pytest.approx(1, abs=0.5), "as words are"
    after = policy.language_model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_where_nothing_tells_the_label_nothing_is_made_up() -> None:
    found = align_fusion(make_policy(), make_samples(300, told=False), SETTINGS, seed=0)
    assert found.accuracy < 0.55, "a third is chance"


def test_the_same_seed_gives_the_same_weights() -> None:
    policies = [make_policy(), make_policy()]
    settings = AlignmentConfig(steps=5)
    for policy in policies:
        align_fusion(policy, make_samples(40), settings, seed=3)
    one, other = (policy.fusion.state_dict() for policy in policies)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_labels_that_are_too_rare_are_left_out_and_one_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(60)
    monkeypatch.setattr("affect_rl.policy.alignment.MOST_WORDS", 2)
    assert align_fusion(make_policy(), samples, AlignmentConfig(steps=2), seed=0).labels == 2
    alone = [sample._replace(group="ann") for sample in samples]
    with pytest.raises(AffectError, match="samples of two groups"):
        align_fusion(make_policy(), alone, AlignmentConfig(steps=2), seed=0)
