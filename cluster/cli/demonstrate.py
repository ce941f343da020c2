"""``affect-rl data demonstrate``: a language model as teacher. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demonstrate(
    config_file: Annotated[Path, typer.Argument(help="YAML file, see configs/.")],
    out: Annotated[Path, typer.Option(help="Directory of demonstrations to write.")],
    model: Annotated[str, typer.Option(help="Path or hub name, or smollm2; with --address its name there.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as data.max_train=100.", show_default=False)
    ] = None,
    address: Annotated[
        str, typer.Option(help="URL of an OpenAI-compatible server, up to /v1; without one vLLM runs the model here.")
    ] = "",
    key_variable: Annotated[str, typer.Option(help="Environment variable of the server's API key.")] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait for one of the server's answers, s.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="Answers to a turn before its sample is left out.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling; at 0 all attempts are alike.")] = 0.7,
    tokens: Annotated[
        int, typer.Option(min=0, help="Most tokens of an answer, thoughts included; 0: as the agents' own.")
    ] = 0,
    structured: Annotated[
        bool, typer.Option("--structured", help="Hold it to the agents' formats (vLLM, here or at the address).")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Samples in flight.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the demonstrations at --out.")] = False,
) -> None:
    """Have a language model that knows the labels demonstrate the train samples. A killed run goes on where it was."""
    from affect_rl.config.load import load_config
    from affect_rl.team.teacher import Teaching
    from cluster.runtime.tracking import set_up_logging

    set_up_logging()
    config = load_config(config_file, overrides or ())
    from cluster.demonstrate import Model
    from cluster.demonstrate import demonstrate as run

    chosen: Model
    if address:
        from rollout_workers.served_model import ServedModel

        chosen = ServedModel(model, address, key_variable=key_variable, timeout_s=timeout)
    else:
        from rollout_workers.local_model import LocalModel

        chosen = LocalModel(model, config.rollout)
    teaching = Teaching(attempts, temperature, tokens, structured)
    written = run(config, out, chosen, teaching, concurrency=concurrency, overwrite=overwrite)
    typer.echo(f"{out}: {written.rows:,} of {written.samples:,} samples demonstrated")
    for agent, tries in written.answered.items():
        later = sum(count for attempt, count in tries.items() if attempt > 1)
        typer.echo(f"  {agent}: {tries.get(1, 0):,} answers of use at first, {later:,} after others")
    for agent, causes in written.left_out.items():
        typer.echo(f"  left out for {agent}: " + ", ".join(f"{count:,} {cause}" for cause, count in causes.items()))
