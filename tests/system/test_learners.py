"""The learner group on Ray and DeepSpeed: invariance to the split, self-test at lr 0, checkpoints, SFT."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.train import TrainingFailedError
from safetensors.torch import load_file

from affect_rl.algorithms.advantages import normalise, returns_to_go, token_rewards
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.step import Step
from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM
from affect_rl.policy.model import AffectPolicy
from affect_rl.section import PositiveFloat
from affect_rl.trajectory import Trajectory
from benchmarks.workload import AGENTS, random_episodes, tiny_policy, with_common_prefix
from learners.group import LearnerGroup, LearnerLostError
from learners.sft_job import run_sft

SFT = (
    "sft.steps=60", "sft.batch_samples=4", "sft.warmup=2", "sft.lr=0.01", "sft.workers=2", "sft.threads=1",
    "sft.checkpoint_every=5",
)  # fmt: skip
BASE = (
    "train.samples_per_step=8",
    "train.copies=2",
    "learner.threads=1",
    "learner.tokens_per_microbatch=512",
    "learner.deadline_s=120",
)
Start = Callable[..., LearnerGroup]


def configure(*overrides: str) -> Config:
    return load_config(None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy().save(tmp_path_factory.mktemp("learners") / "policy")


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    """Two copies each of four samples, whose prompts begin alike; the planner speaks twice."""
    policy = tiny_policy()
    return with_common_prefix(policy, random_episodes(policy, 8, copies=2, rounds=2, critic_prompts=True))


@pytest.fixture
def start(cluster: None, policy_dir: Path) -> Iterator[Start]:
    """Start learner groups, and close them when the test ends."""
    groups: list[LearnerGroup] = []

    def start_group(*overrides: str) -> LearnerGroup:
        groups.append(LearnerGroup(configure(*overrides), policy_dir, seed=7))
        return groups[-1]

    yield start_group
    for group in groups:
        group.close()


def test_a_group_that_cannot_start_leaves_nothing_behind(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"no manifest\.json"):
        LearnerGroup(configure(f"rollout.weights_dir={tmp_path}"), tmp_path, seed=7)
    assert list(tmp_path.iterdir()) == []


def run(
    group: LearnerGroup, episodes: list[Trajectory], updates: int = 1
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of the last update (times left out) and the weights after it."""
    metrics = [group.update(episodes, version) for version in range(updates)][-1]
    weights = load_file(Path(group.publish(updates).path) / "model.safetensors")
    return {name: x for name, x in metrics.items() if not name.endswith("_s")}, weights


def moved(weights: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(tensor - original[name]).flatten() for name, tensor in sorted(weights.items())])


@pytest.mark.parametrize(
    ("algorithm", "layouts"),
    [
        (("name=mappo", "critic.weight=0.5"), [(1, 1, 1024), (2, 2, 512), (3, 3, 512)]),
        pytest.param(("name=mappo", "critic.kind=separate"), [(1, 1, 512), (2, 3, 1024)], marks=pytest.mark.slow),
        pytest.param(
            ("name=grpo", "loss={name: gspo, clip: 0.2, clip_high: 0.3}"),
            [(1, 0, 1024), (3, 2, 512)],
            marks=pytest.mark.slow,
        ),
        pytest.param(("name=dpo", "preference_weight=0.5"), [(1, 1, 1024), (2, 3, 512)], marks=pytest.mark.slow),
    ],
    ids=["mappo", "separate critic", "grpo", "dpo"],
)
def test_ranks_stages_and_budgets_do_not_change_the_update(
    start: Start,
    episodes: list[Trajectory],
    policy_dir: Path,
    algorithm: tuple[str, ...],
    layouts: list[tuple[int, int, int]],
) -> None:
    results = []
    for workers, stage, budget in layouts:
        group = start(
            *(f"algorithm.{setting}" for setting in algorithm), f"learner.workers={workers}",
            f"learner.zero_stage={stage}", f"learner.tokens_per_microbatch={budget}", "learner.lr=1e-3",
            "team.filter.entropy=0.01", f"learner.share_prefix={workers > 1}",
        )  # fmt: skip
        results.append(run(group, episodes, updates=2))
        group.close()
    metrics, weights = results[0]
    original = load_file(policy_dir / "model.safetensors")
    change = moved(weights, original)
    assert change.norm() > 0
    for other_metrics, other_weights in results[1:]:
        assert other_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-4)
        # As a whole, for Adam divides by the gradient's size: rounding may move a weight whose gradient is near 0.
        assert torch.dist(moved(other_weights, original), change) < 2e-3 * change.norm()


def test_lr_zero_is_a_self_test(start: Start, episodes: list[Trajectory], policy_dir: Path) -> None:
    metrics, weights = run(start("learner.lr=0"), episodes, updates=2)
    assert metrics["ratio/first"] == pytest.approx(1, abs=1e-4)
    assert metrics["logprob_gap/max"] < 1e-4
    for role in ("planner", "filter", "generator"):
        assert metrics[f"kl/{role}"] == pytest.approx(0, abs=1e-6)
        assert metrics[f"{role}/kl"] == pytest.approx(0, abs=1e-6)
        assert metrics[f"{role}/clip_fraction"] == 0
        assert metrics[f"{role}/ratio_max"] == pytest.approx(1, abs=1e-4)
    original = load_file(policy_dir / "model.safetensors")
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())


class PlainSettings(AlgorithmSettings):
    """Settings of `Plain`."""

    scale: PositiveFloat = 1.0
    """What advantages are multiplied by."""


class Plain(Algorithm):
    """REINFORCE with the step's mean as its baseline: an algorithm that somebody wrote in a file of their own."""

    Settings = PlainSettings

    def targets(self, step: Step) -> Targets:
        returns = returns_to_go(token_rewards(step, 0.0), step.chain_lengths)
        return Targets(self.settings.scale * normalise(returns, step.agent))


def test_an_algorithm_of_one_s_own_makes_rewarded_tokens_likelier(start: Start) -> None:
    episodes = random_episodes(tiny_policy(), 8, seed=2)
    for episode in episodes[:4]:
        for turn in episode.turns:
            object.__setattr__(turn, "reward", 5.0)
    group = start(f"algorithm.name={__name__}:Plain", "algorithm.loss.clip=1", "learner.lr=3e-3", "learner.epochs=4")
    group.update(episodes, 0)
    metrics = group.update(episodes, 1)
    turns = {(n, turn.agent, turn.number): turn for n, episode in enumerate(episodes) for turn in episode.turns}
    learned = group.advantages()
    assert {turn: len(own) for turn, own in learned.items()} == {
        key: len(turn.generation.token_ids) for key, turn in turns.items()
    }
    assert min(learned[0, agent, 0][-1] for agent in AGENTS) > max(learned[7, agent, 0][-1] for agent in AGENTS)
    assert metrics["logprob_gap/max"] > 0.01
    assert metrics["loss/policy"] < -0.1
    assert not any("value" in name or "explained" in name for name in metrics)


def test_an_entropy_bonus_is_paid_where_nothing_else_is_learned(start: Start, policy_dir: Path) -> None:
    """All copies earned the same, as where an agent no longer tries anything; others without a bonus rest."""
    episodes = random_episodes(tiny_policy(), 8, copies=2)
    for episode in episodes:
        for turn in episode.turns:
            object.__setattr__(turn, "reward", 1.0)
    unpaid = [replace(e, turns=tuple(turn for turn in e.turns if turn.agent != "filter")) for e in episodes]
    group = start("algorithm.name=grpo", "algorithm.kl_weight=0", "learner.lr=1e-3", "team.filter.entropy=0.1")
    original = load_file(policy_dir / "model.safetensors")
    metrics, weights = run(group, unpaid)
    assert not moved(weights, original).any() and "loss/entropy" not in metrics
    before = run(group, episodes)[0]["filter/entropy"]
    metrics, weights = run(group, episodes)
    assert moved(weights, original).any()
    assert metrics["filter/entropy"] > before and metrics["loss/entropy"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ("learner.workers=2",),
        pytest.param(
            ("algorithm.critic.kind=separate", "model.lora.rank=2", "learner.zero_stage=3"), marks=pytest.mark.slow
        ),
    ],
)
def test_checkpoints_continue_exactly(
    start: Start, episodes: list[Trajectory], tmp_path: Path, options: tuple[str, ...]
) -> None:
    group = start("learner.warmup=8", *options)
    group.update(episodes, 0)
    group.save_checkpoint(tmp_path / "learner")
    assert [p.name for p in tmp_path.iterdir()] == ["learner"]
    expected = run(group, episodes)
    group.close()
    resumed = start("learner.warmup=8", *options)
    resumed.load_checkpoint(tmp_path / "learner")
    metrics, weights = run(resumed, episodes)
    assert metrics == expected[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected[1].items())


def test_wrong_checkpoints_and_late_answers_are_errors(
    start: Start, episodes: list[Trajectory], policy_dir: Path, tmp_path: Path
) -> None:
    group = start()
    with pytest.raises(AffectError, match=r"no state\.json, so this is not a learner checkpoint"):
        group.load_checkpoint(policy_dir)
    group.save_checkpoint(tmp_path / "learner")
    other = start("algorithm.critic.kind=separate", "learner.deadline_s=60")
    with pytest.raises(AffectError, match="written with critic=shared, but this learner has critic=separate"):
        other.load_checkpoint(tmp_path / "learner")
    other._deadline_s = 0.0
    with pytest.raises(
        LearnerLostError, match=r"learner update: rank\(s\) \[0\] did not answer .* at weight version 5"
    ):
        other.update(episodes, 5)
    ray.kill(group._workers[0])
    with pytest.raises(LearnerLostError, match="learner update: rank 0 died at weight version 3"):
        group.update(episodes, 3)


def test_a_value_that_is_no_number_is_a_message_and_no_loss_of_the_learner(
    cluster: None, episodes: list[Trajectory], tmp_path: Path
) -> None:
    policy = tiny_policy()
    torch.nn.init.constant_(policy.value_head.bias, torch.nan)
    group = LearnerGroup(configure(), policy.save(tmp_path / "policy"), seed=7)
    with closing(group), pytest.raises(AffectError, match=r"is not a finite number, .* with a lower learner\.lr"):
        group.update(episodes, 0)


class TooLarge(Plain):
    """An algorithm that asks for more memory than there is on any machine."""

    def targets(self, step: Step) -> Targets:
        torch.empty(2**50)
        return super().targets(step)


def test_too_little_memory_is_a_message_with_its_settings_and_no_loss_of_the_learner(
    start: Start, episodes: list[Trajectory]
) -> None:
    group = start(f"algorithm.name={__name__}:TooLarge")
    with pytest.raises(AffectError, match=r"update: rank 0 is out of memory .* learner\.tokens_per_microbatch=512, or"):
        group.update(episodes, 0)


@pytest.mark.slow
def test_what_is_left_of_the_ranks_goes_on(
    start: Start, episodes: list[Trajectory], policy_dir: Path, tmp_path: Path
) -> None:
    """The second of two ranks is killed in an update, and its place is taken."""
    options = ("learner.workers=2", "learner.zero_stage=2", "learner.lr=1e-3", "learner.place_s=2")
    group = start(*options)
    group.update(episodes, 0)
    group.save_checkpoint(tmp_path / "learner")
    expected, ended = run(group, episodes)
    victim = psutil.Process(ray.get(group._workers[1].__ray_call__.remote(lambda _: os.getpid()), timeout=60))
    group.meanwhile = lambda: victim.kill() if victim.is_running() else None  # called while the ranks work
    with pytest.raises(LearnerLostError, match=r"learner update: rank \d (died|failed) at weight version 2"):
        group.update(episodes, 2)
    written = list(group._written)
    group.close()
    assert written and not any(path.exists() for path in written)

    @ray.remote
    class Other:
        def ready(self) -> None:
            """Answer once it has a place."""

    free = int(ray.cluster_resources()["CPU"]) - 1
    other = Other.options(num_cpus=free).remote()
    ray.get(other.ready.remote(), timeout=60)
    late = configure(*options, "learner.deadline_s=10")
    with pytest.raises(
        AffectError, match=r"learner: [01] of 2 ranks found a place within learner.deadline_s=10, and 2 are"
    ):
        LearnerGroup(late, policy_dir, seed=7)
    with closing(LearnerGroup(configure(*options), policy_dir, seed=7, least=1)) as rest:
        rest.load_checkpoint(tmp_path / "learner")
        metrics, weights = run(rest, episodes)
    ray.kill(other)
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    original = load_file(policy_dir / "model.safetensors")
    change = moved(ended, original)
    assert torch.dist(moved(weights, original), change) < 2e-3 * change.norm()


def test_saved_policies_hold_the_published_weights(start: Start, episodes: list[Trajectory], tmp_path: Path) -> None:
    group = start("learner.workers=2", "learner.zero_stage=3", "model.lora.rank=2", "learner.lr=1e-3")
    _, published = run(group, episodes)
    group.save_policy(tmp_path / "policy")
    adapter = f"adapters/{TEAM}/adapter_model.safetensors"
    saved = dict(AffectPolicy.load(tmp_path / "policy").export())
    assert all(torch.equal(saved[name], tensor) for name, tensor in published.items())
    served = load_file(Path(group.publish(2).path) / adapter)
    assert all(torch.equal(served[name], t) for name, t in load_file(tmp_path / "policy" / adapter).items())
    assert any(t.any() for name, t in served.items() if "lora_B" in name)


def test_an_adapter_is_trained_by_its_own_agents_alone(start: Start, episodes: list[Trajectory]) -> None:
    agents = ("planner", "filter", "generator")
    own = [f"team.{agent}.adapter={agent}" for agent in agents]
    group = start("model.lora.rank=2", "learner.lr=1e-3", "learner.weight_decay=0.1", "learner.workers=2", *own)

    def published(version: int) -> dict[str, dict[str, torch.Tensor]]:
        folder = Path(group.publish(version).path) / "adapters"
        return {agent: load_file(folder / agent / "adapter_model.safetensors") for agent in agents}

    def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return any(not torch.equal(one[name], tensor) for name, tensor in other.items())

    group.update(episodes, 0)  # now Adam has momentum for all of them
    before = published(1)
    assert all(any(t.any() for name, t in before[agent].items() if "lora_B" in name) for agent in agents)
    for version, agent in enumerate(agents, start=2):
        turns = [[replace(turn, trained=turn.agent == agent) for turn in episode.turns] for episode in episodes]
        group.update([replace(e, turns=tuple(t)) for e, t in zip(episodes, turns, strict=True)], version)
        after = published(version)
        assert [other for other in agents if changed(before[other], after[other])] == [agent]
        before = after


def test_bfloat16_trains(start: Start, episodes: list[Trajectory]) -> None:
    metrics, _ = run(start("model.dtype=bfloat16", "learner.workers=2", "learner.lr=1e-3"), episodes, updates=2)
    assert 0 < metrics["learner/grad_norm"] < 100
    assert metrics["logprob_gap/max"] > 0


@pytest.mark.slow
def test_sft_runs_as_a_ray_train_job_and_resumes_when_killed(cluster: None, policy_dir: Path, tmp_path: Path) -> None:
    demonstrations = [e.turns for e in random_episodes(tiny_policy(), 8)]
    config = configure(*SFT)
    steps: list[dict[str, float]] = []
    last = run_sft(config, demonstrations, policy_dir, tmp_path / "sft", steps.append)
    assert [s["step"] for s in steps] == list(range(1, 61))
    assert last == steps[-1]
    assert last["loss"] < steps[0]["loss"] - 1
    moved = AffectPolicy.load(tmp_path / "sft").state_dict()
    before = AffectPolicy.load(policy_dir).state_dict()
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]

    def kill(metrics: dict[str, float]) -> None:
        if metrics["step"] == 12:
            children = psutil.Process().children(recursive=True)  # of this process: other Rays may run beside
            next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline())).kill()

    with pytest.raises(TrainingFailedError):
        run_sft(config, demonstrations, policy_dir, tmp_path / "killed", kill)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed-checkpoint", "sft"]
    with pytest.raises(AffectError, match=r"written with seed=0, now it is 1; resume with the configuration"):
        run_sft(configure(*SFT, "seed=1"), demonstrations, policy_dir, tmp_path / "killed", resume=True)
    rest: list[dict[str, float]] = []
    assert run_sft(config, demonstrations, policy_dir, tmp_path / "killed", rest.append, resume=True) == last
    assert 1 < len(rest) < 60
    assert rest == steps[-len(rest) :]
    resumed = AffectPolicy.load(tmp_path / "killed").state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in moved.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "sft"]
