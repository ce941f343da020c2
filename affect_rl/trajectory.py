"""What an episode leaves behind: prompts, tokens, log-probs, versions, outputs and rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from affect_rl.evidence import Evidence, Group

FULL = "full"
"""The episode as the whole team plays it, among the lines of an episode; the others are named by the agent they are
played without."""


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
    """Token ids with placeholder runs, and the percepts that fill them, in order.

    Attributes:
        token_ids: ``[L]``.
        percepts: as many as there are runs of placeholders.
        prefix: tokens at the start that all prompts of an episode have in common, with the first percept.
    """

    token_ids: tuple[int, ...]
    percepts: tuple[Percept, ...]
    prefix: int = 0


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
class Output:
    """What a team answers, as its task reads it.

    Attributes:
        text: the answer as it was written.
        labels: the labels it names; empty for a task without labels, or if there is no valid answer.
        rationale: the reason it gives.
        problem: why it could not be read, or None if it could.
    """

    text: str
    labels: tuple[str, ...] = ()
    rationale: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One turn of an agent, as the learner needs it.

    Attributes:
        agent: who spoke.
        number: which turn of this agent in the episode, from 0.
        prompt: what it saw.
        generation: what it answered.
        problem: why the answer could not be read, or None if it could.
        reward: what this turn earned at its end; an agent's last turn carries its share of equations 1 to 3.
        trained: whether the agent learns from this turn.
        temperature: at which it was sampled; 0: greedily, with log-probs at temperature 1.
        knowledge: what a critic may know beside the prompt, numbers ``[F]``, see `affect_rl.team.knowledge`.
        critic_prompt: what a separate critic reads in the prompt's place; None: the prompt.
    """

    agent: str
    prompt: Prompt
    generation: Generation
    problem: str | None
    number: int = 0
    reward: float = 0.0
    trained: bool = True
    temperature: float = 1.0
    knowledge: tuple[float, ...] = ()
    critic_prompt: Prompt | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One episode.

    Attributes:
        sample_id: the sample it was played on.
        labels: the sample's true labels; empty: unknown.
        turns: the turns of the whole team, in the order of play.
        output: what the team answered.
        queries: what was last searched for, by group.
        candidates: what the retriever found.
        kept: the evidence that the answer was given on.
        support_ids: the perceptual neighbours.
        bypassed: by agent, what the team answered without it, where that was played.
        scores: score in [0, 1] under `FULL` and under the agents' names of `bypassed`; empty without true labels.
        degraded: a retrieval shard did not answer in time at some point of the episode.
        generated_tokens: tokens generated in all of the episode's calls.
        prompt_tokens: prompt tokens of all of the episode's calls.
        lost: it was given up because engines were lost with it; then there are no turns.
    """

    sample_id: str
    labels: tuple[str, ...]
    turns: tuple[Turn, ...]
    output: Output
    queries: Mapping[Group, str] = field(default_factory=dict)
    candidates: Mapping[Group, tuple[Evidence, ...]] = field(default_factory=dict)
    kept: Mapping[Group, tuple[Evidence, ...]] = field(default_factory=dict)
    support_ids: tuple[str, ...] = ()
    bypassed: Mapping[str, Output] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    degraded: bool = False
    generated_tokens: int = 0
    prompt_tokens: int = 0
    lost: bool = False

    @property
    def oldest_version(self) -> int:
        """The oldest weights that any trained token came from.

        Raises:
            ValueError: no turn is trained.
        """
        return min(v for t in self.turns if t.trained for v in t.generation.weight_versions)
