"""What an episode leaves behind: prompts, tokens, log-probs, versions, answers and rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from affect_rl.evidence import Evidence, Group
from affect_rl.sample import AffectSample

Role = Literal["planner", "filter", "generator"]
ROLES: tuple[Role, ...] = ("planner", "filter", "generator")
Purpose = Literal["full", "label", "rank", "silver"]
"""What a generation is for: the episode itself, one of its counterfactuals, or the search of silver selections."""


@dataclass(frozen=True, slots=True, eq=False)
class Percept:
    """The features behind one run of placeholder tokens in a prompt.

    A percept becomes as many embeddings as `FusionShape.tokens` says, slot after slot.

    Attributes:
        audio: ``[T_a, d_a]`` or None if the modality is absent.
        video: ``[T_v, d_v]`` or None if the modality is absent.
        audio_support: perceptual neighbours' audio ``[S_a, d_a]``; None: no fusion with support.
        video_support: perceptual neighbours' video ``[S_v, d_v]``; None: no fusion with support.
        fused: whether RAAF and MB-MoE are applied (the generator's view) or only the projectors.
    """

    audio: np.ndarray | None
    video: np.ndarray | None
    audio_support: np.ndarray | None = None
    video_support: np.ndarray | None = None
    fused: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids with placeholder runs, and the percepts that fill them, in order."""

    token_ids: tuple[int, ...]
    percepts: tuple[Percept, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of the engine. Token ids are the truth; nothing is tokenised again.

    Attributes:
        token_ids: the generated tokens ``[T]``, the end token included if it was reached.
        logprobs: log-prob of each token at the sampling temperature ``[T]`` (behaviour policy).
        weight_versions: version of the weights that produced each token ``[T]``.
        text: the decoded answer without special tokens.
        finished: the end token was reached within the token limit.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_versions: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a generation is asked for: everything but the prompt's token ids, for humans and rules.

    Attributes:
        role: which agent speaks.
        sample: the sample of the episode.
        candidates: the evidence shown, in the order in which the prompt numbers it.
        seed: seed of this generation.
        purpose: what it is for.
    """

    role: Role
    sample: AffectSample
    candidates: Mapping[Group, tuple[Evidence, ...]]
    seed: int
    purpose: Purpose


class Generate(Protocol):
    """What an episode needs of an engine."""

    async def __call__(self, prompt: Prompt, request: Request) -> Generation: ...


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One agent's turn of an episode, as the learner needs it.

    Attributes:
        role: which agent spoke.
        prompt: what it saw.
        generation: what it answered.
        problem: why the answer could not be parsed, or None if it could.
        reward: terminal reward of this agent (equations 1 to 3, less penalties).
        trained: whether the agent learns from this turn.
    """

    role: Role
    prompt: Prompt
    generation: Generation
    problem: str | None
    reward: float = 0.0
    trained: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One episode.

    Attributes:
        sample_id: the sample it was played on.
        labels: the sample's true labels.
        turns: the turns of the agents in play, in the order planner, filter, generator.
        queries: the planner's queries, or the fallback's.
        candidates: what the retriever answered to them.
        kept: what the filter kept.
        support_ids: the perceptual neighbours.
        predicted: the generator's labels (empty: no valid answer).
        rationale: the generator's reason.
        counterfactuals: labels predicted under ``label`` and ``rank``, of those that were played.
        scores: S_full, S_label and S_rank under the keys ``full``, ``label``, ``rank``.
        degraded: a retrieval shard did not answer in time at some point of the episode.
        generated_tokens: tokens generated in all of the episode's calls.
        prompt_tokens: prompt tokens of all of the episode's calls.
    """

    sample_id: str
    labels: tuple[str, ...]
    turns: tuple[Turn, ...]
    queries: Mapping[Group, str]
    candidates: Mapping[Group, tuple[Evidence, ...]]
    kept: Mapping[Group, tuple[Evidence, ...]]
    support_ids: tuple[str, ...]
    predicted: tuple[str, ...]
    rationale: str
    counterfactuals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    degraded: bool = False
    generated_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def oldest_version(self) -> int:
        """The oldest weights that any trained token came from."""
        return min(v for t in self.turns if t.trained for v in t.generation.weight_versions)
