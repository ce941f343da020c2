"""What the warm start trains on."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.config.load import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from cluster.warm_start import create_policy, training_samples


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    world = synthesise(SynthSettings(train=40, dev=1, test=1, expressions=10))
    return Dataset.load(write_dataset(tmp_path_factory.mktemp("world") / "synth", world, name="synth"))


def test_a_base_that_is_not_there_is_named(dataset: Dataset, tmp_path: Path) -> None:
    config = load_config(None, [f"model.base={tmp_path / 'absent'}"])
    with pytest.raises(
        AffectError, match=r"^model\.base=.*absent: cannot be loaded .*; give the directory of a policy"
    ):
        create_policy(config, dataset)


def test_no_more_samples_are_demonstrated_than_the_steps_take(dataset: Dataset) -> None:

    def ids(*settings: str) -> list[str]:
        config = load_config(None, ["sft.steps=3", "sft.batch_samples=4", *settings])
        return [s.id for s in training_samples(config, dataset)]

    assert len(set(ids())) == 12
    assert ids() == ids() != ids("seed=1")
    everything = [s.id for s in dataset.samples("train")]
    assert ids("sft.steps=10") == ids("sft.steps=99") == everything
    assert ids("data.max_train=5") == [s.id for s in dataset.samples("train", limit=5)]
