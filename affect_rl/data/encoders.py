"""Frozen encoders: sound to speech features (HuBERT and its kin), pictures to image features (CLIP's vision tower).

Any checkpoint in safetensors with the model code of transformers serves, by local path or hub name. Without any, sound
is measured (`affect_rl.data.prosody`): the name `PROSODY` stands where a speech encoder's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel
from transformers.utils.logging import disable_progress_bar

from affect_rl.data.extraction import PROSODY, Checkpoint, load_checkpoint
from affect_rl.data.prosody import ProsodyEncoder
from affect_rl.errors import AffectError

_SECONDS = 320
"""Padded sound in one forward pass; a longer one goes alone."""
_PICTURES = 64
"""Pictures in one forward pass."""
_ONLY_FOR_TRAINING = {"masked_spec_embed"}
"""Weights that checkpoints lack without harm."""
_PADDABLE = ("hubert", "wav2vec2", "wavlm")
"""Model types that mask padding everywhere, if they also normalise each frame by itself."""


def speech_encoder(checkpoint: Checkpoint, segments: int, device: str = "cpu") -> SpeechEncoder | ProsodyEncoder:
    """What makes features of sound, `segments` rows each.

    Raises:
        AffectError: the checkpoint cannot be loaded, or is no speech encoder that reads raw sound.
    """
    if checkpoint.name == PROSODY:
        return ProsodyEncoder(segments)
    return SpeechEncoder(checkpoint, segments, device)


class SpeechEncoder:
    """A HuBERT-like encoder; its last hidden states are averaged over equal windows of time.

    Sounds of unlike length share a pass only where padding cannot change a feature. Models with
    ``feat_extract_norm: group`` (HuBERT base, wav2vec 2.0 base) normalise over the whole of what they are
    given, so there only sounds of one length do.

    Args:
        checkpoint: the encoder.
        segments: windows of time, rows of the result.
        device: ``cpu`` or ``cuda``.

    Raises:
        AffectError: it cannot be loaded, or is no speech encoder that reads raw sound.
    """

    def __init__(self, checkpoint: Checkpoint, segments: int, device: str = "cpu") -> None:
        self._extractor = load_checkpoint(
            AutoFeatureExtractor.from_pretrained, checkpoint.name, revision=checkpoint.revision
        )
        self._model = _load_model(checkpoint, device)
        config = self._model.config
        if not hasattr(config, "conv_kernel"):
            raise AffectError(
                f"{checkpoint.name}: is a {config.model_type}; name an encoder that reads raw sound, such as HuBERT"
            )
        self.sampling_rate = int(self._extractor.sampling_rate)
        self._segments, self._device = segments, device
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        adapter = getattr(config, "add_adapter", False)  # its frames do not follow from the convolutions
        self._pads = config.model_type in _PADDABLE and config.feat_extract_norm == "layer" and not adapter

    @property
    def shortest(self) -> int:
        """Samples that give one frame, the least that can be encoded."""
        samples = 1
        for kernel, stride in reversed(self._convolutions):
            samples = (samples - 1) * stride + kernel
        return samples

    def encode(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode sounds ``[samples]`` float32 at `sampling_rate`, each of at least `shortest` samples.

        Returns:
            For each sound ``[segments, d]`` float32: means over equal windows of the frames; neighbouring
            windows share a frame where their border falls into it.
        """
        features: list[np.ndarray] = [np.empty(0)] * len(sounds)
        for rows in self._passes([len(sound) for sound in sounds]):
            for row, frames in zip(rows, self._frames([sounds[row] for row in rows]), strict=True):
                features[row] = F.adaptive_avg_pool1d(frames.T, self._segments).T.cpu().numpy()
        return features

    @torch.inference_mode()
    def _frames(self, sounds: Sequence[np.ndarray]) -> list[Tensor]:
        """Last hidden states ``[T_i, d]`` of one pass."""
        inputs = self._extractor(
            list(sounds),
            sampling_rate=self.sampling_rate,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._device)
        mask = inputs["attention_mask"] if self._pads else None
        hidden = self._model(inputs["input_values"], attention_mask=mask).last_hidden_state
        if not self._pads:
            return list(hidden)
        return [row[: self._frame_count(len(sound))] for row, sound in zip(hidden, sounds, strict=True)]

    def _frame_count(self, samples: int) -> int:
        for kernel, stride in self._convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def _passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which sounds go through the model together: shortest first, as many as fit and get along."""
        passes: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            latest = passes[-1] if passes else []
            fits = (len(latest) + 1) * lengths[row] <= _SECONDS * self.sampling_rate
            if latest and fits and (self._pads or lengths[latest[0]] == lengths[row]):
                latest.append(row)
            else:
                passes.append([row])
        return passes


class ImageEncoder:
    """A vision encoder with one vector a picture.

    A checkpoint with a text tower (CLIP, SigLIP) gives its image embedding, the vector that is compared
    with texts; a vision tower alone gives its pooled output.

    Args:
        checkpoint: the encoder.
        device: ``cpu`` or ``cuda``.

    Raises:
        AffectError: it cannot be loaded.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        # Pillow's resizing everywhere: torchvision's differs from it, and is not installed on every machine.
        self._processor = load_checkpoint(
            AutoImageProcessor.from_pretrained, checkpoint.name, revision=checkpoint.revision, backend="pil"
        )
        self._model = _load_model(checkpoint, device)
        self._embed = getattr(self._model, "get_image_features", self._model)
        self._name, self._device = checkpoint.name, device

    def prepare(self, pictures: np.ndarray) -> Tensor:
        """Resize and normalise pictures ``[n, H, W, 3]`` uint8 to what the model reads, ``[n, 3, h, w]``."""
        inputs = self._processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
        return inputs["pixel_values"]

    @torch.inference_mode()
    def encode(self, clips: Sequence[Tensor]) -> list[np.ndarray]:
        """Encode clips of prepared pictures ``[n_i, 3, h, w]``.

        Returns:
            For each clip ``[n_i, d]`` float32.

        Raises:
            AffectError: the model pools nothing.
        """
        if not clips:
            return []
        vectors = []
        for pixels in torch.cat(list(clips)).split(_PICTURES):
            output = self._embed(pixel_values=pixels.to(self._device))
            if getattr(output, "pooler_output", None) is None:
                raise AffectError(
                    f"{self._name}: gives no vector for a picture; name an encoder that pools, such as CLIP"
                )
            vectors.append(output.pooler_output.float().cpu())
        return [part.numpy() for part in torch.cat(vectors).split([len(clip) for clip in clips])]


def _load_model(checkpoint: Checkpoint, device: str) -> Any:
    """The model in float32, ready to encode; a checkpoint that leaves weights to chance is refused."""
    disable_progress_bar()
    model, report = load_checkpoint(
        AutoModel.from_pretrained,
        checkpoint.name,
        revision=checkpoint.revision,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(set(report["missing_keys"]) - _ONLY_FOR_TRAINING):
        raise AffectError(
            f"{checkpoint.name}: lacks {len(missing)} weights of a {type(model).__name__} such as {missing[0]}; "
            "name a checkpoint of that architecture"
        )
    return model.eval().to(device)
