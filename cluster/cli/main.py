"""The command line.

Everything heavy is imported inside the commands, so that ``--help`` answers at once, and after the configuration has
been read, so that a mistake in it does, too.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affect_rl.errors import AffectError, FailureError
from cluster.cli.backbone import backbone_app
from cluster.cli.cascade import cascade
from cluster.cli.dashboards import dashboards_app
from cluster.cli.data import data_app
from cluster.cli.experiment import experiment
from cluster.cli.metrics import metrics
from cluster.cli.plan import plan
from cluster.cli.policy import policy_app
from cluster.cli.predict import predict
from cluster.cli.report import report
from cluster.cli.serve import serve
from cluster.cli.sweep import sweep
from cluster.cli.watch import watch

if TYPE_CHECKING:
    from affect_rl.config.load import Config

app = typer.Typer(
    help="Train a team of language-model agents to recognise emotion with retrieved evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(backbone_app, name="backbone")
app.add_typer(dashboards_app, name="dashboards")
app.add_typer(policy_app, name="policy")
app.command()(cascade)
app.command()(experiment)
app.command()(metrics)
app.command()(plan)
app.command()(predict)
app.command()(report)
app.command()(serve)
app.command()(sweep)
app.command()(watch)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, see configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings such as train.steps=10.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this name, or begin it.")]
Policies = Annotated[
    list[Path] | None, typer.Option("--policy", help="Policy directory; given twice, the two are compared paired.")
]


@app.command()
def sft(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Warm start: train a policy on demonstrations, as a Ray Train job."""
    config = _config(config_file, overrides)
    from cluster.runtime.run import open_run, run_warm_start

    with open_run(config, "sft") as run:
        typer.echo(run_warm_start(run, resume=resume))


@app.command()
def train(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train the run's SFT policy."""
    config = _config(config_file, overrides)
    from cluster.runtime.run import open_run, run_training

    with open_run(config, "train") as run:
        state = run_training(run, resume=resume)
        done = f"{state.step} steps, {state.episodes} episodes, best score {state.best_score:.3f}"
        typer.echo(f"{run.directory.path}: {done}")


@app.command(name="eval")
def evaluate(
    config_file: ConfigFile,
    overrides: Overrides = None,
    policy: Policies = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: the run's evaluation/.")] = None,
) -> None:
    """Score policies; by default the run's SFT policy against the trained one."""
    config = _config(config_file, overrides)
    from cluster.runtime.run import open_run, run_evaluation

    with open_run(config, "eval") as run:
        policies = run.policies
        if policy:
            policies = {str(path): path for path in policy}
        typer.echo(run_evaluation(run, policies, out or run.directory.evaluation).markdown())


@app.command()
def quickstart(
    config_file: ConfigFile = Path("configs/quickstart.yaml"),
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """The whole way on the synthetic world: data, index, SFT, training, evaluation."""
    config = _config(config_file, overrides)
    from affect_rl.data.dataset import write_dataset
    from affect_rl.data.synth import SynthSettings, synthesise

    if not Path(config.data.dir).exists():
        write_dataset(Path(config.data.dir), synthesise(SynthSettings()), name="synth")
    _whole_way(config, resume=resume)


@app.command(name="run")
def whole_way(config_file: ConfigFile, overrides: Overrides = None, resume: Resume = False) -> None:
    """The whole way on a dataset that is there: index, SFT, training, evaluation.

    Without --resume it takes a name that is free: NAME, NAME-2 and so on. Status 75: a signal stopped the training,
    and --resume goes on.
    """
    _whole_way(_config(config_file, overrides), resume=resume)


def _whole_way(config: Config, *, resume: bool) -> None:
    """Run all stages that are not done yet, in one session."""
    from cluster.check import check_model
    from cluster.runtime.run import open_run, run_stages
    from cluster.runtime.rundir import RunDirectory, fresh_name
    from learners.sft_job import checkpoint_of

    if not resume:
        config = config.model_copy(update={"name": fresh_name(Path(config.runs_dir), config.name)})
    directory = RunDirectory(config.run_dir)
    if directory.path.exists():
        directory.open(config)  # refuses settings that are not those of what is done
    if stages := directory.unfinished(config):
        if config.model.base != "tiny" and "sft" in stages and not checkpoint_of(directory.sft).exists():
            with open_run(config, "train") as run:  # a session of its own, for the warm start wants the room
                check_model(run)
        with open_run(config, *stages) as run:
            run_stages(run, stages)
    if directory.unfinished(config):
        typer.echo(f"{directory.path}: the training was stopped; --resume name={config.name} goes on", err=True)
        raise typer.Exit(os.EX_TEMPFAIL)
    typer.echo((directory.evaluation / "evaluation.md").read_text())
    typer.echo(f"Run: {directory.path}. Follow an episode: affect-rl trace {directory.path}")


@app.command()
def check(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Do engine and learner know the model as one? Nothing is trained.

    The policy before any training is made in the run's directory, where sft, train and run go on with it.
    """
    config = _config(config_file, overrides)
    from cluster.check import check_model
    from cluster.runtime.run import open_run

    with open_run(config, "train") as run:
        check_model(run)
    typer.echo(f"model.base={config.model.base}: engine and learner agree about it")


@app.command()
def trace(
    run_dir: Annotated[Path, typer.Argument(help="Run directory.")],
    sample: Annotated[str | None, typer.Option(help="Sample id; default: any.")] = None,
    step: Annotated[int | None, typer.Option(help="Training step; default: the newest.")] = None,
) -> None:
    """Print one episode so that a person can follow it."""
    from rich.console import Console

    from cluster.cli.trace import find_episode, print_episode

    file, episode = find_episode(run_dir, sample, step)
    print_episode(episode, f"{episode['sample_id']}, {file.stem}", Console())


@app.command(name="config")
def show_config(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Check a configuration and print it in full, with its batch arithmetic."""
    from affect_rl.config.load import dump_config

    config = _config(config_file, overrides)
    typer.echo(dump_config(config))
    typer.echo(f"# {config.batch_arithmetic()}")


def _config(file: Path, overrides: list[str] | None) -> Config:
    from affect_rl.config.load import load_config
    from cluster.runtime.tracking import set_up_logging

    set_up_logging()
    return load_config(file, overrides or ())


_GOES_ON = "; the same command goes on; sft, train, run and quickstart need --resume"


def main() -> None:
    """Entry point: a user's mistake is one message and exit status 2, a failure one and 1, without a traceback."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except AffectError as error:
        _say(error)
        sys.exit(2)
    except FailureError as error:
        _say(error, _GOES_ON)
        sys.exit(1)


def _stop(signum: int, frame: object) -> None:
    """End at a signal with one message, as after a failure; what is open is closed on the way. Training and servers
    have handlers of their own."""
    sys.exit(f"error: stopped by {signal.Signals(signum).name}{_GOES_ON}")


def _say(error: Exception, more: str = "") -> None:
    """Print an error; of one that came from an actor, what the actor raised, without Ray's traceback before it."""
    typer.secho(f"error: {getattr(error, 'cause', error)}{more}", err=True, fg=typer.colors.RED)


if __name__ == "__main__":
    main()
