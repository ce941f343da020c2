"""What an experiment tells of fusion beyond the metrics: one table an evaluation, and the details made of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from affect_rl.data.dataset import Dataset
from affect_rl.experiments.fusion_analysis import load_entropy, modality_states, routing_weights, support_relation
from affect_rl.experiments.results import DETAILS
from affect_rl.policy.model import AffectPolicy
from affect_rl.sample import AffectSample
from affect_rl.scoring.label_score import label_score
from affect_rl.trajectory import Percept, Trajectory

FUSION = pa.schema(
    [("sample_id", pa.string()), ("relation", pa.string()), ("weights", pa.list_(pa.float32()))],
)
"""Of each evaluated sample: how its support's labels relate to the truth (null: it had none), and MB-MoE's mixture
weights."""

Evaluation = tuple[list[tuple[str, ...]], list[dict[str, Any]]]
"""Answers of one evaluation, and the rows of its table."""


def fusion_table(
    library: Sequence[AffectSample], policy: Path, samples: Sequence[AffectSample], episodes: Sequence[Trajectory]
) -> pa.Table:
    """The table `FUSION` of an evaluation with evidence from `library`."""
    labels = {s.id: s.labels for s in library}
    relations = [
        support_relation(s.labels, [labels[i] for i in t.support_ids]) for s, t in zip(samples, episodes, strict=True)
    ]
    views = [t.turns[-1].prompt.percepts[-1] if t.turns else Percept(None, None, fused=True) for t in episodes]
    weights = routing_weights(AffectPolicy.load_fusion(policy), views).tolist()
    return pa.table([[s.id for s in samples], relations, weights], schema=FUSION)


def fusion_details(
    reference: str, dataset: Dataset, samples: Sequence[AffectSample], arms: Mapping[str, Sequence[Evaluation]]
) -> pa.Table:
    """Rows of `DETAILS` from all arms' evaluations, one a seed.

    ``gain/<relation>`` is the reference's score less the arm's, by the relation of the reference's support. Where the
    dataset has voice and face: ``routing/<state>/expert <n>``, a sample's mixture weight, and ``load_entropy/<state>``,
    one number for all samples in that state. ``load_entropy`` is that of all samples.
    """
    states = modality_states(dataset, samples) if dataset.audio_dim and dataset.video_dim else [None] * len(samples)
    rows: list[tuple[str, int, str, str, float]] = []
    for arm, runs in arms.items():
        for seed, ((answers, fused), (best, support)) in enumerate(zip(runs, arms[reference], strict=True)):
            if arm != reference:
                for s, own, other, row in zip(samples, answers, best, support, strict=True):
                    if row["relation"]:
                        gain = label_score(other, s) - label_score(own, s)
                        rows.append((arm, seed, s.id, f"gain/{row['relation']}", gain))
            for row, state in zip(fused, states, strict=True):
                for expert, weight in enumerate(row["weights"] if state else [], start=1):
                    rows.append((arm, seed, row["sample_id"], f"routing/{state}/expert {expert}", weight))
            weights = np.array([row["weights"] for row in fused])
            rows.append((arm, seed, "all", "load_entropy", load_entropy(weights)))
            for name in sorted(set(filter(None, states))):
                inside = np.array([state == name for state in states])
                rows.append((arm, seed, "all", f"load_entropy/{name}", load_entropy(weights[inside])))
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=DETAILS)
