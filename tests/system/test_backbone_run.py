"""A published system from clips to scores: features extracted, a checkpoint imported, SFT, MAPPO, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from backbone_cases import write_checkpoint, write_language_model
from safetensors.torch import load_file
from test_extract import image, pristine, speech  # noqa: F401 (fixtures)
from typer.testing import CliRunner

from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.data.dataset import Dataset
from affect_rl.data.extraction import Checkpoint, Extraction
from affect_rl.experiments.results import Results
from affect_rl.experiments.spec import ExperimentSpec, load_experiment
from affect_rl.policy.model import AffectPolicy
from cluster.cli.backbone import backbone_app
from cluster.experiments.run import run_experiment
from cluster.extract import Workers, extract

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs" / "experiments"
WIDTH = 16
"""Of the tiny encoders' features; both modalities', as ImageBind's are."""


@pytest.fixture(scope="module")
def data(
    cluster: None,
    pristine: Path,  # noqa: F811
    speech: Checkpoint,  # noqa: F811
    image: Checkpoint,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A dataset of eight clips with features from `data extract`."""
    out = tmp_path_factory.mktemp("features") / "data"
    extract(pristine / "data", out, Extraction(speech, image, "video", frames=3, segments=2), Workers())
    assert (Dataset.load(out).audio_dim, Dataset.load(out).video_dim) == (WIDTH, WIDTH)
    return out


def spec_for(system: str, folder: Path, data: Path) -> ExperimentSpec:
    """The shipped experiment, small."""
    (folder / "base.yaml").write_text("")
    overrides = {
        "model.base": str(folder / system), "model.backbone": system,
        "data.dir": str(data), "runs_dir": str(folder / "runs"), "model.context": 384,
        "model.fusion.dim": 8, "model.fusion.heads": 2, "model.fusion.experts": 3,
        "team.planner.tokens": 64, "team.filter.tokens": 48, "team.generator.tokens": 40,
        "episode.k": 1, "sft.steps": 2, "sft.batch_samples": 2, "sft.threads": 1, "learner.threads": 1,
        "learner.minibatches": 1, "rollout.threads": 1, "rollout.kv_cache_gib": 0.1, "train.steps": 1,
        "train.samples_per_step": 2, "train.eval_every": 0, "train.checkpoint_every": 0, "train.select": "last",
        "train.verify_sync": True, "evaluate.resamples": 20,
    }  # fmt: skip
    changes = {"config": str(folder / "base.yaml"), "seeds": 1, "baseline": False, "overrides": overrides}
    return load_experiment(CONFIGS / "backbones.yaml").model_copy(update=changes)


def test_a_published_system_goes_all_the_way(data: Path, tmp_path: Path) -> None:
    system = "affectgpt"
    (checkpoint,) = write_checkpoint(tmp_path, system, WIDTH, WIDTH)
    words = [
        "import", system, "--checkpoint", str(checkpoint),
        "--language-model", str(write_language_model(tmp_path / "language-model", system)),
        "--out", str(tmp_path / system), "--dtype", "float32",
    ]  # fmt: skip
    result = CliRunner().invoke(backbone_app, words, catch_exceptions=False)
    assert f"reads audio {WIDTH} wide and video {WIDTH} wide" in result.output

    spec = spec_for(system, tmp_path, data)
    results = run_experiment(spec, tmp_path / "results", (), "the command")
    assert list(results.arms) == ["alone", "with AffectAgent"]
    assert Results.read(tmp_path / "results").samples == len(Dataset.load(data).samples("test")) > 0

    imported = load_file(tmp_path / system / "model.safetensors")
    moved = {}
    for trained in (tmp_path / "runs").glob("train-*"):
        metrics = json.loads((trained / "metrics.jsonl").read_text())
        assert metrics["logprob_gap/max"] < 1e-4
        policy = AffectPolicy.load(trained / "policy")
        assert policy.config.backbone == system
        assert policy.fusion.shape.slots == LAYOUTS[system].slots
        assert policy.fusion.shape.dim == 8
        moved["planner/tokens" in metrics] = {
            name.removeprefix("fusion.").split(".")[0]
            for name, tensor in policy.export()
            if name.startswith("fusion.") and (name not in imported or not torch.equal(tensor, imported[name]))
        }
    assert moved[True] == {"audio", "video", "moe", "slots"}
    assert "slots" in moved[False]
