"""The report: every number as it was put in, nothing from outside, nothing executed, the same bytes each time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, Evidence
from affect_rl.experiments.measures import measures
from affect_rl.experiments.report.experiment import EPISODES, Experiment
from affect_rl.experiments.report.markdown import render_markdown
from affect_rl.experiments.report.page import render_page, write
from affect_rl.experiments.report.summaries import confusion, curves, distinct_trainings
from affect_rl.experiments.results import (
    CURVES,
    CURVES_FILE,
    DETAILS,
    DETAILS_FILE,
    EPISODES_FILE,
    PREDICTIONS,
    PREDICTIONS_FILE,
    RESULTS,
    TIMELINE,
    TIMELINE_FILE,
    Arm,
    Comparison,
    Interval,
    Results,
    write_results,
)
from affect_rl.sample import AffectSample
from affect_rl.scoring.metrics import METRICS, evaluate
from affect_rl.scoring.scoring import Scoring, scoring_of
from affect_rl.team.store import trajectory_table
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
AGENTS = ("planner", "filter", "generator")
HOSTILE = '<script>alert("1")</script><img src="https://example.org/x.png"> & {{ 7 * 7 }}'


def make_experiment(
    directory: Path,
    name: str = "rag",
    arms: Sequence[str] = ("affect_agent", "no_rag"),
    *,
    seeds: int = 2,
    samples: int = 30,
    steps: int = 4,
    episodes: int = 2,
    text: str = "on the beach lay a glass harbour",
    **changes: Any,
) -> Results:
    """Write the directory of an experiment whose first arm is the best; `changes` replace fields of its results."""
    rng = np.random.default_rng(sum(map(ord, name)))
    truth = [(LABELS[rng.integers(6)],) for _ in range(samples)]
    chance = dict(zip(arms, np.linspace(0.8, 0.45, len(arms)), strict=True))
    answers = {arm: [[_answer(rng, true, chance[arm]) for true in truth] for _ in range(seeds)] for arm in arms}
    results = Results(
        **{
            "experiment": name,
            "title": "Does the team beat simpler ways to use the same evidence?",
            "dataset": "synth",
            "split": "test",
            "samples": samples,
            "seeds": list(range(seeds)),
            "selection": "dev",
            "command": f"affect-rl experiment configs/experiments/{name}.yaml",
            "labels": list(LABELS),
            "arms": {arm: _arm(answers[arm], truth) for arm in arms},
            "comparisons": [c for arm in arms[1:] for c in _comparisons(arms[0], arm, answers, truth)],
        }
        | changes
    )
    runs = [(arm, seed) for arm in arms for seed in range(seeds)]
    ids = [f"test-{n:05d}" for n in range(samples)]
    tables = {
        PREDICTIONS_FILE: pa.Table.from_pylist(
            [
                {"arm": arm, "seed": seed, "sample_id": i, "labels": t, "predicted": a}
                for arm, seed in runs
                for i, t, a in zip(ids, truth, answers[arm][seed], strict=True)
            ],
            PREDICTIONS,
        ),
        EPISODES_FILE: pa.concat_tables(
            _episodes(arm, [_trajectory(rng, i, t, a, text) for i, t, a in _first(episodes, ids, truth, answers[arm])])
            for arm in arms
        ),
        CURVES_FILE: pa.Table.from_pylist(
            [row for arm, seed in runs for row in _curve_rows(rng, arm, seed, steps, chance[arm])], CURVES
        ),
        TIMELINE_FILE: pa.Table.from_pylist(
            [
                {"arm": arm, "seed": 0, "who": who, "what": what, "begun": begun, "seconds": 1.5}
                for arm in arms
                for who, what, begun in (("loop", "rollout", 0.0), ("rollout-0", "play", 0.1), ("loop", "rollout", 4.0))
            ],
            TIMELINE,
        ),
    }
    if name == "fusion":
        rows = [row for arm, seed in runs for row in _detail_rows(rng, arm, seed, ids)]
        tables[DETAILS_FILE] = pa.Table.from_pylist(rows, DETAILS)
        results = results.model_copy(update={"measures": measures(tables[DETAILS_FILE])})
    write_results(directory, results, "", tables)
    return results


def _answer(rng: np.random.Generator, true: tuple[str, ...], chance: float) -> tuple[str, ...]:
    if rng.random() < chance:
        return true
    return () if rng.random() < 0.1 else (LABELS[rng.integers(6)],)


def _arm(answers: Sequence[Any], truth: Sequence[Any]) -> Arm:
    scoring = _scoring(truth)
    mean = scoring.evaluate(answers, resamples=200)
    return Arm(
        train={"team.agents": ["generator"]},
        metrics={metric: _interval(mean[metric]) for metric in METRICS},
        per_seed=scoring.per_run(answers),
        tokens_per_sample=93.4,
        seconds_per_sample=0.127,
    )


def _comparisons(reference: str, other: str, answers: Any, truth: Sequence[Any]) -> list[Comparison]:
    gains = _scoring(truth).compare(answers[other], answers[reference], resamples=200)
    return [
        Comparison(reference=reference, other=other, metric=m, difference=_interval(gains[m]), p=gains[m].p)
        for m in METRICS
    ]


def _scoring(truth: Sequence[Any]) -> Scoring:
    return scoring_of(
        [AffectSample(str(i), "d", "test", "c", "", "", t, "closed", LABELS) for i, t in enumerate(truth)]
    )


def _interval(of: Any) -> Interval:
    return Interval(value=of.value, low=of.low, high=of.high)


def _first(count: int, ids: Sequence[str], truth: Any, answers: Any) -> list[tuple[str, Any, Any]]:
    return list(zip(ids, truth, answers[0], strict=True))[:count]


def _episodes(arm: str, played: Sequence[Trajectory]) -> pa.Table:
    table = trajectory_table(played)
    for name, value in (("seed", pa.array([0] * len(played), pa.int32())), ("arm", pa.array([arm] * len(played)))):
        table = table.add_column(0, name, value)
    return table


def _trajectory(rng: np.random.Generator, sample: str, true: Any, answer: Any, text: str) -> Trajectory:
    candidates = {
        group: tuple(
            Evidence(f"library-{group}-{n}", f"{text}, in earnest: {LABELS[n]}", (LABELS[n],), 0.9 - n / 10)
            for n in range(3)
        )
        for group in GROUPS
    }
    right = float(answer == true)
    generation = Generation((5, 6, 7), (-0.1, -0.2, -0.3), (4, 4, 4), f"voice and face agree; {text}", True)
    return Trajectory(
        sample_id=sample,
        labels=true,
        turns=tuple(
            Turn(
                agent,
                Prompt((1, 2), ()),
                generation,
                "no `emotion:` line" if agent == "filter" else None,
                reward=right - 0.2,
            )
            for agent in AGENTS
        ),
        queries={group: f"{text} as {group}" for group in GROUPS},
        candidates=candidates,
        kept={group: items[:1] for group, items in candidates.items()},
        support_ids=("library-00017",),
        output=Output("", answer, f"a soft voice says: {text}"),
        bypassed={"planner": Output("", (LABELS[rng.integers(6)],)), "filter": Output("?")},
        scores={"full": right, "planner": 0.5, "filter": 0.0},
    )


def _curve_rows(rng: np.random.Generator, arm: str, seed: int, steps: int, top: float) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        done = 1 - np.exp(-3 * step / steps)
        values = {"episode/score": 0.4 + (top - 0.4) * done, "episode/labels": 1 + done * (1.2 - top)}
        if step % 2 == 0:
            values["dev/weighted_f1"] = 0.35 + (top - 0.35) * done
        for agent in AGENTS:
            values |= {f"{agent}/reward": top * done, f"kl/{agent}": 0.02 * step, f"{agent}/tokens": 24 + done}
            values[f"{agent}/invalid"] = 0.1 * (1 - done)
        for metric, value in values.items():
            value = float(value + rng.normal(0, 0.02))
            rows.append({"arm": arm, "seed": seed, "step": step, "metric": metric, "value": value})
    return rows


def _detail_rows(rng: np.random.Generator, arm: str, seed: int, ids: Sequence[str]) -> list[dict[str, Any]]:
    states, relations = ("balanced", "video-led", "audio-led", "conflicting"), ("helpful", "ordinary", "conflicting")
    rows = []
    for number, sample in enumerate(ids):
        weights = rng.dirichlet(1 + 3 * (np.arange(4) == number % 4))
        values = {f"routing/{states[number % 4]}/expert {e}": weight for e, weight in enumerate(weights, 1)}
        values[f"gain/{relations[number % 3]}"] = rng.normal((0.02, 0.0, 0.3)[number % 3], 0.3)
        rows += [{"arm": arm, "seed": seed, "sample_id": sample, "name": n, "value": v} for n, v in values.items()]
    names = ["load_entropy", *(f"load_entropy/{state}" for state in states)]
    return rows + [{"arm": arm, "seed": seed, "sample_id": "all", "name": n, "value": rng.uniform()} for n in names]


@dataclass
class Table:
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)

    def column(self, header: str) -> dict[str, str]:
        """A column by the rows' first cells."""
        place = self.rows[0].index(header)
        return {row[0]: row[place] for row in self.rows[1:] if len(row) > place}


class Page(HTMLParser):
    """What a browser would find: tables, text, attributes, and that every element is closed."""

    VOID = frozenset("meta link br img input hr".split())

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tables: list[Table] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("th", "td"):
            self.tables[-1].rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "caption" in self.open:
            self.tables[-1].caption += data
        elif {"th", "td"} & set(self.open):
            self.tables[-1].rows[-1][-1] += data

    def table(self, caption: str) -> Table:
        return next(t for t in self.tables if t.caption.startswith(caption))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    make_experiment(tmp_path / "rag")
    return tmp_path / "rag"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """An experiment of each kind, and the page of all."""
    directories = [tmp_path_factory.mktemp("results") / name for name in ("rag", "fusion", "rewards")]
    for directory in directories:
        make_experiment(directory, directory.name)
    return directories, _page(*directories)


def _page(*directories: Path) -> str:
    return render_page([Experiment.read(directory) for directory in directories])


def _cell(of: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * x:{sign}.1f}" for x in (of.value, of.low, of.high))
    return f"{value} [{low}, {high}]".replace("-", "−")


def test_the_tables_hold_the_numbers_that_were_put_in(tmp_path: Path) -> None:
    baseline = {metric: Interval(value=0.5, low=0.4, high=0.625) for metric in METRICS}
    arms = ("affect_agent", "no_rag", "naive_rag")
    results = make_experiment(tmp_path, arms=arms, steps=0, baselines={"logistic regression": baseline})
    page = Page(_page(tmp_path))
    main = page.table("Mean over seeds, shares in percent")
    for metric, header in (("weighted_f1", "weighted F1"), ("uar", "UAR"), ("invalid_rate", "invalid")):
        found = {row.split("trained")[0]: cell for row, cell in main.column(header).items()}
        assert found == {name: _cell(arm.metrics[metric]) for name, arm in results.arms.items()} | {
            "logistic regression": "50.0 [40.0, 62.5]"
        }
    assert set(main.column("generated tokensper sample").values()) == {"93.4", "–"}
    seeds = page.table("The same metrics for each seed").rows[1:]
    assert [row[:2] for row in seeds] == [[arm, str(seed)] for arm in results.arms for seed in (0, 1)]
    assert seeds[3][2] == f"{100 * results.arms['no_rag'].per_seed[1]['weighted_f1']:.1f}"


def test_comparisons_say_in_words_whether_the_interval_includes_0(tmp_path: Path) -> None:
    gains = {"a": (0.1, 0.04, 0.16), "b": (-0.1, -0.2, -0.04), "c": (0.01, -0.05, 0.06), "d": (-0.0001, -0.1, 0.1)}
    compared = [
        Comparison(
            reference="affect_agent", other=other, metric="uar", p=p,
            difference=Interval(value=value, low=low, high=high),
        )
        for p, (other, (value, low, high)) in zip((0.0001, 0.0123, 0.7, 1.0), gains.items(), strict=True)
    ]  # fmt: skip
    make_experiment(tmp_path, steps=0, comparisons=compared)
    page = Page(_page(tmp_path))
    table = page.table("affect_agent minus the other, UAR")
    assert table.column("difference") == {
        "a": "+10.0 [+4.0, +16.0] above 0",
        "b": "−10.0 [−20.0, −4.0] below 0",
        "c": "+1.0 [−5.0, +6.0] includes 0",
        "d": "+0.0 [−10.0, +10.0] includes 0",
    }
    assert table.column("p") == {"a": "< 0.001", "b": "0.012", "c": "0.700", "d": "1.000"}
    plots = [value for name, value in page.attributes if name == "aria-label" and "minus the other: " in value]
    assert plots == ["UAR: affect_agent minus the other: a +10.0, above 0; b −10.0, below 0; c +1.0, includes 0; "
                     "d +0.0, includes 0"]  # fmt: skip


def test_a_filled_mark_is_an_interval_without_0(tmp_path: Path) -> None:
    def marks(low: float) -> tuple[int, int]:
        difference = Interval(value=0.1, low=low, high=0.2)
        only = Comparison(reference="affect_agent", other="x", metric="uar", difference=difference, p=0.5)
        make_experiment(tmp_path, steps=0, comparisons=[only])
        svg = re.search(r'<svg[^>]*aria-label="UAR: affect_agent minus.*?</svg>', _page(tmp_path), re.S)
        assert svg
        return svg[0].count("fill: var(--series-0); stroke"), svg[0].count("fill: var(--paper); stroke")

    assert marks(0.01) == (1, 0)
    assert marks(-0.01) == (0, 1)


def test_nothing_comes_from_outside_and_nothing_runs(three: tuple[list[Path], str]) -> None:
    _, page = three
    assert not re.search(r"https?:|//[a-z]|@import|@font-face|url\((?!#)|<\?xml|xmlns", page)
    found = Page(page)
    assert not {"script", "iframe", "object", "embed", "img", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    links = {value for name, value in found.attributes if name.endswith("href")} - {"data:,"}
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy and "script" not in policy


def test_clip_paths_and_marks_are_those_of_the_same_plot(three: tuple[list[Path], str]) -> None:
    svgs = re.findall(r"<svg.*?</svg>", three[1], re.S)
    assert len(svgs) > 60
    for svg in svgs:
        used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
        assert used <= set(re.findall(r'id="([^"]+)"', svg))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    make_experiment(
        tmp_path, arms=(HOSTILE, "$x$ #000101"), text=HOSTILE, title=HOSTILE, dataset=HOSTILE, notes=[HOSTILE],
        command=HOSTILE,
    )  # fmt: skip
    page = _page(tmp_path, tmp_path)
    found = Page(page)
    assert not {"script", "img"} & set(found.tags)
    assert "".join(found.text).count(HOSTILE) > 50
    assert any(HOSTILE in value for name, value in found.attributes if name == "aria-label")
    assert "$x$ #000101" in found.text


def test_episodes_can_be_read(tmp_path: Path) -> None:
    make_experiment(tmp_path, episodes=3, steps=0)
    page = Page(_page(tmp_path))
    text = " ".join(" ".join(page.text).split())
    assert "6 of 6 that were recorded" in text
    assert text.count("on the beach lay a glass harbour as countering") == 6
    assert text.count("a soft voice says: on the beach") == 6
    assert "broken: no `emotion:` line" in text and "Perceptual neighbours: library-00017." in text
    answers = page.table("Answers; the truth is").column("score")
    assert answers["without the planner"] == "0.50" and answers["without the filter"] == "0.00"
    evidence = page.table("Candidates of the confusing group").rows[1:]
    assert [row[0] for row in evidence] == ["✓ kept", "dropped", "dropped"]
    assert [row[2] for row in evidence] == ["0.900", "0.800", "0.700"]
    rewards = page.table("Reward: score").column("reward")
    assert set(rewards) == set(AGENTS) and set(rewards.values()) <= {"+0.80", "−0.20"}


def test_a_sample_is_read_under_one_arm_after_the_other(tmp_path: Path) -> None:
    make_experiment(tmp_path, episodes=3, steps=0)
    page = render_page([Experiment.read(tmp_path)], 5)
    found = re.findall(r'<h4>True: \w+ <span class="muted">(\S+)</span>|<span class="arm">(\S+) ', page)
    arms = [("", "affect_agent"), ("", "no_rag")]
    assert found == [("test-00000", ""), *arms, ("test-00001", ""), *arms, ("test-00002", ""), arms[0]]


def test_what_was_said_is_shown_where_the_file_tells(result: Path) -> None:
    assert "<blockquote" not in _page(result)
    table = pq.read_table(result / EPISODES_FILE)
    pq.write_table(table.append_column("text", pa.array(["it hurts"] * len(table))), result / EPISODES_FILE)
    assert _page(result).count('<blockquote dir="auto">it hurts</blockquote>') == len(
        set(table["sample_id"].to_pylist())
    )


def test_same_input_same_bytes(result: Path) -> None:
    here = _page(result)
    code = (
        "import sys; from pathlib import Path; from affect_rl.experiments.report.experiment import Experiment; "
        "from affect_rl.experiments.report.page import render_page; sys.stdout.reconfigure(encoding='utf8'); "
        f"sys.stdout.write(render_page([Experiment.read(Path({str(result)!r}))]))"
    )
    assert here == _page(result)
    assert here == subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode()


@pytest.mark.parametrize(
    ("file", "heading"),
    [
        (PREDICTIONS_FILE, "Confusion matrices"),
        (EPISODES_FILE, "Episodes"),
        (CURVES_FILE, "Learning curves"),
        (TIMELINE_FILE, "Timeline of a step"),
    ],
)
def test_a_part_without_its_file_is_left_out(
    three: tuple[list[Path], str], tmp_path: Path, file: str, heading: str
) -> None:
    (_, fusion, _), whole = three
    assert f">{heading}</h3>" in whole
    for path in fusion.iterdir():
        if path.name != file:
            shutil.copy(path, tmp_path)
    page = _page(tmp_path)
    assert f">{heading}</h3>" not in page
    assert ">Results</h3>" in page and Page(page).tables


def test_a_timeline_has_a_row_for_each_kind_of_work_and_says_how_long_it_took(tmp_path: Path) -> None:
    make_experiment(tmp_path, arms=("affect_agent", "no_rag"), steps=0)
    page = _page(tmp_path)
    assert page.count("loop: rollout 3.00 s, rollout-0: play 1.50 s") == 2
    assert "timeline of no_rag" in page


def test_open_label_sets_have_no_confusion_matrix(tmp_path: Path) -> None:
    make_experiment(tmp_path, steps=0, labels=[])
    assert "Confusion matrices" not in _page(tmp_path)


def test_contents_name_every_part_of_several_experiments(three: tuple[list[Path], str], result: Path) -> None:
    assert "<nav" not in _page(result)
    page = three[1]
    nav = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#(e\d[^"]*)"', nav) == [
        "e1", "e1-results", "e1-comparisons", "e1-curves", "e1-timelines", "e1-confusions", "e1-episodes",
        "e2", "e2-results", "e2-comparisons", "e2-fusion", "e2-curves", "e2-timelines", "e2-confusions", "e2-episodes",
        "e3", "e3-results", "e3-comparisons", "e3-hacking", "e3-curves", "e3-timelines", "e3-confusions", "e3-episodes",
    ]  # fmt: skip


def test_hit_is_shown_with_f_s_and_labels_per_answer(tmp_path: Path) -> None:
    make_experiment(tmp_path, arms=("affect_agent", "no_rag"), steps=0)
    tree = json.loads((tmp_path / RESULTS).read_text())
    gains = {"hit": 0.125, "f_s": -0.25, "labels_per_answer": 1.5}
    for metric, value in gains.items():
        of = {"value": value, "low": value - 0.5, "high": value + 0.5}
        for arm in tree["arms"].values():
            arm["metrics"][metric] = of
        tree["comparisons"].append(
            {"reference": "affect_agent", "other": "no_rag", "metric": metric, "difference": of, "p": 0.5}
        )
    _edit(tmp_path, arms=tree["arms"], comparisons=tree["comparisons"])
    page = Page(_page(tmp_path))
    assert page.table("Mean over seeds, shares").rows[0][-5:-2] == ["HIT", "F_s", "labels per answer"]
    hit = page.table("affect_agent minus the other, HIT").rows
    assert hit[0] == ["Other", "difference", "p", "F_s", "labels per answer"]
    assert [cell.split(" [")[0] for cell in hit[1]] == ["no_rag", "+12.5", "0.500", "−25.0", "+1.50"]
    assert page.table("affect_agent minus the other, F_s").rows[0] == ["Other", "difference", "p"]
    assert "| HIT | F_s | labels per answer |" in (Results.read(tmp_path)).markdown()


@pytest.mark.parametrize(("rule", "flagged"), [("dev", False), ("last", False), ("test_oracle", True)])
def test_a_choice_on_the_test_set_is_flagged(tmp_path: Path, rule: str, flagged: bool) -> None:
    make_experiment(tmp_path, steps=0, selection=rule)
    assert ("No honest result." in _page(tmp_path)) == flagged


def test_labels_per_answer_are_no_share_and_plotted_for_rewards_alone(tmp_path: Path) -> None:
    make_experiment(tmp_path)
    tree = json.loads((tmp_path / RESULTS).read_text())
    tree["arms"]["affect_agent"]["metrics"]["labels_per_answer"] = {"value": 1.25, "low": 1.125, "high": 1.5}
    _edit(tmp_path, **tree)
    assert "Reward hacking" not in _page(tmp_path)
    _edit(tmp_path, experiment="rewards")
    page = _page(tmp_path)
    assert "Reward hacking" in page and "Labels per answer, The team over training" in page
    found = Page(page).table("Mean over seeds, shares").column("labels per answer")
    assert list(found.values()) == ["1.25 [1.12, 1.50]", "–"]


def test_confusion_matrices_agree_with_the_metrics(result: Path) -> None:
    table = pq.read_table(result / PREDICTIONS_FILE)
    counts = confusion(table, "no_rag", LABELS)
    assert counts is not None
    rows = [r for r in table.to_pylist() if r["arm"] == "no_rag"]
    scores = evaluate([r["predicted"] for r in rows], [r["labels"] for r in rows], LABELS, resamples=10)
    assert counts.sum() == 30
    assert np.diagonal(counts).sum() / 30 == pytest.approx(scores.accuracy.value)
    assert counts[:, -1].sum() / 30 == pytest.approx(scores.invalid_rate.value)
    recall = {label: counts[i, i] / counts[i].sum() for i, label in enumerate(LABELS) if counts[i].sum()}
    assert recall == pytest.approx({label: r.value for label, r in scores.recall.items()})
    shown = Page(_page(result)).table("no_rag").rows
    assert shown[1][0] == "anger"
    assert shown[1][1] == f"{100 * recall['anger']:.0f}" + f"{counts[0, 0]:.1f}".removesuffix(".0")


def test_ties_are_counted_as_the_metrics_count_them() -> None:
    columns = {"labels": [["joy", "fear"]] * 2, "predicted": [["fear"], ["anger"]]}
    table = pa.table({"arm": ["a"] * 2, "seed": [0, 0], "sample_id": ["1", "2"], **columns})
    assert confusion(table, "a", ["joy", "fear", "anger"]).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert confusion(table, "b", ["joy", "fear", "anger"]) is None


def _curve_table(*rows: tuple[str, int, int, float | None]) -> pa.Table:
    names = ("arm", "seed", "step", "value")
    return pa.Table.from_pylist([{"metric": "m", **dict(zip(names, row, strict=True))} for row in rows], CURVES)


def test_a_mean_curve_is_of_all_seeds_and_gaps_stay_gaps() -> None:
    table = _curve_table(
        ("a", 0, 1, 0.2), ("a", 1, 1, 0.4), ("a", 0, 2, 0.6), ("a", 1, 2, None), ("a", 0, 3, float("nan"))
    )  # fmt: skip
    (line,) = curves(table, "m", ["b", "a"])
    assert line.steps.tolist() == [1, 2]
    np.testing.assert_allclose(line.seeds, [[0.2, 0.6], [0.4, np.nan]])
    np.testing.assert_allclose(line.mean, [0.3, np.nan])


def test_a_long_curve_is_averaged_over_neighbouring_steps() -> None:
    (line,) = curves(_curve_table(*(("a", 0, step, float(step)) for step in range(1, 1001))), "m", ["a"])
    assert len(line.steps) == 200
    np.testing.assert_allclose(line.steps, line.mean)
    assert line.steps[:2].tolist() == [3, 8]


def test_arms_of_the_same_training_share_a_line() -> None:
    table = _curve_table(("full", 0, 1, 0.2), ("other", 0, 1, 0.3), ("switched off", 0, 1, 0.2))
    assert distinct_trainings(table, ["full", "other", "switched off", "sft"]) == {
        "full": ["switched off"],
        "other": [],
    }


def test_fusion_shows_routing_by_state_and_gain_by_relation(three: tuple[list[Path], str]) -> None:
    (_, fusion, _), text = three
    page = Page(text)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    (routing,) = (label for label in labels if label.startswith("routing weights of affect_agent"))
    states = ("balanced", "video-led", "audio-led", "conflicting")
    assert all(re.search(rf"{s}: expert \d [\d.]+(, expert \d [\d.]+){{3}}", routing) for s in states)
    assert any(label.startswith("gain, no_rag: helpful ") for label in labels)
    assert any(label.startswith("load entropy, no_rag: balanced 0.") for label in labels)
    table = pq.read_table(fusion / DETAILS_FILE).to_pylist()
    mean = np.mean([r["value"] for r in table if (r["arm"], r["name"]) == ("no_rag", "gain/conflicting")])
    shown = page.table("Mean over seeds of each").column("no_rag")
    assert shown["gain/conflicting"].startswith(f"{mean:.3f} [".replace("-", "−"))
    assert shown["gain/conflicting"].endswith("of 10")
    assert shown["load_entropy/balanced"].endswith("of 1")


def test_markdown_holds_every_experiment(result: Path, tmp_path: Path) -> None:
    other = make_experiment(tmp_path / "fusion", "fusion", title="What does fusion do?")
    text = render_markdown([Experiment.read(result), Experiment.read(tmp_path / "fusion")])
    assert (result / "results.md").read_text() in text
    assert "What does fusion do?" in text and f"{100 * other.arms['no_rag'].metrics['uar'].value:.1f}" in text
    assert re.search(r"\| gain/conflicting \(n = 10\) \|[^|]*\| -?0\.\d{3} \[-?0\.\d{3}, 0\.\d{3}\] \|", text)


def _edit(directory: Path, **changes: Any) -> None:
    tree = json.loads((directory / RESULTS).read_text())
    (directory / RESULTS).write_text(json.dumps(tree | changes))


def _rename_metric(directory: Path) -> None:
    compared = json.loads((directory / RESULTS).read_text())["comparisons"]
    _edit(directory, comparisons=[compared[0] | {"metric": "macro_f"}])


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def _set(path: Path, column: str, values: pa.Array) -> None:
    _rewrite(path, lambda t: t.set_column(t.column_names.index(column), column, values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / RESULTS).unlink(), r"results\.json: cannot be read \(No such file.*give the directory"),
        (lambda d: (d / RESULTS).write_text("{"), r"results\.json: is not an experiment's results"),
        (lambda d: (d / RESULTS).write_bytes(b"\xff"), r"results\.json: is not an experiment's results"),
        (lambda d: (d / RESULTS).write_text("{}"), r"results\.json: is not an experiment's results"),
        (
            lambda d: (d / RESULTS).write_text((d / RESULTS).read_text().replace('"seeds":', '"sedes":')),
            r"results\.json: is not an experiment's results.*se[de]+s",
        ),
        (lambda d: _edit(d, arms={}, comparisons=[]), r"results\.json: has no arms"),
        (lambda d: _edit(d, seeds=[0]), r"'affect_agent' has per_seed of 2 for the 1 seeds"),
        (lambda d: _rename_metric(d), r"a comparison is by 'macro_f', which no arm has; did you mean 'macro_f1'"),
        (lambda d: (d / CURVES_FILE).write_text("step,value"), r"curves\.parquet: is not a Parquet file"),
        (
            lambda d: _rewrite(d / CURVES_FILE, lambda t: t.drop_columns("metric")),
            r"curves\.parquet: has no column 'metric', only arm, seed, step, value",
        ),
        (
            lambda d: _set(d / CURVES_FILE, "value", pa.array(["high"] * 232)),
            r"curves\.parquet: column 'value' is string, expected double",
        ),
        (
            lambda d: _set(d / PREDICTIONS_FILE, "predicted", pa.array(["joy"] * 120)),
            r"predictions\.parquet: column 'predicted' is string, expected list",
        ),
        (
            lambda d: _set(d / PREDICTIONS_FILE, "sample_id", pa.array([None] * 120, pa.string())),
            r"predictions\.parquet: column 'sample_id' is empty in 120 rows",
        ),
        (
            lambda d: _set(d / PREDICTIONS_FILE, "arm", pa.array(["no_rags"] * 120)),
            r"predictions\.parquet: arm 'no_rags' is not in results\.json; did you mean 'no_rag'\?",
        ),
        (
            lambda d: _set(d / PREDICTIONS_FILE, "labels", pa.array([["pride"]] * 120)),
            r"true labels \('pride',\) are not all among",
        ),
        (
            lambda d: _rewrite(d / EPISODES_FILE, lambda t: t.drop_columns("kept")),
            r"episodes\.parquet: has no column 'kept'",
        ),
        (
            lambda d: _set(d / EPISODES_FILE, "turns", pa.array([[{"agent": "planner"}]] * 4)),
            r"episodes\.parquet: column 'turns' is list",
        ),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    make_experiment(tmp_path)
    damage(tmp_path)
    with pytest.raises(AffectError, match=message):
        _page(tmp_path)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "new" / "page.html", "text")
    assert (tmp_path / "new" / "page.html").read_text() == "text"
    with pytest.raises(AffectError, match="cannot be written"):
        write(tmp_path / "new", "text")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["page.html"]


def test_the_command_writes_both_files(result: Path, tmp_path: Path) -> None:
    page, tables = tmp_path / "out.html", tmp_path / "out.md"
    command = [sys.executable, "-m", "cluster.cli.main", "report", str(result), "--out", str(page), "--markdown"]
    done = subprocess.run([*command, str(tables)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf8") == _page(result)
    assert tables.read_text(encoding="utf8") == render_markdown([Experiment.read(result)])
    wrong = subprocess.run([*command, str(tables), str(tmp_path / "no")], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and "cannot be read" in wrong.stderr and "Traceback" not in wrong.stderr


def test_the_command_line_draws_nothing_until_it_is_asked() -> None:
    code = "import sys, cluster.cli.main; print([m for m in ('matplotlib', 'jinja2', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_installed_package_has_the_templates() -> None:
    root = Path(__file__).parents[3]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    files = [f for f in (root / "affect_rl" / "experiments" / "report").iterdir() if f.suffix not in (".py", "")]
    assert files and all(any(f.match(pattern) for pattern in patterns) for f in files)


def test_the_schema_of_episodes_is_that_of_trajectories_by_arm_and_seed(result: Path) -> None:
    assert pq.read_table(result / EPISODES_FILE).schema.equals(EPISODES)
