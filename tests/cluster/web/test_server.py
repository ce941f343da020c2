"""What the page of a run can ask for, of runs that are being written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from run_cases import AGENTS, HOSTILE, TOKENIZER, WrittenRun, episode

from affect_rl.errors import AffectError
from affect_rl.team.store import ROW_GROUP, write_trajectories
from cluster.web.watch import problems
from cluster.web.watch.server import make_server


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return WrittenRun(tmp_path / "runs" / "hostile")


@pytest.fixture
def client(run: WrittenRun) -> TestClient:
    return TestClient(make_server(run.path), base_url="http://127.0.0.1")


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"no run \(it has no config\.yaml\); name a directory under runs/"):
        make_server(tmp_path)


def test_the_state_tells_stage_and_progress_and_groups_metrics_with_their_meaning(client: TestClient) -> None:
    state = client.get("/api/state").json()
    assert (state["name"], state["stage"], state["step"], state["steps"]) == ("hostile", "training", 3, 40)
    assert 0 <= state["written_s"] < 600
    families = {one["family"]: one["series"] for one in state["metrics"]["train"]}
    assert list(families) == ["episode/score", "<agent>/reward", f"own/{HOSTILE}"], "in the order of the table"
    assert [series["of"] for series in families["<agent>/reward"]] == list(AGENTS)
    assert families["<agent>/reward"][0]["meaning"].startswith("mean reward of the agent's turns")
    assert [one["family"] for one in state["metrics"]["sft"]] == ["loss", "<agent>/accuracy"]


def test_a_stage_follows_from_the_files_that_are_there(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", steps=0)
    client = TestClient(make_server(run.path), base_url="http://localhost")

    def stage() -> str:
        return client.get("/api/state").json()["stage"]

    assert stage() == "training"
    run.directory.trajectories.rmdir()
    (run.path / "metrics.jsonl").unlink()
    assert stage() == "between warm start and training"
    run.directory.sft.rename(tmp_path / "moved")
    assert (stage(), client.get("/api/state").json()["step"]) == ("warm start", 3)
    (run.path / "sft-metrics.jsonl").unlink()
    assert stage() == "preparing"
    run.directory.policy.mkdir()
    assert stage() == "trained"
    run.directory.evaluation.mkdir()
    (run.directory.evaluation / "evaluation.json").write_text("{}")
    (run.directory.evaluation / "evaluation.md").write_text(HOSTILE)
    assert (stage(), client.get("/api/state").json()["evaluation"]) == ("evaluated", HOSTILE)
    (run.path / "config.yaml").write_text("{")  # while it is written anew
    assert client.get("/api/state").json()["name"] == "run"


def test_the_revision_changes_with_every_step_and_not_between(client: TestClient, run: WrittenRun) -> None:
    before = client.get("/api/state").json()["revision"]
    assert client.get("/api/state").json()["revision"] == before
    run.train()
    assert client.get("/api/state").json()["revision"] != before


def test_curves_are_of_the_stage_and_the_metrics_that_were_asked_for(client: TestClient) -> None:
    asked = {"name": ["planner/reward", "kl/mean", "no such"], "points": 2}
    assert client.get("/api/curves", params=asked).json() == {
        "planner/reward": {"steps": [1, 3], "mean": [0.1, 0.25], "low": [0.1, 0.2], "high": [0.1, 0.3]}
    }
    warm = client.get("/api/curves", params={"name": "loss", "stage": "sft"}).json()
    assert warm["loss"]["mean"] == [3.0, 1.5, 1.0]


def test_episodes_come_newest_first_in_pages_and_by_what_became_of_them(client: TestClient) -> None:
    newest = client.get("/api/episodes", params={"limit": 2}).json()
    assert (newest["step"], newest["previous"], newest["next"], newest["total"]) == (3, 2, None, 3)
    assert [found["row"] for found in newest["episodes"]] == [0, 1]
    assert newest["episodes"][0]["sample"] == f"step-3-{HOSTILE}"
    rest = client.get("/api/episodes", params={"step": 2, "offset": 2}).json()
    assert (rest["next"], [found["sample"] for found in rest["episodes"]]) == (3, ["c"])
    for show, samples in (("invalid", ["b"]), ("wrong", ["c"])):
        found = client.get("/api/episodes", params={"show": show}).json()
        assert [found["sample"] for found in found["episodes"]] == samples


def test_an_episode_has_its_prompts_as_text_and_each_token_its_figures(client: TestClient) -> None:
    found = client.get("/api/episodes/3/0").json()
    assert [turn["agent"] for turn in found["turns"]] == list(AGENTS)
    planner = found["turns"][0]
    assert planner["prompt"] == f"Text: {HOSTILE}\nTask: planner"
    assert "".join(planner["tokens"]) == f"planner says {HOSTILE}"
    assert len(planner["tokens"]) == len(TOKENIZER(planner["text"]).input_ids) == len(planner["logprobs"])
    assert planner["logprobs"][:2] == [0.0, -0.5] and planner["advantages"][:2] == [-0.5, 1.5]
    assert set(planner["weight_versions"]) == {2, 3}
    assert [answer["to"] for answer in found["answers"]] == ["as played", "without the filter"]
    assert [item["kept"] for item in found["searches"][0]["candidates"]] == [True, False]
    other = client.get("/api/episodes/3/1").json()
    assert [turn["advantages"] for turn in other["turns"]] == [None] * 3
    assert other["turns"][1]["problem"] == f"`{HOSTILE}` is no line"


def test_without_a_tokenizer_tokens_are_numbers_until_there_is_one(run: WrittenRun, tmp_path: Path) -> None:
    run.directory.sft.rename(tmp_path / "moved")
    client = TestClient(make_server(run.path), base_url="http://localhost")
    planner = client.get("/api/episodes/1/0").json()["turns"][0]
    assert planner["prompt"] is None and re.fullmatch(r"(\[\d+\])+", "".join(planner["tokens"]))
    run.directory.copy(tmp_path / "moved", run.directory.candidate(3))
    assert client.get("/api/episodes/1/0").json()["turns"][0]["prompt"].startswith("Text:")


def test_what_is_not_there_is_answered_with_a_message(client: TestClient, run: WrittenRun) -> None:
    assert "no episodes of step 9" in client.get("/api/episodes", params={"step": 9}).json()["detail"]
    missing = client.get("/api/episodes/3/7")
    assert missing.status_code == 404 and "has no episode 7; it has 3" in missing.json()["detail"]
    (run.directory.trajectories / "step-00003.parquet").write_bytes(b"PAR1 half a file")
    damaged = client.get("/api/episodes")
    assert damaged.status_code == 404 and "not a file of trajectories" in damaged.json()["detail"]
    for file in run.directory.trajectories.iterdir():
        file.unlink()
    assert client.get("/api/episodes").json() == {"step": None, "episodes": [], "total": 0}
    assert client.get("/api/problems").json()["agents"] == {}


def test_numbers_that_are_none_are_null(run: WrittenRun, client: TestClient) -> None:
    """A run that has diverged is the one that somebody wants to look at."""
    played = episode("a", score=float("nan"))
    played = replace(played, turns=tuple(replace(turn, reward=float("inf")) for turn in played.turns))
    write_trajectories([played], run.directory.trajectories / "step-00004.parquet", {(0, "planner", 0): [float("nan")]})
    assert client.get("/api/episodes").json()["episodes"][0]["turns"][0]["reward"] is None
    assert client.get("/api/episodes/4/0").json()["turns"][0]["advantages"] == [None]


def test_problems_are_counted_by_agent_and_reason_over_steps_with_examples(client: TestClient, run: WrittenRun) -> None:
    found = client.get("/api/problems").json()
    assert (found["steps"], found["left"], found["edges"]) == (3, 0, [1, 2, 3])
    assert {agent: (own["turns"], own["invalid"]) for agent, own in found["agents"].items()} == {
        "planner": (9, 0), "filter": (9, 3), "generator": (9, 0)
    }  # fmt: skip
    (reason,) = found["agents"]["filter"]["reasons"]
    assert (reason["problem"], reason["counts"]) == (f"`{HOSTILE}` is no line", [1, 1, 1])
    assert reason["examples"][-1] == {"step": 3, "row": 1}
    write_trajectories([episode("a")], run.directory.trajectories / "step-00003.parquet")  # it was resumed from step 2
    assert client.get("/api/problems").json()["agents"]["filter"] | {"reasons": []} == {
        "turns": 7, "invalid": 2, "reasons": []
    }  # fmt: skip


def test_problems_of_a_long_run_are_read_bit_by_bit_newest_first(
    client: TestClient, run: WrittenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "AT_ONCE", 2)
    monkeypatch.setattr(problems, "BARS", 2)
    for _ in range(2):
        run.train()
    asked = [client.get("/api/problems").json() for _ in range(3)]
    assert [(found["steps"], found["left"]) for found in asked] == [(2, 3), (4, 1), (5, 0)]
    assert asked[0]["edges"] == [4, 5]
    (reason,) = asked[-1]["agents"]["filter"]["reasons"]
    assert (asked[-1]["edges"], reason["counts"]) == ([1, 3], [2, 3])


def test_of_thousands_of_episodes_the_last_is_read_as_the_first(run: WrittenRun, client: TestClient) -> None:
    many = [episode("a")] * (20 * ROW_GROUP) + [episode("last")]
    write_trajectories(many, run.directory.trajectories / "step-00004.parquet")
    assert client.get(f"/api/episodes/4/{20 * ROW_GROUP}").json()["sample"] == "last"
    page = client.get("/api/episodes", params={"offset": 20 * ROW_GROUP}).json()
    assert (page["total"], len(page["episodes"])) == (20 * ROW_GROUP + 1, 1)


def test_the_command_names_its_address_and_ends_with_ctrl_c(run: WrittenRun) -> None:
    command = [sys.executable, "-m", "cluster.cli.main", "watch", str(run.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = re.fullmatch(r"(.+): (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", server.stdout.readline())
        assert found and found[1] == str(run.path)
        assert httpx.get(f"{found[2]}api/state", trust_env=False).json()["name"] == "hostile"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_watching_needs_neither_ray_nor_torch(run: WrittenRun) -> None:
    script = (
        "import sys; from pathlib import Path; from cluster.web.watch.server import make_server; "
        "make_server(Path(sys.argv[1])); print({'ray', 'torch', 'transformers', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.path)], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.strip() == "set()"
