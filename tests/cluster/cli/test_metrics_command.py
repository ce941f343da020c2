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
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.scoring.benchmark_metrics import compare_open_labels
from affect_rl.scoring.wheels import own_wheel
from cluster.cli.main import app
from rollout_workers.answer_cache import AnswerCache
from rollout_workers.label_extractor import LabelExtractor

HEAVY = (
    "numpy",
    "openpyxl",
    "pyarrow",
    "torch",
    "ray",
    "affect_rl.data",
    "affect_rl.scoring.metrics",
    "affect_rl.scoring.wheels",
)


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


def test_labels_that_no_wheel_knows_leave_the_closed_set(tmp_path: Path) -> None:
    result = run("--labels", file := write(tmp_path / "zh.jsonl", ["开心", "生气"]), "--predictions", file)
    assert result.exit_code == 0 and "Closed set of 2" in result.output and "HIT" not in result.output
    sets = write(tmp_path / "sets.jsonl", ["开心, 生气"])
    result = run("--labels", sets, "--predictions", sets)
    assert isinstance(result.exception, AffectError) and "no true label is in the wheel" in str(result.exception)


def test_the_classes_of_a_closed_set_may_be_named(tmp_path: Path) -> None:
    rows = [{"name": "1", "label": "joy", "a": "sad", "b": "plain"}, {"name": "2", "label": "joy", "a": "", "b": "joy"}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--labels", file, "--predictions", file, "--metric", "closed")
    invalid = {}
    for classes in ("", "joy, sad"):
        result = run(*options, "--candidates", classes)
        assert f"Closed set of {2 if classes else 1}" in result.output
        invalid[classes] = {name: cells["invalid"].split()[0] for name, cells in table(result.output).items()}
    assert invalid == {"": {"a": "100.00", "b": "50.00"}, "joy, sad": {"a": "50.00", "b": "50.00"}}
    result = run(*options, "--candidates", "sad")
    assert "true labels ('joy',) are not all among the candidates ('sad',)" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mapping", "mer2026"), "--mapping mer2026: is of the published wheels; give their directory with --wheel"),
        (("--free-text", "a", "--prediction-column", "b"), "give one of the two"),
    ],
)
def test_options_that_do_not_fit(words: Path, options: tuple[str, ...], message: str) -> None:
    result = run("--labels", words, "--predictions", words, *options)
    assert isinstance(result.exception, AffectError) and message in str(result.exception)


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


def test_several_systems_are_compared_with_the_first_or_the_named_one(words: Path) -> None:
    cells = table(run("--labels", words, "--predictions", words, "--metric", "hit").output)
    assert cells["joyful"]["Δ HIT"].startswith("-50.00 [") and 0 < float(cells["joyful"]["p, HIT"]) < 1
    assert not any(column.startswith("Δ") for column in cells["right"])
    result = run("--labels", words, "--predictions", words, "--metric", "hit", "--reference", "joyful")
    assert "Minus `joyful`, on the same samples" in result.output
    cells = table(result.output)
    assert cells["right"]["Δ HIT"].startswith("+50.00 [+") and "Δ HIT" not in cells["joyful"]
    assert cells["right"]["Δ labels per answer"] == "-1.00 [-1.00, -1.00]"
    report = json.loads(run("--labels", words, "--predictions", words, "--json", "--reference", "joyful").output)
    assert report["hit"]["reference"] == report["closed"]["reference"] == "joyful"
    truth = [("joy",), ("anger",), ("joy",), ("fear",)]
    expected = compare_open_labels([("joyful", "happy")] * 4, truth, truth, own_wheel())
    found = report["hit"]["differences"]["right"]
    assert found.keys() == expected.keys()
    assert found["f_s"] == {name: getattr(expected["f_s"], name) for name in ("value", "low", "high", "p")}


def test_one_system_is_compared_with_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"name": "1", "label": "joy", "prediction": "happy"}\n')
    result = run("--labels", file, "--predictions", file)
    assert result.exit_code == 0 and "Δ" not in result.output and "Minus" not in result.output
    assert "differences" not in json.loads(run("--labels", file, "--predictions", file, "--json").output)["hit"]
    result = run("--labels", file, "--predictions", file, "--reference", "two")
    assert str(result.exception) == "--reference 'two': there is no such system; known: 'one'"


def test_levels_of_the_published_wheels(shared_data: Path) -> None:
    """Finer clusters are harder to hit; the project's own wheel has one level."""
    unibench = shared_data / "unibench"
    file = unibench / "meld.jsonl"
    hits = []
    for level in (1, 2):
        result = run(
            "--labels", file, "--predictions", file, "--wheel", unibench / "emotion_wheel", "--metric", "hit",
            "--level", level, "--resamples", 100, "--json",
        )  # fmt: skip
        report = json.loads(result.output)
        assert report["level"] == level and (", level 2 (" in report["hit"]["title"]) == (level == 2)
        hits.append({system: scores["hit"]["value"] for system, scores in report["hit"]["scores"].items()})
    assert all(hits[1][system] < hits[0][system] for system in hits[0])
    result = run("--labels", file, "--predictions", file, "--level", 2)
    assert isinstance(result.exception, AffectError)
    assert str(result.exception) == "level 2: the wheel 'own' has none; choose 1"


# -- free text -------------------------------------------------------------------------------------------

TEXTS = ("He beams, happy and not sad", "No anger, fear or joy here", "他很高兴", "She is not afraid but angry")


def write_texts(path: Path, labels: list[object], column: str = "reason") -> Path:
    rows = [
        {"name": str(number), "label": label, column: text, "note": 1}
        for number, (label, text) in enumerate(zip(labels, TEXTS, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_free_text_is_read_by_words(tmp_path: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", ["joy", "neutral", "joy", "anger"])
    args = ("--labels", file, "--predictions", file, "--free-text", "reason", "--metric", "hit")
    result = run(*args)
    assert result.exit_code == 0, result.output
    how = "labels read from free text by `words` (list own, reach 5)"
    assert f"Open labels, wheel `own` (samples per wheel: 4): 4 of 4 samples used; {how}\n" in result.output
    assert "Answers without a label, of 4 each: `reason` 2.\n" in result.output
    assert table(result.output)["reason"]["HIT"].startswith("50.00 [")
    assert run(*args, "--reader", "words").output == result.output
    report = json.loads(run(*args, "--json").output)
    assert report["reading"] == {
        "reader": "words",
        "settings": {"list": "own", "reach": 5},
        "answers": 4,
        "without_label": {"reason": 2},
        "malformed": None,
    }
    assert report["hit"]["title"].endswith(how)


def test_sentiments_are_read_as_sentiments(tmp_path: Path) -> None:
    rows = [(1, "A positive tone"), (-2, "negative, not positive"), (3, "neutral"), (0, "happy")]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"name": str(v), "label": v, "text": text}) + "\n" for v, text in rows))
    result = run("--labels", file, "--predictions", file, "--free-text", "text")
    assert "3 of 4 samples used; labels read from free text by `words` (list sentiments, reach 5)" in result.output
    assert table(result.output)["text"]["accuracy"].startswith("66.67 [")
    assert table(result.output)["text"]["unreadable"] == "0.00"
    assert "`text` 1." in result.output


def test_free_text_is_read_with_the_words_of_the_published_wheels(tmp_path: Path, shared_data: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", ["joy", "neutral", "joy", "anger"])
    wheel = shared_data / "unibench" / "emotion_wheel"
    result = run("--labels", file, "--predictions", file, "--free-text", "reason", "--wheel", wheel, "--metric", "hit")
    assert "by `words` (list unibench, reach 5)" in result.output
    assert table(result.output)["reason"]["HIT"].startswith("66.67 [")


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    """A tiny language model, and a file with its answers to `TEXTS`: where all are known, it is not asked."""
    tokenizer = train_tokenizer(TEXTS, 300)
    directory = tmp_path / "llm"
    tiny_language_model(tokenizer, layers=1, dim=32, heads=1, context=64, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    cache = tmp_path / "answers.jsonl"
    with AnswerCache(cache, LabelExtractor(str(directory), cache).settings) as known:
        known.add(dict(zip(TEXTS, ("[happy]", "[]", "[joy, glad]", "angry"), strict=True)))
    return directory


def test_free_text_is_read_by_a_language_model(tmp_path: Path, llm: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", ["joy", "neutral", "joy", "anger"])
    other = write_texts(tmp_path / "others.jsonl", ["joy", "neutral", "joy", "anger"])
    cache = tmp_path / "answers.jsonl"
    args = (
        "--labels", file, "--predictions", file, "--predictions", other, "--free-text", "reason", "--metric", "hit",
        "--reader", "llm", "--llm", llm, "--llm-cache", cache,
    )  # fmt: skip
    result = run(*args)
    assert result.exit_code == 0, result.output
    settings = json.loads(cache.read_text().splitlines()[0])["settings"]
    title = next(line for line in result.output.splitlines() if line.startswith("Open labels"))
    assert f"labels read from free text by `llm` (model {llm}, content {settings['content']}, " in title
    assert "max_tokens 64" in title
    assert (
        "Answers without a label, of 4 each: `texts` 2, `others` 2. Malformed answers of the model: 2.\n"
        in result.output
    )
    assert table(result.output)["others"]["HIT"].startswith("50.00 [")
    reading = json.loads(run(*args, "--json").output)["reading"]
    assert reading["reader"] == "llm" and reading["settings"] == settings and reading["malformed"] == 2


BAD_READERS: list[tuple[tuple[str, ...], str]] = [
    (("--reader", "words"), "--reader: nothing is to be read; name the column of free text with --free-text"),
    (("--llm", "m"), "--llm: nothing is to be read"),
    (("--llm-cache", "c"), "--llm-cache: nothing is to be read"),
    (("--free-text", "reason", "--llm", "m"), "--llm: the reader is 'words', which asks no model; add --reader llm"),
    (("--free-text", "reason", "--llm-cache", "c"), "--llm-cache: the reader is 'words'"),
    (
        ("--free-text", "reason", "--reader", "llm"),
        "--reader llm: needs a model and a file that keeps its answers; add",
    ),
    (("--free-text", "reason", "--reader", "llm", "--llm", "m"), "its answers; add --llm-cache FILE"),
    (("--free-text", "raeson"), "texts.jsonl: column 'raeson' is missing; did you mean 'reason'?"),
    (("--free-text", "note"), "texts.jsonl:1: the free text of 'note' is 1; expected text"),
    (("--free-text", "reason", "--metric", "waf"), "texts.jsonl: the labels are words; WAF needs numbers"),
    (
        ("--free-text", "reason", "--reader", "llm", "--llm", "no/such/model", "--llm-cache", "c"),
        "no/such/model: there is no such directory; give the path of a checkpoint, or its hub name",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_READERS, ids=[message for _, message in BAD_READERS])
def test_bad_readers(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    file = write_texts(tmp_path / "texts.jsonl", ["joy", "neutral", "joy", "anger"])
    result = run("--labels", file, "--predictions", file, *options)
    assert isinstance(result.exception, AffectError)
    assert message in str(result.exception)


def test_labels_and_free_text_are_not_mixed(tmp_path: Path, words: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", ["joy", "neutral", "joy", "anger"])
    result = run("--labels", words, "--predictions", file, "--predictions", words, "--free-text", "reason")
    assert isinstance(result.exception, AffectError)
    message = f"{words}: has no free text in 'reason', so its answers are labels already, while those of {file} are"
    assert str(result.exception) == f"{message} read from free text; score the files apart"


def test_a_model_does_not_read_sentiments(tmp_path: Path, llm: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", [1, 2, -1, 0])
    result = run(
        "--labels", file, "--predictions", file, "--free-text", "reason",
        "--reader", "llm", "--llm", llm, "--llm-cache", tmp_path / "answers.jsonl",
    )  # fmt: skip
    assert isinstance(result.exception, AffectError)
    assert "but the true labels are sentiments; use --reader words" in str(result.exception)


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
    code = f"import sys, cluster.cli.metrics; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
