"""Wrong configurations, each with the message it must get; and what a right one keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.config.load import Config, dump_config, load_config
from affect_rl.errors import AffectError

CONFIGS = Path(__file__).parents[3] / "configs"

WRONG = [
    ("train.stepz=3", "unknown key `train.stepz`; did you mean `steps`?"),
    ("trian.steps=3", "unknown key `trian`; did you mean `train`?"),
    ("learner.xyzzy=1", "unknown key `learner.xyzzy`; known keys: algorithm"),
    ("train.steps=soon", "train.steps: Input should be a valid integer"),
    ("train.steps=0", "train.steps: Input should be greater than 0"),
    ("train.max_staleness=-1", "train.max_staleness: Input should be greater than or equal to 0"),
    ("learner.gamma=1.5", "learner.gamma: Input should be less than or equal to 1"),
    ("learner.zero_stage=4", "learner.zero_stage: Input should be 0, 1, 2 or 3"),
    ("learner.critic=shraed", "learner.critic: Input should be 'shared' or 'separate'"),
    ("model.dtype=float16", "model.dtype: Input should be 'float32' or 'bfloat16'"),
    ("model.fusion.top_k=9", "top_k=9 exceeds experts=4; lower top_k or raise experts"),
    ("model.fusion.heads=3", "heads=3 does not divide dim=64; choose heads from the divisors of dim"),
    ("model.tiny.heads=3", "heads=3 does not divide dim=128"),
    ("episode.keep=5", "episode.keep=5 exceeds episode.k=3; lower keep or raise k"),
    ("learner.minibatches=65", "learner.minibatches=65 exceeds the 64 samples of a step"),
    (
        "train.copies=8; learner.minibatches=16",
        "learner.minibatches=16 exceeds the 8 samples of a step (train.samples_per_step=64, train.copies=8)",
    ),
    ("learner.minibatches=5", "train.samples_per_step=64 is not a multiple of learner.minibatches=5"),
    ("learner.workers=40", "a minibatch of 32 samples cannot feed learner.workers=40"),
    ("learner.tokens_per_microbatch=100", "learner.tokens_per_microbatch=100 is below model.context=512"),
    ("sft.tokens_per_microbatch=100", "sft.tokens_per_microbatch=100 is below model.context=512; raise it"),
    ("sft.zero_stage=0; model.dtype=bfloat16", "set sft.zero_stage to 1, 2 or 3"),
    ("retrieval.library_splits=[test]", "retrieval.library_splits.0: Input should be 'library' or 'train'"),
    ("sft.careful_filter=2", "sft.careful_filter: Input should be less than or equal to 1"),
    ("evaluate.confidence=1", "evaluate.confidence: Input should be less than 1"),
    ("evaluate.split=train", "evaluate.split: Input should be 'dev' or 'test'"),
    ("evaluate.mapping=mer2025", "evaluate.mapping: Input should be 'unibench' or 'mer2026'"),
    ("evaluate.mapping=mer2026", "mapping=mer2026 is of the published wheels; give their directory with wheels"),
    ("episode.agents=[planner, filter]", "agents=['planner', 'filter'] lacks the generator, who answers; add it"),
    ("episode.agents=[generator, critic]", "episode.agents.1: Input should be 'planner', 'filter' or 'generator'"),
    ("episode.frozen=[planner, filter, generator]", "so that nothing is trained; let one"),
    ("episode.sampled=[]", "none both samples (sampled=[])"),
    (
        "episode.retrieval=false; episode.frozen=[generator]",
        "with retrieval=false, where the generator plays alone, none both samples",
    ),
    (
        "episode.agents=[filter, generator]; episode.frozen=[planner]",
        "frozen names ['planner'], not among agents=['filter', 'generator']; take it out of frozen",
    ),
    (
        "episode.frozen=[filter]; rollout.gpus_per_worker=1",
        "each takes rollout.gpu_memory=0.6 of the same GPU; set rollout.gpu_memory to 0.5 or less",
    ),
    ("episode.dropout=1.5", "episode.dropout: Input should be less than or equal to 1"),
    ("episode.stand_in=gate", "episode.stand_in: Input should be '', 'raaf', 'direct' or 'none'"),
    ("learner.preference_weight=0", "learner.preference_weight: Input should be greater than 0"),
    ("episode.groups=[]", "groups is empty; name at least one of supportive, confusing, countering"),
    ("episode.absent=[face]", "episode.absent.0: Input should be 'text', 'audio' or 'video'"),
    ("episode.support=gate", "episode.support: Input should be 'raaf', 'direct' or 'none'"),
    ("learner.algorithm=dpo", "compares answers to the same prompt, but train.copies=1; set train.copies to 2 or more"),
    ("train.copies=3", "train.samples_per_step=64 is not a multiple of train.copies=3"),
    ("rewards.length_penalty=-1", "rewards.length_penalty: Input should be greater than or equal to 0"),
    ("rewards.kind=hit", "rewards.kind: Input should be 'auto', 'exact' or 'wheel'"),
    ("train", "override `train` is not key=value"),
    ("train.steps=[1", "override `train.steps=[1`: value is not YAML"),
    ("name.first=x", None),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[o for o, _ in WRONG])
def test_wrong_settings_are_named_with_the_fix(override: str, message: str | None) -> None:
    with pytest.raises(AffectError) as error:
        load_config(None, override.split("; "))
    assert message is None or message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [1, 2", "is not YAML"),
        ("- train", "holds a list; expected sections such as `train:`"),
        ("train: 3", "train: Input should be a valid dictionary or instance of TrainConfig"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with pytest.raises(AffectError) as error:
        load_config(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_a_file_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "base.yaml").write_text("name: base\ntrain: {steps: 7, eval_every: 3}\n")
    (tmp_path / "folder" / "job.yaml").write_text("extends: ../base.yaml\ntrain: {steps: 9}\n")
    config = load_config(tmp_path / "folder" / "job.yaml", ["train.eval_every=4"])
    assert (config.name, config.train.steps, config.train.eval_every) == ("base", 9, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: job.yaml", "job.yaml: extends itself; take out one `extends:`"),
        ("extends: [a.yaml]", "extends names a list; expected a file such as quickstart.yaml"),
        ("extends: absent.yaml", "absent.yaml: cannot be read: No such file"),
    ],
)
def test_a_wrong_extension_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(AffectError) as error:
        load_config(tmp_path / "job.yaml")
    assert message in str(error.value)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["train.steps=7", "model.lora.targets=[q_proj, v_proj]"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_agents_take_turns_from_sample_to_sample() -> None:
    config = load_config(None, ["train.in_turn=true", "episode.frozen=[generator]"])
    assert [config.in_turn(place).episode.learning for place in range(4)] == [("planner",), ("filter",)] * 2
    alone = load_config(None, ["train.in_turn=true", "episode.retrieval=false"])
    assert [alone.in_turn(place).episode.learning for place in range(3)] == [("generator",)] * 3
    assert load_config(None, []).in_turn(3).episode.learning == ("planner", "filter", "generator")


def test_an_override_may_meet_a_section_the_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n")
    assert load_config(tmp_path / "a.yaml", ["learner.lr=1e-3"]).learner.lr == 1e-3


def test_every_setting_is_documented() -> None:
    def walk(section: type) -> None:
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{section.__name__}.{name} has no docstring"
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(Config)


@pytest.mark.parametrize("file", [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("small/*.yaml")], ids=lambda p: p.name)
def test_shipped_configurations_are_sound(file: Path) -> None:
    config = load_config(file)
    assert "optimiser steps" in config.batch_arithmetic()


@pytest.mark.parametrize(
    ("overrides", "turns"),
    [
        ([], 192),
        (["episode.retrieval=false"], 64),
        (["episode.agents=[filter, generator]"], 128),
        (["episode.frozen=[generator]"], 128),
        (["train.in_turn=true"], 64),
    ],
)
def test_a_step_counts_the_turns_that_are_learned_from(overrides: list[str], turns: int) -> None:
    assert (
        f"64 episodes, {turns} turns" in load_config(None, ["train.samples_per_step=64", *overrides]).batch_arithmetic()
    )
