"""The model card: what it says, what it says it does not know, and that its code works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Manifest
from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.model_card.card import Licences, Subject, model_card
from affect_rl.model_card.history import History
from affect_rl.model_card.scores import Scores
from affect_rl.policy.adapters import Lora
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.export import Exported, Form, export_policy
from affect_rl.policy.model import AffectPolicy
from affect_rl.scoring.bootstrap import Difference, Estimate
from benchmarks.workload import tiny_policy

MANIFEST = Manifest.model_validate(
    {
        "name": "voices", "label_kind": "closed", "candidates": ["anger", "joy"], "audio_dim": 6, "video_dim": 5,
        "note": "Made for tests.\nSeven actors.",
        "splits": {"train": {"rows": 3000, "sha256": "a" * 64}, "test": {"rows": 400, "sha256": "b" * 64}},
    }
)  # fmt: skip
SCORES = Scores(
    "test",
    400,
    {
        "SFT": {"weighted_f1": Estimate(0.5319, 0.4823, 0.5791), "recall/joy": Estimate(0.5, 0.4, 0.6)},
        "MAPPO": {"weighted_f1": Estimate(0.88754, 0.8578, 0.9174), "recall/joy": Estimate(0.9, 0.8, 1.0)},
    },
    0.9,
    {"weighted_f1": Difference(0.3556, 0.3077, 0.4087, 0.001)},
    ("A note on metrics.",),
)


def config(*settings: str) -> Config:
    return load_config(None, [*settings])


def subject(history: History | None, exported: Exported | None = None, licences: Licences | None = None) -> Subject:
    return Subject("voices-team", tiny_policy().config, exported or Exported(), history, licences or Licences())


def history(*settings: str, scores: Scores | None = SCORES) -> History:
    return History(config(*settings), True, 30, MANIFEST, scores)


def text_of(page: ModelCard) -> str:
    """Without line breaks."""
    return " ".join(page.text.split())


def test_it_says_what_the_run_tells() -> None:
    settings = ("seed=7", "model.base=org/model", "model.lora.rank=4", "team.planner.adapter=own", "learner.lr=3e-5")
    page = model_card(subject(history(*settings), Exported(("own", "team")), Licences("apache-2.0", "cc-by-4.0")))
    text = text_of(page)
    for said in (
        "what a person feels from text, voice and face",
        "**planner**: Sees the sample, writes queries.",
        "Its adapter is `own`.",
        "Made of org/model.",
        "Trained on demonstrations (SFT), then with reinforcement learning: MAPPO, 30 steps.",
        "Of the policies on the way this is the one that was best on dev.",
        "| `seed` | 7 |",
        "| `model.lora.rank` | 4 |",
        "| `learner.lr` | 3e-05 |",
        "Dataset `voices`, with closed labels: anger, joy.",
        f"| train | 3000 | `{'a' * 64}` |",
        "> Made for tests. > Seven actors.",
        "intervals of 90 %",
        "| weighted F1 | 53.2 [48.2, 57.9] | 88.8 [85.8, 91.7] | +35.6 [+30.8, +40.9] |",
        "A note on metrics.",
        "- Language model: apache-2.0 - Dataset: cc-by-4.0",
        "**at work or in education**",
        "Article 5(1)(f)",
    ):
        assert said in text, said
    assert "Unknown" not in text


def test_its_metadata_are_those_of_the_hub() -> None:
    page = ModelCard(str(model_card(subject(history("model.base=org/model"), licences=Licences("mit")))))
    assert (page.data.license, page.data.base_model, page.data.library_name) == ("mit", "org/model", "affect-rl")
    assert page.data.model_name == "voices-team"
    (result,) = page.data.eval_results
    assert (result.metric_type, result.metric_name, result.metric_value) == ("f1", "weighted F1", 0.8875)
    assert result.metric_args == {"confidence": 0.9, "interval": [0.8578, 0.9174]}
    assert (result.dataset_name, result.dataset_split, result.dataset_revision) == ("voices", "test", "b" * 64)


def test_what_is_unknown_is_said_to_be_unknown() -> None:
    page = model_card(subject(None))
    assert page.data.license == "unknown"
    assert page.data.eval_results is None and page.data.base_model is None
    text = text_of(page)
    assert "- Language model: unknown - Dataset: unknown" in text
    assert text.count("Unknown: the policy was exported without its run.") == 2
    assert "Unknown: there was no evaluation" in text
    gone = text_of(model_card(subject(History(config(), False, None, None, None))))
    assert "Unknown: the dataset was not there any more" in gone and "None" not in gone
    assert "Trained with reinforcement learning: MAPPO." in gone and "`sft.lr`" not in gone


@pytest.mark.parametrize(
    ("settings", "hub", "words"),
    [
        (("model.base=tiny",), "", "a language model of random weights (4 layers, 128 wide)"),
        (("model.base=smollm2",), "HuggingFaceTB/SmolLM2-135M-Instruct", "quantised to four bits"),
        (("model.base=org/model",), "org/model", "org/model"),
        (("model.base=/home/me/models/big",), "", "a local model or policy called `big`"),
        (("model.base=org/model", "policy=/home/me/runs/x/sft"), "", "another policy, trained before"),
    ],
)
def test_the_language_model_is_named_without_a_path(settings: tuple[str, ...], hub: str, words: str) -> None:
    known = history(*settings)
    assert known.hub_name == hub
    assert words in known.origin
    assert "/home" not in str(model_card(subject(known)))


def test_agents_that_played_with_something_else_are_named() -> None:
    settings = ("team.filter.trains=false", "team.filter.policy=/home/me/other", "team.planner.trains=false")
    text = str(model_card(subject(history(*settings))))
    assert re.search(r"\*\*filter\*\*: .* It plays with another policy, which is not in this directory", text)
    assert re.search(r"\*\*planner\*\*: .* Reinforcement learning did not train it", text)
    assert "/home" not in text


def test_scores_of_the_team_are_not_those_of_one_agent() -> None:
    apart = history("model.lora.rank=4", "team.filter.adapter=own")
    page = model_card(subject(apart, Exported(merged="own")))
    assert page.data.eval_results is None
    assert "with its adapters, which were not merged then; this directory holds one of them." in text_of(page)
    together = model_card(subject(history("model.lora.rank=4"), Exported(merged="team")))
    assert together.data.eval_results


def test_scores_of_other_policies_are_left_out(tmp_path: Path) -> None:
    """Also those of the run before it was trained further."""
    file, policy = tmp_path / "evaluation.json", tmp_path / "policy"
    policy.mkdir()
    (policy / "manifest.json").write_text("one")
    report = {"split": "test", "samples": 1, "notes": [], "confidence": 0.9}
    played = {"manifest": sha256(policy / "manifest.json"), "scores": {}}
    file.write_text(json.dumps(report | {"policies": {"MAPPO": played}}))
    read = Scores.read(file, {"MAPPO": policy})
    assert read is not None and read.confidence == 0.9
    assert Scores.read(file, {"GRPO": policy}) is None
    (policy / "manifest.json").write_text("another")
    assert Scores.read(file, {"MAPPO": policy}) is None
    file.write_text(json.dumps(report | {"policies": {"MAPPO": {"scores": {}}}}))  # before hashes were noted
    assert Scores.read(file, {"MAPPO": policy}) is None
    file.write_text('{"split": "test"}')
    with pytest.raises(AffectError, match=r"evaluation.json: cannot be read .*; make it again with `affect-rl eval`"):
        Scores.read(file, {"MAPPO": policy})


PLAIN = """
import sys, torch
from safetensors.torch import save_file
assert "affect_rl" not in sys.modules
save_file({"logits": model(torch.arange(3, 19)[None]).logits.detach()}, "logits.safetensors")
assert tokenizer.decode(tokenizer.encode("a calm voice")) == "a calm voice"
"""


@pytest.mark.parametrize("form", [Form(merged=True), Form(with_base=True)], ids=["merged", "with base"])
@torch.no_grad()
def test_its_code_works(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and with transformers alone, which give the logits of the policy's language model."""
    base = AffectPolicy.load(tiny_policy().save(tmp_path / "made"), dtype=torch.bfloat16).save(tmp_path / "sft")
    policy = AffectPolicy.load(base)
    policy.add_adapters(Lora(4, 10))
    for tensor in policy.adapters()[0].tensors.values():
        tensor.add_(torch.randn(tensor.shape) * 0.05)
    out = tmp_path / "voices-team"
    out.mkdir()
    exported = export_policy(policy.save(tmp_path / "policy"), out, form)
    page = str(model_card(Subject(out.name, AffectConfig.from_pretrained(out), exported, None, Licences())))
    here, plain = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)

    monkeypatch.chdir(tmp_path)
    loaded: dict[str, AffectPolicy] = {}
    exec(here, loaded)
    code = [sys.executable, "-c", plain + PLAIN]
    done = subprocess.run(code, cwd=tmp_path, env={"PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, loaded["policy"].language_model(torch.arange(3, 19)[None]).logits)
