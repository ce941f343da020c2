"""How published systems name the tensors of their checkpoints, after the code that saves them.

- AffectGPT: zeroQiaoba/AffectGPT, ``my_affectgpt/models/affectgpt.py`` and ``runners/runner_base.py``.
- PandaGPT: yxuansu/PandaGPT, ``code/model/openllama.py`` and ``agent.py``.
- Emotion-LLaMA: ZebangCheng/Emotion-LLaMA, ``minigpt4/models/minigpt_v2.py``, ``minigpt_base.py`` and
  ``runners/runner_base.py``.
- Video-LLaMA: DAMO-NLP-SG/Video-LLaMA, ``video_llama/models/video_llama.py`` and ``runners/runner_base.py``.
- Video-LLaMA 2: DAMO-NLP-SG/VideoLLaMA2, ``videollama2/model/projector.py`` and ``videollama2_arch.py``.
- VideoChat: OpenGVLab/Ask-Anything, ``video_chat/models/videochat_it.py`` and ``tasks/train.py``.
- ChatBridge: joez17/ChatBridge, ``chatbridge/models/chatbridge.py`` and ``runners/runner_base.py``.

A policy holds what lies between the features and the language model. What comes before, frozen or not, belongs to
the encoder that makes the features; each table says where that border is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from affect_rl.backbones.systems import System
from affect_rl.policy.slots import SlotConfig

Keys = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a system's checkpoint names its tensors.

    Attributes:
        title: name of the system as its authors write it.
        slots: where its soft tokens come from, in the order of its prompt.
        keys: patterns of our parameter names, and the checkpoint's key for each; the first that fits holds. Several
            keys: each has a run of the parameter's rows. One key for several parameters: they are copies of it.
        widths: for audio and video, the key of a tensor whose last dimension is the feature width. Without one the
            slots' columns say it, and a modality that no slot reads has any width.
        encoders: for audio and video, what the system's features come from.
        lora_alpha: scale of its adapters.
        lora_targets: modules that have adapters; empty: it trains none.
        entry: entry of the file that holds the tensors; empty: the file itself.
        carried: patterns of keys that a policy has no use for; they are kept for writing the checkpoint back.
    """

    title: str
    slots: tuple[SlotConfig, ...]
    keys: Keys
    widths: Mapping[str, str]
    encoders: Mapping[str, str]
    lora_alpha: int = 0
    lora_targets: tuple[str, ...] = ()
    entry: str = "model"
    carried: tuple[str, ...] = ()

    def keys_of(self, name: str) -> tuple[str, ...]:
        """The checkpoint's keys for one of our parameters; none if the system does not have it."""
        for pattern, keys in self.keys.items():
            if match := re.fullmatch(pattern, name):
                return tuple(match.expand(key) for key in ((keys,) if isinstance(keys, str) else keys))
        return ()

    def carries(self, key: str) -> bool:
        """Whether a checkpoint's key is one that a policy has no use for."""
        return any(re.fullmatch(pattern, key) for pattern in self.carried)


def _blip2(source: Literal["audio", "video"], queries: int, frame_width: int = 0) -> SlotConfig:
    """A slot with BLIP-2's Q-Former, every second block of which attends to frames without positions."""
    return SlotConfig(
        name=source,
        source=source,
        connector="qformer",
        tokens=queries,
        layers=12,
        cross_every=2,
        positions=0,
        frame_width=frame_width,
    )


def _slot(name: str, parts: Keys) -> Keys:
    """Keys of a slot's connector, by its modules and parameters."""

    def suffixed(key: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return key + r"\1" if isinstance(key, str) else tuple(each + r"\1" for each in key)

    return {rf"fusion\.slots\.{name}\.{re.escape(part)}(\..*)?": suffixed(key) for part, key in parts.items()}


def _qformer(name: str, key: str) -> Keys:
    """Keys of a slot's Q-Former: BLIP-2's copy of BERT without its path for text."""
    ours = rf"fusion\.slots\.{name}\.qformer\."
    return {
        ours + r"layernorm\.(.*)": rf"{key}.bert.embeddings.LayerNorm.\1",
        ours + r"encoder\.layer\.(\d+)\.(\w*attention)\.attention\.(.*)": rf"{key}.bert.encoder.layer.\1.\2.self.\3",
        ours + r"encoder\.(.*)": rf"{key}.bert.encoder.\1",
    }


_ADAPTERS = {r"language_model\.(.*\.lora_[AB]\..*)": r"llama_model.\1"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_ENCODERS = (r"(visual|audio|acoustic)_encoder\..*", r"ln_(vision|audio)\..*")
_BUFFERS = (r".*\.inv_freq", r".*\.position_ids")

AFFECTGPT = Layout(
    title="AffectGPT",
    slots=(
        SlotConfig(name="multi", source="joint", connector="attention"),
        SlotConfig(name="audio", source="audio", connector="attention"),
        SlotConfig(name="video", source="video", connector="attention"),
    ),
    keys={
        **_ADAPTERS,
        **_slot("audio", {"score": "audio_attention_mlp", "project": "audio_llama_proj"}),
        **_slot("video", {"score": "video_attention_mlp", "project": "affectgpt_proj"}),
        **_slot("multi", {"audio": "multi_audio_embs", "video": "multi_video_embs", "mix": "attention_mlp"}),
        **_slot("multi", {"score": "fc_att", "project": "multi_llama_proj"}),
    },
    widths={"audio": "audio_attention_mlp.weight", "video": "video_attention_mlp.weight"},
    encoders={
        "audio": "HuBERT large (`affect-rl data extract --speech-encoder TencentGameMate/chinese-hubert-large`)",
        "video": "CLIP ViT-L (`affect-rl data extract --image-encoder openai/clip-vit-large-patch14 --source face`)",
    },
    lora_alpha=32,
    lora_targets=(*_ATTENTION, "gate_proj", "down_proj", "up_proj"),
    carried=(r"image_llama_proj\..*", *_ENCODERS, *_BUFFERS),
)
"""Leaves out the projection of single pictures."""

PANDAGPT = Layout(
    title="PandaGPT",
    slots=(SlotConfig(name="joint", source="joint", connector="linear"),),
    keys={**_ADAPTERS, **_slot("joint", {"project": "llama_proj"})},
    widths={"audio": "llama_proj.weight", "video": "llama_proj.weight"},
    encoders={"audio": "ImageBind (imagebind_huge)", "video": "ImageBind (imagebind_huge)"},
    lora_alpha=32,
    lora_targets=_ATTENTION,
    entry="",
)
"""The whole checkpoint."""

EMOTION_LLAMA = Layout(
    title="Emotion-LLaMA",
    slots=(
        SlotConfig(name="patches", source="video", connector="linear", tokens=256, stack=4, columns=(0, 1408)),
        SlotConfig(name="face", source="video", connector="linear", columns=(1408, 2432)),
        SlotConfig(name="motion", source="video", connector="linear", columns=(2432, 3456)),
        SlotConfig(name="speech", source="audio", connector="linear"),
        SlotConfig(name="picture", source="video", connector="linear", columns=(3456, 4864)),
    ),
    keys={
        # Saved with PEFT 0.2, which had one adapter and no name for it.
        r"language_model\.(.*\.lora_[AB])\.default\.(.*)": r"llama_model.\1.\2",
        **_slot("patches", {"project": "llama_proj"}),
        **_slot("face", {"project": "feats_llama_proj1"}),
        **_slot("motion", {"project": "feats_llama_proj2"}),
        **_slot("speech", {"project": "feats_llama_proj3"}),
        **_slot("picture", {"project": "cls_tk_llama_proj"}),
    },
    widths={"audio": "feats_llama_proj3.weight"},
    encoders={
        "audio": "HuBERT large (TencentGameMate/chinese-hubert-large)",
        "video": "EVA-CLIP, MAE and VideoMAE: a frame is a patch's vector, the clip's of MAE and of VideoMAE, and the "
        "class token's, side by side",
    },
    lora_alpha=16,
    lora_targets=("q_proj", "v_proj"),
    carried=(r"attention\..*", *_ENCODERS, *_BUFFERS),
)
"""Exact if the frames are the 1,024 patches of a picture. Leaves out the classifier (``attention``)."""

VIDEO_LLAMA = Layout(
    title="Video-LLaMA",
    slots=(
        SlotConfig(name="video", source="video", connector="qformer", tokens=32, layers=2, positions=32),
        SlotConfig(name="audio", source="audio", connector="qformer", tokens=8, layers=2, positions=8),
    ),
    keys={
        **_slot("video", {"queries": "video_query_tokens", "positions": "video_frame_position_embedding"}),
        **_slot("video", {"project": "llama_proj"}),
        **_qformer("video", "video_Qformer"),
        **_slot("audio", {"queries": "audio_query_tokens", "positions": "audio_position_embedding"}),
        **_slot("audio", {"project": "audio_llama_proj"}),
        **_qformer("audio", "audio_Qformer"),
    },
    widths={"audio": "audio_position_embedding.weight", "video": "video_frame_position_embedding.weight"},
    encoders={"audio": "ImageBind (imagebind_huge)", "video": "BLIP-2's Q-Former on EVA-CLIP"},
    carried=(r"Qformer\..*", r"query_tokens", r"llama_model\..*", *_ENCODERS, *_BUFFERS),
)
"""Both branches' files. A position is that of a frame, which there has 32 vectors, here one (the encoder's Q-Former,
``Qformer``, is frozen and gives them)."""

VIDEO_LLAMA2 = Layout(
    title="Video-LLaMA 2",
    slots=(
        SlotConfig(name="video", source="video", connector="mlp", tokens=8),
        SlotConfig(name="audio", source="audio", connector="mlp", tokens=8),
    ),
    keys={
        **_slot("video", {"project": "model.mm_projector.readout"}),
        **_slot("audio", {"project": "model.mm_projector_a"}),
        r"language_model\.((model|lm_head)\..*)": r"\1",
    },
    widths={"audio": "model.mm_projector_a.0.weight", "video": "model.mm_projector.readout.0.weight"},
    encoders={"audio": "its BEATs", "video": "its SigLIP and the convolutions of its connector (STC)"},
    entry="",
    carried=(r"model\.(vision|audio)_tower\..*", r"model\.mm_projector\.(s1|s2|sampler)\..*", *_BUFFERS),
)
"""The system with audio (2.1-AV), whose language model is fine-tuned and in the file. Leaves the convolutions over the
patch grid to the encoder, and takes means over eight windows where the system takes all patches."""

VIDEOCHAT = Layout(
    title="VideoChat",
    slots=(_blip2("video", 96),),
    keys={
        **_slot("video", {"queries": ("query_tokens", "extra_query_tokens"), "project": "llama_proj"}),
        **_qformer("video", "Qformer"),
    },
    widths={"video": "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"},
    encoders={"video": "its EVA-CLIP with attention over time, all patches of all frames"},
    carried=(r"t5_proj\..*", r"llama_model\..*", *_ENCODERS, *_BUFFERS),
)
"""BLIP-2's file, whose Q-Former is frozen, and the system's own. Exact on patches. It does not hear."""

CHATBRIDGE = Layout(
    title="ChatBridge",
    slots=(_blip2("video", 32), _blip2("audio", 32, frame_width=1408)),
    keys={
        **_slot("video", {"queries": "image_query_tokens", "project": "llama_proj"}),
        **_slot("audio", {"queries": "audio_query_tokens", "project": "llama_proj", "align.audio": "audio_trans"}),
        **_qformer("(?:video|audio)", "Qformer"),
    },
    widths={"audio": "audio_trans.weight", "video": "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"},
    encoders={"audio": "BEATs, all patches", "video": "EVA-CLIP, all patches of all frames"},
    carried=(r"llama_model\..*", *_ENCODERS, *_BUFFERS),
)
"""Exact on patches. Its modalities share the Q-Former and the projection; here they are copies, which train apart. The
file holds the frozen encoders and language model, too."""

LAYOUTS: Mapping[str, Layout] = {
    System.AFFECTGPT: AFFECTGPT,
    System.PANDAGPT: PANDAGPT,
    System.EMOTION_LLAMA: EMOTION_LLAMA,
    System.VIDEO_LLAMA: VIDEO_LLAMA,
    System.VIDEO_LLAMA2: VIDEO_LLAMA2,
    System.VIDEOCHAT: VIDEOCHAT,
    System.CHATBRIDGE: CHATBRIDGE,
}
"""Systems whose checkpoints can be read and written, by their short names."""
