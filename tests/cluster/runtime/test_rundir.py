"""Run directories: what may change between stages, and checkpoints that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.scoring.bootstrap import Estimate
from cluster.evaluate import Evaluation, PolicyResult
from cluster.runtime.rundir import Progress, RunDirectory, fresh_name, settings_of_evaluation

ZERO = Estimate(0.0, 0.0, 0.0)


def _config(*overrides: str) -> Config:
    return load_config(None, overrides)


def _sealed(run: RunDirectory, step: int) -> Path:
    state = Progress(step=step, episodes=8 * step)
    path = run.checkpoint(state)
    run.seal(path, state, keep=2)
    return path


def test_a_setting_may_change_until_the_first_stage_begins_that_depends_on_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(_config("sft.steps=3", "learner.workers=3"))
    run.open(_config("sft.steps=5"))
    run.sft.with_name("sft-base").mkdir()
    with pytest.raises(AffectError, match=r"started with model\.tiny\.layers=4, now it is 2; go on with"):
        run.open(_config("sft.steps=5", "model.tiny.layers=2"))
    run.open(_config("sft.steps=5", "learner.workers=2", "learner.lr=0.5"))
    run.sft.with_name("sft-checkpoint").mkdir()
    with pytest.raises(AffectError, match=r"started with sft\.steps=5, now it is 6; go on with"):
        run.open(_config("sft.steps=6"))
    (run.path / "metrics.jsonl").touch()
    run.open(_config("sft.steps=5", "learner.workers=1", "learner.lr=0.5"))  # other ranks read the checkpoint
    with pytest.raises(AffectError, match=r"started with learner\.lr=0\.5, now it is 0\.1; go on with"):
        run.open(_config("sft.steps=5", "learner.lr=0.1"))


@pytest.mark.parametrize(
    ("progress", "settings", "finished"),
    [
        (Progress(step=3), [], False),
        (Progress(step=4), [], True),
        (Progress(step=3, generated_tokens=99), ["train.max_generated_tokens=100"], False),
        (Progress(step=3, generated_tokens=100), ["train.max_generated_tokens=100"], True),
    ],
)
def test_training_ends_with_its_steps_or_its_tokens(progress: Progress, settings: list[str], finished: bool) -> None:
    assert progress.finished(_config("train.steps=4", *settings).train) is finished


def test_how_long_and_where_may_change_at_any_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(_config())
    run.sft.mkdir()
    (run.path / "metrics.jsonl").touch()
    run.open(_config("train.steps=99", "cluster.dashboard=false", "rollout.weights_dir=/shared", "sft.deadline_s=9"))
    run.open(_config("evaluate.split=dev"))
    run.open(_config("learner.tokens_per_microbatch=512", "learner.checkpoint_activations=true"))  # memory was short


def test_a_run_that_is_older_than_a_setting_had_its_default(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(load_config(None))
    run.sft.mkdir()
    file = run.path / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "dropout" not in line))
    with pytest.raises(AffectError, match=r"started with episode.dropout=0.0, now it is 0.5"):
        run.open(load_config(None, ["episode.dropout=0.5"]))
    run.open(load_config(None))


def _policy(directory: Path, content: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_text(content)


def _evaluated(run: RunDirectory, config: Config) -> None:
    """An evaluation without numbers of what is there."""
    results = tuple(
        PolicyResult(name, sha256(policy / "manifest.json"), {}, {}, dict.fromkeys(("generated", "prompt"), ZERO), ())
        for name, policy in run.compared(config).items()
    )
    Evaluation("test", (), results, None, 0.95, settings_of_evaluation(config)).write(run.evaluation)


def test_what_is_done_is_known_by_its_result(tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), _config("train.steps=30")
    assert run.unfinished(config) == ["sft", "train", "eval"]
    _policy(run.sft, "sft")
    assert run.unfinished(config) == ["train", "eval"]
    run.begin_training()
    _sealed(run, 30)
    _policy(run.policy, "30 steps")
    assert run.unfinished(config) == ["eval"]
    _evaluated(run, config)
    assert run.unfinished(config) == []
    (run.evaluation / "evaluation.json").write_text('{"policies":')
    assert run.unfinished(config) == ["eval"], "a damaged one is made anew"


def test_a_finished_run_goes_on_where_other_settings_ask_for_more(tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), _config("train.steps=30")
    _policy(run.sft, "sft")
    run.begin_training()
    _sealed(run, 30)
    _policy(run.policy, "30 steps")
    _evaluated(run, config)
    assert run.unfinished(_config("train.steps=30", "serve.port=9000", "evaluate.confidence=0.95")) == []
    for other in ("evaluate.split=dev", "evaluate.temperature=1", "evaluate.confidence=0.9", "data.max_test=5"):
        assert run.unfinished(_config("train.steps=30", other)) == ["eval"], other
    longer = _config("train.steps=60")
    assert run.unfinished(longer) == ["train", "eval"]
    _sealed(run, 60)
    _policy(run.policy, "60 steps")
    assert run.unfinished(longer) == ["eval"], "the one that is there is of the policy before"
    _evaluated(run, longer)
    assert run.unfinished(longer) == []


def test_a_trained_run_is_not_trained_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(_config())
    run.begin_training()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(AffectError, match="has been trained already; pass --resume"):
        run.begin_training()


def test_resuming_takes_the_newest_whole_checkpoint_and_old_ones_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(_config())
    run.begin_training()
    assert run.latest() == (Progress(), None)
    for step in (1, 2, 3):
        _sealed(run, step)
    run.checkpoint(Progress(step=4))  # never sealed: the driver was killed while it was written
    state, path = run.latest()
    assert (state.step, state.episodes) == (3, 24)
    assert path is not None and path.name == "step-00003"
    assert [p.name for p in run.checkpoints()] == ["step-00002", "step-00003"]


def test_checkpoints_are_in_the_order_of_their_steps_and_keep_what_was_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(_config())
    run.begin_training()
    for step in (99_990, 100_000):
        state = Progress(step=step, dropped=("a", "b"))
        run.seal(run.checkpoint(state), state, keep=1)
    state, path = run.latest()
    assert state == Progress(step=100_000, dropped=("a", "b")) and path is not None and path.name == "step-100000"
    assert state.counts()["counts/dropped"] == 2


def test_policies_stay_that_a_kept_checkpoint_names(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(_config())
    run.begin_training()
    for step, best in ((1, 0), (2, 2), (3, 2), (4, 4)):
        run.candidate(best).mkdir(exist_ok=True)
        state = Progress(step=step, best_step=best)
        run.seal(run.checkpoint(state), state, keep=2)
    assert sorted((tmp_path / "policies").iterdir()) == [run.candidate(2), run.candidate(4)]


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="no run to resume; start it without --resume"):
        RunDirectory(tmp_path / "absent").latest()


def test_a_damaged_checkpoint_is_named_with_the_fix(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(_config())
    run.begin_training()
    path = _sealed(run, 1)
    (path / "progress.json").write_text("{")
    with pytest.raises(AffectError, match=r"progress\.json: damaged .* delete .*step-00001 to go on"):
        run.latest()


def test_copying_over_a_directory_leaves_no_trace_of_the_old(tmp_path: Path) -> None:
    for name in ("best", "policy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    RunDirectory.copy(tmp_path / "best", tmp_path / "policy")
    assert [p.name for p in (tmp_path / "policy").iterdir()] == ["of best"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "policy"]


def test_a_fresh_name_is_not_taken(tmp_path: Path) -> None:
    assert fresh_name(tmp_path, "a") == "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert fresh_name(tmp_path, "a") == "a-3"
