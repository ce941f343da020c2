"""Labels of free text from a language model: its answers are parsed strictly and outlive whatever ends the process."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from rollout_workers.answer_cache import AnswerCache
from rollout_workers.label_extractor import PROMPT, LabelExtractor, parse_answer

CONFIG = RolloutConfig(max_num_seqs=8, max_batched_tokens=1024, kv_cache_gib=0.1, threads=1)
ANSWERS = {
    "He is glad {and} warm.": " [Glad, warm, glad]",
    "It rains.": " nothing to say",
    "She is calm, at ease": " []",
    "他很难过": " [sad]",
}
LABELS = {"He is glad {and} warm.": ("glad", "warm"), "It rains.": (), "She is calm, at ease": (), "他很难过": ("sad",)}
SETTINGS = {"model": "tiny", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned by heart what to answer to `ANSWERS`."""
    prompts = [PROMPT.format(text=text) for text in ANSWERS]
    tokenizer = train_tokenizer([*prompts, *ANSWERS.values()] * 20, 800)
    language_model = tiny_language_model(tokenizer, layers=2, dim=64, heads=2, context=512, seed=0)
    rows = []
    for prompt, answer in zip(prompts, ANSWERS.values(), strict=True):
        asked, said = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((torch.tensor([asked + said]), torch.tensor([[-100] * len(asked) + said])))
    optimiser = torch.optim.Adam(language_model.parameters(), lr=2e-3)
    for _ in range(80):
        loss = sum(language_model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    directory = tmp_path_factory.mktemp("models") / "model"
    language_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def extractor(model: Path, cache: Path, **changes: Any) -> LabelExtractor:
    return LabelExtractor(str(model), cache, **{"max_tokens": 16, "config": CONFIG} | changes)


@pytest.fixture(scope="module")
def cache(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers to all texts."""
    path = tmp_path_factory.mktemp("caches") / "answers.jsonl"
    reader = extractor(model, path)
    assert reader.read([*ANSWERS, "", " \n", "It rains."]) == [*LABELS.values(), (), (), ()]
    assert reader.malformed == 2
    return path


# -- the model -------------------------------------------------------------------------------------------


def test_answers_and_settings_are_kept(model: Path, cache: Path) -> None:
    header, *lines = map(json.loads, cache.read_text().splitlines())
    assert header["settings"] == extractor(model, cache).settings
    assert header["settings"].keys() == {"model", "content", "dtype", "prompt", "temperature", "seed", "max_tokens"}
    assert header["settings"]["dtype"] == "float32" and header["settings"]["model"] == str(model)
    assert [line["answer"] for line in lines] == list(ANSWERS.values())


def test_a_full_cache_starts_no_engine(model: Path, cache: Path) -> None:
    """Another process reads the same labels, in any order, and does not even import vLLM."""
    code = f"""
import sys
from pathlib import Path
from rollout_workers.label_extractor import LabelExtractor
reader = LabelExtractor({str(model)!r}, Path({str(cache)!r}), max_tokens=16)
print([reader.read({list(ANSWERS)[::-1]!r}), reader.malformed, "vllm" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().splitlines()[-1] == str([list(LABELS.values())[::-1], 1, False])


def test_only_what_is_missing_is_asked_through_the_models_own_chat_template(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    """The template leaves the prompt as it is, so the answers are the same; the cache is another all the same."""
    chat_model = shutil.copytree(model, tmp_path / "chat")
    (chat_model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    reader = extractor(chat_model, tmp_path / "answers.jsonl")
    assert reader.settings["prompt"] != extractor(model, cache).settings["prompt"]
    with AnswerCache(tmp_path / "answers.jsonl", reader.settings) as known:
        known.add({"It rains.": "[gloomy]"})
    assert reader.read(list(ANSWERS)) == list((LABELS | {"It rains.": ("gloomy",)}).values())
    assert reader.malformed == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1 + len(ANSWERS)


def other_content(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"temperature": 0.5}')


def other_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}!")


@pytest.mark.parametrize(
    ("change", "max_tokens", "differs"),
    [
        (None, 12, r"was made with max_tokens=16, not max_tokens=12; give another file, or those settings"),
        (other_content, 16, r"was made with content='\w+', not content='\w+'; give another file"),
        (other_template, 16, r"was made with prompt='\w+', not prompt='\w+'; give another file"),
    ],
)
def test_a_cache_of_other_settings_is_refused(
    model: Path, tmp_path: Path, change: Callable[[Path], None] | None, max_tokens: int, differs: str
) -> None:
    directory = shutil.copytree(model, tmp_path / "model")
    cache = tmp_path / "answers.jsonl"
    with AnswerCache(cache, extractor(directory, cache).settings) as known:
        known.add(ANSWERS)
    before = cache.read_bytes()
    if change:
        change(directory)
    with pytest.raises(AffectError, match=rf"answers\.jsonl: {differs}"):
        extractor(directory, cache, max_tokens=max_tokens).read(list(ANSWERS))
    assert cache.read_bytes() == before


def test_wrong_models_and_texts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"absent: there is no such directory; give the path of a checkpoint"):
        extractor(tmp_path / "absent", tmp_path / "a.jsonl")
    with pytest.raises(AffectError, match=r"holds no \*\.safetensors"):
        extractor(tmp_path, tmp_path / "a.jsonl")
    long = "the word again " * 600
    message = r"takes 512 tokens, and prompt and answer of 'the word again the .*' need \d+; shorten the text"
    with pytest.raises(AffectError, match=message):
        extractor(model, tmp_path / "a.jsonl").read(["It rains.", long])
    (broken := shutil.copytree(model, tmp_path / "broken")).joinpath("config.json").write_text("{}")
    with pytest.raises(AffectError, match=r"broken: cannot be asked \(.*\); name a causal language model that vLLM"):
        extractor(broken, tmp_path / "a.jsonl")


# -- its answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("[worried, Sad, worried]", ("worried", "sad")),
        (' \n["at ease", light-hearted]\n', ("at ease", "light-hearted")),
        ("['gêné', 悲伤]", ("gêné", "悲伤")),
        ("[]", ()),
        ("[ , ]", ()),
        ("", None),
        ("worried, sad", None),
        ("[worried, sad", None),
        ("The emotions are [worried].", None),
        ("[worried] and [sad]", None),
        ("[[worried]]", None),
        ("[worried; 3]", None),
        ("[he seems to be somewhat worried]", None),
        ("[worried\n\nsad]", None),
    ],
)
def test_answers_are_parsed_strictly(answer: str, labels: tuple[str, ...] | None) -> None:
    assert parse_answer(answer) == labels


@given(st.text(st.sampled_from("[],'\" aB-\n")) | st.text())
def test_parsing_never_raises_and_repeats_no_label(answer: str) -> None:
    labels = parse_answer(answer)
    if labels:
        assert len(set(labels)) == len(labels) and parse_answer(f"[{', '.join(labels)}]") == labels


# -- the file --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), st.text(), max_size=4), st.dictionaries(st.text(), st.text(), max_size=4))
def test_any_text_and_answer_comes_back(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, str], second: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("cache") / "answers.jsonl"
    for answers in (first, second):
        with AnswerCache(path, SETTINGS) as cache:
            cache.add(answers)
    with AnswerCache(path, SETTINGS) as cache:
        assert {text: cache.get(text) for text in first | second} == first | second
        assert cache.get("another text" * 9) is None


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerCache(path, SETTINGS) as cache:
        cache.add({"a": "[sad]"})
        cache.add({"b": "[glad]", "c": "ü\n"})
    content = path.read_bytes()
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        whole = max(content[:end].count(b"\n") - 1, 0)
        with AnswerCache(path, SETTINGS) as cache:
            assert len(cache) == whole
            cache.add({"b": "[glad]", "c": "ü\n"})
        with AnswerCache(path, SETTINGS) as cache:
            assert [cache.get(text) for text in "abc"] == ["[sad]" if whole else None, "[glad]", "ü\n"]


def test_a_killed_process_loses_at_most_the_running_batch(tmp_path: Path) -> None:
    code = """
import itertools, sys
from pathlib import Path
from rollout_workers.answer_cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]), {"model": "tiny"})
for n in itertools.count():
    cache.add({f"{n} {i}": f"{n} {i}" for i in range(100)})
    print(n, flush=True)
"""
    path = tmp_path / "answers.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line == "20\n":
                with pytest.raises(AffectError, match="is in use by another process; wait for it"):
                    AnswerCache(path, {"model": "tiny"})
                process.send_signal(signal.SIGKILL)
                break
        done = 20 + sum(1 for _ in process.stdout)
    with AnswerCache(path, {"model": "tiny"}) as cache:
        assert len(cache) >= 100 * (done + 1)
        known = {f"{n} {i}" for n in range(done + 1) for i in range(100)}
        assert all(cache.get(text) == text for text in known)


BAD_FILES: list[tuple[bytes, str]] = [
    (b'{"name": "u1", "label": "joy"}\n', "is not a cache of answers; give another file"),
    (b'{"name": "u1", "label": "joy"}', "is not a cache of answers; give another file"),
    (b"name,label\nu1,joy", "is not a cache of answers"),
    (b"\n", "is not a cache of answers"),
    (b"\xff\xfe\n", "is not a cache of answers"),
    (b'{"settings": {"model": "tiny", "seed": 1}}\n', "was made with seed=1, not seed=None; give another file"),
    (b'{"settings": {"model": "tiny"}}\nnot JSON\n', ":2: is damaged; delete the line, and it is asked again"),
    (b'{"settings": {"model": "tiny"}}\n{"key": "k", "answer": 3}\n', ":2: is damaged; delete the line"),
    (b'{"settings": {"model": "tiny"}}\n{"key": "k", "answer": ""}\n[]\n', ":3: is damaged; delete the line"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_bad_files_are_refused_and_stay_as_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    for _ in range(2):  # the first refusal has let go of the file
        with pytest.raises(AffectError, match=re.escape(message)):
            AnswerCache(path, {"model": "tiny"})
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "answers.jsonl"):
        with pytest.raises(AffectError, match=r"cannot be written \(.*\); give another cache file"):
            AnswerCache(path, SETTINGS)
