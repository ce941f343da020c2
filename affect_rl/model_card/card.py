"""A model card as the Hugging Face Hub reads it: metadata, scores among it, and a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from affect_rl.model_card.history import History
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import CARRIED
from affect_rl.policy.export import Exported
from affect_rl.policy.fusion import shape_from_dict
from affect_rl.scoring.tables import header

UNKNOWN = "unknown"
"""What the Hub calls a licence that nobody has named."""
_TYPES = {"accuracy": "accuracy", "weighted_f1": "f1", "macro_f1": "f1", "uar": "recall", "waf": "f1"}
"""What the Hub calls our metrics; others keep their names."""


@dataclass(frozen=True, slots=True)
class Licences:
    """Licences, by the Hub's names; empty: unknown.

    Attributes:
        model: of the language model, and so of the policy.
        data: of the dataset.
    """

    model: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a card is about.

    Attributes:
        name: of the directory.
        config: its ``config.json``.
        exported: what is in it.
        history: how it came about; None: nobody knows.
        licences: of what it is made of.
    """

    name: str
    config: AffectConfig
    exported: Exported
    history: History | None
    licences: Licences

    @property
    def inputs(self) -> str:
        """What the team is shown of a person, in words."""
        shape = shape_from_dict(self.config.fusion)  # where there is no audio, say, it is 1 wide
        seen = ["text", *(what for what, width in (("voice", shape.audio_dim), ("face", shape.video_dim)) if width > 1)]
        return " and ".join([", ".join(seen[:-1]), seen[-1]] if seen[1:] else seen)

    @property
    def soft_tokens(self) -> int:
        """Soft tokens of a percept."""
        return shape_from_dict(self.config.fusion).tokens

    @property
    def has_whole_team(self) -> bool:
        """Whether all agents can play with it, so that their scores are its own."""
        merged, history = self.exported.merged, self.history
        return not merged or (history is not None and {member.adapter for member in history.members} == {merged})

    @property
    def language_model_in(self) -> str:
        """Directory that holds the language model's weights, beside the export or in it; empty: none does."""
        if self.exported.needs:
            return ""
        return f"{self.name}/{CARRIED}" if self.exported.adapters else self.name


def model_card(subject: Subject) -> ModelCard:
    """The card; the same subject gives the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("card.md.jinja").render(subject=subject, history=subject.history, unknown=UNKNOWN)
    return ModelCard(f"---\n{_metadata(subject).to_yaml()}\n---\n\n{page}")


def _metadata(subject: Subject) -> ModelCardData:
    history = subject.history
    results = list(_results(history)) if history and subject.has_whole_team else []
    return ModelCardData(
        license=subject.licences.model or UNKNOWN,
        library_name="affect-rl",
        tags=["emotion-recognition", "multi-agent", "reinforcement-learning", "retrieval"],
        base_model=(history.hub_name if history else "") or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=subject.name if results else None,  # it names the results
        eval_results=results or None,
    )


def _results(history: History) -> Iterator[EvalResult]:
    """The metrics of the policy itself; those before training and those by class stand in the table alone."""
    scores, data = history.scores, history.data
    if not scores or not data:
        return
    file = data.splits.get(scores.split)  # type: ignore[call-overload]
    for metric, score in scores.exported.items():
        if "/" not in metric:
            yield EvalResult(
                task_type="other",
                task_name="emotion recognition",
                dataset_type=data.name,
                dataset_name=data.name,
                dataset_split=scores.split,
                dataset_revision=file.sha256 if file else None,
                metric_type=_TYPES.get(metric, metric),
                metric_name=header(metric),
                metric_value=round(score.value, 4),
                metric_args={"confidence": scores.confidence, "interval": [round(score.low, 4), round(score.high, 4)]},
            )
