"""The job of ``affect-rl cascade``: a trained team and a classifier, and what they are worth together."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.experiments.baselines import FeatureClassifier
from affect_rl.experiments.cascade import Answered, Cascade, make_cascade
from affect_rl.policy.directory import check_manifest, manifest_hash
from affect_rl.sample import Split
from cluster.evaluate import play_samples, scoring_for
from cluster.experiments.baselines import feature_classifier
from cluster.runtime.run import Run, open_run


def run_cascade(config: Config, policy: Path, cost: float) -> Cascade:
    """Choose on dev from where on the classifier is sure enough, and measure on test what that brings.

    Args:
        config: of the run that the team was trained in.
        policy: directory of the team's policy.
        cost: points of the main metric for a thousand tokens a sample.

    Raises:
        AffectError: `policy` holds no policy, the dataset has no closed set of labels, or there are too few CPUs or
            GPUs.
    """
    check_manifest(policy)
    with open_run(config, "eval") as run:
        if not run.dataset.candidates:
            raise AffectError(f"{config.data.dir}: has open labels, which a classifier cannot choose among")
        classifier = feature_classifier(run.dataset, config.retrieval)
        dev, test = (_answered(run, policy, classifier, split) for split in ("dev", "test"))
    stands_on = manifest_hash(policy), run.dataset.manifest.splits["train"].sha256
    return make_cascade(
        config.name, *stands_on, dev, test, cost, confidence=config.evaluate.confidence, seed=config.seed
    )


def _answered(run: Run, policy: Path, classifier: FeatureClassifier, split: Split) -> Answered:
    samples = run.dataset.samples(split, run.config.data.limit(split))
    pool = run.pool(policy)
    classifier.guess(samples[:1])  # what is loaded the first time is not the classifier's work
    begun = time.perf_counter()
    guesses = classifier.guess(samples)
    guessed = time.perf_counter()
    played = play_samples(run.config, samples, pool, policy, split)
    return Answered(
        scoring_for(run.config, samples),
        guesses,
        [episode.output.labels for episode in played],
        np.array([episode.generated_tokens + episode.prompt_tokens for episode in played], float),
        classifier_ms=1000 * (guessed - begun) / len(samples),
        team_ms=1000 * (time.perf_counter() - guessed) / len(samples),
    )
