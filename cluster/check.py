"""Do engine and learner know the model as one? The job of ``affect-rl check``, and the beginning of a whole run.

So an architecture that one of them has wrong, or that engines cannot load at all, costs a minute and not the hours of a
warm start.
"""

from __future__ import annotations

from contextlib import closing

from cluster.agreement import check_agreement
from cluster.runtime.run import Run
from cluster.runtime.weights import Publisher
from cluster.warm_start import base_policy
from learners.group import LearnerGroup


def check_model(run: Run) -> None:
    """Start engines and learner with the policy before any training, which is made if it is not there, and compare.

    The run's engines and the room for its learner are in use until the run is closed.

    Raises:
        AffectError: they disagree, or one of them cannot run the model.
    """
    config, directory = run.config, run.directory
    directory.open(config)
    base = base_policy(config, run.dataset, run.retrieval, directory.sft)
    place = run.services.place(config, "train")
    pool = run.pool(base)
    with closing(LearnerGroup(config, base, seed=config.seed, place=place, meanwhile=pool.look_after)) as learner:
        Publisher(config, learner, pool).publish(0)
        check_agreement(config, base, pool, learner, run.dataset.samples("train", config.data.max_train))
