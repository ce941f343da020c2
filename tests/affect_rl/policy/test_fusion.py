"""Fusion: identity starts, absent modalities, independence from the batch, gradients where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from affect_rl.policy.fusion import (
    Fusion,
    FusionShape,
    MbMoe,
    Raaf,
    collate_percepts,
    load_balance,
    shape_from_dict,
)
from affect_rl.trajectory import Percept

SHAPE = FusionShape(audio_dim=6, video_dim=5, lm_dim=12, dim=8, heads=2, soft_tokens=2, experts=4, top_k=2)


def features(length: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


def percept(seed: int, *, fused: bool = True, support: bool = True) -> Percept:
    supports = (features(7, 6, seed + 50), features(3, 5, seed + 60)) if support else (None, None)
    return Percept(features(2 + seed, 6, seed), features(4, 5, seed + 40), *supports, fused)


@pytest.fixture
def fusion() -> Fusion:
    """Fusion whose experts no longer start at zero, so that they take part."""
    torch.manual_seed(0)
    module = Fusion(SHAPE).eval()
    for expert in module.moe.experts:
        torch.nn.init.normal_(expert[-1].weight)
    return module


def tokens(fusion: Fusion, percepts: Sequence[Percept]) -> torch.Tensor:
    return fusion(collate_percepts(percepts, 6, 5)).tokens


def test_experts_start_as_the_identity() -> None:
    torch.manual_seed(0)
    audio, video, pooled = torch.randn(3, 5, 8), torch.randn(3, 4, 8), torch.randn(3, 16)
    same_audio, same_video, router, weights = MbMoe(8, 4, 2, residual=True)(audio, video, pooled)
    assert torch.equal(same_audio, audio)
    assert torch.equal(same_video, video)
    torch.testing.assert_close(router.sum(-1), torch.ones(3))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert ((weights > 0).sum(-1) == 2).all()


def test_equation_7_as_published_has_no_residual() -> None:
    torch.manual_seed(0)
    audio, video, pooled = torch.randn(1, 1, 8), torch.randn(1, 1, 8), torch.randn(1, 16)
    moe = MbMoe(8, 4, 2, residual=False)
    mixed, _, _, weights = moe(audio, video, pooled)
    expected = sum(weights[0, e] * moe.experts[e](audio) for e in range(4))
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("residual", [True, False])
def test_the_warm_start_may_compute_in_half_precision(residual: bool) -> None:
    fusion = Fusion(replace(SHAPE, residual=residual))
    percepts = [percept(1), percept(2, fused=False)]
    with torch.autocast("cpu", torch.bfloat16):
        half = tokens(fusion, percepts)
        half.float().sum().backward()
    torch.testing.assert_close(half.float(), tokens(fusion, percepts), atol=0.1, rtol=0.1)


def test_raaf_without_support_is_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[False] * 4, [True] * 4])
    enriched = Raaf(8, 2)(x, torch.randn(2, 4, 8), mask)
    assert torch.equal(enriched[0], x[0])
    assert not torch.equal(enriched[1], x[1])


def test_raaf_against_equations_5_and_6() -> None:
    torch.manual_seed(0)
    raaf = Raaf(4, 1)
    x, support = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
    a = raaf.attention
    scores = a.query(x)[0] @ a.key(support)[0].T / 2  # sqrt(4)
    attended = a.out(scores.softmax(-1) @ a.value(support)[0])
    gate = 1 / (1 + torch.exp(-raaf.gate(torch.cat([x[0], attended], -1))))
    torch.testing.assert_close(raaf(x, support, torch.ones(1, 3, dtype=torch.bool))[0], x[0] + gate * attended)


def test_support_changes_fused_percepts_only(fusion: Fusion) -> None:
    for fused in (True, False):
        with_support, without = percept(1, fused=fused), percept(1, fused=fused, support=False)
        same = torch.equal(tokens(fusion, [with_support]), tokens(fusion, [without]))
        assert same is not fused


@pytest.mark.parametrize("absent", [("audio",), ("video",), ("audio", "video")])
def test_an_absent_modality_is_one_learned_frame(fusion: Fusion, absent: tuple[str, ...]) -> None:
    changed = replace(percept(1), **dict.fromkeys(absent))
    whole, partial = tokens(fusion, [percept(1)]), tokens(fusion, [changed])
    assert partial.isfinite().all()
    assert not torch.equal(whole, partial)
    before = partial.clone()
    with torch.no_grad():
        for name in absent:
            getattr(fusion, name).absent.add_(torch.randn(8))
    assert not torch.allclose(tokens(fusion, [changed]), before)


def test_a_percept_does_not_see_its_neighbours(fusion: Fusion) -> None:
    percepts = [percept(0), percept(3, fused=False), replace(percept(5), audio=None), percept(2, support=False)]
    together = tokens(fusion, percepts)
    for row, alone in enumerate(percepts):
        torch.testing.assert_close(together[row], tokens(fusion, [alone])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("percepts", [[], [percept(1, fused=False)]], ids=["none", "none fused"])
def test_every_parameter_gets_a_gradient_whatever_the_batch(fusion: Fusion, percepts: list[Percept]) -> None:
    output = fusion(collate_percepts(percepts, 6, 5))
    (output.tokens.sum() + load_balance(output.router, output.weights)).backward()
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_load_balance_is_one_when_even_and_experts_by_top_k_when_all_choose_the_same(top_k: int) -> None:
    even, first = torch.full((4, 4), 0.25), torch.zeros(4)
    first[:top_k] = 1 / top_k
    in_turn = torch.stack([first.roll(row) for row in range(4)])
    assert float(load_balance(even, in_turn)) == pytest.approx(1)
    always = first.expand(4, -1)
    assert float(load_balance(always, always)) == pytest.approx(4 / top_k)
    assert float(load_balance(even[:0], even[:0])) == 0


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_load_balance_is_never_more_than_experts_by_top_k(top_k: int) -> None:
    torch.manual_seed(0)
    audio, video = torch.zeros(5, 1, 8), torch.zeros(5, 1, 8)
    for scale in (1, 10, 30):
        _, _, router, weights = MbMoe(8, 4, top_k, residual=True)(audio, video, scale * torch.randn(16).expand(5, -1))
        assert 1 - 1e-5 <= float(load_balance(router, weights)) <= 4 / top_k + 1e-5


def test_fitted_scale_makes_features_standard(fusion: Fusion) -> None:
    arrays = [features(50, 6, 1) * 100 + 7, features(30, 6, 2) * 100 + 7]
    fusion.fit_scale(arrays, [])
    frames = np.concatenate(arrays)
    scaled = (torch.from_numpy(frames) - fusion.audio.mean) / fusion.audio.std
    torch.testing.assert_close(scaled.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(6))
    assert torch.equal(fusion.video.std, torch.ones(5))


def test_unknown_shape_keys_are_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['gates'\]"):
        shape_from_dict({"audio_dim": 1, "video_dim": 1, "lm_dim": 4, "gates": 2})
