"""What the warm start trains on."""

from __future__ import annotations

from pathlib import Path

from affect_rl.config import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from cluster.warm_start import training_samples


def test_no_more_samples_are_demonstrated_than_the_steps_take(tmp_path: Path) -> None:
    world = synthesise(SynthSettings(train=40, dev=1, test=1, expressions=10))
    dataset = Dataset.load(write_dataset(tmp_path / "synth", world, name="synth"))

    def ids(*settings: str) -> list[str]:
        config = load_config(None, ["sft.steps=3", "sft.batch_samples=4", *settings])
        return [s.id for s in training_samples(config, dataset)]

    assert len(set(ids())) == 12
    assert ids() == ids() != ids("seed=1")
    everything = [s.id for s in dataset.samples("train")]
    assert ids("sft.steps=10") == ids("sft.steps=99") == everything
    assert ids("data.max_train=5") == [s.id for s in dataset.samples("train", limit=5)]
