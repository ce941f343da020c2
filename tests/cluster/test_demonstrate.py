"""``affect-rl data demonstrate`` against a server on loopback: what is written and left out, and how it goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from chat_server import KEEP, PLAN, Asked, Reply, Script, chat_server
from typer.testing import CliRunner, Result

from affect_rl.config.load import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError, FailureError
from affect_rl.team.taught import MANIFEST, ROWS, Taught, settings_of_prompts
from affect_rl.team.teacher import Teaching
from cluster.cli.data import data_app


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    world = synthesise(SynthSettings(train=5, dev=1, test=1, expressions=12))
    return Dataset.load(write_dataset(tmp_path_factory.mktemp("world") / "synth", world, name="synth"))


def words_of(dataset: Dataset, out: Path, address: str, *more: str) -> list[str]:
    settings = [f"data.dir={dataset.directory}", "episode.k=2", "retrieval.library_splits=[library]"]
    options = ["--out", str(out), "--model", "teacher", "--address", address, *more]
    return ["demonstrate", "configs/tiny.yaml", *settings, *options]


def command(dataset: Dataset, out: Path, address: str, *more: str) -> Result:
    return CliRunner().invoke(data_app, words_of(dataset, out, address, *more))


def test_what_is_of_use_is_written_and_the_rest_is_counted(dataset: Dataset, tmp_path: Path) -> None:
    again, wrong, faulty, *_ = dataset.samples("train")
    other = next(label for label in wrong.candidates if label not in wrong.labels)
    faults = {
        (again.text, "planner"): [Reply("I would look for something else.")],
        (wrong.text, "generator"): [Reply(f"reason: so\nlabel: {other}")] * 9,
        (faulty.text, "filter"): [Reply("oops", status=500), Reply(KEEP, delay_s=5.0)],
    }
    with chat_server(Script(faults)) as server:
        result = command(dataset, tmp_path / "out", server.address, "--attempts", "2", "--timeout", "3")
    assert result.exit_code == 0, result.output
    assert "out: 4 of 5 samples demonstrated" in result.output
    assert "planner: 4 answers of use at first, 1 after others" in result.output
    assert "left out for generator: 1 label" in result.output

    taught = Taught.read(tmp_path / "out")
    assert list(taught.rows) == [s.id for s in dataset.samples("train") if s.id != wrong.id]
    label = again.labels[0]
    assert taught.rows[again.id].turns == {
        ("planner", 0): PLAN,
        ("filter", 0): KEEP,
        ("generator", 0): f"reason: it sounds so\nlabel: {label}",
    }
    assert len(taught.rows[again.id].candidates) == 6
    said = taught.manifest
    assert said.teacher["model"] == "teacher" and said.teacher["address"] == server.address and said.teacher["prompt"]
    assert (said.retrieval["encoder"], said.retrieval["library_splits"]) == ("minilm", ["library"])
    assert (said.samples, said.rows, said.teaching) == (5, 4, Teaching(attempts=2))
    assert said.answered == {"planner": {1: 4, 2: 1}, "filter": {1: 5}, "generator": {1: 4}}
    assert said.left_out == {"generator": {"label": 1}}
    config = load_config("configs/tiny.yaml", ["episode.k=2"])
    taught.check(dataset, settings_of_prompts(config))
    asked = Counter(json.dumps(asked) for asked in server.asked)
    assert max(asked.values()) >= 3, "the client itself asks again after the server's faults"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_asks_nothing_twice(dataset: Dataset, tmp_path: Path) -> None:
    """But what was in flight when it was killed."""
    out = tmp_path / "out"
    with chat_server(Script()) as server:
        more = ("--concurrency", "2")
        code = [sys.executable, "-m", "cluster.cli.main", "data", *words_of(dataset, out, server.address, *more)]
        with subprocess.Popen(code, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            plain = server.answer

            def answer(asked: Asked, before: int) -> Reply:
                if len(server.asked) == 6:
                    process.send_signal(signal.SIGKILL)
                return plain(asked, before)

            server.answer = answer
        assert process.returncode == -signal.SIGKILL and not out.exists()
        first = len(server.asked)
        server.answer = plain
        result = command(dataset, out, server.address, *more)
        assert result.exit_code == 0, result.output
        asked = Counter(json.dumps(asked) for asked in server.asked)
        assert first < len(asked) == 3 * 5 <= len(server.asked) <= 3 * 5 + 2
        once, total = (out / ROWS).read_bytes(), len(server.asked)
        assert command(dataset, out, server.address, "--overwrite").exit_code == 0
        assert len(server.asked) == total and (out / ROWS).read_bytes() == once
        result = command(dataset, out, server.address, "--overwrite", "--temperature", "0.2")
        assert result.exit_code == 0 and len(server.asked) == total + 15, "other questions"


def test_where_nothing_is_of_use_nothing_is_written(dataset: Dataset, tmp_path: Path) -> None:
    with chat_server(lambda *_: Reply("The emotion is joy.")) as server:
        result = command(dataset, tmp_path / "out", server.address, "--attempts", "1")
    assert isinstance(result.exception, AffectError)
    message = r"out: none of 5 samples was demonstrated, so nothing was written; the last: sample .*, planner: `The emo"
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "out").exists()


def test_a_lost_server_ends_the_run_and_what_it_said_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    def answer(asked: Asked, before: int) -> Reply:
        return Reply("bye", status=503) if len(server.asked) > 4 else Script()(asked, before)

    with chat_server(answer) as server:
        result = command(dataset, tmp_path / "out", server.address)
    assert isinstance(result.exception, FailureError) and "bye" in str(result.exception)
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "out.answers.jsonl").read_text().splitlines()) == 1 + 4


def test_bad_input_is_refused_before_anything_is_asked(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with chat_server(Script()) as server:
        for more, message in (
            ((), "out: exists; choose another directory, or allow overwriting"),
            (("--overwrite",), "out: exists and holds no demonstrations, so it is not overwritten"),
            (("data.dir=absent",), "absent: no dataset.json"),
        ):
            out = tmp_path / ("other" if "data.dir=absent" in more else "out")
            result = command(dataset, out, server.address, *more)
            assert isinstance(result.exception, AffectError) and message in str(result.exception)
    assert not server.asked


def test_another_teacher_does_not_take_the_answers_of_the_first(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_server(Script()) as server:
        assert command(dataset, out, server.address).exit_code == 0
        result = command(dataset, out, server.address, "--overwrite", "--model", "another")
    message = "out.answers.jsonl: was made with model='teacher', not model='another'; give another file"
    assert isinstance(result.exception, AffectError) and message in str(result.exception)
    assert json.loads((out / MANIFEST).read_text())["teacher"]["model"] == "teacher"
