"""Experiments as files: what is wrong with them, and which stages arms share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.experiments.spec import (
    base_key,
    bridge_key,
    evaluation_key,
    load_experiment,
    training_config,
    training_key,
    warm_start_key,
)
from affect_rl.sample import LabelKind
from affect_rl.section import EVALUATION, POLICY, SFT, TRAINING, flat_settings

SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "experiments").glob("*.yaml"))
SOUND = "name: e\ntitle: t\nconfig: configs/quickstart.yaml\nreference: a\narms: {a: {}, b: {policy: sft}}\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: a", "reference: c", "reference='c' is not an arm; choose one of a, b"),
        ("reference: a", "refrence: a", "unknown key `refrence`; did you mean `reference`?"),
        ("policy: sft", "polcy: sft", "unknown key `arms.b.polcy`; did you mean `policy`?"),
        ("policy: sft", "policy: best", "arms.b.policy: Input should be 'none', 'sft' or 'trained'"),
        ("policy: sft", "policy: sft, bridge_steps: 3", "arms.b: bridge_steps=3 needs policy: trained; take one of"),
        ("title: t", "seeds: 0", "seeds: Input should be greater than 0"),
        ("title: t\n", "", "title: Field required"),
        ("title: t", "title: t\ncompare: [[a, c]]", "compare names 'c', which is not an arm; choose from a, b"),
        ("name: e", "name: [", "is not YAML"),
        ("a: {}", "a: {train: {task: {score: exact}}}", "task is a section; write its settings one by one, as in"),
        ("title: t", "title: t\noverrides: {sft: {lr: 1}}", "sft is a section; write its settings one by one, as in"),
    ],
)
def test_wrong_files_are_named_with_the_fix(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND.replace(old, new))
    with pytest.raises(AffectError) as error:
        load_experiment(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"absent\.yaml: cannot be read: No such file"):
        load_experiment(tmp_path / "absent.yaml")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.name)
def test_shipped_experiments_are_sound(file: Path) -> None:
    spec = load_experiment(file)
    assert spec.seeds >= 3
    spec.check()
    for arm in spec.arms:
        for evaluate in (False, True):
            assert spec.run_config(arm, 2, evaluate=evaluate).seed == 2


def test_a_stage_is_shared_unless_a_setting_that_it_depends_on_differs(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND)
    spec = load_experiment(file)
    start, base = Path("start"), spec.run_config("a", 0)
    changed = {
        override: spec.run_config("a", 0, tuple(override.split("; ")))
        for override in (
            "name=x", "runs_dir=x", "cluster.dashboard=false", "rollout.deadline_s=900", "retrieval.index_dir=x",
            "data.max_dropped=3", "train.verify_sync=true", "evaluate.split=dev", "evaluate.resamples=9",
            "evaluate.wheels=x", "learner.lr=1", "algorithm.gamma=0.9", "algorithm.critic.sees=own",
            "algorithm.loss.clip=0.3", "algorithm.name=rloo; train.copies=2", "task.score=wheel",
            "team.planner.temperature=0.5", "team.planner.weight=0", "team.planner.entropy=0.1",
            "team.filter.policy=start; team.filter.trains=false", "team.filter.careful=0.1", "sft.lr=1",
            "data.max_train=3", "episode.k=5", "team.rounds=2", "team.filter.tokens=9", "model.tiny.layers=2",
        )
    }  # fmt: skip
    nothing = {
        "name=x", "runs_dir=x", "cluster.dashboard=false", "rollout.deadline_s=900", "retrieval.index_dir=x",
        "data.max_dropped=3", "train.verify_sync=true", "evaluate.resamples=9",
    }  # fmt: skip
    created = {o for o, c in changed.items() if base_key(c) != base_key(base)}
    assert created == {"data.max_train=3", "model.tiny.layers=2"}
    sft = {o for o, c in changed.items() if warm_start_key(c) != warm_start_key(base)}
    shown = {"episode.k=5", "team.rounds=2", "team.filter.tokens=9"}
    assert sft == created | shown | {"sft.lr=1", "team.filter.careful=0.1"}
    training = {o for o, c in changed.items() if _trained(c, "closed") != training_key(_training(base), start)}
    own = {"sft.lr=1", "team.filter.careful=0.1"}
    """The warm start's; a training knows them by the policy that it begins with."""
    assert training == set(changed) - nothing - own - {"evaluate.split=dev", "evaluate.wheels=x"}
    played = {o for o, c in changed.items() if evaluation_key(c, start) != evaluation_key(base, start)}
    assert played == shown | {"evaluate.split=dev", "team.filter.policy=start; team.filter.trains=false"}
    assert training_key(base, start) != training_key(base, Path("other"))
    names = {bridge_key(base, start, 3), bridge_key(base, start, 4), bridge_key(base, Path("other"), 3)}
    assert len(names | {bridge_key(changed["task.score=wheel"], start, 3)}) == 4
    assert warm_start_key(spec.run_config("a", 1)) != warm_start_key(base)


def test_a_changed_default_is_another_stage() -> None:
    """Names hash what settings are, whoever said so: a stage made under an old default is not taken for a new one."""
    config, policy = load_config(None), Path("policy")
    names: dict[str, Callable[[Config], str]] = {
        POLICY: base_key,
        SFT: warm_start_key,
        TRAINING: lambda config: training_key(config, policy),
        EVALUATION: lambda config: evaluation_key(config, policy),
    }
    before = {stage: name(config) for stage, name in names.items()}
    checked = 0
    for key, _, affects in flat_settings(config):
        changed = _with(config, key.split("."), "another default")
        after = {stage: name(changed) for stage, name in names.items()}
        assert {stage for stage in names if after[stage] != before[stage]} == affects.stages & set(names), key
        checked += 1
    assert checked > 100


def _with(section: Any, path: Sequence[str], value: object) -> Any:
    """A section with another value in one place, which nobody checks."""
    inner = _with(getattr(section, path[0]), path[1:], value) if len(path) > 1 else value
    return section.model_copy(update={path[0]: inner})


def test_wheels_name_a_training_only_where_they_select_its_policy() -> None:
    own, one, other = (load_config(None, [f"evaluate.wheels={wheels}"]) for wheels in ("''", "x", "y"))
    mended = load_config(None, ["evaluate.wheels=x", "evaluate.mapping=mer2026", "evaluate.resamples=9"])
    assert len({_trained(config, "open") for config in (own, one, other, mended)}) == 4
    kinds: tuple[LabelKind, ...] = ("closed", "sentiment")
    for kind in kinds:
        assert {_trained(config, kind) for config in (one, other, mended)} == {_trained(own, "open")}
    assert len({evaluation_key(config, Path("policy")) for config in (own, one, other, mended)}) == 1


def _trained(config: Config, kind: LabelKind) -> str:
    return training_key(training_config(config, kind), Path("start"))


def _training(config: Config) -> Config:
    return training_config(config, "closed")


@pytest.mark.parametrize(
    ("setting", "manifest"),
    [
        ("data.dir", "dataset.json"),
        ("model.base", "manifest.json"),
        ("retrieval.library", "dataset.json"),
        ("sft.demonstrations", "demonstrations.json"),
        ("team.planner.policy", "manifest.json"),
    ],
)
def test_a_stage_is_another_once_what_the_settings_name_has_changed(
    setting: str, manifest: str, tmp_path: Path
) -> None:
    more = ["team.planner.trains=false"] if setting == "team.planner.policy" else []
    config = load_config(None, [f"{setting}={tmp_path}", *more])
    keys = []
    for content in ("one", "other"):
        (tmp_path / manifest).write_text(content)
        keys.append((warm_start_key(config), training_key(config, Path("start")), evaluation_key(config, Path("p"))))
    assert not set(keys[0]) & set(keys[1])


def test_a_training_is_another_once_its_wheels_have_changed(tmp_path: Path) -> None:
    config, keys = load_config(None, [f"evaluate.wheels={tmp_path}"]), []
    for content in (b"one", b"other"):
        (tmp_path / "wheel1.xlsx").write_bytes(content)
        keys.append((_trained(config, "open"), _trained(config, "closed")))
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


def test_the_command_line_does_not_undo_an_arm(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND.replace("a: {}", "a: {train: {algorithm.kl_weight: 0}}"))
    with pytest.raises(
        AffectError, match=r"algorithm\.kl_weight: arm 'a' of experiment e sets it; change it in the file"
    ):
        load_experiment(file).run_config("a", 0, ("algorithm.kl_weight=0.1",))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("train: {episode.kk: 1}", "unknown key `episode.kk`; did you mean `k`?"),
        ("evaluate: {team.agents: [filter]}", "lacks one that answers; add generator"),
        ("evaluate: {learner.lr: 1}", "evaluate: learner.lr changes no evaluation; move it to `train`"),
        ("evaluate: {algorithm.gamma: 0.9}", "evaluate: algorithm.gamma changes no evaluation; move it to `train`"),
        ("evaluate: {team.planner.temperature: 0.5}", "evaluate: team.planner.temperature changes no evaluation"),
        (
            "evaluate: {rollout.deadline_s: 900}",
            "evaluate: rollout.deadline_s changes no evaluation; move it to `train`",
        ),
        ("bridge_steps: 3", "bridge_steps needs a filter that learns and a frozen reader"),
        ("train: {policy: runs/x/policy}", "policy: cannot be set for an experiment; arms make their own"),
        ("evaluate: {seed: 3}", "seed: cannot be set for an experiment; --seeds says how many"),
        ("train: {data.dir: data/mine}", "data.dir is 'data/mine', for 'a' it is 'data/synth'; arms are compared on"),
        ("train: {data.per_speaker: true}", "data.per_speaker is True, for 'a' it is False; arms are compared on"),
        ("evaluate: {evaluate.split: dev}", "evaluate.split is 'dev', for 'a' it is 'test'"),
        ("train: {train.select: test_oracle}", "train.select is 'test_oracle', for 'a' it is 'best_dev'"),
        (
            "bridge_steps: 3, train: {team.generator.policy: start, team.generator.trains: false, "
            "team.filter.trains: false}",
            "bridge_steps needs a filter that learns",
        ),
    ],
)
def test_an_arm_that_cannot_be_played_is_found_before_any_is(tmp_path: Path, arm: str, message: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND.replace("b: {policy: sft}", f"b: {{{arm}}}"))
    with pytest.raises(AffectError) as error:
        load_experiment(file).check()
    assert str(error.value).startswith("experiment e, arm 'b': ") and message in str(error.value)


@pytest.mark.parametrize("setting", ["policy=runs/x/policy", "seed=3", "evaluate.confidence=0.9"])
def test_what_an_experiment_decides_itself_cannot_be_set(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND)
    with pytest.raises(AffectError, match=rf"{setting.partition('=')[0]}: cannot be set for an experiment; "):
        load_experiment(file).run_config("a", 0, (setting,))
