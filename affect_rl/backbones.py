"""Published systems as backbones: their checkpoints, in their own key layout, as policies and, before merging, back.

A system is a `Layout`: which slots it has, and a table from our parameter names to its keys. The tables follow
the published code: zeroQiaoba/AffectGPT (``my_affectgpt/models/affectgpt.py``, saved by ``runners/runner_base.py``:
trained parameters under ``model``) and yxuansu/PandaGPT (``code/model/openllama.py``, saved by ``agent.py``).
Both train PEFT adapters on a frozen language model, which is not part of the checkpoint.
"""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.files import whole_file
from affect_rl.policy import AffectPolicy, Lora
from affect_rl.settings import FusionConfig, SlotConfig
from affect_rl.tokens import pretrained_language_model

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a system's checkpoint names its tensors.

    Attributes:
        title: name of the system as its authors write it.
        slots: where its soft tokens come from, in the order of its prompt.
        keys: patterns of our parameter names, and the checkpoint's key for each; the first that fits holds.
        widths: for audio and video, the key of a tensor whose last dimension is the feature width.
        encoders: for audio and video, what the system's features come from.
        lora_alpha: scale of its adapters.
        lora_targets: modules that have adapters.
        entry: entry of the file that holds the tensors; empty: the file itself.
        carried: patterns of keys that a policy has no use for; they are kept for writing the checkpoint back.
    """

    title: str
    slots: tuple[SlotConfig, ...]
    keys: Mapping[str, str]
    widths: Mapping[str, str]
    encoders: Mapping[str, str]
    lora_alpha: int
    lora_targets: tuple[str, ...]
    entry: str = ""
    carried: tuple[str, ...] = ()

    def key(self, name: str) -> str | None:
        """The checkpoint's key for one of our parameters; None if the system does not have it."""
        for pattern, key in self.keys.items():
            if match := re.fullmatch(pattern, name):
                return match.expand(key)
        return None

    def carries(self, key: str) -> bool:
        """Whether a checkpoint's key is one that a policy has no use for."""
        return any(re.fullmatch(pattern, key) for pattern in self.carried)


_ADAPTERS = {r"language_model\.(.*\.lora_[AB]\..*)": r"llama_model.\1"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

AFFECTGPT = Layout(
    title="AffectGPT",
    slots=(
        SlotConfig(name="multi", source="joint", connector="attention"),
        SlotConfig(name="audio", source="audio", connector="attention"),
        SlotConfig(name="video", source="video", connector="attention"),
    ),
    keys=_ADAPTERS
    | {
        r"fusion\.slots\.audio\.score\.(.*)": r"audio_attention_mlp.\1",
        r"fusion\.slots\.audio\.project\.(.*)": r"audio_llama_proj.\1",
        r"fusion\.slots\.video\.score\.(.*)": r"video_attention_mlp.\1",
        r"fusion\.slots\.video\.project\.(.*)": r"affectgpt_proj.\1",
        r"fusion\.slots\.multi\.(audio|video)\.(.*)": r"multi_\1_embs.\2",
        r"fusion\.slots\.multi\.mix\.(.*)": r"attention_mlp.\1",
        r"fusion\.slots\.multi\.score\.(.*)": r"fc_att.\1",
        r"fusion\.slots\.multi\.project\.(.*)": r"multi_llama_proj.\1",
    },
    widths={"audio": "audio_attention_mlp.weight", "video": "video_attention_mlp.weight"},
    encoders={
        "audio": "HuBERT large (`affect-rl data extract --speech-encoder TencentGameMate/chinese-hubert-large`)",
        "video": "CLIP ViT-L (`affect-rl data extract --image-encoder openai/clip-vit-large-patch14 --source face`)",
    },
    lora_alpha=32,
    lora_targets=(*_ATTENTION, "gate_proj", "down_proj", "up_proj"),
    entry="model",
    # Of single pictures, and buffers of the frozen encoders and of rotary embeddings.
    carried=(r"image_llama_proj\..*", r"(visual|acoustic)_encoder\..*", r"llama_model\..*\.inv_freq"),
)

PANDAGPT = Layout(
    title="PandaGPT",
    slots=(SlotConfig(name="joint", source="joint", connector="linear"),),
    keys=_ADAPTERS | {r"fusion\.slots\.joint\.project\.(.*)": r"llama_proj.\1"},
    widths={"audio": "llama_proj.weight", "video": "llama_proj.weight"},
    encoders={"audio": "ImageBind (imagebind_huge)", "video": "ImageBind (imagebind_huge)"},
    lora_alpha=32,
    lora_targets=_ATTENTION,
)

LAYOUTS: Mapping[str, Layout] = {"affectgpt": AFFECTGPT, "pandagpt": PANDAGPT}
"""Systems whose checkpoints can be read and written, by their short names."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A checkpoint as a policy with its adapters unmerged, and the tensors that the policy has no use for."""

    policy: AffectPolicy
    carried: dict[str, Tensor]


def read_backbone(
    layout: Layout,
    checkpoint: Path,
    language_model: Path,
    *,
    name: str = "",
    fusion: FusionConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Read a system's checkpoint; RAAF and MB-MoE are new and start as the identity.

    Args:
        layout: the system.
        checkpoint: ``.pth`` or ``.pt`` (read without executing pickled code), or ``.safetensors``.
        language_model: directory (or hub name) of the language model that the checkpoint's adapters belong to.
        name: short name of the system, written to the policy's ``config.json``.
        fusion: sizes of RAAF and MB-MoE.
        dtype: of all weights.

    Raises:
        AffectError: a file cannot be read, or its tensors are not those of the system on this language model.
    """
    tensors = read_tensors(checkpoint, layout.entry)
    needed = {modality: _required(tensors, key, checkpoint, layout) for modality, key in layout.widths.items()}
    width = {modality: int(tensor.shape[-1]) for modality, tensor in needed.items()}
    torch.manual_seed(0)
    try:
        model, tokenizer = pretrained_language_model(str(language_model), dtype)
    except (OSError, ValueError) as error:
        raise AffectError(
            f"{language_model}: is no language model that can be loaded here "
            f"({shorten(str(error), 160, placeholder=' ...')}); give the directory of the one that {checkpoint.name} "
            "was trained on"
        ) from error
    sizes = (fusion or FusionConfig()).model_dump(exclude={"load_balance", "slots"})
    policy = AffectPolicy.create(
        model,
        tokenizer,
        audio_dim=width["audio"],
        video_dim=width["video"],
        **sizes,
        slots=layout.slots,
        backbone=name,
    )
    policy.add_adapters(Lora(_lora_rank(tensors, checkpoint), layout.lora_alpha, layout.lora_targets))
    carried = {key: tensor for key, tensor in tensors.items() if layout.carries(key)}
    known = {key: tensor for key, tensor in tensors.items() if key not in carried}
    _load(policy, layout, known, checkpoint, language_model)
    return Backbone(policy, carried)


def write_backbone(layout: Layout, backbone: Backbone, path: Path) -> Path:
    """Write a backbone as a checkpoint of its system, whole or not at all.

    The suffix decides: ``.safetensors``, or torch's own format with the entry that the system expects. Optimiser
    state and the like are not part of it, nor are RAAF and MB-MoE, which the system does not have.

    Raises:
        AffectError: the policy has no adapters; once merged they cannot be taken apart again.
    """
    if not backbone.policy.has_adapters:
        raise AffectError(f"{path}: the policy's adapters are merged; write back what `read_backbone` returned")
    state = backbone.policy.state_dict()
    tensors = {key: state[ours].detach().cpu().contiguous() for ours in state if (key := layout.key(ours))}
    tensors |= backbone.carried
    with whole_file(path) as partial:
        if path.suffix == SAFETENSORS:
            save_file(tensors, partial)
        else:
            torch.save({layout.entry: tensors} if layout.entry else tensors, partial)
    return path


def adapt_fusion(policy: AffectPolicy, fusion: FusionConfig) -> AffectPolicy:
    """A policy of the same language model with fusion modules of the given sizes; tensors that fit are kept.

    Experts that were trained for another mixture are not: they and their router begin anew together.

    Raises:
        AffectError: both the policy and the settings have slots.
    """
    shape = policy.fusion.shape
    if shape.slots and fusion.slots:
        raise AffectError("model.fusion.slots: model.base brings its own slots; leave them out")
    adapted = AffectPolicy.create(
        policy.language_model,
        policy.tokenizer,
        audio_dim=shape.audio_dim,
        video_dim=shape.video_dim,
        **fusion.model_dump(exclude={"load_balance", "slots"}),
        slots=shape.slots or fusion.slots,
        backbone=policy.config.backbone,
    )
    fresh = adapted.fusion.state_dict()
    kept = {n: t for n, t in policy.fusion.state_dict().items() if n in fresh and fresh[n].shape == t.shape}
    mixtures = [(s.experts, s.top_k, s.residual) for s in (shape, adapted.fusion.shape)]
    if mixtures[0] != mixtures[1]:
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith("moe.")}
    adapted.fusion.load_state_dict(kept, strict=False)
    return adapted


def check_features(policy: AffectPolicy, audio_dim: int, video_dim: int, data: str) -> None:
    """Raise `AffectError` unless a dataset's features (0: it has none) are as wide as the policy takes them."""
    layout = LAYOUTS.get(policy.config.backbone)
    for modality, width in (("audio", audio_dim), ("video", video_dim)):
        taken = getattr(policy.fusion.shape, f"{modality}_dim")
        if width not in (0, taken):
            encoder = layout.encoders[modality] if layout else f"an encoder that gives {taken} numbers"
            raise AffectError(
                f"{data}: {modality} features are {width} wide, model.base takes {taken}; extract them with {encoder}"
            )


def read_tensors(path: Path, entry: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint; pickled code in it is never executed.

    Raises:
        AffectError: the file is no checkpoint, or has no such entry.
    """
    try:
        content: Any = load_file(path) if path.suffix == SAFETENSORS else _torch_load(path)
    except FileNotFoundError as error:
        raise AffectError(f"{path}: is not there; give the checkpoint that the system's training wrote") from error
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise AffectError(
            f"{path}: cannot be read as tensors ({shorten(str(error), 160, placeholder=' ...')}); copy it again, or "
            "convert it to safetensors"
        ) from error
    if entry and path.suffix != SAFETENSORS:
        if not isinstance(content, dict) or entry not in content:
            raise AffectError(f"{path}: has no entry {entry!r}; give the file that the system's training wrote")
        content = content[entry]
    tensors = content if isinstance(content, dict) else {}
    strange = [key for key, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if strange or not tensors:
        raise AffectError(
            f"{path}: does not hold tensors by name (but {', '.join(map(str, strange)) or 'nothing of the kind'}); "
            "give the weights that the named system's training wrote"
        )
    return {str(key): tensor.detach() for key, tensor in tensors.items()}


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@torch.no_grad()
def _load(
    policy: AffectPolicy, layout: Layout, tensors: Mapping[str, Tensor], checkpoint: Path, language_model: Path
) -> None:
    """Copy a checkpoint's tensors into the policy; they must be exactly those that its layout names."""
    state = policy.state_dict()
    names = {key: ours for ours in state if (key := layout.key(ours))}
    for key in tensors:
        if key not in names:
            raise AffectError(
                f"{checkpoint}: key {key} is not one of {layout.title} on {language_model}{_nearest(key, names)}; "
                "give the language model and the system that the checkpoint was trained with"
            )
    for key, ours in names.items():
        tensor = _required(tensors, key, checkpoint, layout)
        if tensor.shape != state[ours].shape:
            raise AffectError(
                f"{checkpoint}: key {key} has shape {list(tensor.shape)}, but {list(state[ours].shape)} fits "
                f"{language_model}; give the language model that the checkpoint was trained on"
            )
        state[ours].copy_(tensor)


def _required(tensors: Mapping[str, Tensor], key: str, checkpoint: Path, layout: Layout) -> Tensor:
    if key not in tensors:
        raise AffectError(
            f"{checkpoint}: key {key} is missing{_nearest(key, tensors)}; give a whole checkpoint of {layout.title}"
        )
    return tensors[key]


def _nearest(key: str, known: Collection[str]) -> str:
    """The known key that is most like another one, in parentheses; a checkpoint has too many to list them."""
    return "".join(f" (nearest: {match})" for match in difflib.get_close_matches(key, known, n=1))


def _lora_rank(tensors: Mapping[str, Tensor], checkpoint: Path) -> int:
    for key, tensor in tensors.items():
        if ".lora_A." in key:
            return int(tensor.shape[0])
    raise AffectError(f"{checkpoint}: holds no adapters (lora_A); give a checkpoint whose training had them")
