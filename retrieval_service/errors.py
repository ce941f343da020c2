"""Failures of the service itself, as against wrong input (`affect_rl.errors.AffectError`)."""

from __future__ import annotations


class RetrievalError(RuntimeError):
    """No answer before the deadline; the message names the stage and the actor."""
