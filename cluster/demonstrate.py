"""From a dataset to demonstrations that a teacher writes: many episodes at once, each question asked once.

Answers are kept in ``<out>.answers.jsonl`` as they come. All that is drawn follows from seeds, so the same command
comes to the same questions again, and after a kill goes on where there is no answer yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.library import evidence_library
from affect_rl.errors import AffectError
from affect_rl.evidence import Retrieve
from affect_rl.sample import AffectSample
from affect_rl.section import SFT, settings_of
from affect_rl.tasks import make_task
from affect_rl.team.demonstrations import annotated, demonstration_seed
from affect_rl.team.prompts import SYSTEM
from affect_rl.team.taught import Demonstration, Manifest, check_free, settings_of_prompts, write_demonstrations
from affect_rl.team.teacher import TOLD, Answer, Ask, LeftOutError, Question, Teacher, Teaching, WrittenPrompts
from affect_rl.team.team import Team
from cluster.runtime.tracking import progress
from retrieval_service.index import ensure_index
from retrieval_service.retriever import LocalRetriever
from rollout_workers.answer_cache import AnswerCache

logger = logging.getLogger(__name__)


class Model(Ask, Protocol):
    """A model that a teacher asks.

    Attributes:
        settings: all that an answer depends on beside the question.
    """

    @property
    def settings(self) -> Mapping[str, str | int | float]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """Asks a model only what there is no answer to yet."""

    ask: Ask
    cache: AnswerCache

    async def __call__(self, question: Question) -> Answer:
        key = json.dumps(asdict(question))
        if (known := self.cache.get(key)) is None:
            known = json.dumps(asdict(await self.ask(question)))
            self.cache.add({key: known})
        return Answer(**json.loads(known))


def demonstrate(
    config: Config, out: Path, model: Model, teaching: Teaching, *, concurrency: int = 32, overwrite: bool = False
) -> Manifest:
    """Have a teacher demonstrate the train samples, and write what it answered.

    Args:
        config: sections `data`, `team`, `episode`, `task` and `retrieval`, and the seed.
        out: directory to write, see `affect_rl.team.taught`.
        model: what the teacher asks; closed at the end.
        teaching: how it is asked.
        concurrency: episodes in flight.
        overwrite: replace demonstrations at `out`.

    Raises:
        AffectError: `out` is taken, the model cannot be asked, or no sample was demonstrated; nothing is written.
        FailureError: the model was lost.
    """
    check_free(out, replace=overwrite)
    dataset = Dataset.of(config.data)
    samples = dataset.samples("train", config.data.max_train)
    about = {**model.settings, "prompt": hashlib.sha256(f"{SYSTEM}{TOLD}".encode()).hexdigest()[:16]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with AnswerCache(out.with_name(f"{out.name}.answers.jsonl"), about) as cache:
        teacher = Teacher(Remembered(model, cache), teaching)
        logger.info("demonstrate: %d samples, %d answers found", len(samples), len(cache))
        lesson = _Lesson(config, teacher, _retriever(config, dataset), len(samples))
        asyncio.run(lesson.give(samples, model, concurrency))
    if not lesson.done:
        raise AffectError(
            f"{out}: none of {len(samples)} samples was demonstrated, so nothing was written; the last: {lesson.last}; "
            "choose another model, hold it to the formats (--structured), or let it try more often (--attempts)"
        )
    return write_demonstrations(
        out,
        [lesson.done[sample.id] for sample in samples if sample.id in lesson.done],
        replace=overwrite,
        teacher=about,
        teaching=teaching,
        dataset=dataset.name,
        train=dataset.manifest.splits["train"].sha256,
        seed=config.seed,
        settings=settings_of_prompts(config),
        retrieval=settings_of(config.retrieval, SFT),
        samples=len(samples),
        answered=_by_agent(teacher.answered),
        left_out=_by_agent(lesson.left_out),
    )


class _Lesson:
    """The episodes of a run, and what came of them so far.

    Attributes:
        done: demonstrations by sample.
        left_out: samples by agent and cause.
        last: why the last one was left out.
    """

    def __init__(self, config: Config, teacher: Teacher, retrieve: Retrieve | None, total: int) -> None:
        self._config, self._teacher, self._retrieve, self._total = config, teacher, retrieve, total
        self._prompts = WrittenPrompts()
        self.done: dict[str, Demonstration] = {}
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.last = ""

    async def give(self, samples: Sequence[AffectSample], model: Model, concurrency: int) -> None:
        """Play all episodes; the first failure ends them all."""
        config, gate = self._config, asyncio.Semaphore(concurrency)
        team = Team(config.team, config.episode, make_task(config.task, samples[0].label_kind))
        try:
            with progress("demonstrate", self._total) as show:

                async def one(sample: AffectSample) -> None:
                    async with gate:
                        await self._play(sample, team)
                    lost = self.left_out.total()
                    show(len(self.done) + lost, f"{lost} left out" if lost else "")

                async with asyncio.TaskGroup() as group:
                    for sample in samples:
                        group.create_task(one(sample))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await model.close()

    async def _play(self, sample: AffectSample, team: Team) -> None:
        config, seed = self._config, demonstration_seed(self._config.seed, sample)
        try:
            played = await annotated(
                sample.with_dropout(config.episode.dropout, seed),
                team,
                self._teacher,
                self._retrieve,
                self._prompts,
                seed,
                shuffle=config.sft.shuffle_candidates,
            )
        except LeftOutError as error:
            self.left_out[error.agent, error.cause] += 1
            self.last = f"sample {sample.id}, {error}"
        else:
            self.done[sample.id] = Demonstration.of(played)


def _retriever(config: Config, dataset: Dataset) -> Retrieve | None:
    """The evidence, searched in this process: beside a language model's answers a search costs nothing."""
    if not config.team.retrieval:
        return None
    indexes = config.retrieval.index_dir or f"{config.retrieval.library or config.data.dir}-index"
    index = ensure_index(evidence_library(dataset, config.retrieval), indexes, config.retrieval)
    return LocalRetriever(index, config.retrieval)


def _by_agent(counts: Mapping[tuple[str, Any], int]) -> dict[str, dict[Any, int]]:
    table: dict[str, dict[Any, int]] = {}
    for (agent, key), count in sorted(counts.items()):
        table.setdefault(agent, {})[key] = count
    return table
