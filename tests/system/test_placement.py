"""Placement groups of jobs: whole or not at all, waited for where it can be seen, and a trial's own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from ray.util import get_current_placement_group, list_named_actors
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from affect_rl.config.actors import Actors
from affect_rl.errors import AffectError
from cluster.runtime.placement import Placement, neighbours, resources

pytestmark = pytest.mark.usefixtures("cluster")

ENGINES = Actors("engine", 1, 2, 0, ("rollout.workers",))
LEARNERS = Actors("learner", 2, 1, 0, ("learner.workers",))
FRONTEND = Actors("frontend", 1, 1, 0, ("retrieval.threads",))


class Where:
    """Says where it is."""

    def bundles(self) -> list[dict[str, float]] | None:
        group = get_current_placement_group()
        return group.bundle_specs if group else None


@pytest.fixture
def job() -> Iterator[Placement]:
    placement = Placement("job", deadline_s=30)
    yield placement
    placement.release()


def half() -> Actors:
    """So many that the cluster has room for one such job, not two."""
    return Actors("learner", int(ray.cluster_resources()["CPU"]) // 2 + 1, 1, 0, ("learner.workers",))


def free() -> float:
    """Free CPUs, once Ray has heard of them."""
    time.sleep(1.5)
    return ray.available_resources()["CPU"]


def test_a_further_stage_takes_what_it_lacks(job: Placement) -> None:
    job.reserve([ENGINES])
    job.reserve([LEARNERS, ENGINES])
    assert job.reserved == [ENGINES, LEARNERS]


def test_actors_lie_in_bundles_of_one_group_and_have_names(job: Placement) -> None:
    job.reserve([ENGINES, LEARNERS])
    job.reserve([LEARNERS])  # they are there
    started = [ray.remote(Where).options(**options).remote() for kind in (ENGINES, LEARNERS) for options in job(kind)]
    seen = ray.get([actor.bundles.remote() for actor in started], timeout=120)
    assert seen == [[{"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}]] * 3
    mine = {name.removeprefix(job.name) for name in list_named_actors() if name.startswith(job.name)}
    assert mine == {"-rollout-0", "-learner-0", "-learner-1"}
    again = job(LEARNERS)[0]["name"]
    assert again == f"{job.name}-learner-0.2", "Ray may not have ended the one before"


def test_who_lies_on_one_node_is_known_of_those_with_bundles(job: Placement) -> None:
    job.reserve([ENGINES, LEARNERS])
    assert neighbours([*job(ENGINES), *job(LEARNERS)]) == [3, 3, 3]
    assert neighbours(job(LEARNERS) + job(FRONTEND)) == [2, 2, None]


def test_actors_beyond_the_bundles_go_where_there_is_room(job: Placement) -> None:
    job.reserve([ENGINES])
    assert ["scheduling_strategy" in options for options in job(LEARNERS)] == [False] * 2


def test_a_job_without_room_holds_nothing_and_says_what_it_waits_for(
    job: Placement, caplog: pytest.LogCaptureFixture
) -> None:
    kind, before = half(), free()
    job.reserve([kind])
    late = Placement("late", deadline_s=3)
    with caplog.at_level(logging.INFO), pytest.raises(AffectError, match=r"cluster\.deadline_s=3.*learner\.workers"):
        late.reserve([kind, FRONTEND])
    need = f"needs {kind.count} x 1 CPU for learners, 1 x 1 CPU for frontends, free are "
    assert f"waiting for room: {late.name} {need}" in caplog.text
    assert free() == before - kind.count


def test_a_job_starts_when_the_one_before_has_ended(job: Placement) -> None:
    kind = half()
    job.reserve([kind])
    threading.Timer(2, job.release).start()
    late = Placement("late", deadline_s=60)
    late.reserve([kind])
    assert late.reserved == [kind]
    late.release()


@ray.remote(num_cpus=0)
def in_a_trial() -> tuple[list[int], str]:
    placement = Placement("trial", deadline_s=5)
    placement.reserve([FRONTEND])  # smaller than an engine's bundle, which is left alone
    placement.reserve([ENGINES, LEARNERS])
    kinds = (ENGINES, LEARNERS, FRONTEND)
    bundles = [o["scheduling_strategy"].placement_group_bundle_index for kind in kinds for o in placement(kind)]
    try:
        placement.reserve([Actors("shard", 1, 1, 0, ())])
    except AffectError as error:
        return bundles, str(error)
    return bundles, ""


def test_a_trials_own_group_is_used() -> None:
    group = placement_group(resources([ENGINES, LEARNERS, FRONTEND]))
    trial = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    try:
        bundles, error = ray.get(in_a_trial.options(scheduling_strategy=trial).remote(), timeout=120)
    finally:
        remove_placement_group(group)
    assert bundles[0] == 0 and sorted(bundles) == [0, 1, 2, 3]
    assert "leave no room for 1 x" in error
