"""Connectors: against the formulas of the systems they come from, rows apart from each other, slots as configured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_cases import WIDTHS, tiny_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.policy.connectors import make_connector, window_means
from affect_rl.policy.fusion import (
    FusionShape,
    Sequences,
    collate_percepts,
    load_balance,
    pad_sequences,
    shape_from_dict,
)
from affect_rl.policy.slot_fusion import SlotFusion, make_fusion
from affect_rl.policy.slots import SlotConfig
from affect_rl.trajectory import Percept

AUDIO, VIDEO, LM = 6, 5, 12

SLOTS = (
    SlotConfig(name="multi", source="joint", connector="attention", tokens=2),
    SlotConfig(name="patches", source="video", connector="linear", tokens=2, stack=3),
    SlotConfig(name="speech", source="audio", connector="mlp", tokens=2, width=7),
    SlotConfig(name="pooled", source="audio", connector="attention"),
    SlotConfig(name="queries", source="video", connector="qformer", tokens=3, width=8, heads=2, positions=4),
    SlotConfig(
        name="both",
        source="joint",
        connector="qformer",
        width=8,
        heads=2,
        layers=2,
        cross_every=2,
        positions=0,
        frame_width=4,
    ),
    SlotConfig(name="part", source="video", connector="linear", columns=(1, 4)),
)
SHAPE = FusionShape(AUDIO, VIDEO, LM, dim=8, heads=2, slots=SLOTS)


def frames(lengths: list[int], dim: int, seed: int = 0) -> Sequences:
    rng = torch.Generator().manual_seed(seed)
    return pad_sequences([torch.randn(length, dim, generator=rng).numpy() for length in lengths], dim)


def connector(seed: int = 0, **slot: object) -> nn.Module:
    torch.manual_seed(seed)
    return make_connector(SlotConfig.model_validate({"name": "s"} | slot), {"audio": AUDIO, "video": VIDEO}, LM).eval()


def features(length: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


def percept(seed: int, *, fused: bool = True, support: bool = True) -> Percept:
    supports = (features(7, AUDIO, seed + 50), features(3, VIDEO, seed + 60)) if support else (None, None)
    return Percept(features(2 + seed, AUDIO, seed), features(4, VIDEO, seed + 40), *supports, fused)


def tokens(fusion: nn.Module, percepts: list[Percept]) -> Tensor:
    with torch.no_grad():
        return fusion(collate_percepts(percepts, AUDIO, VIDEO)).tokens


@pytest.fixture
def fusion() -> nn.Module:
    """A front with every kind of connector, whose ways up no longer start at zero."""
    torch.manual_seed(0)
    module = make_fusion(SHAPE).eval()
    for name, parameter in module.named_parameters():
        if ".up." in name:
            nn.init.normal_(parameter)
    return module


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7))
def test_windows_are_those_of_adaptive_pooling(lengths: list[int], count: int) -> None:
    given_frames = frames(lengths, 3)
    for row, length in enumerate(lengths):
        expected = F.adaptive_avg_pool1d(given_frames.values[row, :length].T, count).T
        torch.testing.assert_close(window_means(given_frames, count)[row], expected)


def test_a_joint_projection_adds_up_the_modalities_that_are_there() -> None:
    torch.manual_seed(0)
    module = make_connector(SlotConfig(name="s", source="joint", connector="linear"), {"audio": 4, "video": 4}, LM)
    audio, video = frames([3, 2, 0], 4), frames([2, 0, 0], 4, seed=1)
    weight, bias = module.project.weight, module.project.bias
    first = audio.values[0].mean(0) @ weight.T + bias + video.values[0, :2].mean(0) @ weight.T + bias
    second = audio.values[1, :2].mean(0) @ weight.T + bias
    torch.testing.assert_close(module(audio, video)[:, 0], torch.stack([first, second, bias]))


def test_stacked_windows_lie_side_by_side() -> None:
    module = connector(source="video", connector="linear", tokens=2, stack=3)
    video = frames([6], VIDEO)
    expected = torch.stack([video.values[0, :3].flatten(), video.values[0, 3:].flatten()])
    torch.testing.assert_close(module(video)[0], module.project(expected))


def test_attention_weights_are_plain_scores() -> None:
    module = connector(source="audio", connector="attention", tokens=2)
    audio = frames([3, 5], AUDIO)
    for row, length in enumerate([3, 5]):
        h = audio.values[row, :length]
        pooled = h.T @ (h @ module.score.weight.T + module.score.bias)
        expected = module.project(pooled[:, 0])
        torch.testing.assert_close(module(audio)[row], torch.stack([expected, expected]))


def test_prefusion_weighs_the_means_of_video_and_audio() -> None:
    module = connector(source="joint", connector="attention")
    audio, video = frames([3], AUDIO), frames([4], VIDEO, seed=1)
    v, a = module.video(video.values[0].mean(0)), module.audio(audio.values[0].mean(0))
    first, second = module.score(module.mix(torch.cat([v, a])))
    torch.testing.assert_close(module(audio, video)[0, 0], module.project(first * v + second * a))


def test_the_qformer_is_bert_with_cross_attention() -> None:
    """Against transformers' own BERT decoder layer, under the names that BLIP-2's code gave its copy of BERT."""
    module = connector(source="video", connector="qformer", tokens=3, width=8, heads=2, layers=1)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32, "layer_norm_eps": 1e-12}
    config = BertConfig(
        **sizes, is_decoder=True, add_cross_attention=True, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        attn_implementation="eager",
    )  # fmt: skip
    bert = BertLayer(config, layer_idx=0).eval()
    for part in ("key", "value"):
        setattr(bert.crossattention.self, part, nn.Linear(VIDEO, 8))
    renamed = {
        name.replace("attention.attention", "attention.self").replace("_query.", "."): tensor
        for name, tensor in module.qformer.encoder.layer[0].state_dict().items()
    }
    bert.load_state_dict(renamed)
    video = frames([4], VIDEO)
    hidden = bert(
        module.qformer.layernorm(module.queries), attention_mask=torch.zeros(1, 1, 3, 3),
        encoder_hidden_states=video.values + module.positions.weight[:4],
    )  # fmt: skip
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(module(video), module.project(hidden))


def test_a_percept_does_not_see_its_neighbours(fusion: nn.Module) -> None:
    percepts = [
        percept(0), percept(3, fused=False), replace(percept(5), audio=None), percept(2, support=False),
        replace(percept(1, support=False), audio=None, video=None),
    ]  # fmt: skip
    together = tokens(fusion, percepts)
    assert together.shape == (5, SHAPE.tokens, LM) == (5, 12, LM)
    assert together.isfinite().all()
    for row, alone in enumerate(percepts):
        torch.testing.assert_close(together[row], tokens(fusion, [alone])[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("percepts", [[], [percept(1, fused=False)]], ids=["none", "none fused"])
def test_every_parameter_gets_a_gradient_whatever_the_batch(fusion: nn.Module, percepts: list[Percept]) -> None:
    output = fusion(collate_percepts(percepts, AUDIO, VIDEO))
    (output.tokens.sum() + load_balance(output.router, output.weights)).backward()
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


def test_a_modality_that_no_slot_reads_informs_the_router_only() -> None:
    torch.manual_seed(0)
    fusion = SlotFusion(replace(SHAPE, slots=SLOTS[1:2])).eval()
    deaf = replace(percept(1), audio=None, audio_support=None)
    assert torch.equal(tokens(fusion, [percept(1)]), tokens(fusion, [deaf]))
    routers = [fusion(collate_percepts([p], AUDIO, VIDEO)).router for p in (percept(1), deaf)]
    assert not torch.equal(*routers)
    output = fusion(collate_percepts([percept(1)], AUDIO, VIDEO))
    (output.tokens.sum() + load_balance(output.router, output.weights)).backward()
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


def test_support_counts_once_the_way_up_is_open(fusion: nn.Module) -> None:
    torch.manual_seed(0)
    fresh = make_fusion(SHAPE).eval()
    plain = percept(1, fused=False)
    torch.testing.assert_close(tokens(fresh, [percept(1)]), tokens(fresh, [plain]))
    assert not torch.allclose(tokens(fusion, [percept(1)]), tokens(fusion, [plain]), atol=1e-3)
    # Support stands in for what is missing: the frames that it fills are none without it.
    deaf, helped = replace(percept(1, support=False), audio=None), replace(percept(1), audio=None)
    assert not torch.allclose(tokens(fusion, [deaf]), tokens(fusion, [helped]), atol=1e-3)


def test_a_fitted_scale_is_undone_before_the_connectors(fusion: nn.Module) -> None:
    fusion.fit_scale([features(50, AUDIO, 1) * 100 + 7], [])
    frames_ = features(50, AUDIO, 1) * 100 + 7
    scaled = Percept((frames_ - frames_.mean(0)) / frames_.std(0), None)
    raw = tokens(fusion, [Percept(frames_, None)])
    fusion.audio.mean.zero_()
    fusion.audio.std.fill_(1)
    torch.testing.assert_close(raw, tokens(fusion, [scaled]), atol=1e-4, rtol=1e-4)


def test_shapes_survive_their_file() -> None:
    assert shape_from_dict(SHAPE.to_dict()) == SHAPE
    assert FusionShape(AUDIO, VIDEO, LM, soft_tokens=3).tokens == 6


@pytest.mark.parametrize("system", LAYOUTS)
def test_slots_of_a_system_make_a_front(system: str) -> None:
    """At a fraction of their width: each slot's tokens are where its place in the list says."""
    slots, (audio, video) = tiny_layout(system).slots, WIDTHS[system]
    torch.manual_seed(0)
    fusion = make_fusion(FusionShape(max(audio, 1), video, LM, dim=8, heads=2, slots=slots)).eval()
    heard = Percept(features(3, audio, 1) if audio else None, features(4, video, 2))
    batch = collate_percepts([heard, replace(heard, audio=None)], max(audio, 1), video)
    with torch.no_grad():
        whole = fusion(batch).tokens
        assert whole.shape == (2, sum(slot.tokens for slot in slots), LM)
        fusion.slots[slots[-1].name].project.apply(lambda m: isinstance(m, nn.Linear) and m.bias.add_(1))
        changed = (fusion(batch).tokens != whole).any(-1).all(0)
    assert changed.tolist() == [False] * (len(changed) - slots[-1].tokens) + [True] * slots[-1].tokens


def test_a_slot_reads_its_columns() -> None:
    torch.manual_seed(0)
    fusion = SlotFusion(replace(SHAPE, slots=SLOTS[-1:])).eval()
    assert fusion.shape.unread == {"audio"}
    given = percept(1, fused=False)
    assert given.video is not None
    expected = fusion.slots.part.project(torch.from_numpy(given.video[:, 1:4].mean(0)))
    torch.testing.assert_close(tokens(fusion, [given])[0, 0], expected)


def test_columns_that_frames_do_not_have_are_refused() -> None:
    with pytest.raises(AffectError, match=r"slot 's': columns=\[3, 6\] of frames that are 5 wide; extract video with"):
        connector(source="video", connector="linear", columns=(3, 6))


SOUND = "{name: a, source: audio, connector: linear}"


@pytest.mark.parametrize(
    "slots, message",
    [
        ("[{name: a, source: audio, connector: liner}]", "model.fusion.slots.0.connector: Input should be 'linear'"),
        ("[{name: a, source: text, connector: linear}]", "model.fusion.slots.0.source: Input should be 'audio'"),
        ("[{name: a.b, source: audio, connector: linear}]", "model.fusion.slots.0.name: String should match pattern"),
        (f"[{SOUND}, {SOUND}]", "share a name; give each slot its own"),
        ("[{name: a, source: audio, connector: linear, tokns: 2}]", "slots.0.tokns`; did you mean `tokens`?"),
        (
            "[{name: a, source: audio, connector: qformer, heads: 5}]",
            "heads=5 does not divide width=768; choose heads from the divisors of width",
        ),
        (
            "[{name: a, source: audio, connector: linear, columns: [4, 2]}]",
            "columns=[4, 2] need one modality, and the second above the first",
        ),
    ],
)
def test_bad_slots_are_refused(slots: str, message: str) -> None:
    with pytest.raises(AffectError) as caught:
        load_config(None, [f"model.fusion.slots={slots}"])
    assert message in str(caught.value)


def test_one_projection_needs_one_width() -> None:
    with pytest.raises(AffectError, match=r"slot 's'.* audio is 6 wide and video 5; extract both with one encoder"):
        connector(source="joint", connector="linear")
