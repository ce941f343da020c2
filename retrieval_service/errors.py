"""Failures of the service itself, as against wrong input (`affect_rl.errors.AffectError`)."""

from __future__ import annotations

from affect_rl.errors import FailureError


class RetrievalError(FailureError):
    """No answer before the deadline; the message names the stage and the actor."""
