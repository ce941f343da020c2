"""Errors that a user can act on: wrong input, and failures that are nobody's fault."""


class AffectError(ValueError):
    """Wrong input: the message names the place and the fix.

    The command line prints the message without a traceback and exits with status 2.
    """


class FailureError(RuntimeError):
    """What a run stands on has failed: a process, a node, the network, a disk. The message names it.

    The command line prints the message without a traceback, says how to go on, and exits with status 1.
    """
