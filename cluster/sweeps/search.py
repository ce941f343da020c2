"""Who proposes settings, in the words of Ray Tune."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import Pbt, Range, SweepSpec


def domain(values: Range) -> Any:
    """As Ray Tune says it."""
    if values.integers:
        low, high = values.integers
        return tune.randint(low, high + 1)
    if values.uniform:
        return tune.uniform(*values.uniform)
    return tune.loguniform(*values.loguniform) if values.loguniform else tune.choice(values.choice)


def search(spec: SweepSpec) -> Searcher | SearchAlgorithm:
    """Who proposes settings.

    Raises:
        AffectError: Optuna is not installed.
    """
    if spec.search == "random":
        # A population is whole from the start: with PBT, trials pause while others run.
        at_once = 0 if isinstance(spec.scheduler, Pbt) else spec.concurrent
        return BasicVariantGenerator(max_concurrent=at_once, random_state=spec.seed)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise AffectError("search=optuna: the package is not installed; pip install 'affect-rl[sweep]'") from None
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=spec.seed)
