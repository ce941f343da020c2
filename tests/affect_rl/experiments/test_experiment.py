"""Experiments as files: what is wrong with them, and which stages arms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.experiments.spec import (
    bridge_key,
    evaluation_key,
    load_experiment,
    training_config,
    training_key,
    warm_start_key,
)
from affect_rl.sample import LabelKind

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
        ("a: {}", "a: {train: {rewards: {kind: exact}}}", "rewards is a section; write its settings one by one, as in"),
        ("title: t", "title: t\noverrides: {sft: {lr: 1}}", "sft is a section; write its settings one by one, as in"),
        ("a: {}", "a: {evaluate: {learner.lr: 1}}", "evaluate: learner.lr changes no evaluation; move it to `train`"),
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
        override: spec.run_config("a", 0, (override,))
        for override in (
            "name=x", "runs_dir=x", "cluster.dashboard=false", "rollout.deadline_s=9", "evaluate.split=dev",
            "evaluate.resamples=9", "evaluate.wheels=x", "learner.lr=1", "rewards.kind=wheel",
            "episode.temperature=0.5", "episode.frozen=[filter]", "sft.lr=1", "data.max_train=3", "episode.k=5",
        )
    }  # fmt: skip
    sft = {o for o, c in changed.items() if warm_start_key(c) != warm_start_key(base)}
    assert sft == {"sft.lr=1", "data.max_train=3", "episode.k=5"}
    training = {o for o, c in changed.items() if _trained(c, "closed") != training_key(base, start)}
    assert training == set(changed) - {
        "name=x",
        "runs_dir=x",
        "cluster.dashboard=false",
        "rollout.deadline_s=9",
        "evaluate.split=dev",
        "evaluate.resamples=9",
        "evaluate.wheels=x",
    }
    played = {o for o, c in changed.items() if evaluation_key(c, start) != evaluation_key(base, start)}
    assert played == training - {"learner.lr=1", "sft.lr=1"} | {"evaluate.split=dev"}
    assert training_key(base, start) != training_key(base, Path("other"))
    names = {bridge_key(base, start, 3), bridge_key(base, start, 4), bridge_key(base, Path("other"), 3)}
    assert len(names | {bridge_key(changed["rewards.kind=wheel"], start, 3)}) == 4
    assert warm_start_key(spec.run_config("a", 1)) != warm_start_key(base)


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


@pytest.mark.parametrize(
    ("setting", "manifest"),
    [("data.dir", "dataset.json"), ("model.base", "manifest.json"), ("retrieval.library", "dataset.json")],
)
def test_a_stage_is_another_once_what_the_settings_name_has_changed(
    setting: str, manifest: str, tmp_path: Path
) -> None:
    config = load_config(None, [f"{setting}={tmp_path}"])
    keys = []
    for content in ("one", "other"):
        (tmp_path / manifest).write_text(content)
        keys.append((warm_start_key(config), training_key(config, Path("start")), evaluation_key(config, Path("p"))))
    assert not set(keys[0]) & set(keys[1])


def test_the_command_line_does_not_undo_an_arm(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(SOUND.replace("a: {}", "a: {train: {learner.kl_weight: 0}}"))
    with pytest.raises(
        AffectError, match=r"learner\.kl_weight: arm 'a' of experiment e sets it; change it in the file"
    ):
        load_experiment(file).run_config("a", 0, ("learner.kl_weight=0.1",))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("train: {episode.kk: 1}", "unknown key `episode.kk`; did you mean `k`?"),
        ("evaluate: {episode.agents: [filter]}", "lacks the generator, who answers; add it"),
        ("bridge_steps: 3", "bridge_steps needs a filter that learns and a frozen reader"),
        ("train: {policy: runs/x/policy}", "policy: cannot be set for an experiment; arms make their own"),
        ("evaluate: {seed: 3}", "seed: cannot be set for an experiment; --seeds says how many"),
        ("train: {data.dir: data/mine}", "data.dir is 'data/mine', for 'a' it is 'data/synth'; arms are compared on"),
        ("evaluate: {evaluate.split: dev}", "evaluate.split is 'dev', for 'a' it is 'test'"),
        ("train: {train.select: test_oracle}", "train.select is 'test_oracle', for 'a' it is 'best_dev'"),
        ("bridge_steps: 3, train: {episode.frozen: [filter, generator]}", "bridge_steps needs a filter that learns"),
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
