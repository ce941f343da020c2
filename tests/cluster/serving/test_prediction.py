"""How sure a team is, and predictions as rows of a table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from affect_rl.errors import AffectError
from cluster.serving.predict import check_out, write_predictions
from cluster.serving.prediction import Prediction, confidence


def test_shares_of_sampled_answers() -> None:
    votes, sure = confidence(["joy"], [["joy"], ["joy"], ["anger"], []])
    assert votes == {"joy": 0.5, "anger": 0.25} and sure == 0.5
    assert list(confidence(["b"], [["b"], ["a"]])[0]) == ["a", "b"], "ties in alphabetical order"


def test_of_several_labels_the_mean_share_counts() -> None:
    votes, sure = confidence(["glad", "proud"], [["glad"], ["glad", "proud"], ["proud", "shy"], ["glad"]])
    assert votes == {"glad": 0.75, "proud": 0.5, "shy": 0.25} and sure == pytest.approx(0.625)


@pytest.mark.parametrize(("labels", "sampled"), [([], [["joy"]]), (["joy"], [])])
def test_without_an_answer_or_samples_nobody_knows(labels: list[str], sampled: list[list[str]]) -> None:
    assert confidence(labels, sampled)[1] is None


def test_a_label_that_an_answer_repeats_counts_once() -> None:
    assert confidence(["joy"], [["joy", "joy"], ["anger"]])[0]["joy"] == 0.5


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_table_holds_every_input(tmp_path: Path, suffix: str) -> None:
    item = {"group": "supportive", "id": "x", "text": "a: joy", "labels": ("joy",), "score": 0.5}
    good = Prediction("a", ("joy",), 0.5, {"joy": 0.5}, "why", "words", queries={"supportive": "q"}, evidence=(item,))
    out = tmp_path / "new" / f"out{suffix}"
    both = [good, Prediction("b", problem="is broken")]
    assert list(write_predictions(both, out)) == both
    if suffix == ".parquet":
        first, second = pq.read_table(out).to_pylist()
        assert first["votes"] == [{"label": "joy", "share": 0.5}] and first["evidence"][0]["labels"] == ["joy"]
        assert second["problem"] == "is broken" and second["sure"] is None
    else:
        assert [line.count('"id"') for line in out.read_text().splitlines()] == [2, 1]


def test_where_predictions_go_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="are written as"):
        check_out(tmp_path / "out.csv")
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(AffectError, match="exists"):
        check_out(tmp_path / "out.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_end_in_between_leaves_no_table(tmp_path: Path, suffix: str) -> None:
    def broken() -> object:
        yield Prediction("a")
        raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError):
        list(write_predictions(broken(), tmp_path / f"out{suffix}"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
