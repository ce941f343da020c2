"""What a run's evaluation says of the policies before and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from affect_rl.errors import AffectError
from affect_rl.policy.directory import manifest_hash
from affect_rl.scoring.bootstrap import Difference, Estimate
from affect_rl.scoring.tables import header, in_unit, markdown_table


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of policies on one split.

    Attributes:
        split: which.
        samples: how many.
        policies: metrics with intervals by policy, the exported one last.
        confidence: coverage of the intervals.
        differences: of the last policy to the first.
        notes: what a reader must know of the metrics.
    """

    split: str
    samples: int
    policies: Mapping[str, Mapping[str, Estimate]]
    confidence: float
    differences: Mapping[str, Difference]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, policies: Mapping[str, Path]) -> Self | None:
        """Read an ``evaluation.json``; None: it is of other policies than the directories of these names.

        Raises:
            AffectError: it is damaged.
        """
        try:
            report = json.loads(file.read_text())
            if not is_of(report, policies):
                return None
            scores = {
                name: {metric: Estimate(**score) for metric, score in of["scores"].items()}
                for name, of in report["policies"].items()
            }
            differences = {metric: Difference(**gain) for metric, gain in report.get("differences", {}).items()}
            notes, confidence = tuple(report["notes"]), report["confidence"]
            return cls(report["split"], report["samples"], scores, confidence, differences, notes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AffectError(f"{file}: cannot be read ({error!r}); make it again with `affect-rl eval`") from error

    @property
    def exported(self) -> Mapping[str, Estimate]:
        """Metrics of the policy after training."""
        return self.policies[list(self.policies)[-1]]

    def markdown(self) -> str:
        """A row a metric and a column a policy, in percent with intervals, and what training has changed."""
        names = list(self.policies)
        rows = [[f"{self.split}, n = {self.samples}", *names, f"{names[-1]} - {names[0]}"]]
        for metric in self.exported:
            gain = self.differences.get(metric)
            cells = [in_unit(metric, scores[metric]) for scores in self.policies.values()]
            rows.append([header(metric), *cells, in_unit(metric, gain, sign="+") if gain else ""])
        return markdown_table(rows)


def is_of(report: Mapping[str, Any], policies: Mapping[str, Path]) -> bool:
    """Whether an ``evaluation.json`` is of the policies that lie in these directories now, by their names."""
    played = {name: of.get("manifest") for name, of in report["policies"].items()}
    return played == {name: manifest_hash(directory) for name, directory in policies.items()}
