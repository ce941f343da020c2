"""Soft tokens that speak the language model's words, before it learns to read them.

A language model's warm start sees each sample once or twice, far too seldom for modules that start at random to learn
what a voice or a face means. So these learn first, alone, and that takes seconds: each soft token of a sample is
drawn towards the embedding of its label, and all together away from those of the other labels. What the language model
finds in its prompt then lies near words that it knows. Image projectors are trained before their language model for the
same reason (LLaVA, arXiv 2304.08485, section 4.2); here the goal is the words' embeddings, so no pass of it is needed.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from affect_rl.config.learning import AlignmentConfig
from affect_rl.errors import AffectError
from affect_rl.policy.fusion import PerceptBatch, Sequences, collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.trajectory import Percept

MOST_WORDS = 512
"""Labels that are told apart, the commonest ones: open labels are thousands. A sample with others alone is left out."""
_SHARPNESS = 24.0
"""What cosines are multiplied by: enough for a softmax over some words to be sure."""
_MEMORY = 0.97
"""Weights are averaged over about 1 / (1 - this) steps: single ones swing with their batches."""
_CHECKS = 20
"""How often the samples held out are looked at."""


class Labelled(NamedTuple):
    """A percept with its labels; those of one group, such as a speaker's, are held out together."""

    percept: Percept
    labels: tuple[str, ...]
    group: str


class Alignment(NamedTuple):
    """What came of it: labels told apart, and on samples held out the share told right and the steps that took."""

    labels: int
    accuracy: float
    steps: int


def align_fusion(policy: AffectPolicy, samples: Sequence[Labelled], settings: AlignmentConfig, seed: int) -> Alignment:
    """Train the fusion modules of `policy` in place; they keep the averaged weights that did best on samples held out.

    The loss of a sample is the cross entropy of its labels under a softmax over cosines of soft tokens and labels'
    embeddings, both taken from the embeddings' mean, averaged over tokens; plus the mean squared distance of a token to
    its label's embedding in units of the embeddings' own. Direction tells labels apart, where a voice adds to what a
    face says; distance keeps each token where the model expects words.

    Args:
        policy: its language model is left as it is.
        samples: of the train split, with labels.
        settings: steps, learning rate, noise.
        seed: of batches, noise and who is held out.

    Raises:
        AffectError: all samples are of one group, so that none can be held out.
    """
    torch.manual_seed(seed)
    fusion = copy.deepcopy(policy.fusion).float().train()
    averaged = AveragedModel(fusion, multi_avg_fn=get_ema_multi_avg_fn(_MEMORY))
    words, targets = _words(policy, samples)
    fitted, held_out = _split([s.group for s in samples], targets.sum(dim=1) > 0, settings.held_out, seed)
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def loss_of(model: nn.Module, batch: PerceptBatch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``[N]`` of samples with a distribution over labels ``[N, labels]`` each, and logits likewise."""
        tokens, centre = model(batch).tokens, words.mean(dim=0)
        cosines = F.normalize(tokens - centre, dim=2) @ F.normalize(words - centre, dim=1).T
        logits = _SHARPNESS * cosines.mean(dim=1)
        entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        distance = (tokens - (target @ words)[:, None]).square().sum(dim=2).mean(dim=1)
        return entropy + distance / words.square().sum(dim=1).mean(), logits

    def batch_of(rows: Sequence[int]) -> tuple[PerceptBatch, Tensor]:
        shape = fusion.shape
        batch = collate_percepts([samples[row].percept for row in rows], shape.audio_dim, shape.video_dim)
        return batch, targets[list(rows)]

    held_out_batch, held_out_target = batch_of(held_out)
    best, best_loss, found = fusion.state_dict(), float("inf"), Alignment(len(words), 0.0, 0)
    for step in range(1, settings.steps + 1):
        batch, target = batch_of(random.Random(f"{seed}/{step}").choices(fitted, k=settings.batch_samples))
        loss, _ = loss_of(fusion, _noisy(batch, fusion.audio.std, fusion.video.std, settings.noise), target)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(fusion.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(fusion)
        if step % max(1, settings.steps // _CHECKS) and step < settings.steps:
            continue
        with torch.no_grad():
            losses, logits = loss_of(averaged, held_out_batch, held_out_target)
        if (mean := losses.mean().item()) < best_loss:
            right = held_out_target.gather(1, logits.argmax(dim=1, keepdim=True)) > 0
            best, best_loss = copy.deepcopy(averaged.module.state_dict()), mean
            found = Alignment(len(words), right.float().mean().item(), step)
    policy.fusion.load_state_dict(best)
    return found


def _words(policy: AffectPolicy, samples: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
    """Embeddings ``[labels, lm_dim]`` of the labels, and of each sample the share of each label ``[N, labels]``."""
    counts = Counter(label for sample in samples for label in sample.labels)
    labels = {label: number for number, (label, _) in enumerate(counts.most_common(MOST_WORDS))}
    embedding = policy.language_model.get_input_embeddings().weight.detach()  # type: ignore[operator, union-attr]
    tokens = [policy.tokenizer.encode(f" {label}", add_special_tokens=False) for label in labels]
    targets = torch.zeros(len(samples), len(labels))
    for row, sample in enumerate(samples):
        known = [labels[label] for label in sample.labels if label in labels]
        targets[row, known] = 1 / max(1, len(known))
    return torch.stack([embedding[ids].float().mean(dim=0) for ids in tokens]), targets


def _split(groups: Sequence[str], known: Tensor, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to learn from, and rows of a `share` of the groups, which are held out; only rows that are `known`."""
    rows = known.nonzero()[:, 0].tolist()
    names = sorted({groups[row] for row in rows})
    if len(names) < 2:
        raise AffectError("sft.alignment.steps: needs samples of two groups, one to be held out; set it to 0")
    count = min(len(names) - 1, max(1, round(share * len(names))))
    apart = set(random.Random(seed).sample(names, count))
    return [row for row in rows if groups[row] not in apart], [row for row in rows if groups[row] in apart]


def _noisy(batch: PerceptBatch, audio_std: Tensor, video_std: Tensor, noise: float) -> PerceptBatch:
    """Features with noise of `noise` standard deviations: a few hundred samples are soon known by heart."""

    def add(frames: Sequences, std: Tensor) -> Sequences:
        return frames._replace(values=frames.values + noise * std * torch.randn_like(frames.values))

    return batch._replace(
        audio=add(batch.audio, audio_std),
        video=add(batch.video, video_std),
        audio_support=add(batch.audio_support, audio_std),
        video_support=add(batch.video_support, video_std),
    )
