"""Encoders against direct calls of the same tiny models; what a batch holds must not change a feature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from affect_rl.data.encoders import ImageEncoder, SpeechEncoder
from affect_rl.data.extraction import Checkpoint
from affect_rl.errors import AffectError

RATE = 16_000
RNG = np.random.default_rng(3)
SOUNDS = [RNG.normal(scale=0.1, size=n).astype(np.float32) for n in (9_000, 16_000, 4_321, 16_000, 700)]
SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def speech_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model, _, norm = kind.partition("-")
    classes = {
        "hubert": (HubertConfig, HubertModel),
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
        "wavlm": (WavLMConfig, WavLMModel),
        "data2vec": (Data2VecAudioConfig, Data2VecAudioModel),
    }
    config, architecture = classes[model]
    norms = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"} if norm else {}
    return architecture(config(**SPEECH, **norms)).eval()


def save_speech(model: PreTrainedModel, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(directory)
    return Checkpoint.find(str(directory))


def save_vision(model: PreTrainedModel, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    return Checkpoint.find(str(directory))


def clip_model(text_tower: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    if not text_tower:
        return CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    text = {k: v for k, v in VISION.items() if k not in ("image_size", "patch_size")} | {"vocab_size": 99}
    return CLIPModel(
        CLIPConfig(text_config=CLIPTextConfig(**text).to_dict(), vision_config=VISION, projection_dim=24)
    ).eval()


# Speech


def alone(model: PreTrainedModel, sound: np.ndarray) -> torch.Tensor:
    """Hidden states ``[T, d]`` of one sound, normalised by hand."""
    values = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    with torch.no_grad():
        return model(torch.from_numpy(values)[None]).last_hidden_state[0]


@pytest.mark.parametrize(
    "kind", ["hubert-layer", "hubert-group", "wav2vec2-layer", "wav2vec2-group", "wavlm-layer", "data2vec"]
)
def test_features_are_those_of_each_sound_alone(kind: str, tmp_path: Path) -> None:
    model = speech_model(kind)
    encoder = SpeechEncoder(save_speech(model, tmp_path), segments=4)
    features = encoder.encode(SOUNDS)
    for sound, found in zip(SOUNDS, features, strict=True):
        frames = alone(model, sound).numpy()
        edges = [(i * len(frames) // 4, -(-(i + 1) * len(frames) // 4)) for i in range(4)]
        expected = np.stack([frames[start:end].mean(axis=0) for start, end in edges])
        assert found.shape == (4, 32) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_padding_would_have_changed_features_of_group_normalised_models() -> None:
    """The reason why such sounds do not share a pass: without it the test above would say nothing."""
    model, (short, long) = speech_model("hubert-group"), sorted(SOUNDS[:2], key=len)
    padded = np.zeros((2, len(long)), np.float32)
    padded[0, : len(short)], padded[1] = short, long
    mask = torch.from_numpy(np.stack([np.arange(len(long)) < len(short), np.ones(len(long), bool)])).long()
    with torch.no_grad():
        together = model(torch.from_numpy(padded), attention_mask=mask).last_hidden_state[0]
        by_itself = model(torch.from_numpy(short)[None]).last_hidden_state[0]
    assert (together[: len(by_itself)] - by_itself).abs().max() > 1e-2


def test_sounds_share_passes_where_they_may(tmp_path: Path) -> None:
    calls: list[int] = []
    for kind in ("hubert-layer", "hubert-group"):
        encoder = SpeechEncoder(save_speech(speech_model(kind), tmp_path / kind), segments=2)
        encoder._model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
        encoder.encode(SOUNDS)
    assert calls == [5, 1, 1, 1, 2]


def test_a_sound_of_one_frame_is_enough(tmp_path: Path) -> None:
    encoder = SpeechEncoder(save_speech(speech_model("hubert-layer"), tmp_path), segments=3)
    features = encoder.encode([SOUNDS[0][: encoder.shortest], SOUNDS[1]])[0]
    assert np.ptp(features, axis=0).max() < 1e-5
    with pytest.raises(RuntimeError):
        encoder.encode([SOUNDS[0][: encoder.shortest - 1]])


def test_base_model_of_a_fine_tuned_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**SPEECH, vocab_size=20)).eval()
    features = SpeechEncoder(save_speech(model, tmp_path), segments=1).encode(SOUNDS[:1])[0]
    np.testing.assert_allclose(features[0], alone(model.wav2vec2, SOUNDS[0]).mean(dim=0), atol=2e-5)


# Images

CLIPS = [RNG.integers(0, 256, (n, 50, 40, 3), dtype=np.uint8) for n in (3, 1, 70)]


@pytest.mark.parametrize("text_tower", [True, False])
def test_features_are_those_of_each_picture_alone(text_tower: bool, tmp_path: Path) -> None:
    model = clip_model(text_tower)
    encoder = ImageEncoder(save_vision(model, tmp_path))
    features = encoder.encode([encoder.prepare(clip) for clip in CLIPS])
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    for clip, found in zip(CLIPS, features, strict=True):
        assert found.shape == (len(clip), 24 if text_tower else 32) and found.dtype == np.float32
        for place in (0, len(clip) - 1):
            pixels = processor(images=Image.fromarray(clip[place]), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                pooled = (model.vision_model if text_tower else model)(pixel_values=pixels).pooler_output
                expected = model.visual_projection(pooled) if text_tower else pooled
            np.testing.assert_allclose(found[place], expected[0], atol=1e-5)


def test_pictures_of_one_row_are_not_taken_for_channels(tmp_path: Path) -> None:
    encoder = ImageEncoder(save_vision(clip_model(False), tmp_path))
    assert encoder.prepare(np.zeros((2, 3, 40, 3), np.uint8)).shape == (2, 3, 32, 32)


def test_nothing_is_encoded_as_nothing(tmp_path: Path) -> None:
    assert ImageEncoder(save_vision(clip_model(False), tmp_path / "image")).encode([]) == []
    assert SpeechEncoder(save_speech(speech_model("hubert-layer"), tmp_path / "speech"), 2).encode([]) == []


# Checkpoints


def test_content_tells_checkpoints_apart(tmp_path: Path) -> None:
    first = save_vision(clip_model(False), tmp_path / "one")
    again = save_vision(clip_model(False), tmp_path / "two")
    assert first.content == again.content and first.name != again.name
    config = tmp_path / "two" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.5"))
    assert Checkpoint.find(again.name).content != first.content


def test_a_hub_name_is_pinned_to_its_commit(tmp_path: Path) -> None:
    """From a hub cache without a network, in a process of its own: the cache's place is read on import."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--encoder"
    save_vision(clip_model(False), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "import json, numpy as np\n"
        "from affect_rl.data.encoders import ImageEncoder\n"
        "from affect_rl.data.extraction import Checkpoint\n"
        "found = Checkpoint.find('some/encoder')\n"
        "encoder = ImageEncoder(found)\n"
        "shape = encoder.encode([encoder.prepare(np.zeros((2, 9, 9, 3), np.uint8))])[0].shape\n"
        "print(json.dumps([found.name, found.content, found.revision, shape]))\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == ["some/encoder", commit, commit, [2, 32]]


def without_weights(directory: Path) -> str:
    save_speech(speech_model("hubert-layer"), directory)
    (directory / "model.safetensors").unlink()
    return str(directory)


def without_processor(directory: Path) -> str:
    save_vision(clip_model(False), directory)
    (directory / "preprocessor_config.json").unlink()
    return str(directory)


def with_damaged_weights(directory: Path) -> str:
    save_vision(clip_model(False), directory)
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    return str(directory)


def without_pooler(directory: Path) -> str:
    torch.manual_seed(0)
    save_vision(ViTForImageClassification(ViTConfig(**VISION)), directory)
    return str(directory)


BAD: list[tuple[type, Callable[[Path], str], str]] = [
    (SpeechEncoder, lambda d: f"{d}/none", "none: there is no such directory; give the path of a checkpoint"),
    (SpeechEncoder, lambda d: "./none", "./none: there is no such directory; give the path of a checkpoint"),
    (SpeechEncoder, without_weights, "holds no *.safetensors; write it again with save_pretrained"),
    (ImageEncoder, without_processor, "is no encoder that can be loaded here ("),
    (ImageEncoder, with_damaged_weights, "is no encoder that can be loaded here ("),
    (ImageEncoder, without_pooler, "lacks 2 weights of a ViTModel such as pooler.dense.bias; name a checkpoint of"),
    (SpeechEncoder, lambda d: save_vision(clip_model(False), d).name, "is no encoder that can be loaded here ("),
    (ImageEncoder, lambda d: save_speech(speech_model("hubert-layer"), d).name, "is no encoder that can be loaded"),
]


@pytest.mark.parametrize("kind, make, message", BAD)
def test_what_cannot_be_loaded_is_refused(
    kind: type, make: Callable[[Path], str], message: str, tmp_path: Path
) -> None:
    name = make(tmp_path)
    with pytest.raises(AffectError) as caught:
        SpeechEncoder(Checkpoint.find(name), 2) if kind is SpeechEncoder else ImageEncoder(Checkpoint.find(name))
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)
