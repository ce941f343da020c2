"""What Prometheus is told of a run's steps."""

from __future__ import annotations

from collections import defaultdict

from cluster.runtime.rundir import Progress
from cluster.watching.prometheus import PrometheusTracker


class Series(defaultdict[str, list[float]]):
    """All values of each series."""

    def publish(self, name: str, value: float, **tags: str) -> None:
        self[f"{name} {' '.join(tags.values())}".strip()].append(value)


def test_counts_begin_with_those_of_the_run_and_never_fall() -> None:
    series = Series(list)
    tracker = PrometheusTracker(series.publish, Progress(step=4, episodes=64))
    for step in (5, 6, 5, 6, 7):  # the learner was lost after step 6, and the last checkpoint was that of step 4
        tracker.log(step, {"counts/episodes": 16 * step, "kl/mean": 1 / step})
    assert series["affect_counted_total episodes"] == [64, 80, 96, 96, 96, 112]
    assert series["affect_counted_total learners_lost"] == [0]
    assert series["affect_step"] == [4, 5, 6, 5, 6, 7]
    assert series["affect_kl_to_start"] == [1 / 5, 1 / 6, 1 / 5, 1 / 6, 1 / 7]


def test_counts_of_a_new_run_begin_at_0() -> None:
    series = Series(list)
    PrometheusTracker(series.publish, Progress())
    names = ("episodes", "replayed", "lost", "stale", "dropped", "generated_tokens", "learners_lost")
    assert series == {f"affect_counted_total {name}": [0] for name in names} | {"affect_step": [0]}


def test_a_warm_start_has_names_of_its_own_and_no_counts() -> None:
    series = Series(list)
    PrometheusTracker(series.publish, None).log(1, {"loss": 2.0, "planner/loss": float("nan")})
    assert series == {"affect_sft_loss": [2.0]}
