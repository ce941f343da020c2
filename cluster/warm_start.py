"""From a dataset to an SFT policy: make the policy, play demonstrations, run the Ray Train job."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from joblib import cpu_count

from affect_rl.backbones.importing import adapt_fusion, check_features
from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.evidence import Exclusion, Retrieve, render_evidence
from affect_rl.policy.alignment import Alignment, Labelled, align_fusion
from affect_rl.policy.directory import MANIFEST, check_manifest
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import pretrained_language_model, tiny_language_model, train_tokenizer
from affect_rl.sample import AffectSample, LabelKind
from affect_rl.seeds import derived_seed
from affect_rl.tasks import make_task
from affect_rl.team.demonstrations import demonstrate, demonstration_seed
from affect_rl.team.prompts import NOTED, Prompts, template_texts
from affect_rl.team.taught import Taught, settings_of_prompts
from affect_rl.team.team import Team
from affect_rl.trajectory import Percept, Trajectory, Turn
from cluster.runtime.nodes import on_largest_node
from cluster.runtime.observation import lacking_evidence
from learners.sft_job import run_sft

logger = logging.getLogger(__name__)

_IN_FLIGHT = 256
MOST_ALIGNED = 4096
"""Samples that alignment takes, drawn at random: with their neighbours' features they lie in one process's memory."""


def create_policy(config: Config, dataset: Dataset) -> AffectPolicy:
    """The policy before any training: language model, fusion modules fitted to the features' scale."""
    if (Path(config.model.base) / MANIFEST).is_file():
        return _adopt(config, dataset)
    model, train = config.model, dataset.samples("train", config.data.max_train)
    if model.base == "tiny":
        texts = chain(_words(config, dataset), _texts(train), _texts(dataset.samples("library")))
        tokenizer = train_tokenizer(texts, model.tiny.vocabulary)
        language_model = tiny_language_model(
            tokenizer,
            **model.tiny.model_dump(exclude={"vocabulary"}),
            context=model.context,
            seed=config.seed,
        )
    else:
        language_model, tokenizer = pretrained_language_model(model.base, getattr(torch, model.dtype))
    torch.manual_seed(config.seed)
    policy = AffectPolicy.create(
        language_model,
        tokenizer,
        audio_dim=dataset.audio_dim,
        video_dim=dataset.video_dim,
        **model.fusion.model_dump(exclude={"load_balance", "slots"}),
        slots=LAYOUTS[model.backbone].slots if model.backbone else model.fusion.slots,
    )
    policy.fusion.fit_scale(
        [s.audio for s in train if s.audio is not None], [s.video for s in train if s.video is not None]
    )
    return policy


def _adopt(config: Config, dataset: Dataset) -> AffectPolicy:
    """A policy that was imported or trained before, with fusion modules of this configuration.

    The features' scale stays: connectors know features as they were trained on them.
    """
    model = config.model
    trained = AffectPolicy.load(model.base, dtype=getattr(torch, model.dtype))
    if trained.has_adapters:
        trained.merge()
    if model.backbone and trained.fusion.shape.slots != LAYOUTS[model.backbone].slots:
        raise AffectError(
            f"model.base={model.base}: has not the connectors of model.backbone={model.backbone}; give a directory of "
            f"`affect-rl backbone import {model.backbone}`, or leave model.backbone out"
        )
    check_features(trained, dataset.audio_dim, dataset.video_dim, config.data.dir)
    torch.manual_seed(config.seed)
    return adapt_fusion(trained, model.fusion, audio_dim=dataset.audio_dim, video_dim=dataset.video_dim)


def warm_start(
    config: Config,
    dataset: Dataset,
    retrieve: Retrieve | None,
    directory: Path,
    on_step: Callable[[dict[str, float]], None] | None = None,
    *,
    resume: bool = False,
) -> dict[str, float]:
    """Make a policy (or take ``config.policy``), train it on demonstrations and write it to `directory`.

    `resume` goes on where a warm start of `directory` was cut off, see `run_sft`.

    Returns:
        Metrics of the last step.

    Raises:
        AffectError: ``sft.demonstrations`` do not fit, or too many samples cannot be demonstrated.
    """
    taught = taught_demonstrations(config, dataset)
    base = base_policy(config, dataset, retrieve, directory)
    prompts = Prompts.for_policy(base, config.episode, context=config.model.context)
    samples = training_samples(config, dataset, taught)
    demonstrations = [
        episode.turns for episode in asyncio.run(demonstrate_all(samples, retrieve, prompts, config, taught))
    ]
    logger.info("sft: %d demonstrated episodes", len(demonstrations))
    metrics = run_sft(config, learned_turns(config, demonstrations), base, directory, on_step, resume=resume)
    if not config.policy:
        shutil.rmtree(base)
    return metrics


def base_policy(config: Config, dataset: Dataset, retrieve: Retrieve | None, directory: Path) -> Path:
    """What a warm start of `directory` begins with: ``config.policy``, or a policy that is made beside it if there is
    none yet, as after a warm start that was cut off."""
    base = Path(config.policy) if config.policy else directory.with_name(directory.name + "-base")
    if not config.policy and not base.exists():
        if config.model.base == "tiny":
            aligned = _make_base(config, dataset, retrieve, base)
        else:  # it may not fit into this process's node
            aligned = on_largest_node(_make_base, config, None, retrieve, base.resolve())
        if aligned:
            logger.info(
                "sft: soft tokens tell %.1f %% of %d labels right on those held out, after %d steps of alignment",
                100 * aligned.accuracy, aligned.labels, aligned.steps,
            )  # fmt: skip
    check_manifest(base)
    return base


def _make_base(config: Config, dataset: Dataset | None, retrieve: Retrieve | None, base: Path) -> Alignment | None:
    """Make and save the policy before any training; what alignment came to. Without `dataset` it reads it itself."""
    if dataset is None:
        torch.set_num_threads(cpu_count())
        dataset = Dataset.of(config.data)
    policy = create_policy(config, dataset)
    aligned = _align(policy, config, dataset, retrieve) if config.sft.alignment.steps else None
    policy.save(base)
    return aligned


def _align(policy: AffectPolicy, config: Config, dataset: Dataset, retrieve: Retrieve | None) -> Alignment:
    """Let the fusion modules learn the labels' words from training samples, alone and with their neighbours."""
    samples = dataset.samples("train", config.data.max_train)
    if len(samples) > MOST_ALIGNED:
        samples = random.Random(config.seed).sample(samples, MOST_ALIGNED)
    several = len({sample.speaker for sample in samples}) > 1

    async def labelled(sample: AffectSample) -> list[Labelled]:
        seen = sample.with_dropout(config.episode.dropout, demonstration_seed(config.seed, sample))
        percepts = [Percept(seen.audio, seen.video)]
        if retrieve:
            near = await retrieve.perceptual(seen.audio, seen.video, Exclusion.of(seen))
            percepts.append(Percept(seen.audio, seen.video, near.audio, near.video, fused=True))
        group = (several and sample.speaker) or sample.id
        return [Labelled(percept, sample.labels, group) for percept in percepts]

    async def all_labelled() -> list[Labelled]:
        return list(chain.from_iterable(await asyncio.gather(*map(labelled, samples))))

    return align_fusion(policy, asyncio.run(all_labelled()), config.sft.alignment, config.seed)


def taught_demonstrations(config: Config, dataset: Dataset) -> Taught | None:
    """Those of ``sft.demonstrations``; None: demonstrations are made by rule.

    Raises:
        AffectError: they are not there, are damaged, or do not fit the dataset or the settings.
    """
    if not config.sft.demonstrations:
        return None
    taught = Taught.read(Path(config.sft.demonstrations))
    taught.check(dataset, settings_of_prompts(config))
    return taught


def training_samples(config: Config, dataset: Dataset, taught: Taught | None = None) -> Sequence[AffectSample]:
    """What the warm start trains on: no more samples than its steps take, drawn at random; those that were taught.

    Raises:
        AffectError: none was.
    """
    samples = dataset.samples("train", config.data.max_train)
    if taught:
        samples = [sample for sample in samples if sample.id in taught.rows]
        if not samples:
            raise AffectError(
                f"sft.demonstrations={taught.directory}: has none of the samples that data.max_train="
                f"{config.data.max_train} leaves; raise it, or write demonstrations anew"
            )
    taken = config.sft.steps * config.sft.batch_samples
    return random.Random(config.seed).sample(samples, taken) if taken < len(samples) else samples


async def demonstrate_all(
    samples: Sequence[AffectSample],
    retrieve: Retrieve | None,
    prompts: Prompts,
    config: Config,
    taught: Taught | None,
) -> list[Trajectory]:
    """Demonstrated episodes of the samples that can be played.

    Raises:
        AffectError: more than ``data.max_dropped`` cannot.
    """
    team = team_of(config, samples[0].label_kind)
    gate = asyncio.Semaphore(_IN_FLIGHT)
    problems: list[str] = []

    async def one(sample: AffectSample) -> Trajectory | None:
        async with gate:
            seed = demonstration_seed(taught.manifest.seed if taught else config.seed, sample)
            seen = sample.with_dropout(config.episode.dropout, seed)
            try:
                if taught:
                    shuffle = config.sft.shuffle_candidates
                    return await taught.replay(seen, team, retrieve, prompts, seed, shuffle=shuffle)
                return await demonstrate(
                    seen,
                    team,
                    retrieve,
                    prompts,
                    seed,
                    shuffle=config.sft.shuffle_candidates,
                    teacher_forcing=config.sft.teacher_forcing,
                )
            except AffectError as error:
                logger.warning("dropped: %s", error)
                problems.append(str(error))
                return None

    played = [episode for episode in await asyncio.gather(*map(one, samples)) if episode]
    if len(problems) > config.data.max_dropped or not played:
        raise AffectError(
            f"{len(problems)} of {len(samples)} samples cannot be demonstrated, data.max_dropped="
            f"{config.data.max_dropped}; the last: {problems[-1]}"
        )
    if lacking := lacking_evidence(played):
        logger.warning("sft: %s; another warm start may see other evidence", lacking)
    return played


def learned_turns(config: Config, demonstrations: Sequence[Sequence[Turn]]) -> list[Sequence[Turn]]:
    """What is learned of each demonstrated episode, as the agents' ``demonstrated`` say; at least one turn."""

    def learned(number: int, turns: Sequence[Turn]) -> Sequence[Turn]:
        draw = random.Random(derived_seed(config.seed, "learned", number))
        return [turn for turn in turns if draw.random() < config.team[turn.agent].demonstrated] or turns[-1:]

    return [learned(number, turns) for number, turns in enumerate(demonstrations)]


def team_of(config: Config, label_kind: LabelKind) -> Team:
    """The team that works on samples of one kind."""
    return Team(config.team, config.episode, make_task(config.task, label_kind))


def _words(config: Config, dataset: Dataset) -> list[str]:
    """Words of all agents' prompts and answers."""
    noted = [NOTED] if config.episode.described else []
    return [*template_texts(), *noted, *team_of(config, dataset.label_kind).texts()]


def _texts(samples: Sequence[AffectSample]) -> list[str]:
    lines = [f" {text}\n" for s in samples for text in (s.text, s.description, render_evidence(s))]
    return lines + [f" {', '.join(s.candidates)}\n" for s in samples[:1]]
