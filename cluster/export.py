"""A run's policy, or any other, as a directory for others: files, and a model card of what the run tells."""

from __future__ import annotations

import logging
from pathlib import Path

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import MANIFEST as DATASET
from affect_rl.data.dataset import Manifest, read_manifest
from affect_rl.errors import AffectError
from affect_rl.files import whole_directory
from affect_rl.model_card.card import Licences, Subject, model_card
from affect_rl.model_card.history import History
from affect_rl.model_card.scores import Scores
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import MANIFEST
from affect_rl.policy.export import Exported, Form, export_policy
from affect_rl.policy.smollm2 import LICENCE as SMOLLM2_LICENCE
from affect_rl.policy.smollm2 import NAME as SMOLLM2
from cluster.runtime.rundir import EVALUATION, RunDirectory

logger = logging.getLogger(__name__)

CARD = "README.md"


def export(source: Path, out: Path, form: Form, licences: Licences) -> Exported:
    """Write a policy directory with a model card, whole or not at all.

    The card lies beside the files that the manifest lists, so that it may be edited.

    Args:
        source: a run directory, whose policy is meant, or a policy directory, of which no more is known.
        out: where to.
        form: what it is to hold.
        licences: to be named on the card.

    Raises:
        AffectError: `source` is neither, or has not what `form` asks for, or `out` is there.
    """
    if out.exists():
        raise AffectError(f"{out}: exists; choose another --out, or remove it")
    history, policy = None, source
    if not (source / MANIFEST).is_file():
        history, policy = read_history(source), RunDirectory(source).policy
    if history and history.config.model.base == SMOLLM2 and not history.config.policy:
        licences = Licences(licences.model or SMOLLM2_LICENCE, licences.data)
    with whole_directory(out) as fresh:
        exported = export_policy(policy, fresh, form)
        subject = Subject(out.resolve().name, AffectConfig.from_pretrained(fresh), exported, history, licences)
        model_card(subject).save(fresh / CARD)
    return exported


def read_history(directory: Path) -> History:
    """What a run directory tells of its policy; a warning names what it does not.

    Raises:
        AffectError: it is none, or has no policy yet.
    """
    run = RunDirectory(directory)
    if not (directory / "config.yaml").is_file():
        raise AffectError(f"{directory}: is neither a run, with a config.yaml, nor a policy, with a {MANIFEST}")
    if not run.policy.is_dir():
        hint = f"train it, or export its warm start, {run.sft}" if run.sft.is_dir() else "train it"
        raise AffectError(f"{run.policy}: is not there, the run has not been trained to its end; {hint}")
    config = load_config(directory / "config.yaml")
    steps = run.latest()[0].step if run.checkpoints() else None
    return History(config, run.sft.is_dir(), steps, _dataset(config), _scores(run, config))


def _dataset(config: Config) -> Manifest | None:
    if (Path(config.data.dir) / DATASET).is_file():
        return read_manifest(Path(config.data.dir))
    logger.warning("data.dir=%s: no dataset is there, so the card says nothing of the data", config.data.dir)
    return None


def _scores(run: RunDirectory, config: Config) -> Scores | None:
    file = run.evaluation / EVALUATION
    if not file.is_file():
        logger.warning("%s: is not there, so the card has no scores; make it with `affect-rl eval`", file)
        return None
    scores = Scores.read(file, run.compared(config))
    if scores is None:
        logger.warning(
            "%s: is of other policies than the run has now, so the card has no scores; make it again with "
            "`affect-rl eval`", file,
        )  # fmt: skip
    return scores
