"""What a sweep is, kept beside its trials: Tune goes on with what it was begun with, whatever the file says now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from affect_rl.config.load import Config, dump_config
from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import SweepSpec, load_sweep
from affect_rl.files import whole_file
from affect_rl.section import POLICY, SFT, TRAINING
from cluster.runtime.rundir import changed

SPEC, CONFIG = "sweep.yaml", "config.yaml"


def keep(spec: SweepSpec, config: Config, out: Path) -> None:
    """Write down a sweep and what its trials have in common."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {SPEC: yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)), CONFIG: dump_config(config)}
    for name, text in texts.items():
        with whole_file(out / name) as partial:
            partial.write_text(text)


def refuse_another(spec: SweepSpec, config: Config, out: Path) -> None:
    """See that a sweep goes on as what it was begun.

    ``name`` and ``title`` may change, and so may settings that a run may be resumed with.

    Raises:
        AffectError: it would be another one; the message names what differs.
    """
    then, now = _told(load_sweep(out / SPEC)), _told(spec)
    differs = [(key, then.get(key), now.get(key)) for key in dict.fromkeys((*then, *now))]
    differs += [of for of in changed(out / CONFIG, config, {POLICY, SFT, TRAINING}) if of[0] not in spec.space]
    lines = [f"{key}={before!r}, now it is {after!r}" for key, before, after in differs if before != after]
    if lines:
        raise AffectError(
            f"{out}: the sweep was begun with {'; with '.join(lines)}; go on with what it was begun with, or choose "
            "another --out"
        )


def _told(spec: SweepSpec) -> dict[str, Any]:
    """What Tune has taken over, by dotted keys."""
    tree = spec.model_dump(mode="json", exclude_defaults=True, include={"space"})["space"]
    told = {f"space.{key}": values for key, values in tree.items()}
    told |= {f"scheduler.{key}": value for key, value in spec.scheduler.model_dump(mode="json").items()}
    return told | {key: getattr(spec, key) for key in ("search", "trials", "concurrent", "seed")}
