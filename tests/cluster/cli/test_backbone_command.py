"""`affect-rl backbone import`: a directory or none; and `model.base`, which may name such a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbone_cases import WIDTHS, write_checkpoint, write_language_model
from typer.testing import CliRunner

from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.backbones.systems import System
from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from affect_rl.policy.model import AffectPolicy
from affect_rl.team.prompts import Prompts
from cluster.cli.backbone import backbone_app
from cluster.warm_start import create_policy

CONFIGS = Path(__file__).parents[3] / "configs" / "backbones"


def run(folder: Path, *words: str, system: str = "affectgpt", audio: int = 12, video: int = 16) -> str:
    """Import a tiny AffectGPT as `system` to ``out``."""
    return run_on(folder, write_checkpoint(folder, "affectgpt", audio, video), "affectgpt", system, *words)


def run_on(folder: Path, files: list[Path], family: str, *words: str) -> str:
    """Import files to ``out``, on a language model of the family that a system builds on."""
    model = write_language_model(folder / "language-model", family)
    named = [("--checkpoint", file) for file in files] + [("--language-model", model), ("--out", folder / "out")]
    arguments = ["import", *words, *(str(word) for pair in named for word in pair)]
    return CliRunner().invoke(backbone_app, arguments, catch_exceptions=False).output


def test_every_system_has_a_layout_and_a_configuration() -> None:
    assert set(LAYOUTS) == set(System)
    models = {file.stem: load_config(file).model for file in CONFIGS.glob("*.yaml")}
    assert set(models) == set(System)
    for name, model in models.items():
        assert (model.base, model.backbone) == (f"backbones/{name}", name)


def test_another_name_is_answered_with_all_names(tmp_path: Path) -> None:
    output = " ".join(run(tmp_path, system="emotionllama").split())
    assert all(f"'{name}'" in output for name in System)


def test_a_checkpoint_may_come_in_several_files(tmp_path: Path, world: Dataset) -> None:
    files = write_checkpoint(tmp_path, "video_llama2", audio_dim=12)
    assert len(files) == 2
    output = run_on(tmp_path, files, "video_llama2", "video_llama2", "--dtype", "float32")
    assert f"slots video, audio; reads audio 12 wide and video {WIDTHS['video_llama2'][1]} wide" in output
    with pytest.raises(AffectError, match=r"has not the connectors of model.backbone=pandagpt; give a directory of"):
        create_policy(config_for(tmp_path, "model.backbone=pandagpt"), world)
    with pytest.raises(AffectError, match=r"video features are 16 wide, .* takes 64; extract them with its SigLIP"):
        create_policy(config_for(tmp_path, "model.backbone=video_llama2"), world)


@pytest.mark.parametrize("name", ["affectgpt", "video_llama2"])
def test_connectors_of_a_system_may_start_at_random(name: str, world: Dataset) -> None:
    policy = create_policy(load_config(None, [f"model.backbone={name}"]), world)
    assert policy.fusion.shape.slots == LAYOUTS[name].slots
    assert not bool((policy.fusion.audio.std == 1).any())


def test_slots_come_from_the_system_or_the_configuration() -> None:
    slots = "model.fusion.slots=[{name: a, source: audio, connector: linear}]"
    with pytest.raises(AffectError, match=r"backbone=affectgpt brings its own slots; leave it or fusion.slots out"):
        load_config(None, ["model.backbone=affectgpt", slots])


def test_a_checkpoint_becomes_a_policy_directory(tmp_path: Path) -> None:
    """In half precision: a language model of seven billion parameters would need twice 28 GB otherwise."""
    output = run(tmp_path)
    assert "slots multi, audio, video; reads audio 12 wide and video 16 wide" in output
    assert next(AffectPolicy.load(tmp_path / "out").parameters()).dtype.itemsize == 2
    with pytest.raises(AffectError, match="out: exists; choose another --out, or remove it"):
        run(tmp_path)


def test_nothing_is_left_of_a_checkpoint_of_another_system(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"does not hold tensors by name \(but model, optimizer, "):
        run(tmp_path, system="pandagpt")
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    samples = synthesise(SynthSettings(train=8, dev=2, test=2, expressions=20))
    return Dataset.load(write_dataset(tmp_path_factory.mktemp("world") / "synth", samples, name="synth"))


def config_for(folder: Path, *settings: str) -> Config:
    return load_config(None, [f"model.base={folder / 'out'}", "data.dir=data/here", "model.context=384", *settings])


def test_a_policy_starts_from_an_imported_directory(tmp_path: Path, world: Dataset) -> None:
    run(tmp_path)
    config = config_for(tmp_path, "model.fusion.dim=16", "model.fusion.heads=2", "seed=3")
    policy = create_policy(config, world)
    assert policy.config.backbone == "affectgpt"
    assert policy.fusion.shape.dim == 16
    assert bool((policy.fusion.audio.std == 1).all()), "connectors know features as their encoders make them"
    prompts = Prompts.for_policy(policy.save(tmp_path / "policy"), config.episode, context=config.model.context)
    prompt = prompts.build(world.samples("train")[0], 12, "Task: answer.\n")
    assert prompt.token_ids.count(policy.config.percept_token_id) == policy.fusion.shape.tokens == 3


def test_features_of_another_width_are_refused(tmp_path: Path, world: Dataset) -> None:
    run(tmp_path, audio=13)
    with pytest.raises(AffectError, match=r"data/here: audio features are 12 wide, .* takes 13; extract .* HuBERT"):
        create_policy(config_for(tmp_path), world)


def test_any_policy_is_a_base_and_keeps_what_fits(tmp_path: Path, world: Dataset) -> None:
    small = ["model.tiny.layers=1", "model.tiny.dim=32", "model.tiny.heads=2", "model.tiny.vocabulary=400"]
    trained = create_policy(load_config(None, small), world)
    trained.save(tmp_path / "out")
    same = create_policy(config_for(tmp_path, "seed=5"), world)
    assert all(map(torch.equal, same.state_dict().values(), trained.state_dict().values()))
    fewer = create_policy(config_for(tmp_path, "model.fusion.experts=2"), world).fusion
    assert len(fewer.moe.experts) == 2 and fewer.moe.router.out_features == 2
    assert torch.equal(fewer.audio.project.weight, trained.fusion.audio.project.weight)


def test_slots_of_a_configuration_start_at_random_and_know_the_scale(world: Dataset) -> None:
    slots = "[{name: a, source: audio, connector: attention}, {name: v, source: video, connector: mlp, tokens: 2}]"
    policy = create_policy(load_config(None, [f"model.fusion.slots={slots}"]), world)
    assert policy.fusion.shape.tokens == 3
    assert not bool((policy.fusion.audio.std == 1).any())
