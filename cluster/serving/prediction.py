"""A prediction: what a trained team makes of one input that nobody has labelled.

An input is played once greedily, which is the answer, and some more times with sampling, which tells how sure the team
is of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from affect_rl.config.load import Config
from affect_rl.sample import AffectSample
from affect_rl.team.board import Found
from affect_rl.trajectory import Trajectory
from rollout_workers.worker import EpisodeSpec

if TYPE_CHECKING:
    from affect_rl.experiments.baselines import Guess


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a team makes of one input.

    Attributes:
        id: name of the input.
        labels: the labels that the answer names; empty if there is none.
        sure: share of the sampled answers that name them, on average over the labels; None: nothing was sampled. Of
            a classifier's answer, its probability.
        votes: by label, the share of the sampled answers that name it.
        rationale: the reason that the answer gives.
        text: the transcript as the team read it.
        description: what was measured of voice and face, in words, where the team's dataset has such words.
        modalities: what the team had of the input: ``text``, ``audio``, ``video``.
        queries: what was searched for, by group.
        evidence: what the answer was given on: each with its group, id, text, labels and score.
        answered_by: ``team``, or ``classifier`` where a cascade found it sure enough.
        problem: why there is no answer; empty if there is one.
        degraded: a part of the evidence service did not answer in time.
    """

    id: str
    labels: tuple[str, ...] = ()
    sure: float | None = None
    votes: Mapping[str, float] = field(default_factory=dict)
    rationale: str = ""
    text: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ()
    queries: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[Mapping[str, Any], ...] = ()
    answered_by: str = "team"
    problem: str = ""
    degraded: bool = False

    def row(self) -> dict[str, Any]:
        """As a row of a table: what goes by names that are not known in advance becomes lists."""
        votes = [{"label": label, "share": share} for label, share in self.votes.items()]
        queries = [{"group": group, "text": text} for group, text in self.queries.items()]
        return {**asdict(self), "votes": votes, "queries": queries}

    @classmethod
    def guessed(cls, sample: AffectSample, guess: Guess) -> Prediction:
        """What a classifier says, which gives no reason."""
        return cls(
            sample.id,
            labels=(guess.label,),
            sure=guess.sure,
            text=sample.text,
            description=sample.description,
            modalities=sample.modalities,
            answered_by="classifier",
        )

    @classmethod
    def of(cls, sample: AffectSample, answer: Trajectory, sampled: Sequence[Trajectory]) -> Prediction:
        """From the greedy episode and the sampled ones."""
        votes, sure = confidence(answer.output.labels, [episode.output.labels for episode in sampled])
        return cls(
            sample.id,
            labels=answer.output.labels,
            sure=sure,
            votes=votes,
            rationale=answer.output.rationale,
            text=sample.text,
            description=sample.description,
            modalities=sample.modalities,
            queries={str(group): text for group, text in answer.queries.items()},
            evidence=tuple(found_rows(answer.kept)),
            problem=answer.output.problem or "",
            degraded=answer.degraded,
        )


def found_rows(found: Found) -> list[dict[str, Any]]:
    """Evidence with its groups, as rows."""
    return [{"group": group, **asdict(item)} for group, items in found.items() for item in items]


def confidence(labels: Sequence[str], sampled: Sequence[Sequence[str]]) -> tuple[dict[str, float], float | None]:
    """By label, the share of sampled answers that name it, most first; and the mean of these shares over `labels`."""
    counts = Counter(label for answer in sampled for label in set(answer))
    votes = {
        label: count / len(sampled) for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    }
    if not (labels and sampled):
        return votes, None
    return votes, sum(votes.get(label, 0.0) for label in labels) / len(labels)


def episodes_for(config: Config, sample: AffectSample, samples: int) -> list[EpisodeSpec]:
    """The greedy episode of an input, and the sampled ones behind it."""
    greedy = EpisodeSpec.to_measure(config, "predict", sample)
    sampled = (
        replace(EpisodeSpec.to_measure(config, f"predict-{number}", sample), temperature=None)
        for number in range(samples)
    )
    return [greedy, *sampled]
