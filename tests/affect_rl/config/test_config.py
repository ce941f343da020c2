"""Wrong configurations, each with the message it must get; and what a right one keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.config.load import Config, dump_config, load_config
from affect_rl.errors import AffectError
from affect_rl.section import EVALUATION, POLICY, SCORES, SFT, TRAINING, flat_settings

CONFIGS = Path(__file__).parents[3] / "configs"

WRONG = [
    ("rollout.deadline_s=140", "140 is not above retrieval.deadline_s + 2 x retrieval.shard_timeout_s = 140"),
    ("train.stepz=3", "unknown key `train.stepz`; did you mean `steps`?"),
    ("trian.steps=3", "unknown key `trian`; did you mean `train`?"),
    ("learner.xyzzy=1", "unknown key `learner.xyzzy`; known keys: workers, gpus_per_worker"),
    ("train.steps=soon", "train.steps: Input should be a valid integer"),
    ("train.steps=0", "train.steps: Input should be greater than 0"),
    ("train.max_staleness=-1", "train.max_staleness: Input should be greater than or equal to 0"),
    ("learner.zero_stage=4", "learner.zero_stage: Input should be 0, 1, 2 or 3"),
    (
        "learner.gpus_per_worker=0.5",
        "learner.gpus_per_worker: NCCL refuses two ranks on one card; set it to 1, or to 0 for the CPU, and `workers` "
        "beside it to the number of cards (given: 0.5)",
    ),
    ("learner.gpus_per_worker=2", "learner.gpus_per_worker: a rank uses one card and would block the others; set it"),
    ("sft.gpus_per_worker=0.25", "sft.gpus_per_worker: NCCL refuses two ranks on one card; set it to 1, or to 0"),
    ("sft.gpus_per_worker=4", "sft.gpus_per_worker: a rank uses one card and would block the others; set it to 1"),
    ("model.dtype=float16", "model.dtype: Input should be 'float32' or 'bfloat16'"),
    ("model.fusion.top_k=9", "top_k=9 exceeds experts=4; lower top_k or raise experts"),
    ("model.fusion.heads=3", "heads=3 does not divide dim=64; choose heads from the divisors of dim"),
    ("model.tiny.heads=3", "heads=3 does not divide dim=128"),
    ("learner.minibatches=65", "learner.minibatches=65 exceeds the 64 samples of a step"),
    (
        "train.copies=8; learner.minibatches=16",
        "learner.minibatches=16 exceeds the 8 samples of a step (train.samples_per_step=64, train.copies=8)",
    ),
    ("learner.minibatches=5", "train.samples_per_step=64 is not a multiple of learner.minibatches=5"),
    ("learner.workers=40", "a minibatch of 32 samples cannot feed learner.workers=40"),
    ("learner.min_workers=2", "learner: min_workers=2 exceeds workers=1; lower it"),
    ("rollout.min_workers=2", "rollout: min_workers=2 exceeds workers=1; lower it"),
    ("rollout.workers=[2, 8]", "set deterministic to false, or workers to one number"),
    ("rollout.workers=[8, 2]", "rollout: workers=[8, 2]: the fewest come first; set it to [2, 8]"),
    ("learner.tokens_per_microbatch=100", "learner.tokens_per_microbatch=100 is below model.context=512"),
    ("sft.tokens_per_microbatch=100", "sft.tokens_per_microbatch=100 is below model.context=512; raise it"),
    ("sft.zero_stage=0; model.dtype=bfloat16", "set sft.zero_stage to 1, 2 or 3"),
    ("retrieval.library_splits=[test]", "retrieval.library_splits.0: Input should be 'library' or 'train'"),
    ("evaluate.confidence=1", "evaluate.confidence: Input should be less than 1"),
    ("evaluate.split=train", "evaluate.split: Input should be 'dev' or 'test'"),
    ("evaluate.mapping=mer2025", "evaluate.mapping: Input should be 'unibench' or 'mer2026'"),
    ("evaluate.mapping=mer2026", "mapping=mer2026 is of the published wheels; give their directory with wheels"),
    ("episode.keep=5", "episode: keep=5 exceeds k=3; lower keep or raise k"),
    ("episode.dropout=1.5", "episode.dropout: Input should be less than or equal to 1"),
    ("episode.groups=[]", "groups is empty; name at least one of supportive, confusing, countering"),
    ("episode.absent=[face]", "episode.absent.0: Input should be 'text', 'audio' or 'video'"),
    (
        "rollout.gpus_per_worker=2",
        "rollout: gpus_per_worker=2 with tensor_parallel=1: each rank uses a card of its own, and an engine no more "
        "cards than that; set gpus_per_worker=1, or tensor_parallel=2",
    ),
    ("rollout.gpus_per_worker=1.5", "set gpus_per_worker=1, or tensor_parallel=1"),
    ("rollout.gpus_per_worker=1; rollout.tensor_parallel=2", "set gpus_per_worker=2, or tensor_parallel=1"),
    ("rollout.gpus_per_worker=0.5; rollout.tensor_parallel=2", "set gpus_per_worker=2, or tensor_parallel=1"),
    ("rollout.gpus_per_worker=0.5", "gpu_memory=0.6 exceeds gpus_per_worker=0.5, an actor's share of its card; set"),
    (
        "rollout.tensor_parallel=3",
        "rollout.tensor_parallel=3 does not divide the 4 attention heads of model.base=tiny; choose a divisor",
    ),
    ("train.copies=3", "train.samples_per_step=64 is not a multiple of train.copies=3"),
    ("train", "override `train` is not key=value"),
    ("train.steps=[1", "override `train.steps=[1`: value is not YAML"),
    ("name.first=x", "name: Input should be a valid string"),
]
WRONG_TEAMS = [
    ("team.planner.tokns=3", "unknown key `team.planner.tokns`; did you mean `tokens`?"),
    ("team.generator.suport=raaf", "unknown key `team.generator.suport`; did you mean `support`?"),
    ("team.filter.support=raaf", "unknown key `team.filter.support`; known keys: kind, tokens"),
    ("team.planer.tokens=3", "there is no agent `planer`; did you mean `planner`?"),
    ("team.agents=[plannr, generator]", "there is no agent `plannr`; did you mean `planner`?"),
    ("team.agents=[generator, xyzzy]", "there is no agent `xyzzy`; known: planner, labelling_planner"),
    ("team.filter.kind=silverfilter", "there is no agent `silverfilter`; did you mean `silver_filter`?"),
    ("team.filter.kind='no_module:Filter'", "agent `no_module:Filter` cannot be imported"),
    (
        "team.filter.kind='affect_rl.team.agent:Agent'",
        "agent `affect_rl.team.agent:Agent` lacks demonstrate, prompt, read",
    ),
    ("team.filter.kind='affect_rl.team.filter:Nobody'", "has no attribute 'Nobody'); is its folder on PYTHONPATH?"),
    (
        "team.filter.kind='affect_rl.team.prompts:Prompts'",
        "agent `affect_rl.team.prompts:Prompts` does not derive from affect_rl.team.agent:Agent",
    ),
    ("team.rouds=2", "unknown key `team.rouds`; did you mean `rounds`?"),
    ("team.rounds=0", "team.rounds: Input should be greater than 0"),
    ("team.planner=3", "team.planner: expected a section (given: 3)"),
    ("team.agents=3", "team.agents: expected a list of names (given: 3)"),
    ("team.agents=generator", "team.agents: expected a list of names (given: 'generator')"),
    ("team.agents=[generator, generator]", "names one twice; an agent that speaks again has rounds"),
    ("team.agents=[planner, filter]", "agents=['planner', 'filter'] lacks one that answers; add generator"),
    ("team.filter.careful=2", "team.filter.careful: Input should be less than or equal to 1"),
    ("team.generator.support=gate", "team.generator.support: Input should be 'raaf', 'direct' or 'none'"),
    ("team.generator.stand_in=gate", "team.generator.stand_in: Input should be '', 'raaf', 'direct' or 'none'"),
    ("team.filter.length_penalty=-1", "team.filter.length_penalty: Input should be greater than or equal to 0"),
    ("team.filter.policy=start", "policy=start does not change, so it cannot train; set trains: false"),
    ("team.filter.temperature=0", "temperature=0 never tries anything, so it cannot train; raise it or set trains: fa"),
    (
        "team.planner.trains=false; team.filter.trains=false; team.generator.trains=false",
        "of the agents that play (planner, filter, generator) none trains; set trains: true for one",
    ),
    (
        "team.retrieval=false; team.generator.trains=false",
        "of the agents that play (generator) none trains; set trains: true for one",
    ),
    (
        "team.filter.policy=start; team.filter.trains=false; team.planner.policy=runs/a; team.planner.trains=false",
        "team.planner.policy=runs/a, team.filter.policy=start: agents that do not change share one engine; give them",
    ),
    (
        "team.filter.policy=start; team.filter.trains=false; rollout.gpus_per_worker=1",
        "each takes rollout.gpu_memory=0.6 of the same GPU; set rollout.gpu_memory to 0.5 or less",
    ),
    (
        "team.filter.policy=start; team.filter.trains=false; rollout.gpus_per_worker=0.5; rollout.gpu_memory=0.4",
        "each takes rollout.gpu_memory=0.4 of the same GPU; set rollout.gpu_memory to 0.25 or less",
    ),
]
WRONG_ADAPTERS = [
    (
        "team.planner.lr=1e-4; team.filter.lr=1e-4; team.generator.lr=1e-4",
        "team.planner.lr=0.0001 is for an adapter, and model.lora.rank=0 makes none; raise model.lora.rank, or leave "
        "team.planner.lr out",
    ),
    ("team.planner.adapter=own", "team.planner.adapter=own is for an adapter, and model.lora.rank=0 makes none; raise"),
]
WRONG_ALGORITHMS = [
    ("algorithm.gamm=1", "unknown key `algorithm.gamm`; did you mean `gamma`?"),
    ("algorithm.gamma=1.5", "algorithm.gamma: Input should be less than or equal to 1"),
    ("algorithm.name=mappi", "there is no algorithm `mappi`; did you mean `mappo`?"),
    ("algorithm.name=xyzzy", "there is no algorithm `xyzzy`; known: mappo, ippo"),
    ("algorithm=mappo", "expected settings such as `name: mappo`, not 'mappo'"),
    ("algorithm.critic.kind=shraed", "algorithm.critic.kind: Input should be 'shared' or 'separate'"),
    ("algorithm.critic.seees=own", "unknown key `algorithm.critic.seees`; did you mean `sees`?"),
    ("algorithm.loss.clp=3", "unknown key `algorithm.loss.clp`; did you mean `clip`?"),
    ("algorithm.loss.name=clip", "algorithm.loss: Input tag 'clip' found using 'name'"),
    ("algorithm.name=grpo; train.copies=8; algorithm.critic.sees=own", "unknown key `algorithm.critic`"),
    ("algorithm.name=dpo; train.copies=2; algorithm.gamma=1", "unknown key `algorithm.gamma`"),
    (
        "algorithm.name=dpo",
        "algorithm.name=dpo compares episodes of the same sample, but train.copies=1; set train.copies to 2 or more",
    ),
]
WRONG_TASKS = [
    ("task.scor=wheel", "unknown key `task.scor`; did you mean `score`?"),
    ("task.score=hit", "task.score: Input should be 'auto', 'exact' or 'wheel'"),
    ("task.name=clsed", "there is no task `clsed`; did you mean `closed`?"),
    ("task.name='affect_rl.team.filter:Filter'", "does not derive from affect_rl.tasks.task:Task"),
    ("task=closed", "task: expected a section (given: 'closed')"),
    ("task=3", "task: expected a section (given: 3)"),
]
EVERYTHING_WRONG = [*WRONG, *WRONG_TEAMS, *WRONG_ADAPTERS, *WRONG_ALGORITHMS, *WRONG_TASKS]


@pytest.mark.parametrize(("override", "message"), EVERYTHING_WRONG, ids=[o for o, _ in EVERYTHING_WRONG])
def test_wrong_settings_are_named_with_the_fix(override: str, message: str) -> None:
    with pytest.raises(AffectError) as error:
        load_config(None, override.split("; "))
    assert message in str(error.value)


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


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=7", "model.lora.targets=[q_proj, v_proj]"],
        ["team.filter.kind=silver_filter", "team.generator.support=direct", "team.rounds=2"],
        ["team.agents=[planner, critic, generator]", "team.critic.kind=filter", "team.critic.tokens=9"],
        ["algorithm.name=grpo", "train.copies=8", "algorithm.loss={name: gspo}", "algorithm.correction.limit=3"],
        ["task.name=affect_rl.tasks.thinking:Thinking", "task.thought=0.2"],
    ],
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, overrides: list[str]) -> None:
    """The settings that a class of agents, an algorithm or a task brings of its own as well."""
    config = load_config(None, overrides)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config != load_config(None)


def test_a_class_brings_its_settings() -> None:
    config = load_config(None, ["team.agents=[planner, picker, generator]", "team.picker.kind=filter"])
    assert config.team["picker"].tokens == config.team["filter"].tokens != config.team["planner"].tokens
    assert load_config(None, ["algorithm.name=ippo"]).algorithm.critic_settings.sees == "own"  # type: ignore[union-attr]


def test_one_key_of_a_nested_default_leaves_the_others() -> None:
    config = load_config(None, ["algorithm.name=ippo", "algorithm.critic.lr=1.0e-2"])
    critic = config.algorithm.critic_settings
    assert critic is not None and (critic.lr, critic.sees) == (0.01, "own")


def test_who_does_not_train_may_name_an_adapter_of_its_policy() -> None:
    """Engines serve the adapters that a policy has, whatever is trained beside them."""
    frozen = ["team.filter.policy=runs/a", "team.filter.trains=false", "team.filter.adapter=filter"]
    assert load_config(None, frozen).team["filter"].adapter == "filter"


def test_agents_take_turns_from_sample_to_sample() -> None:
    """One learns and explores, the others answer greedily."""

    def learning(overrides: list[str], place: int) -> tuple[str, ...]:
        team = load_config(None, overrides).in_turn(place)
        greedy = {name for name in team.playing if not team[name].temperature}
        assert greedy.isdisjoint(team.trained)
        return team.trained

    frozen = ["train.in_turn=true", "team.generator.policy=start", "team.generator.trains=false"]
    assert [learning(frozen, place) for place in range(4)] == [("planner",), ("filter",)] * 2
    alone = ["train.in_turn=true", "team.retrieval=false"]
    assert [learning(alone, place) for place in range(3)] == [("generator",)] * 3
    assert learning([], 3) == ("planner", "filter", "generator")
    turn = load_config(None, ["train.in_turn=true"]).in_turn(1)
    assert [turn[name].temperature for name in turn.playing] == [0, 1, 0]


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


@pytest.mark.parametrize(
    "file", [f for folder in (".", "small", "presets") for f in CONFIGS.glob(f"{folder}/*.yaml")], ids=lambda p: p.name
)
def test_shipped_configurations_are_sound(file: Path) -> None:
    config = load_config(file)
    assert "optimiser steps" in config.batch_arithmetic()


@pytest.mark.parametrize(
    ("overrides", "agents"),
    [
        ([], 3),
        (["team.retrieval=false"], 1),
        (["team.agents=[filter, generator]"], 2),
        (["team.generator.policy=start", "team.generator.trains=false"], 2),
        (["train.in_turn=true"], 1),
    ],
)
def test_a_step_counts_the_agents_that_are_learned_from(overrides: list[str], agents: int) -> None:
    arithmetic = load_config(None, ["train.samples_per_step=64", *overrides]).batch_arithmetic()
    assert f"64 episodes, turns of {agents} agent(s) of each to learn from" in arithmetic


def test_every_setting_says_what_it_changes() -> None:
    """In its own mark or in its section's; sections that a class brings as well."""
    stages = {POLICY, SFT, TRAINING, EVALUATION, SCORES}
    thinking = ["task.name=affect_rl.tasks.thinking:Thinking"]
    for overrides in ([], ["algorithm.name=grpo", "train.copies=8"], thinking):
        for key, _, affects in flat_settings(load_config(None, overrides)):
            assert affects.stages <= stages, key
            assert affects.stages or affects.on_resume, key
            assert not key.startswith("cluster.") or not affects.stages
            assert not key.startswith("algorithm.") or affects.stages == {TRAINING}, key
