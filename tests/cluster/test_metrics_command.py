"""``affect-rl metrics`` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from affect_rl.errors import AffectError
from cluster.cli import app

HEAVY = ("numpy", "openpyxl", "pyarrow", "torch", "ray", "affect_rl.data", "affect_rl.metrics", "affect_rl.wheels")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["metrics", *map(str, args)])


def table(text: str) -> dict[str, dict[str, str]]:
    """Cells by system and column, over all tables."""
    found: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "system":
            header = cells
        elif line.startswith("|") and cells[0] != "---":
            found.setdefault(cells[0], {}).update(zip(header[1:], cells[1:], strict=True))
    return found


def write(path: Path, labels: list[object]) -> Path:
    rows = [
        {"name": str(number), "label": label, "predictions": {"right": label, "joyful": "[joyful, happy]"}}
        for number, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write(tmp_path / "words.jsonl", ["joy", "anger", "joy", "fear"])


def test_hit_stands_beside_f_s_and_labels_per_answer(words: Path) -> None:
    result = run("--labels", words, "--predictions", words, "--metric", "hit")
    assert result.exit_code == 0, result.output
    assert "Open labels, wheel `own` (samples per wheel: 4): 4 of 4 samples used" in result.output
    cells = table(result.output)
    assert set(cells) == {"right", "joyful"}
    assert cells["right"]["HIT"] == cells["right"]["F_s"] == "100.00 [100.00, 100.00]"
    assert cells["joyful"]["HIT"].startswith("50.00 [") and cells["joyful"]["F_s"].startswith("50.00 [")
    assert cells["joyful"]["labels per answer"] == "2.00 [2.00, 2.00]"


def test_all_is_what_the_labels_allow(tmp_path: Path, words: Path) -> None:
    headers = {}
    sets = write(tmp_path / "sets.jsonl", ["joy, anger", "fear"])
    numbers = write(tmp_path / "numbers.jsonl", ["1.5", "-1"])
    signs = write(tmp_path / "signs.jsonl", ["positive", "negative", "neutral"])
    for file in (words, sets, numbers, signs):
        result = run("--labels", file, "--predictions", file)
        assert result.exit_code == 0, result.output
        headers[file.stem] = list(table(result.output)["right"])
    opened = ["F_s", "labels per answer", "precision", "recall"]
    closed = ["weighted F1", "accuracy", "UAR", "macro F1", "invalid"]
    assert headers == {
        "words": ["HIT", *opened, *closed],
        "sets": opened,
        "numbers": ["WAF", "accuracy", "unreadable"],
        "signs": ["WAF", "accuracy", "unreadable", "weighted F1", "UAR", "macro F1", "invalid"],
    }


def test_json_holds_everything(words: Path) -> None:
    result = run("--labels", words, "--predictions", words, "--metric", "hit", "--json", "--resamples", "100")
    report = json.loads(result.output)
    assert [report[name] for name in ("samples", "wheel", "resamples", "seed")] == [4, "own", 100, 0]
    assert list(report["hit"]["scores"]) == ["right", "joyful"]
    scores = report["hit"]["scores"]["joyful"]
    assert scores["used"] == 4 and scores["by_wheel"] == [{"used": 4, "hit": 0.5, "f_s": 0.5}]
    assert scores["hit"]["low"] <= scores["hit"]["value"] == scores["f_s"]["value"] == 0.5


def test_picking_on_test_says_so(words: Path) -> None:
    plain = run("--labels", words, "--predictions", words)
    picked = run("--labels", words, "--predictions", words, "--select", "test_oracle")
    assert "test_oracle" not in plain.output
    assert "test_oracle: `right` is the best of 2 by HIT. It was picked on the test set" in picked.output
    assert table(plain.output) == table(picked.output)
    report = json.loads(run("--labels", words, "--predictions", words, "--select", "test_oracle", "--json").output)
    assert report["hit"]["selected"]["rule"] == "test_oracle" and report["hit"]["selected"]["system"] == "right"
    assert "picked on the test set" in report["hit"]["selected"]["note"]


def test_the_published_values(shared_data: Path) -> None:
    unibench = shared_data / "unibench"
    for name, metric in {"meld": "HIT", "mosi": "WAF", "sims": "WAF"}.items():
        entry = json.loads((unibench / "expected.json").read_text())[name]
        file = unibench / f"{name}.jsonl"
        result = run(
            "--labels", file, "--predictions", file, "--wheel", unibench / "emotion_wheel", "--metric", metric.lower(),
            "--select", "test_oracle", "--resamples", 100,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        shown = {system: cells[metric].split()[0] for system, cells in table(result.output).items()}
        assert shown == {system: f"{value:.2f}" for system, value in entry["per_checkpoint"].items()}
        best = max(shown, key=lambda system: float(shown[system]))
        assert shown[best] == f"{entry['published']:.2f}"
        assert f"test_oracle: `{best}` is the best of 7 by {metric}." in result.output


@pytest.mark.parametrize(
    ("labels", "metric", "message"),
    [
        (["joy"], "waf", "words.jsonl: the labels are words; WAF needs numbers, or negative, neutral and positive"),
        (["1", "2"], "hit", "words.jsonl: the labels are numbers; hit needs words, so choose --metric waf"),
        (["1", "2"], "closed", "words.jsonl: the labels are numbers; closed needs words"),
        (["joy, anger"], "hit", "words.jsonl: a sample has several true labels; HIT needs one, so choose --metric fs"),
        (["tall"], "hit", "words.jsonl: no true label is in the wheel 'own'; are these emotion labels?"),
        (["0"], "waf", "words.jsonl: no true value other than 0"),
    ],
)
def test_metrics_that_the_labels_do_not_allow(tmp_path: Path, labels: list[object], metric: str, message: str) -> None:
    file = write(tmp_path / "words.jsonl", labels)
    result = run("--labels", file, "--predictions", file, "--metric", metric)
    assert isinstance(result.exception, AffectError)
    assert message in str(result.exception)


def test_a_wheel_that_is_not_there(words: Path) -> None:
    result = run("--labels", words, "--predictions", words, "--wheel", words.parent / "absent")
    assert isinstance(result.exception, AffectError)
    assert "absent: is not a directory" in str(result.exception)


def test_the_module_imports_nothing_heavy() -> None:
    code = f"import sys, cluster.metrics_command; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
