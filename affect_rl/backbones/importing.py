"""Published systems as backbones: their checkpoints, in their own key layout, as policies and, before merging, back."""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from affect_rl.backbones.layouts import LAYOUTS, Layout
from affect_rl.config.model import FusionConfig
from affect_rl.errors import AffectError
from affect_rl.files import whole_file
from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import pretrained_language_model

SAFETENSORS = ".safetensors"
PUBLISHED_ADAPTER = "default"
"""Name of an imported adapter: PEFT's own, which the checkpoints' keys carry."""
_VOCABULARY = r"language_model\..*(embed_tokens|lm_head)\.weight"


@dataclass(frozen=True, slots=True)
class Backbone:
    """A checkpoint as a policy, and what else it takes to write it again.

    Attributes:
        policy: language model (with the adapters, if there are any, unmerged), connectors, and new RAAF and MB-MoE.
        rows: keys of the policy's tensors in the checkpoint, and how many rows each has there.
        carried: tensors that the policy has no use for.
    """

    policy: AffectPolicy
    rows: dict[str, int]
    carried: dict[str, Tensor]


def read_backbone(
    layout: Layout,
    checkpoints: Sequence[Path],
    language_model: Path,
    *,
    name: str = "",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Read a system's checkpoint; RAAF and MB-MoE are new and start as the identity.

    Args:
        layout: the system.
        checkpoints: its files: ``.pth``, ``.pt`` or ``.bin`` (read without executing pickled code), or
            ``.safetensors``. Of several the later holds where they have the same key, as in the systems' own code.
        language_model: directory (or hub name) of the language model that the system was trained on.
        name: short name of the system, written to the policy's ``config.json``.
        dtype: of all weights.

    Raises:
        AffectError: a file cannot be read, or its tensors are not those of the system on this language model.
    """
    checkpoint = ", ".join(map(str, checkpoints))
    tensors = {key: tensor for file in checkpoints for key, tensor in read_tensors(file, layout.entry).items()}
    audio_dim, video_dim = (_width(layout, modality, tensors, checkpoint) for modality in ("audio", "video"))
    torch.manual_seed(0)
    try:
        model, tokenizer = pretrained_language_model(str(language_model), dtype)
    except (OSError, ValueError) as error:
        raise AffectError(
            f"{language_model}: is no language model that can be loaded here "
            f"({shorten(str(error), 160, placeholder=' ...')}); give the directory of the one that {checkpoint} was "
            "trained on"
        ) from error
    sizes = FusionConfig().model_dump(exclude={"load_balance", "slots"})
    policy = AffectPolicy.create(
        model,
        tokenizer,
        audio_dim=audio_dim,
        video_dim=video_dim,
        **sizes,
        slots=layout.slots,
        backbone=name,
    )
    if layout.lora_targets:
        lora = Lora(_lora_rank(tensors, checkpoint), layout.lora_alpha, layout.lora_targets)
        policy.add_adapters(lora, (PUBLISHED_ADAPTER,))
    carried = {key: tensors.pop(key) for key in list(tensors) if layout.carries(key)}
    rows = _load(policy, layout, tensors, checkpoint, language_model)
    return Backbone(policy, rows, carried)


def write_backbone(layout: Layout, backbone: Backbone, path: Path) -> Path:
    """Write a backbone as one checkpoint of its system, whole or not at all.

    The suffix decides: ``.safetensors``, or torch's own format with the entry that the system expects. Optimiser
    state and the like are not part of it, nor are RAAF and MB-MoE, which the system does not have.

    Raises:
        AffectError: the policy's adapters are merged, which cannot be undone, or copies of a tensor have grown apart.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in _parts(layout, backbone.policy.state_dict(), backbone.rows):
        if key in tensors and not torch.equal(tensors[key], tensor.cpu()):
            raise AffectError(
                f"{path}: slots that share key {key} have been trained apart; write back what `read_backbone` returned"
            )
        tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if backbone.rows.keys() - tensors.keys():
        raise AffectError(f"{path}: the policy's adapters are merged; write back what `read_backbone` returned")
    tensors |= backbone.carried
    with whole_file(path) as partial:
        if path.suffix == SAFETENSORS:
            save_file(tensors, partial)
        else:
            torch.save({layout.entry: tensors} if layout.entry else tensors, partial)
    return path


def adapt_fusion(policy: AffectPolicy, fusion: FusionConfig, *, audio_dim: int = 0, video_dim: int = 0) -> AffectPolicy:
    """A policy of the same language model with fusion modules of the given sizes; tensors that fit are kept.

    Experts that were trained for another mixture are not: they and their router begin anew together.

    Args:
        policy: where language model, connectors and tensors come from.
        fusion: sizes of RAAF and MB-MoE.
        audio_dim: width of the data's audio features, which holds if no slot reads them; 0: as before.
        video_dim: likewise of video.

    Raises:
        AffectError: both the policy and the settings have slots.
    """
    shape = policy.fusion.shape
    if shape.slots and fusion.slots:
        raise AffectError("model.fusion.slots: model.base brings its own slots; leave them out")
    adapted = AffectPolicy.create(
        policy.language_model,
        policy.tokenizer,
        audio_dim=audio_dim if audio_dim and "audio" in shape.unread else shape.audio_dim,
        video_dim=video_dim if video_dim and "video" in shape.unread else shape.video_dim,
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
        if width not in (0, taken) and modality not in policy.fusion.shape.unread:
            if taken == 1:
                raise AffectError(f"{data}: has {modality} features, but model.base was made without; name another")
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
    policy: AffectPolicy, layout: Layout, tensors: Mapping[str, Tensor], checkpoint: str, language_model: Path
) -> dict[str, int]:
    """Copy a checkpoint's tensors, which must be exactly those that its layout names; returns the rows of each."""
    state = policy.state_dict()
    published = AutoConfig.from_pretrained(language_model).vocab_size  # ours has a row more, for the placeholder
    places = {name: keys for name in state if (keys := layout.keys_of(name))}
    known = {key for keys in places.values() for key in keys}
    for key in tensors:
        if key not in known:
            raise AffectError(
                f"{checkpoint}: key {key} is not one of {layout.title} on {language_model}{_nearest(key, known)}; "
                "give the language model and the system that the checkpoint was trained with"
            )
    for name, keys in places.items():
        parts = [_required(tensors, key, checkpoint, layout) for key in keys]
        if not _fit(parts, state[name], published if re.fullmatch(_VOCABULARY, name) else None):
            shapes = " + ".join(str(list(part.shape)) for part in parts)
            raise AffectError(
                f"{checkpoint}: key {' + '.join(keys)} has shape {shapes}, but {list(state[name].shape)} fits "
                f"{language_model}; give the language model that the checkpoint was trained on"
            )
    rows = {key: int(tensors[key].shape[_row_axis(tensors[key])]) for key in known}
    for key, part in _parts(layout, state, rows):
        part.copy_(tensors[key])
    return rows


def _parts(layout: Layout, state: Mapping[str, Tensor], rows: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The keys of a checkpoint and, as views of our tensors, what each holds: all of one, or a run of its rows."""
    for name, tensor in state.items():
        first = 0
        for key in layout.keys_of(name):
            yield key, tensor.narrow(_row_axis(tensor), first, rows[key])
            first += rows[key]


def _fit(parts: Sequence[Tensor], whole: Tensor, fewer: int | None) -> bool:
    """Whether parts make up a tensor, or the first `fewer` of its rows."""
    axis = _row_axis(whole)
    if any(part.ndim != whole.ndim for part in parts):
        return False
    shapes = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
    count = sum(part.shape[axis] for part in parts)
    return shapes == {(*whole.shape[:axis], *whole.shape[axis + 1 :])} and count in (whole.shape[axis], fewer)


def _row_axis(tensor: Tensor) -> int:
    """The axis of a tensor's rows: queries come as ``[1, rows, width]``, weights as ``[rows, width]``."""
    return max(tensor.ndim - 2, 0)


def _width(layout: Layout, modality: str, tensors: Mapping[str, Tensor], checkpoint: str) -> int:
    """Width of the features that a system takes; of a modality that it does not read, 0."""
    if key := layout.widths.get(modality):
        return int(_required(tensors, key, checkpoint, layout).shape[-1])
    return max((slot.columns[1] for slot in layout.slots if modality in slot.modalities), default=0)


def _required(tensors: Mapping[str, Tensor], key: str, checkpoint: str, layout: Layout) -> Tensor:
    if key not in tensors:
        raise AffectError(
            f"{checkpoint}: key {key} is missing{_nearest(key, tensors)}; give all files of a checkpoint of "
            f"{layout.title}"
        )
    return tensors[key]


def _nearest(key: str, known: Collection[str]) -> str:
    """The known key that is most like another one, in parentheses; a checkpoint has too many to list them."""
    return "".join(f" (nearest: {match})" for match in difflib.get_close_matches(key, known, n=1))


def _lora_rank(tensors: Mapping[str, Tensor], checkpoint: str) -> int:
    for key, tensor in tensors.items():
        if ".lora_A." in key:
            return int(tensor.shape[0])
    raise AffectError(f"{checkpoint}: holds no adapters (lora_A); give a checkpoint whose training had them")
