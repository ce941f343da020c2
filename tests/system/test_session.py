"""A job of its own on a Ray of its own, from the first line of the command to a stop."""

from __future__ import annotations

import subprocess
import sys

STOPPED_JOB = """
import os, signal
from affect_rl.config.load import load_config
from cluster.cli import main as cli
from cluster.runtime.session import ray_session

def command():
    with ray_session(load_config(None, ["cluster.dashboard=false"])):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

cli.app = command
cli.main()
"""


def test_a_job_that_is_stopped_says_how_to_go_on() -> None:
    stopped = subprocess.run([sys.executable, "-c", STOPPED_JOB], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 1
    *_, message = stopped.stderr.strip().splitlines()
    assert message.startswith("error: stopped by SIGTERM; the same command goes on")
    assert "SIGTERM received" not in stopped.stderr  # the stack of Ray's core, before it
